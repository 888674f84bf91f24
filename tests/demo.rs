//! The demo, tiny: killed and stopped in the middle, it ends with the hash of a run that was left alone.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PLAN: &str = r#"{
  "seed": 3, "data": null, "pictures": 40, "eval_prompts": 0,
  "stages": [
    {"stage": "clip", "steps": 12, "seconds_per_step": 0.01, "overrides": ["resolution=16", "train_batch_size=4",
      "checkpointing_steps=3", "logging_steps=1", "vocab_size=640", "image_size=16", "patch_size=4",
      "projection_dim=16", "text_layers=1", "text_heads=2", "vision_hidden_size=16", "vision_layers=1",
      "vision_heads=2"]},
    {"stage": "prior", "steps": 12, "seconds_per_step": 0.01, "overrides": ["resolution=16", "train_batch_size=4",
      "checkpointing_steps=3", "logging_steps=1", "num_layers=1", "num_attention_heads=2", "attention_head_dim=8",
      "whitening_samples=16"]},
    {"stage": "decoder", "steps": 40, "seconds_per_step": 0.01, "overrides": ["resolution=16", "train_batch_size=4",
      "checkpointing_steps=3", "logging_steps=1", "validation_steps=20", "sample_size=8",
      "block_out_channels=[8, 16]", "attention_levels=1", "attention_head_dim=8", "cross_attention_dim=8",
      "extra_context_tokens=2", "norm_num_groups=4"]},
    {"stage": "upsampler", "steps": 12, "seconds_per_step": 0.01, "overrides": ["resolution=16", "train_batch_size=4",
      "checkpointing_steps=3", "logging_steps=1", "sample_size=16", "low_size=4", "crop_size=8",
      "block_out_channels=[8, 8]", "norm_num_groups=4"]}
  ]
}"#;

fn demo(root: &Path, run: &str) -> Command {
    let plan = root.join("given-plan.json");
    std::fs::write(&plan, PLAN).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_unclip"));
    command
        .args(["demo", "--plan"])
        .arg(&plan)
        .arg("--output")
        .arg(root.join(run))
        .env("RUST_BACKTRACE", "0");
    command
}

/// The hash that a finished demo prints.
fn hash(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let line = text.lines().find_map(|line| line.strip_prefix("weights "));
    line.and_then(|line| line.split(' ').next())
        .unwrap_or_else(|| panic!("no hash in {text}"))
        .to_owned()
}

/// Waits until the decoder has logged `lines` steps.
fn until_in_the_decoder(child: &mut Child, run: &Path, lines: usize) {
    let metrics = run.join("decoder/metrics.jsonl");
    let began = Instant::now();
    loop {
        let logged = std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
        if logged >= lines {
            return;
        }
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it could be stopped"
        );
        assert!(
            began.elapsed() < Duration::from_secs(300),
            "it never came to the decoder"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn killed_or_stopped_and_started_again_it_ends_with_the_same_hash() {
    let root = tempfile::tempdir().unwrap();
    let whole = hash(&demo(root.path(), "whole").output().unwrap());

    let run = root.path().join("parts");
    let spawn = || {
        let mut command = demo(root.path(), "parts");
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut child = spawn();
    until_in_the_decoder(&mut child, &run, 8);
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();

    let mut child = spawn();
    until_in_the_decoder(&mut child, &run, 20);
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let stopped = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&stopped.stderr);
    assert_eq!(stopped.status.code(), Some(128 + 15), "{said}");
    assert!(said.contains("stopped by SIGTERM"), "{said}");

    let parts = demo(root.path(), "parts").output().unwrap();
    assert_eq!(hash(&parts), whole);
    assert!(run.join("samples.png").exists() && run.join("index.html").exists());

    // Once more: everything is there already.
    assert_eq!(hash(&demo(root.path(), "parts").output().unwrap()), whole);

    // And the model that it made draws: the same prompt and seed give the same bytes.
    let draw = |name: &str, seed: &str| {
        let picture = root.path().join(name);
        let output = Command::new(env!("CARGO_BIN_EXE_unclip"))
            .args(["generate", "-p", "a small red circle on a white background"])
            .args(["--seed", seed, "--trajectory", "--model"])
            .arg(run.join("model"))
            .arg("-o")
            .arg(&picture)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        std::fs::read(picture).unwrap()
    };
    let first = draw("a.png", "7");
    assert_eq!(first, draw("b.png", "7"));
    assert_ne!(first, draw("c.png", "8"));
    assert!(root.path().join("a.trajectory.png").exists());
    let carries = |needle: &[u8]| first.windows(needle.len()).any(|w| w == needle);
    assert!(carries(
        b"tEXtparameters\0a small red circle on a white background\nSteps: "
    ));

    // What cannot be drawn is refused before anything is.
    let refused = |prompt: &str, code: i32| {
        let output = Command::new(env!("CARGO_BIN_EXE_unclip"))
            .args(["generate", "-p", prompt, "--model"])
            .arg(run.join("model"))
            .arg("-o")
            .arg(root.path().join("never.png"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(!root.path().join("never.png").exists());
        said
    };
    assert!(refused("", 2).contains("the prompt is empty"));
    assert!(refused(&"a red circle ".repeat(20), 2).contains("shorten it"));
    let weights = run.join("model/prior/diffusion_pytorch_model.safetensors");
    std::fs::copy(
        run.join("model/decoder/diffusion_pytorch_model.safetensors"),
        &weights,
    )
    .unwrap();
    let said = refused("a red circle", 1);
    assert!(
        said.contains("does not hold the weights of this PriorTransformer"),
        "{said}"
    );
    std::fs::remove_file(&weights).unwrap();
    let said = refused("a red circle", 1);
    assert!(
        said.contains("prior/diffusion_pytorch_model.safetensors"),
        "{said}"
    );
}

#[test]
fn own_pictures_take_the_place_of_the_shapes() {
    let root = tempfile::tempdir().unwrap();
    let pictures = root.path().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for i in 0..12u8 {
        let picture = image::RgbImage::from_pixel(20, 30, image::Rgb([i * 20, 90, 200]));
        picture.save(pictures.join(format!("{i}.png"))).unwrap();
        std::fs::write(
            pictures.join(format!("{i}.txt")),
            format!("shade number {i}"),
        )
        .unwrap();
    }
    let plan = PLAN.replace("null", &format!("{:?}", pictures.display().to_string()));
    let mut command = demo(root.path(), "run");
    std::fs::write(root.path().join("given-plan.json"), plan).unwrap();
    hash(&command.output().unwrap());
    assert!(root.path().join("run/samples.png").exists());
    assert!(root.path().join("run/index.html").exists());
    assert!(!root.path().join("run/data").exists());
}
