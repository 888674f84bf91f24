//! Text to image, every noise injected. The schedulers' tables are in f64 on both sides: `tools/golden/pipeline.py` says
//! what those of diffusers, in f32, change.

use std::cell::RefCell;

use autograd::{DType, Tensor};
use models::diffusion::SchedulerConfig;
use models::pipeline::{Given, Noise, Options, Pipeline, Stage};
use models::prior::Prior;
use models::tokenizer::Tokenizer;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::files::{Report, distance, json, largest, path, tensors};
use crate::formula::{filled, inward, outward, values};

#[derive(Deserialize)]
pub struct Golden {
    prompts: Vec<String>,
    steps: Steps,
    scales: Scales,
    pub components: Value,
    schedulers: Value,
}

#[derive(Deserialize)]
struct Steps {
    /// None in image variation.
    #[serde(default)]
    prior: usize,
    decoder: usize,
    super_res: usize,
}

#[derive(Deserialize)]
struct Scales {
    prior: f64,
    decoder: f64,
}

impl Golden {
    pub fn part<T: DeserializeOwned>(&self, of: &Value, name: &str) -> T {
        serde_json::from_value(of[name].clone()).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn pipeline(&self, dtype: DType) -> Pipeline {
        let dir = tempfile::tempdir().unwrap();
        for name in ["vocab.json", "merges.txt"] {
            std::fs::copy(path("tokenizer").join(name), dir.path().join(name)).unwrap();
        }
        let config = r#"{"model_max_length": 16}"#;
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        macro_rules! component {
            ($name:literal) => {
                filled(
                    concat!("pipeline.", $name),
                    &self.part(&self.components, $name),
                    dtype,
                )
                .into()
            };
        }
        let scheduler = |name| self.part::<SchedulerConfig>(&self.schedulers, name);
        Pipeline {
            tokenizer: Tokenizer::from_dir(dir.path()).unwrap(),
            text_encoder: component!("text_encoder"),
            prior: Some(Prior::Diffusion(Box::new(component!("prior")))),
            prior_scheduler: scheduler("prior"),
            text_proj: component!("text_proj"),
            decoder: component!("decoder"),
            decoder_scheduler: scheduler("decoder"),
            super_res_first: component!("super_res_first"),
            super_res_last: component!("super_res_last"),
            super_res_scheduler: scheduler("super_res"),
            super_res_1024: None,
        }
    }

    pub fn options(&self) -> Options {
        Options {
            prior_num_inference_steps: self.steps.prior.max(1),
            decoder_num_inference_steps: self.steps.decoder,
            super_res_num_inference_steps: self.steps.super_res,
            prior_guidance_scale: self.scales.prior,
            decoder_guidance_scale: self.scales.decoder,
            prior_candidates: 1,
            ..Options::default()
        }
    }
}

/// The noise that `tools/golden/pipeline.py` injects.
pub struct Formula;

impl Noise for Formula {
    fn normal(
        &self,
        stage: Stage,
        occurrence: usize,
        shape: &[usize],
        dtype: DType,
    ) -> tensor::Result<Tensor> {
        let name = match stage {
            Stage::Prior { .. } => "prior",
            Stage::Decoder => "decoder",
            Stage::SuperRes => "super_res",
            Stage::SuperRes1024 => "super_res_1024",
            Stage::Inversion => panic!("an inversion draws no noise"),
        };
        let name = format!("noise/{name}/{occurrence}");
        match *shape {
            [n, h, w, c] => inward(&values(&name, &[n, c, h, w])).cast(dtype),
            _ => values(&name, shape).cast(dtype),
        }
    }
}

/// What is compared, in PyTorch's layout.
struct Made {
    text_embeds: Vec<f64>,
    image_embeddings: Vec<f64>,
    small: Vec<f64>,
    image: Vec<f64>,
    bytes: Vec<u8>,
}

fn make(golden: &Golden, dtype: DType) -> Made {
    let prompts: Vec<&str> = golden.prompts.iter().map(String::as_str).collect();
    let image = RefCell::new(Vec::new());
    let pipeline = golden.pipeline(dtype);
    let made = pipeline
        .generate(
            &prompts,
            Given::Text,
            &golden.options(),
            &Formula,
            &mut |step| {
                if step.stage == Stage::SuperRes {
                    *image.borrow_mut() = outward(step.sample).to_f64_vec().unwrap();
                }
                Ok(())
            },
        )
        .unwrap();
    Made {
        text_embeds: made.text_embeddings.to_f64_vec().unwrap(),
        image_embeddings: made.image_embeddings.unwrap().to_f64_vec().unwrap(),
        small: outward(&made.small).to_f64_vec().unwrap(),
        image: image.into_inner(),
        bytes: made.pictures.into_iter().flat_map(|p| p.rgb).collect(),
    }
}

fn stages_agree(dtype: DType, tolerance: f64) -> Made {
    let golden: Golden = json("pipeline.json");
    let made = make(&golden, dtype);
    let want = tensors("pipeline.safetensors");
    let mut report = Report::default();
    for (kind, got) in [
        ("text_embeds", &made.text_embeds),
        ("image_embeddings", &made.image_embeddings),
        ("small", &made.small),
        ("image", &made.image),
    ] {
        let want = &want[&format!("{dtype}.{kind}")];
        let scale = largest(want).max(1.0);
        report.compare(kind, kind, (got, want), scale, tolerance);
    }
    report.finish(&format!("pipeline in {dtype}"));
    made
}

/// Tables and sinusoids in f64 on both sides.
#[test]
fn every_stage_in_f64() {
    stages_agree(DType::F64, 1e-8);
}

/// Sinusoids in f32 on their side.
#[test]
fn every_stage_and_the_picture_in_f32() {
    let made = stages_agree(DType::F32, 1e-3);
    let image = &tensors("pipeline.safetensors")["f32.image"];
    assert!(distance(&made.image, image) < 1e-3);
    let side = 32 * 32;
    let theirs = image.chunks(3 * side).flat_map(|picture| {
        (0..side).flat_map(move |i| (0..3).map(move |c| picture[c * side + i]))
    });
    let byte = |v: f64| ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
    let pairs = made.bytes.iter().zip(theirs.map(byte));
    let far = pairs.filter(|(a, b)| a.abs_diff(*b) > 1).count();
    assert_eq!(
        far,
        0,
        "of {} values, more than one step apart",
        made.bytes.len()
    );
}
