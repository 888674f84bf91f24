//! The autoregressive prior: its network, what it draws, and its place in the pipeline.

mod common;

use autograd::ops::{cross_entropy, reshape};
use autograd::{DType, Decay, Device, Tape, Tensor};
use common::{mask, normal, step, tiny};
use models::clip::{CLIPTextConfig, CLIPTextModelWithProjection};
use models::config::{Extent, PerLevel};
use models::diffusion::{SamplerKind, SchedulerConfig};
use models::pipeline::{Given, Options, Pipeline, PriorVariance, SeededNoise, TextConditioning};
use models::prior::{
    AutoregressivePrior, AutoregressivePriorConfig, CodeSampling, Codes, Prior, PriorConfig,
    PriorTransformer,
};
use models::text_proj::{UnCLIPTextProjConfig, UnCLIPTextProjModel};
use models::tokenizer::Tokenizer;
use models::unet::{UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig, UNet2DModel};
use models::weights::Precision;
use models::{Loaded, Model, declare};

const LENGTH: usize = 5;
const WIDTH: usize = 12;
const COMPONENTS: usize = 4;
const BUCKETS: usize = 9;

fn config(length: usize) -> AutoregressivePriorConfig {
    AutoregressivePriorConfig {
        num_attention_heads: 2,
        attention_head_dim: 6,
        num_layers: 2,
        embedding_dim: WIDTH,
        num_embeddings: length,
        num_components: COMPONENTS,
        num_buckets: BUCKETS,
        dropout: 0.0,
    }
}

/// Random weights, and codes measured on random embeddings.
fn prior(length: usize, dtype: DType) -> Loaded<AutoregressivePrior> {
    let mut prior = tiny::<AutoregressivePrior>(&config(length), dtype);
    let [images, texts] = ["images", "texts"].map(|name| normal(name, &[40, WIDTH], dtype));
    let codes = Codes::measure(&images, &texts, COMPONENTS, BUCKETS).unwrap();
    prior.model.set_codes(&mut prior.params, &codes).unwrap();
    prior
}

/// Three texts, two of which end early.
fn text(dtype: DType) -> TextConditioning {
    TextConditioning {
        embeds: normal("embeds", &[3, WIDTH], dtype),
        states: normal("states", &[3, LENGTH, WIDTH], dtype),
        mask: mask(&[&[1, 1, 1, 1, 1], &[1, 1, 0, 0, 0], &[1, 1, 1, 0, 0]]),
    }
}

fn codes() -> Tensor {
    let code = |i: usize| (i * 7 % BUCKETS) as i32;
    let codes: Vec<i32> = (0..3 * (1 + COMPONENTS)).map(code).collect();
    Tensor::from_slice(&codes, [3, 1 + COMPONENTS], Device::Cpu)
}

const SAMPLING: CodeSampling = CodeSampling {
    guidance_scale: 1.0,
    temperature: 1.0,
    top_p: 1.0,
    nearness_percentile: 0.5,
};

#[test]
fn every_parameter_learns_and_a_code_is_told_from_those_before_it_alone() {
    let Loaded { model, params } = prior(LENGTH, DType::F64);
    let logits = |codes: &Tensor| {
        let t = Tape::inference(Some(&params));
        let logits = model.forward(&t, &text(DType::F64), codes).unwrap();
        assert_eq!(logits.dims(), [3, 1 + COMPONENTS, BUCKETS]);
        logits.tensor().to_f64_vec().unwrap()
    };
    let plain = logits(&codes());
    for changed in 0..=COMPONENTS {
        let mut other = codes().to_vec::<i32>().unwrap();
        let at = 1 + COMPONENTS + changed; // of the second text
        other[at] = (other[at] + 1) % BUCKETS as i32;
        let other = Tensor::from_slice(&other, [3, 1 + COMPONENTS], Device::Cpu);
        let other = logits(&other);
        let rows = plain.chunks(BUCKETS).zip(other.chunks(BUCKETS));
        for (i, (a, b)) in rows.enumerate() {
            let later = i / (1 + COMPONENTS) == 1 && i % (1 + COMPONENTS) > changed;
            assert_eq!(a != b, later, "code {changed} changed, {i}");
        }
    }
    let (_, grads) = step(&params, |t| {
        let logits = model.forward(t, &text(DType::F64), &codes())?;
        let n = 3 * (1 + COMPONENTS);
        let logits = reshape::reshape(t, &logits, [n, BUCKETS])?;
        let targets = t.constant(codes().reshape([n])?);
        cross_entropy::cross_entropy(t, &logits, &targets)
    });
    for (id, info) in params.layout().iter() {
        // A key's bias shifts all scores of a query alike.
        let silent = info.decay == Decay::Frozen || info.name.ends_with("to_k.bias");
        let gradient = grads.get(id).unwrap().to_f64_vec().unwrap();
        assert!(
            silent || gradient.iter().any(|g| *g != 0.0),
            "{}",
            info.name
        );
    }
}

