//! The pipeline as a whole, on tiny random networks.

mod common;

use autograd::{DType, Device};
use common::tiny;
use models::clip::{CLIPTextConfig, CLIPTextModelWithProjection};
use models::config::{Extent, PerLevel};
use models::diffusion::SchedulerConfig;
use models::pipeline::{Generated, Given, Options, Pipeline, SeededNoise, Stage};
use models::prior::{PriorConfig, PriorTransformer};
use models::text_proj::{UnCLIPTextProjConfig, UnCLIPTextProjModel};
use models::tokenizer::Tokenizer;
use models::unet::{UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig, UNet2DModel};
use models::weights::Precision;

fn pipeline() -> Pipeline {
    let (length, width) = (9, 12);
    let tokenizer = Tokenizer::from_merges(&[], length).unwrap();
    let text = CLIPTextConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: width,
        intermediate_size: 16,
        projection_dim: width,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: length,
        eos_token_id: tokenizer.end_id(),
        ..CLIPTextConfig::default()
    };
    let prior = PriorConfig {
        num_attention_heads: 2,
        attention_head_dim: 6,
        num_layers: 1,
        embedding_dim: width,
        num_embeddings: length,
        ..PriorConfig::default()
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
        clip_embeddings_dim: width,
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
        text_encoder: tiny::<CLIPTextModelWithProjection>(&text, DType::F32),
        prior: tiny::<PriorTransformer>(&prior, DType::F32),
        prior_scheduler: SchedulerConfig::prior(),
        text_proj: tiny::<UnCLIPTextProjModel>(&text_proj, DType::F32),
        decoder: tiny::<UNet2DConditionModel>(&decoder, DType::F32),
        decoder_scheduler: SchedulerConfig::decoder(),
        super_res_first: tiny::<UNet2DModel>(&upsampler, DType::F32),
        super_res_last: tiny::<UNet2DModel>(&upsampler, DType::F32),
        super_res_scheduler: SchedulerConfig::upsampler(),
    }
}

fn options() -> Options {
    Options {
        prior_num_inference_steps: 3,
        decoder_num_inference_steps: 3,
        super_res_num_inference_steps: 2,
        ..Options::default()
    }
}

fn draw(pipeline: &Pipeline, prompts: &[&str], first_image: u32) -> Generated {
    let noise = SeededNoise {
        seed: 5,
        first_image,
        device: Device::Cpu,
    };
    pipeline
        .generate(prompts, Given::Text, &options(), &noise, &mut |_| Ok(()))
        .unwrap()
}

#[test]
fn a_saved_pipeline_draws_the_same_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let saved = pipeline();
    saved.save(dir.path(), Precision::Full).unwrap();
    let loaded = Pipeline::load(dir.path(), DType::F32, Device::Cpu).unwrap();
    let (a, b) = (draw(&saved, &["red"], 0), draw(&loaded, &["red"], 0));
    assert_eq!((a.pictures[0].width, a.pictures[0].height), (8, 8));
    assert_eq!(a.pictures, b.pictures);
}

#[test]
fn a_picture_depends_on_its_index_and_not_on_its_batch() {
    let p = pipeline();
    let together = draw(&p, &["red", "blue", "red"], 0);
    for (i, prompt) in ["red", "blue", "red"].into_iter().enumerate() {
        let alone = draw(&p, &[prompt], i as u32);
        assert_eq!(alone.pictures[0], together.pictures[i]);
    }
    let [first, third] = [0, 2].map(|i| {
        together
            .image_embeddings
            .as_ref()
            .unwrap()
            .narrow(0, i, 1)
            .unwrap()
    });
    assert!(!first.bit_equal(&third));
}

#[test]
fn every_step_is_reported_and_an_error_ends_the_run() {
    let p = pipeline();
    let noise = SeededNoise {
        seed: 5,
        first_image: 0,
        device: Device::Cpu,
    };
    let mut stages = Vec::new();
    let outcome = p.generate(&["red"], Given::Text, &options(), &noise, &mut |progress| {
        stages.push(progress.stage);
        if progress.stage == Stage::SuperRes {
            return Err(models::Error::Request("stopped".into()));
        }
        Ok(())
    });
    assert_eq!(outcome.err().unwrap().to_string(), "stopped");
    let prior = [0, 1]
        .map(|candidate| [Stage::Prior { candidate }; 3])
        .concat();
    let want = [&prior[..], &[Stage::Decoder; 3], &[Stage::SuperRes]].concat();
    assert_eq!(stages, want);
}

#[test]
fn prompts_that_cannot_be_drawn_are_refused_in_words() {
    let p = pipeline();
    let noise = SeededNoise {
        seed: 5,
        first_image: 0,
        device: Device::Cpu,
    };
    let say = |prompts: &[&str]| {
        let outcome = p.generate(prompts, Given::Text, &options(), &noise, &mut |_| Ok(()));
        outcome.err().unwrap().to_string()
    };
    assert!(say(&[]).contains("no prompt"));
    assert!(say(&[""]).contains("empty"));
    assert!(say(&["a very long prompt"]).contains("shorten"));
}
