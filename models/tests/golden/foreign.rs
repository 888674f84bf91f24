//! Importers: files under OpenCLIP's and Karlo's own names, against what those programs make of them.

use std::path::{Path, PathBuf};

use autograd::{DType, Device, Tape, Tensor, Var};
use models::Loaded;
use models::config::PerLevel;
use models::import;
use models::prior::{PriorConfig, PriorInputs};
use models::text_proj::UnCLIPTextProjConfig;
use models::unet::{UNet2DConditionConfig, UNet2DConditionInputs, UNet2DConfig, extend_mask};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::files::{self, Report, largest, tensors};
use crate::formula::{inward, outward, values, weight};

const TOLERANCE: f64 = 1e-9;

#[derive(Deserialize)]
struct Case {
    name: String,
    parameters: Vec<(String, Vec<usize>)>,
    config: Option<Value>,
    input_ids: Option<Vec<Vec<i64>>>,
}

/// A case, and a file of its weights.
struct Foreign {
    case: Case,
    dir: TempDir,
}

impl Foreign {
    fn new(name: &str) -> Foreign {
        let case = files::json(&format!("foreign/{name}.json"));
        let foreign = Foreign {
            case,
            dir: tempfile::tempdir().unwrap(),
        };
        foreign.write(Dtype::F64, |_, _| {});
        foreign
    }

    fn weights(&self) -> PathBuf {
        self.dir.path().join("weights.safetensors")
    }

    /// Writes the weights; `change` sees each before it is written.
    fn write(&self, dtype: Dtype, change: impl Fn(&mut String, &mut Vec<usize>)) {
        let made = self.case.parameters.iter().map(|(name, shape)| {
            let numbers = weight(&self.case.name, name, shape).to_f64_vec().unwrap();
            let bytes: Vec<u8> = match dtype {
                Dtype::F64 => numbers.iter().flat_map(|v| v.to_le_bytes()).collect(),
                Dtype::F16 => numbers
                    .iter()
                    .flat_map(|&v| half::f16::from_f64(v).to_le_bytes())
                    .collect(),
                _ => numbers
                    .iter()
                    .flat_map(|&v| half::bf16::from_f64(v).to_le_bytes())
                    .collect(),
            };
            let (mut name, mut shape) = (name.clone(), shape.clone());
            change(&mut name, &mut shape);
            (name, shape, bytes)
        });
        let made: Vec<_> = made.collect();
        let views = made.iter().map(|(name, shape, bytes)| {
            (
                name.as_str(),
                TensorView::new(dtype, shape.clone(), bytes).unwrap(),
            )
        });
        serialize_to_file(views, None, &self.weights()).unwrap();
    }

    fn input(&self, t: &Tape, what: &str, shape: &[usize]) -> Var {
        t.constant(inward(&values(
            &format!("{}/{what}", self.case.name),
            shape,
        )))
    }

