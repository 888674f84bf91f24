//! The command line from outside: every bad input ends with one clear sentence, the right exit code, and nothing lost.

mod command;

use std::fs;
use std::path::Path;
use std::process::Command;

use command::{refused, succeeded, unclip};

const CLIP: &str = r#"
stage = "clip"
data = "data"
output_dir = "clip"
resolution = 16
max_train_steps = 2
train_batch_size = 4
checkpointing_steps = 1
logging_steps = 1
vocab_size = 640
image_size = 16
patch_size = 4
projection_dim = 16
text_layers = 1
text_heads = 2
vision_hidden_size = 16
vision_layers = 1
vision_heads = 2
"#;

/// A folder with shards of twelve pictures and a configuration for a tiny CLIP.
fn workspace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let shapes = [
        "data",
        "make-shapes",
        "-o",
        "data",
        "-c",
        "12",
        "--size",
        "16",
        "--per-shard",
        "6",
    ];
    succeeded(&unclip(dir.path(), &shapes));
    fs::write(dir.path().join("clip.toml"), CLIP).unwrap();
    dir
}

#[test]
fn what_is_not_understood_is_refused_with_a_suggestion() {
    let dir = workspace();
    let train = |overrides: &[&str]| {
        let mut arguments = vec!["train", "clip.toml"];
        arguments.extend(overrides);
        refused(&unclip(dir.path(), &arguments), 2)
    };
    assert!(train(&["learning_rat=1"]).contains("did you mean learning_rate?"));
    assert!(train(&["train_batch_size=many"]).contains("wants a whole number"));
    assert!(train(&["image_size=12"]).contains("must divide resolution"));
    assert!(train(&["--resume", "latest"]).contains("no complete checkpoint"));
    let missing = refused(&unclip(dir.path(), &["train", "none.toml"]), 2);
    assert!(missing.contains("cannot read none.toml"), "{missing}");
    let command = refused(&unclip(dir.path(), &["demoo"]), 2);
    assert!(command.contains("demo"), "{command}");
    let device = refused(&unclip(dir.path(), &["--device", "gpu", "doctor"]), 2);
    assert!(device.contains("cpu"), "{device}");
    let simulated = refused(&unclip(dir.path(), &["--device", "sim", "demo"]), 2);
    assert!(simulated.contains("runs on the CPU only"), "{simulated}");
    let check = refused(&unclip(dir.path(), &["kernels", "check", "unary"]), 2);
    assert!(check.contains("--device sim"), "{check}");
    let minutes = refused(&unclip(dir.path(), &["demo", "--minutes", "0"]), 2);
    assert!(
        minutes.contains("--minutes must be above zero"),
        "{minutes}"
    );
    let nowhere = ["generate", "-p", "a red circle", "--model", "nowhere"];
    let model = refused(&unclip(dir.path(), &nowhere), 2);
    assert!(model.contains("nowhere is neither a demo run"), "{model}");
    let run = refused(&unclip(dir.path(), &["eval", "nowhere"]), 2);
    assert!(run.contains("nowhere is neither a demo run"), "{run}");
}