/// Drawing reads one code at a time with what blocks remember; each of its logits is the whole network's. With temperature 0
/// the code drawn is the largest of them.
#[test]
fn drawing_code_by_code_is_the_whole_network() {
    let Loaded { model, params } = prior(LENGTH, DType::F64);
    let text = text(DType::F64);
    let greedy = CodeSampling {
        temperature: 0.0,
        ..SAMPLING
    };
    let z = normal("z", &[3, 1 + COMPONENTS], DType::F64);
    let draw = |sampling: &CodeSampling| {
        let mut seen = 0;
        let drawn = model.sample(&params, &text, &text, sampling, &z, |step, x| {
            seen += 1;
            assert_eq!((step, x.dims()), (seen, &[3, WIDTH][..]));
            Ok(())
        });
        assert_eq!(seen, 1 + COMPONENTS);
        drawn.unwrap().to_f64_vec().unwrap()
    };
    // The same by the whole network, as often as there are codes.
    let table = model.codes(&params).unwrap();
    let mut codes = vec![0i32; 3 * (1 + COMPONENTS)];
    for i in 0..=COMPONENTS {
        let t = Tape::inference(Some(&params));
        let known = Tensor::from_slice(&codes, [3, 1 + COMPONENTS], Device::Cpu);
        let logits = model.forward(&t, &text, &known).unwrap();
        let logits = logits.tensor().to_f64_vec().unwrap();
        for row in 0..3 {
            let at = row * (1 + COMPONENTS) + i;
            let row = &logits[at * BUCKETS..][..BUCKETS];
            let best = (0..BUCKETS).max_by(|a, b| row[*a].total_cmp(&row[*b]));
            codes[at] = best.unwrap() as i32;
        }
    }
    let rows = codes.chunks(1 + COMPONENTS);
    let want: Vec<f64> = rows.flat_map(|row| table.decode(&row[1..])).collect();
    assert_eq!(draw(&greedy), want);
    // Guidance towards a text that differs by nothing changes nothing but rounding.
    let guided = CodeSampling {
        guidance_scale: 3.0,
        ..greedy
    };
    assert_eq!(draw(&guided), want);
    assert_ne!(draw(&SAMPLING), want);
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |config: AutoregressivePriorConfig| {
        let error = declare::<AutoregressivePrior>(&config).unwrap_err();
        error.to_string()
    };
    let more = AutoregressivePriorConfig {
        num_components: WIDTH + 1,
        ..config(LENGTH)
    };
    assert!(refused(more).contains("at most embedding_dim"));
    let none = AutoregressivePriorConfig {
        num_buckets: 0,
        ..config(LENGTH)
    };
    assert!(refused(none).contains("num_buckets"));
    let Loaded { model, mut params } = prior(LENGTH, DType::F32);
    let images = normal("images", &[9, WIDTH], DType::F32);
    let other = Codes::measure(&images, &images, COMPONENTS - 1, BUCKETS).unwrap();
    assert!(model.set_codes(&mut params, &other).is_err());
    let z = normal("z", &[3, COMPONENTS], DType::F32);
    let text = text(DType::F32);
    let short = model.sample(&params, &text, &text, &SAMPLING, &z, |_, _| Ok(()));
    assert!(short.is_err());
}

/// As large as the paper's, but for its own text transformer: text states are CLIP's.
#[test]
fn the_papers_has_a_billion_parameters() {
    let (_, layout) = declare::<AutoregressivePrior>(&AutoregressivePriorConfig {
        num_attention_heads: 26,
        attention_head_dim: 64,
        num_layers: 24,
        embedding_dim: 1024,
        num_embeddings: 77,
        num_components: 319,
        num_buckets: 1024,
        dropout: 0.0,
    })
    .unwrap();
    // 24 blocks of 12·c² + 13·c, c = 1664, are 798 M of them.
    assert_eq!(layout.parameters(), 805_773_568);
}

fn pipeline() -> Pipeline {
    let length = 9;
    let tokenizer = Tokenizer::from_merges(&[], length).unwrap();
    let text = CLIPTextConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: WIDTH,
        intermediate_size: 16,
        projection_dim: WIDTH,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: length,
        eos_token_id: tokenizer.end_id(),
        ..CLIPTextConfig::default()
    };
    let decoder = UNet2DConditionConfig {
        sample_size: Some(Extent::Square(4)),
        layers_per_block: PerLevel::All(1),
        norm_num_groups: 4,
        cross_attention_dim: PerLevel::All(10),
        attention_head_dim: PerLevel::All(4),
        ..UNet2DConditionConfig::unclip(&[8, 16])
    };
    let text_proj = UnCLIPTextProjConfig {
        clip_embeddings_dim: WIDTH,
        time_embed_dim: decoder.time_embed_dim(),
        cross_attention_dim: 10,
        ..UnCLIPTextProjConfig::karlo()
    };
    let upsampler = UNet2DConfig {
        sample_size: Some(Extent::Square(8)),
        layers_per_block: 1,
        norm_num_groups: 4,
        ..UNet2DConfig::upsampler(&[8, 8])
    };
    Pipeline {
        tokenizer,
        text_encoder: tiny::<CLIPTextModelWithProjection>(&text, DType::F32).into(),
        prior: Some(prior(length, DType::F32).into()),
        prior_scheduler: SchedulerConfig::prior(),
        text_proj: tiny::<UnCLIPTextProjModel>(&text_proj, DType::F32).into(),
        decoder: tiny::<UNet2DConditionModel>(&decoder, DType::F32).into(),
        decoder_scheduler: SchedulerConfig::decoder(),
        super_res_first: tiny::<UNet2DModel>(&upsampler, DType::F32).into(),
        super_res_last: tiny::<UNet2DModel>(&upsampler, DType::F32).into(),
        super_res_scheduler: SchedulerConfig::upsampler(),
        super_res_1024: None,
    }
}

