//! One directory, two programs: what is trained here opens in diffusers and draws the same picture from the same noise,
//! and what diffusers saves does so here.
//!
//! Runs where `UNCLIP_PEER_PYTHON` names an interpreter with the packages of `tools/golden/requirements.txt`; the last
//! result is in `benches/runs`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use models::pipeline::{Given, Noise, Options, Pipeline, SeededNoise, Stage};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;
use tensor::{DType, Device, Tensor};

/// Of the picture before it is quantised, and of every stage before it.
const TOLERANCE: f64 = 1e-3;

/// Networks that take a step in milliseconds; both predict what diffusers' scheduler knows.
const PLAN: &str = r#"{
  "seed": 3, "data": null, "pictures": 40, "eval_prompts": 0,
  "stages": [
    {"stage": "clip", "steps": 30, "seconds_per_step": 0.01, "overrides": ["resolution=16", "train_batch_size=8",
      "logging_steps=10", "vocab_size=640", "image_size=16", "patch_size=4", "projection_dim=16", "text_layers=1",
      "text_heads=2", "vision_hidden_size=16", "vision_layers=1", "vision_heads=2"]},
    {"stage": "prior", "steps": 30, "seconds_per_step": 0.01, "overrides": ["resolution=16", "train_batch_size=8",
      "logging_steps=10", "num_layers=1", "num_attention_heads=2", "attention_head_dim=8", "whitening_samples=16"]},
    {"stage": "decoder", "steps": 60, "seconds_per_step": 0.01, "overrides": ["resolution=16", "train_batch_size=8",
      "logging_steps=10", "validation_steps=1000", "prediction_type=sample", "sample_size=8",
      "block_out_channels=[8, 16]", "attention_levels=1", "attention_head_dim=8", "cross_attention_dim=8",
      "extra_context_tokens=2", "norm_num_groups=4"]},
    {"stage": "upsampler", "steps": 30, "seconds_per_step": 0.01, "overrides": ["resolution=16", "train_batch_size=8",
      "logging_steps=10", "validation_steps=1000", "prediction_type=sample", "sample_size=16", "low_size=8",
      "crop_size=8", "block_out_channels=[8, 8]", "norm_num_groups=4"]}
  ]
}"#;

/// `None` where there is nothing to exchange with.
fn python(arguments: &[&str], paths: &[&Path]) -> Option<String> {
    let interpreter = std::env::var_os("UNCLIP_PEER_PYTHON")?;
    let output = Command::new(interpreter)
        .args(["-m", "tools.golden.exchange"])
        .args(arguments)
        .args(paths)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn skipped() {
    println!("skipped: UNCLIP_PEER_PYTHON names no interpreter with diffusers");
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Prior { .. } => "prior",
        Stage::Decoder => "decoder",
        Stage::SuperRes => "super_res",
        Stage::SuperRes1024 => "super_res_1024",
        Stage::Inversion => "inversion",
    }
}

/// Pictures as files have them.
fn outward(x: &Tensor) -> Tensor {
    match x.rank() {
        4 => x.permute(&[0, 3, 1, 2]).unwrap().contiguous().unwrap(),
        _ => x.clone(),
    }
}

/// Remembers every draw.
struct Recorded {
    noise: SeededNoise,
    drawn: RefCell<BTreeMap<String, Tensor>>,
}

impl Noise for Recorded {
    fn normal(
        &self,
        stage: Stage,
        occurrence: usize,
        shape: &[usize],
        dtype: DType,
    ) -> tensor::Result<Tensor> {
        let x = self.noise.normal(stage, occurrence, shape, dtype)?;
        let name = format!("{}.{occurrence}", stage_name(stage));
        self.drawn.borrow_mut().insert(name, outward(&x));
        Ok(x)
    }
}

/// Draws with both programs, and compares stage by stage: with diffusers as it is, and with its schedulers' tables in f64.
///
/// Its own tables are in f32, in which a decoder that predicts noise loses its first step: the clean sample at t = 999 is
/// the network's error times 2e4, clipped, and some pixels change their sign. With `stock` the picture must be the same
/// all the same.
fn both_draw_the_same(title: &str, model: &Path, work: &Path, stock: bool) {
    let prompts = ["a large red circle", "two small blue squares"];
    let options = Options {
        prior_num_inference_steps: 5,
        decoder_num_inference_steps: 6,
        super_res_num_inference_steps: 3,
        prior_candidates: 1,
        ..Options::default()
    };
    let noise = Recorded {
        noise: SeededNoise {
            seed: 11,
            first_image: 0,
            device: Device::Cpu,
        },
        drawn: RefCell::default(),
    };
    let pipeline = Pipeline::load(model, DType::F32, Device::Cpu).unwrap();
    let mut image = Tensor::zeros([0], DType::F32, Device::Cpu);
    let made = pipeline
        .generate(&prompts, Given::Text, &options, &noise, &mut |step| {
            if step.stage == Stage::SuperRes {
                image = step.sample.clone();
            }
            Ok(())
        })
        .unwrap();

    let noise = noise.drawn.into_inner();
    let ours = [
        ("text_embeds", &made.text_embeddings),
        ("image_embeddings", made.image_embeddings.as_ref().unwrap()),
        ("small", &made.small),
        ("image", &image),
    ];
    for exact_tables in [true, false] {
        let theirs = render(model, work, &prompts, &options, &noise, exact_tables);
        let tables = if exact_tables { "in f64" } else { "its own" };
        println!("{title}, tables {tables}: {}", theirs.versions);
        compare(&ours, &theirs.tensors, exact_tables || stock);
    }
}