#[test]
fn without_a_gpu_cuda_fails_in_one_sentence_and_everything_else_works() {
    let dir = workspace();
    let commands: [&[&str]; 4] = [
        &["doctor"],
        &["kernels", "check", "affine"],
        &["train", "clip.toml"],
        &["generate", "-p", "a red circle"],
    ];
    for device in ["cuda", "cuda:0", "cuda:7"] {
        for command in commands {
            let arguments = [&["--device", device], command].concat();
            let said = refused(&unclip(dir.path(), &arguments), 2);
            assert!(said.contains("use --device cpu"), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
    assert!(!dir.path().join("clip").exists());
    let said = succeeded(&unclip(dir.path(), &["doctor"]));
    for line in ["device    cpu", "driver    ", "ptxas     ", "features  "] {
        assert!(said.contains(line), "{line} is missing:\n{said}");
    }
    succeeded(&unclip(
        dir.path(),
        &["--device", "auto", "train", "clip.toml"],
    ));
    let simulated = ["--device", "sim", "train", "clip.toml", "output_dir=sim"];
    succeeded(&unclip(dir.path(), &simulated));
    assert!(dir.path().join("sim/model/clip/config.json").is_file());
}

#[test]
fn bad_data_is_named_and_stops_a_run_where_there_is_too_much() {
    let dir = workspace();
    let shard = dir.path().join("data/00001.tar");
    let whole = fs::read(&shard).unwrap();

    // One byte inside a PNG: the sample is skipped, counted and named.
    let mut corrupt = whole.clone();
    let png = corrupt.windows(4).position(|w| w == b"IHDR").unwrap();
    corrupt[png] ^= 0xFF;
    fs::write(&shard, &corrupt).unwrap();
    let inspect = ["data", "inspect", "data", "--max-bad-share", "0.2"];
    let said = succeeded(&unclip(dir.path(), &inspect));
    assert!(said.contains("1 that cannot be used"), "{said}");
    assert!(said.contains("00001.tar:"), "{said}");
    let run = ["train", "clip.toml", "max_bad_share=0.2"];
    assert!(succeeded(&unclip(dir.path(), &run)).contains("1 samples cannot be used"));
    let strict = [
        "train",
        "clip.toml",
        "max_bad_share=0.01",
        "output_dir=strict",
    ];
    let said = refused(&unclip(dir.path(), &strict), 1);
    assert!(said.contains("more than the allowed 1.0 %"), "{said}");

    fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    let said = refused(&unclip(dir.path(), &["data", "inspect", "data"]), 1);
    assert!(said.contains("00001.tar is truncated"), "{said}");
    let said = refused(&unclip(dir.path(), &["data", "inspect", "nothing.tar"]), 1);
    assert!(said.contains("nothing.tar"), "{said}");
}

#[test]
fn a_run_directory_that_cannot_be_written_says_so() {
    let dir = workspace();
    fs::write(dir.path().join("file"), "in the way").unwrap();
    let said = refused(
        &unclip(dir.path(), &["train", "clip.toml", "output_dir=file/run"]),
        1,
    );
    assert!(said.contains("cannot create file/run"), "{said}");
    let said = refused(&unclip(dir.path(), &["demo", "-o", "file/run"]), 1);
    assert!(said.contains("cannot create file/run"), "{said}");
    // Processes that may do everything cannot be kept out of a directory by its permissions.
    #[cfg(target_os = "linux")]
    {
        let said = refused(
            &unclip(dir.path(), &["train", "clip.toml", "output_dir=/proc/run"]),
            1,
        );
        assert!(said.contains("cannot create /proc/run"), "{said}");
    }
}

/// A limit on the size of files stands in for a full disk: writing fails in the middle of a checkpoint.
#[test]
fn a_full_disk_leaves_the_earlier_checkpoint_and_the_run_goes_on_later() {
    let dir = workspace();
    succeeded(&unclip(dir.path(), &["train", "clip.toml"]));
    let more = "max_train_steps=4";
    let binary = env!("CARGO_BIN_EXE_unclip");
    let limited = format!(
        "trap '' XFSZ; ulimit -f 8; exec '{binary}' train clip.toml {more} --resume latest"
    );
    let output = Command::new("sh")
        .args(["-c", &limited])
        .current_dir(dir.path())
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let said = refused(&output, 1);
    assert!(said.contains("cannot write"), "{said}");
    let names = fs::read_dir(dir.path().join("clip/checkpoints")).unwrap();
    let mut names: Vec<String> = names
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["step-00000001", "step-00000002"]);
    let on = succeeded(&unclip(
        dir.path(),
        &["train", "clip.toml", more, "--resume", "latest"],
    ));
    assert!(
        on.contains("goes on from clip/checkpoints/step-00000002"),
        "{on}"
    );
}

#[test]
fn a_damaged_checkpoint_is_passed_over_with_a_warning() {
    let dir = workspace();
    succeeded(&unclip(dir.path(), &["train", "clip.toml"]));
    let weights = dir
        .path()
        .join("clip/checkpoints/step-00000002/clip/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 7]).unwrap();
    let output = unclip(dir.path(), &["train", "clip.toml", "--resume", "latest"]);
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(succeeded(&output).contains("goes on from clip/checkpoints/step-00000001"));
    assert!(warned.contains("step-00000002 is damaged"), "{warned}");
}

#[test]
fn weights_that_are_missing_or_of_another_shape_are_named() {
    let dir = workspace();
    succeeded(&unclip(dir.path(), &["train", "clip.toml"]));
    let wider = [
        "train",
        "clip.toml",
        "max_train_steps=3",
        "vision_hidden_size=32",
        "--resume",
        "latest",
    ];
    let said = refused(&unclip(dir.path(), &wider), 1);
    assert!(said.contains("vision_model"), "{said}");
    let prior = "stage = \"prior\"\ndata = \"data\"\nresolution = 16\nclip = \"clip\"\noutput_dir = \"prior\"\n";
    fs::write(dir.path().join("prior.toml"), prior).unwrap();
    fs::remove_file(dir.path().join("clip/model/clip/model.safetensors")).unwrap();
    let said = refused(&unclip(dir.path(), &["train", "prior.toml"]), 1);
    assert!(said.contains("model.safetensors"), "{said}");
    let said = refused(
        &unclip(dir.path(), &["train", "prior.toml", "clip=nowhere"]),
        2,
    );
    assert!(said.contains("nowhere"), "{said}");
}

#[test]
fn a_loss_that_is_not_finite_names_the_first_op_and_its_module() {
    let dir = workspace();
    let wild = [
        "train",
        "clip.toml",
        "learning_rate=1e30",
        "lr_warmup_steps=1",
    ];
    let said = refused(&unclip(dir.path(), &wild), 1);
    assert!(said.contains("the loss is not finite at step 1"), "{said}");
    assert!(
        said.contains("in  text_model.encoder.layers.0.self_attn.q_proj"),
        "{said}"
    );
    assert!(dir.path().join("clip/checkpoints/step-00000001").is_dir());
}

#[test]
fn a_kernel_that_is_shown_runs_and_its_mistakes_name_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let text = succeeded(&unclip(
        dir.path(),
        &["kernels", "show", "unary_forward_silu_f32"],
    ));
    fs::write(dir.path().join("silu.ptx"), text).unwrap();
    let run = |input: &str| {
        let arguments = [
            "kernels",
            "run",
            "silu.ptx",
            "--block",
            "256",
            "-a",
            "write:f32[1000]",
            "-a",
            input,
            "-a",
            "u32:1000",
            "--save",
            "0=y.bin",
        ];
        unclip(dir.path(), &arguments)
    };
    let said = succeeded(&run("read:f32[1000]=ones"));
    assert!(said.contains("argument 0 f32[1000]: 0.731058"), "{said}");
    assert_eq!(fs::read(dir.path().join("y.bin")).unwrap().len(), 4000);
    let said = refused(&run("read:f32[900]=ones"), 1);
    assert!(
        said.contains("out of bounds") && said.contains("PTX line"),
        "{said}"
    );
    let said = refused(&run("read:f32[900]"), 2);
    assert!(said.contains("is no argument"), "{said}");
    let said = refused(&unclip(dir.path(), &["kernels", "show", "nothing"]), 2);
    assert!(said.contains("no kernel's name contains"), "{said}");
}

#[test]
fn what_a_case_launches_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let show = |more: &[&str]| {
        let case = "x=[2, 5, 3, 12],groups=4,silu,scale_shift";
        let named = ["kernels", "show", "group_norm", case, "--storage", "f32"];
        succeeded(&unclip(dir.path(), &[&named, more].concat()))
    };
    let entries = |text: &str| text.matches(".visible .entry group_norm_").count();
    let (forward, both) = (show(&[]), show(&["--backward"]));
    assert!(both.starts_with(&forward));
    assert_eq!([entries(&forward), entries(&both)], [1, 3]);
    let said = refused(&unclip(dir.path(), &["kernels", "show", "affine", "zz"]), 2);
    assert!(said.contains("no case's name contains \"zz\""), "{said}");
    let on_cpu = ["--device", "cpu", "kernels", "show", "affine", "x=[1]"];
    let said = refused(&unclip(dir.path(), &on_cpu), 2);
    assert!(said.contains("on the simulated GPU only"), "{said}");
}

/// docs/kernels.md shows a kernel, what it prints, and what is said of it without its barrier.
#[test]
fn the_scratchpads_example_is_true() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kernels.md");
    let docs = fs::read_to_string(docs).unwrap();
    let (_, kernel) = docs.split_once("```ptx\n").unwrap();
    let (kernel, _) = kernel.split_once("```").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let run = |text: &str| {
        fs::write(dir.path().join("sum.ptx"), text).unwrap();
        let launch = ["kernels", "run", "sum.ptx", "--grid", "4", "--block", "64"];
        let arguments = ["-a", "write:f32[4]", "-a", "read:f32[256]=iota"];
        unclip(dir.path(), &[&launch[..], &arguments].concat())
    };
    let said = succeeded(&run(kernel));
    assert!(docs.contains(said.lines().next().unwrap()), "{said}");
    let without = kernel.lines().filter(|line| !line.contains("bar.sync"));
    let said = refused(&run(&without.collect::<Vec<_>>().join("\n")), 1);
    assert!(docs.contains(said.trim()), "{said}");
    // What stands in comments is no entry.
    let commented = kernel.replace("// y[cta]", "// The .entry of y[cta]");
    succeeded(&run(&commented));
    fs::write(dir.path().join("sum.ptx"), [0xff, 0xfe]).unwrap();
    let said = refused(&unclip(dir.path(), &["kernels", "run", "sum.ptx"]), 2);
    assert!(said.contains("sum.ptx is no PTX"), "{said}");
}