fn options() -> Options {
    Options {
        decoder_num_inference_steps: 2,
        super_res_num_inference_steps: 1,
        ..Options::default()
    }
}

#[test]
fn a_pipeline_draws_with_it_saved_and_loaded_and_reports_every_code() {
    let saved = pipeline();
    let dir = tempfile::tempdir().unwrap();
    saved.save(dir.path(), Precision::Full).unwrap();
    let index = std::fs::read_to_string(dir.path().join("model_index.json")).unwrap();
    assert!(index.contains(AutoregressivePrior::CLASS.name));
    let loaded = Pipeline::load(dir.path(), DType::F32, Device::Cpu).unwrap();
    assert!(matches!(loaded.prior, Some(Prior::Autoregressive(_))));
    let draw = |pipeline: &Pipeline, prompts: &[&str], first_image: u32| {
        let noise = SeededNoise {
            seed: 5,
            first_image,
            device: Device::Cpu,
        };
        let mut steps = 0;
        let made = pipeline.generate(prompts, Given::Text, &options(), &noise, &mut |_| {
            steps += 1;
            Ok(())
        });
        let evaluations = pipeline.evaluations(&options());
        assert_eq!(evaluations, [2 * (1 + COMPONENTS), 2, 1, 0]);
        assert_eq!(steps, evaluations.iter().sum::<usize>());
        made.unwrap()
    };
    let a = draw(&saved, &["red", "blue"], 0);
    let b = draw(&loaded, &["red", "blue"], 0);
    assert_eq!(a.pictures, b.pictures);
    assert_eq!(draw(&saved, &["blue"], 1).pictures[0], a.pictures[1]);
    let names: Vec<String> = saved
        .latents(&options(), 2)
        .unwrap()
        .iter()
        .map(|l| l.name())
        .collect();
    assert_eq!(names[..3], ["prior.0.0", "prior.1.0", "decoder.0"]);
}

#[test]
fn settings_of_the_other_prior_are_refused() {
    let mut p = pipeline();
    let said = |p: &Pipeline, options: Options| p.check(&options).unwrap_err().to_string();
    for (name, options) in [
        (
            "sampler",
            Options {
                prior_sampler: SamplerKind::DpmSolver,
                ..options()
            },
        ),
        (
            "variance",
            Options {
                prior_variance: PriorVariance::Analytic,
                ..options()
            },
        ),
        (
            "guidance_rescale",
            Options {
                prior_guidance_rescale: 0.5,
                ..options()
            },
        ),
        (
            "guidance_interval",
            Options {
                prior_guidance_interval: [0.0, 0.5],
                ..options()
            },
        ),
    ] {
        let said = said(&p, options);
        assert!(
            said.starts_with(&format!("prior: {name} is not a setting of an auto")),
            "{said}"
        );
    }
    let colder = Options {
        prior_temperature: -1.0,
        ..options()
    };
    assert!(said(&p, colder).starts_with("prior: the temperature"));
    let config = PriorConfig {
        num_attention_heads: 2,
        attention_head_dim: 6,
        num_layers: 1,
        embedding_dim: WIDTH,
        num_embeddings: 9,
        ..PriorConfig::default()
    };
    p.prior = Some(tiny::<PriorTransformer>(&config, DType::F32).into());
    for (name, options) in [
        (
            "temperature",
            Options {
                prior_temperature: 0.5,
                ..options()
            },
        ),
        (
            "top_p",
            Options {
                prior_top_p: 0.5,
                ..options()
            },
        ),
        (
            "nearness_percentile",
            Options {
                prior_nearness_percentile: 0.0,
                ..options()
            },
        ),
    ] {
        let said = said(&p, options);
        assert!(
            said.starts_with(&format!("prior: {name} is not a setting of a diff")),
            "{said}"
        );
    }
    let analytic = Options {
        prior_variance: PriorVariance::Analytic,
        ..options()
    };
    assert!(said(&p, analytic).contains("no analytic variance"));
}