/// What diffusers made.
struct Rendered {
    versions: String,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
}

fn render(
    model: &Path,
    work: &Path,
    prompts: &[&str],
    options: &Options,
    noise: &BTreeMap<String, Tensor>,
    exact_tables: bool,
) -> Rendered {
    let request = json!({
        "exact_tables": exact_tables,
        "prompts": prompts,
        "steps": {
            "prior": options.prior_num_inference_steps,
            "decoder": options.decoder_num_inference_steps,
            "super_res": options.super_res_num_inference_steps,
        },
        "scales": { "prior": options.prior_guidance_scale, "decoder": options.decoder_guidance_scale },
    });
    let [asked, drawn, out] =
        ["request.json", "noise.safetensors", "out.safetensors"].map(|name| work.join(name));
    std::fs::write(&asked, request.to_string()).unwrap();
    let bytes: Vec<Vec<u8>> = noise
        .values()
        .map(|x| {
            let values = x.to_vec::<f32>().unwrap();
            values.iter().flat_map(|v| v.to_le_bytes()).collect()
        })
        .collect();
    let views = noise.iter().zip(&bytes).map(|((name, x), bytes)| {
        (
            name,
            TensorView::new(Dtype::F32, x.dims().to_vec(), bytes).unwrap(),
        )
    });
    serialize_to_file(views, None, &drawn).unwrap();
    let versions = python(&["render"], &[model, &asked, &drawn, &out]).unwrap();
    let bytes = std::fs::read(&out).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |data: &[u8]| -> Vec<f64> {
        let values = data.chunks_exact(4);
        values
            .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
            .collect()
    };
    let tensors = file
        .iter()
        .map(|(name, view)| {
            (
                name.to_owned(),
                (view.shape().to_vec(), numbers(view.data())),
            )
        })
        .collect();
    Rendered { versions, tensors }
}

fn compare(
    ours: &[(&str, &Tensor)],
    theirs: &BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    must_agree: bool,
) {
    for &(name, ours) in ours {
        let (shape, theirs) = &theirs[name];
        let ours = outward(ours);
        assert_eq!(shape, ours.dims(), "{name}");
        let ours = ours.to_f64_vec().unwrap();
        let pairs = || ours.iter().zip(theirs);
        let farthest = pairs().fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        let largest = theirs.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        let finite = pairs().all(|(a, b)| a.is_finite() && b.is_finite());
        println!("  {name}: {farthest:.1e} apart at most, of {largest:.2}");
        assert!(finite, "{name}");
        assert!(!must_agree || farthest <= TOLERANCE * largest, "{name}");
        if name == "image" {
            let byte = |v: &f64| ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even();
            let equal = pairs().filter(|(a, b)| byte(a) == byte(b)).count();
            let near = pairs().filter(|(a, b)| (byte(a) - byte(b)).abs() <= 1.0);
            let near = near.count();
            println!(
                "  bytes: {equal} of {} are equal, {near} within 1",
                ours.len()
            );
            assert!(!must_agree || near * 1000 >= ours.len() * 999);
        }
    }
}

#[test]
fn what_is_trained_here_draws_the_same_in_diffusers() {
    if std::env::var_os("UNCLIP_PEER_PYTHON").is_none() {
        return skipped();
    }
    let root = tempfile::tempdir().unwrap();
    let plan = root.path().join("plan.json");
    std::fs::write(&plan, PLAN).unwrap();
    let run = root.path().join("run");
    let output = Command::new(env!("CARGO_BIN_EXE_unclip"))
        .args(["demo", "--plan"])
        .arg(&plan)
        .arg("--output")
        .arg(&run)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let model = train::trainer::model_dir(&run);
    both_draw_the_same("trained here", &model, root.path(), true);
}

#[test]
fn what_diffusers_saves_draws_the_same_here() {
    let root = tempfile::tempdir().unwrap();
    let model: PathBuf = root.path().join("model");
    if python(&["make"], &[&model]).is_none() {
        return skipped();
    }
    // Its decoder predicts noise.
    both_draw_the_same("saved by diffusers", &model, root.path(), false);
}