/// A safetensors file of the tensors that a tiny CLIP takes, and what else is asked.
fn clip_inputs(path: &Path, more: &[(&str, Vec<usize>)]) {
    use safetensors::Dtype;
    use safetensors::tensor::{TensorView, serialize};
    let ids: Vec<u8> = [512i64, 7, 9, 513]
        .iter()
        .cycle()
        .take(8)
        .flat_map(|id| id.to_le_bytes())
        .collect();
    let numbers = |count: usize| -> Vec<u8> {
        (0..count)
            .flat_map(|i| ((i % 17) as f32 / 8.0 - 1.0).to_le_bytes())
            .collect()
    };
    let mut floats = vec![("pixel_values", vec![2, 3, 16, 16])];
    floats.extend(more.iter().cloned());
    let bytes: Vec<Vec<u8>> = floats
        .iter()
        .map(|(_, shape)| numbers(shape.iter().product()))
        .collect();
    let mut views: Vec<(&str, TensorView)> = floats
        .iter()
        .zip(&bytes)
        .map(|((name, shape), bytes)| {
            (
                *name,
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        })
        .collect();
    views.push((
        "input_ids",
        TensorView::new(Dtype::I64, vec![2, 4], &ids).unwrap(),
    ));
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

#[test]
fn a_component_can_be_probed() {
    let dir = workspace();
    succeeded(&unclip(dir.path(), &["train", "clip.toml"]));
    clip_inputs(&dir.path().join("x.safetensors"), &[]);
    let probe = |more: &[&str]| {
        let mut arguments = vec!["probe", "clip/model", "clip", "--inputs", "x.safetensors"];
        arguments.extend(more);
        unclip(dir.path(), &arguments)
    };
    let listed = succeeded(&probe(&["--list"]));
    assert!(listed.contains("logits_per_image [2, 2]"), "{listed}");
    assert!(
        listed.contains("vision_model.encoder.layers.0.mlp.fc1 [2, 17, 64]"),
        "{listed}"
    );
    succeeded(&probe(&[
        "--save",
        "y.safetensors",
        "--activations",
        "*.self_attn.probs",
        "--gradients",
        "*_projection.weight",
    ]));
    let bytes = fs::read(dir.path().join("y.safetensors")).unwrap();
    let saved = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, shape) in [
        ("loss", vec![]),
        ("text_embeds", vec![2, 16]),
        (
            "text_model.encoder.layers.0.self_attn.probs",
            vec![2, 2, 4, 4],
        ),
        ("visual_projection.weight", vec![16, 16]),
    ] {
        let found = saved.tensor(name).unwrap();
        assert_eq!(found.shape(), shape, "{name}");
    }
    assert!(
        saved
            .tensor("visual_projection.weight")
            .unwrap()
            .data()
            .iter()
            .any(|&b| b != 0)
    );

    clip_inputs(&dir.path().join("x.safetensors"), &[("smaple", vec![1])]);
    let said = refused(&probe(&["--list"]), 2);
    assert!(said.contains("no input smaple"), "{said}");
    fs::write(dir.path().join("x.safetensors"), b"no tensors").unwrap();
    let said = refused(&probe(&["--list"]), 2);
    assert!(said.contains("no safetensors file"), "{said}");
}

#[test]
fn a_clip_is_trained_by_either_loss_and_measured() {
    let dir = workspace();
    let run = |arguments: &[&str]| unclip(dir.path(), arguments);
    let classes = r#"{"circle": ["a circle", "a round shape"], "square": ["a square"], "triangle": ["a triangle"]}"#;
    fs::write(dir.path().join("classes.json"), classes).unwrap();
    for loss in ["softmax", "sigmoid"] {
        let (loss_is, output) = (format!("loss={loss}"), format!("output_dir={loss}"));
        succeeded(&run(&["train", "clip.toml", &loss_is, &output]));
        let said = succeeded(&run(&[
            "eval-clip",
            loss,
            "--data",
            "data",
            "--classes",
            "classes.json",
            "-o",
            "report.json",
        ]));
        assert!(said.contains("12 pairs"), "{said}");
        assert!(
            said.contains("text to picture") && said.contains("picture to text"),
            "{said}"
        );
        let report = fs::read(dir.path().join("report.json")).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        for way in ["text_to_image", "image_to_text"] {
            let recall = report["retrieval"][way].as_array().unwrap();
            let recall: Vec<f64> = recall.iter().map(|v| v.as_f64().unwrap()).collect();
            assert!(recall.is_sorted() && recall[2] <= 1.0, "{recall:?}");
        }
        let zero_shot = &report["zero_shot"];
        let counted = ["pictures", "without_class"].map(|key| zero_shot[key].as_u64().unwrap());
        assert_eq!(counted.iter().sum::<u64>(), 12);
        let config = fs::read_to_string(dir.path().join(loss).join("model/clip/config.json"));
        assert_eq!(
            config.unwrap().contains("logit_bias_init_value"),
            loss == "sigmoid"
        );
    }
    let said = refused(&run(&["train", "clip.toml", "loss=hinge"]), 2);
    assert!(said.contains("hinge"), "{said}");
    fs::write(dir.path().join("classes.json"), r#"{"circle": "a circle"}"#).unwrap();
    let few = [
        "eval-clip",
        "softmax",
        "--data",
        "data",
        "--classes",
        "classes.json",
    ];
    let said = refused(&run(&few), 2);
    assert!(said.contains("must hold {\"class\""), "{said}");
}