    fn compare(&self, made: &[(&'static str, &Var)]) {
        let want = tensors(&format!("foreign/{}.safetensors", self.case.name));
        let mut report = Report::default();
        for &(name, got) in made {
            let (got, want) = (outward(got.tensor()).to_f64_vec().unwrap(), &want[name]);
            report.compare(name, name, (&got, want), largest(want), TOLERANCE);
        }
        report.finish(&self.case.name);
    }
}

fn steps(t: &Tape) -> Var {
    t.constant(Tensor::from_f64(
        &[3.0, 700.0],
        [2],
        DType::F64,
        Device::Cpu,
    ))
}

fn mask() -> Tensor {
    let kept = [1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1].map(|b| b != 0);
    Tensor::from_bools(&kept, [2, 6], Device::Cpu)
}

#[test]
fn open_clip() {
    for name in ["open-clip", "open-clip-text-tower"] {
        let foreign = Foreign::new(name);
        let config = foreign.dir.path().join("open_clip_config.json");
        let model_cfg = foreign.case.config.as_ref().unwrap();
        std::fs::write(&config, json!({ "model_cfg": model_cfg }).to_string()).unwrap();
        let weights = foreign.weights();
        let Loaded { model, params } =
            import::clip(&weights, Some(&config), DType::F64, Device::Cpu).unwrap();
        let rows = foreign.case.input_ids.as_ref().unwrap();
        let ids = Tensor::from_slice(&rows.concat(), [3, 6], Device::Cpu);
        let t = Tape::inference(Some(&params));
        let text = model.text(&t, &ids, None).unwrap().text_embeds;
        let pixels = foreign.input(&t, "pixel_values", &[2, 3, 12, 12]);
        let image = model.vision(&t, &pixels).unwrap().image_embeds;
        foreign.compare(&[("text_embeds", &text), ("image_embeds", &image)]);
    }
}

fn prior_config() -> PriorConfig {
    PriorConfig {
        num_attention_heads: 3,
        attention_head_dim: 8,
        num_layers: 2,
        embedding_dim: 14,
        num_embeddings: 6,
        ..PriorConfig::default()
    }
}

/// A file of the statistics that Karlo keeps apart.
fn statistics(dir: &Path, width: usize) -> PathBuf {
    let path = dir.join("statistics.safetensors");
    let numbers = |start: f32| -> Vec<u8> {
        (0..width)
            .flat_map(|i| (start + i as f32).to_le_bytes())
            .collect()
    };
    let (mean, std) = (numbers(-3.0), numbers(1.0));
    let view = |bytes| TensorView::new(Dtype::F32, vec![width], bytes).unwrap();
    serialize_to_file([("mean", view(&mean)), ("std", view(&std))], None, &path).unwrap();
    path
}

#[test]
fn karlo_prior() {
    let foreign = Foreign::new("karlo-prior");
    let statistics = statistics(foreign.dir.path(), 14);
    let prior = import::karlo_prior(
        &foreign.weights(),
        &statistics,
        &prior_config(),
        DType::F64,
        Device::Cpu,
    );
    let Loaded { model, params } = prior.unwrap();
    let t = Tape::inference(Some(&params));
    let inputs = PriorInputs {
        hidden_states: &foreign.input(&t, "hidden_states", &[2, 14]),
        timestep: &steps(&t),
        proj_embedding: &foreign.input(&t, "proj_embedding", &[2, 14]),
        encoder_hidden_states: &foreign.input(&t, "encoder_hidden_states", &[2, 6, 14]),
        attention_mask: Some(&mask()),
    };
    let output = model.forward(&t, inputs).unwrap();
    foreign.compare(&[("predicted_image_embedding", &output)]);
    let whitening = model.whitening(&params).unwrap();
    assert_eq!((whitening.mean[13], whitening.std[0]), (10.0, 1.0));
}

#[test]
fn karlo_decoder() {
    let foreign = Foreign::new("karlo-decoder");
    let config = UNet2DConditionConfig {
        layers_per_block: PerLevel::All(2),
        cross_attention_dim: PerLevel::All(24),
        attention_head_dim: PerLevel::All(16),
        ..UNet2DConditionConfig::unclip(&[32, 64, 64])
    };
    let projection = UnCLIPTextProjConfig {
        clip_extra_context_tokens: 3,
        clip_embeddings_dim: 14,
        time_embed_dim: 128,
        cross_attention_dim: 24,
        ..UnCLIPTextProjConfig::karlo()
    };
    let weights = foreign.weights();
    let made = import::karlo_decoder(&weights, &config, &projection, DType::F64, Device::Cpu);
    let (decoder, projection) = made.unwrap();
    let t = Tape::inference(Some(&projection.params));
    let given = |what| foreign.input(&t, what, &[2, 14]);
    let states = foreign.input(&t, "text_encoder_hidden_states", &[2, 6, 14]);
    let conditioning = projection
        .model
        .forward(
            &t,
            &given("image_embeddings"),
            &given("prompt_embeds"),
            &states,
        )
        .unwrap();
    let t = Tape::inference(Some(&decoder.params));
    let inputs = UNet2DConditionInputs {
        sample: &foreign.input(&t, "sample", &[2, 3, 12, 8]),
        timestep: &steps(&t),
        encoder_hidden_states: Some(&conditioning.context.detach()),
        class_labels: Some(&conditioning.time.detach()),
        attention_mask: Some(&extend_mask(&mask(), 3, 0).unwrap()),
    };
    let output = decoder.model.forward(&t, inputs).unwrap();
    foreign.compare(&[("sample", &output)]);
}

fn upsampler_config() -> UNet2DConfig {
    UNet2DConfig {
        layers_per_block: 1,
        ..UNet2DConfig::upsampler(&[32, 64])
    }
}

#[test]
fn karlo_upsampler() {
    let foreign = Foreign::new("karlo-upsampler");
    let weights = foreign.weights();
    let nets = import::karlo_upsampler(&weights, &upsampler_config(), DType::F64, Device::Cpu);
    let nets = nets.unwrap();
    let outputs = nets.each_ref().map(|Loaded { model, params }| {
        let t = Tape::inference(Some(params));
        let noisy = foreign.input(&t, "sample", &[2, 3, 6, 8]);
        let low = foreign.input(&t, "low_res", &[2, 3, 6, 8]);
        let input = autograd::ops::concat::concat(&t, &[&noisy, &low], 3).unwrap();
        model.forward(&t, &input, &steps(&t), None).unwrap()
    });
    foreign.compare(&[
        ("model_first_steps", &outputs[0]),
        ("model_last_step", &outputs[1]),
    ]);
}

/// Sixteen bits are widened, not reinterpreted: each weight is the nearest that they hold.
#[test]
fn files_of_sixteen_bits() {
    let foreign = Foreign::new("karlo-upsampler");
    let load = || {
        let weights = foreign.weights();
        let nets = import::karlo_upsampler(&weights, &upsampler_config(), DType::F32, Device::Cpu);
        nets.unwrap()[1].params.arena().to_f64_vec().unwrap()
    };
    let whole = load();
    for (dtype, half_step) in [(Dtype::BF16, 1.0 / 256.0), (Dtype::F16, 1.0 / 2048.0)] {
        foreign.write(dtype, |_, _| {});
        for (a, b) in load().iter().zip(&whole) {
            assert!((a - b).abs() <= half_step * b.abs() + 1e-7, "{a} {b}");
        }
    }
}

#[test]
fn everything_that_does_not_fit_is_in_one_error() {
    let foreign = Foreign::new("karlo-upsampler");
    foreign.write(Dtype::F64, |name, shape| match name.as_str() {
        "model_first_steps.out.2.bias" => *name = "model_first_steps.out.3.bias".into(),
        "model_last_step.time_embed.0.weight" => shape.reverse(),
        _ => {}
    });
    let weights = foreign.weights();
    let nets = import::karlo_upsampler(&weights, &upsampler_config(), DType::F64, Device::Cpu);
    let said = nets.err().unwrap().to_string();
    for part in [
        "(3 differences)",
        "model_first_steps.out.2.bias [3] is missing",
        "model_first_steps.out.3.bias [3] is unexpected",
        "model_last_step.time_embed.0.weight is [32, 128], it must be [128, 32]",
    ] {
        assert!(said.contains(part), "{said}");
    }
    std::fs::write(&weights, b"PK\x03\x04 and so on").unwrap();
    let nets = import::karlo_upsampler(&weights, &upsampler_config(), DType::F64, Device::Cpu);
    let said = nets.err().unwrap().to_string();
    assert!(
        said.contains("it is a pickle") && said.contains("save_file"),
        "{said}"
    );
}
