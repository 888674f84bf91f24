//! The pipeline as a whole, on tiny random networks.

mod common;

use autograd::{DType, Device};
use common::tiny;
use models::clip::{CLIPTextConfig, CLIPTextModelWithProjection};
use models::config::{Extent, PerLevel};
use models::diffusion::{BetaSchedule, Prediction, SamplerKind, SchedulerConfig};
use models::pipeline::{
    Enlarger, Generated, Given, GivenNoise, Known, Latent, Noise, Options, Pipeline, Region,
    SeededNoise, Stage,
};
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
        text_encoder: tiny::<CLIPTextModelWithProjection>(&text, DType::F32).into(),
        prior: Some(tiny::<PriorTransformer>(&prior, DType::F32).into()),
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

/// It begins with what the first one made, in a size of its own, from its own noise; the directory holds it.
#[test]
fn a_second_upsampler_enlarges_what_the_first_made() {
    let mut p = pipeline();
    let first = draw(&p, &["red"], 0);
    let larger = UNet2DConfig {
        sample_size: Some(Extent::Square(16)),
        layers_per_block: 1,
        norm_num_groups: 4,
        ..UNet2DConfig::upsampler(&[8, 8, 16])
    };
    let names = |p: &Pipeline| -> Vec<String> {
        let all = p.latents(&options(), 1).unwrap();
        all.iter().map(Latent::name).collect()
    };
    let before = names(&p);
    p.super_res_1024 = Some(Enlarger {
        network: tiny::<UNet2DModel>(&larger, DType::F32).into(),
        scheduler: SchedulerConfig {
            beta_schedule: BetaSchedule::Linear,
            ..SchedulerConfig::upsampler()
        },
    });
    assert_eq!(
        names(&p),
        [before, vec!["super_res_1024.0".into()]].concat()
    );
    let both = draw(&p, &["red"], 0);
    assert_eq!((both.pictures[0].width, both.pictures[0].height), (16, 16));
    assert!(both.small.bit_equal(&first.small));
    let dir = tempfile::tempdir().unwrap();
    p.save(dir.path(), Precision::Full).unwrap();
    let loaded = Pipeline::load(dir.path(), DType::F32, Device::Cpu).unwrap();
    assert_eq!(draw(&loaded, &["red"], 0).pictures, both.pictures);
    let none = Options {
        super_res_1024_num_inference_steps: 0,
        ..options()
    };
    let said = p.check(&none).unwrap_err().to_string();
    assert!(
        said.starts_with("second upsampler: the number of sampling steps"),
        "{said}"
    );
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

fn seeded(first_image: u32) -> SeededNoise {
    SeededNoise {
        seed: 5,
        first_image,
        device: Device::Cpu,
    }
}

fn drawn(p: &Pipeline, options: &Options, noise: &dyn Noise, prompts: &[&str]) -> Generated {
    p.generate(prompts, Given::Text, options, noise, &mut |_| Ok(()))
        .unwrap()
}

#[test]
fn guidance_out_of_its_interval_is_no_guidance() {
    let p = pipeline();
    let pictures = |options: Options| drawn(&p, &options, &seeded(0), &["red", "blue"]).pictures;
    let guided = pictures(options());
    let whole = Options {
        prior_guidance_interval: [0.0, 1.0],
        ..options()
    };
    assert_eq!(pictures(whole), guided);
    let unguided = Options {
        prior_guidance_scale: 1.0,
        decoder_guidance_scale: 1.0,
        ..options()
    };
    // Three steps stand at 1, a half and 0.
    let never = Options {
        prior_guidance_interval: [0.6, 0.9],
        decoder_guidance_interval: [0.1, 0.4],
        ..options()
    };
    assert_eq!(pictures(never), pictures(unguided));
    let at_first = Options {
        decoder_guidance_interval: [0.9, 1.0],
        ..options()
    };
    assert_ne!(pictures(at_first), guided);
    assert_ne!(pictures(at_first), pictures(unguided));
    let rescaled = Options {
        decoder_guidance_rescale: 0.7,
        ..options()
    };
    assert_ne!(pictures(rescaled), guided);
    let thresholded = Options {
        decoder_dynamic_thresholding_ratio: Some(0.5),
        ..options()
    };
    assert_ne!(pictures(thresholded), guided);
}

#[test]
fn options_that_cannot_be_sampled_with_are_refused_with_their_stage() {
    let p = pipeline();
    let said = |options: Options| p.check(&options).unwrap_err().to_string();
    assert!(p.check(&options()).is_ok());
    let none = Options {
        super_res_num_inference_steps: 0,
        ..options()
    };
    assert!(said(none).starts_with("upsampler: the number of sampling steps"));
    let eta = Options {
        decoder_sampler: SamplerKind::Ddim { eta: 2.0 },
        ..options()
    };
    assert!(said(eta).starts_with("decoder: eta must be"));
    let interval = Options {
        prior_guidance_interval: [0.5, 0.1],
        ..options()
    };
    assert!(said(interval).starts_with("prior: the guidance interval"));
    let ratio = Options {
        decoder_dynamic_thresholding_ratio: Some(2.0),
        ..options()
    };
    assert!(said(ratio).starts_with("decoder: the dynamic thresholding ratio"));
    let candidates = Options {
        prior_candidates: 0,
        ..options()
    };
    assert!(said(candidates).contains("at least 1 candidate"));
}

/// The noise that a run draws is exactly what `latents` lists, and given back it makes the same pictures.
#[test]
fn all_noise_can_be_taken_out_and_given_back() {
    /// Notes what is drawn.
    struct Noted<'a>(&'a dyn Noise, std::cell::RefCell<Vec<Latent>>);
    impl Noise for Noted<'_> {
        fn normal(
            &self,
            stage: Stage,
            occurrence: usize,
            shape: &[usize],
            dtype: DType,
        ) -> tensor::Result<tensor::Tensor> {
            let shape = shape.to_vec();
            let x = self.0.normal(stage, occurrence, &shape, dtype);
            self.1.borrow_mut().push(Latent {
                stage,
                occurrence,
                shape,
            });
            x
        }
    }
    let p = pipeline();
    for options in [
        options(),
        Options {
            prior_sampler: SamplerKind::Ddim { eta: 0.0 },
            decoder_sampler: SamplerKind::Ddim { eta: 0.4 },
            super_res_sampler: SamplerKind::Heun,
            ..options()
        },
    ] {
        let seed = seeded(0);
        let noted = Noted(&seed, Default::default());
        let prompts = ["red", "blue"];
        let made = drawn(&p, &options, &noted, &prompts);
        let listed = p.latents(&options, 2).unwrap();
        assert_eq!(noted.1.into_inner(), listed);

        let known = listed.iter().map(|l| {
            let x = seed.normal(l.stage, l.occurrence, &l.shape, DType::F64);
            (l.name(), x.unwrap())
        });
        // Another seed, which nothing is drawn from.
        let given = |first_image: u32| GivenNoise {
            known: known.clone().collect(),
            otherwise: SeededNoise {
                seed: 99,
                ..seeded(first_image)
            },
        };
        let names: Vec<String> = listed.iter().map(Latent::name).collect();
        assert!(names.contains(&"prior.1.0".into()) && names.contains(&"decoder.2".into()));
        // f64 draws are not the f32 ones: what is compared is what is given.
        let again = drawn(&p, &options, &given(0), &prompts);
        let second = drawn(&p, &options, &given(1), &["blue"]);
        assert_eq!(again.pictures[1], second.pictures[0]);
        assert_ne!(
            drawn(&p, &options, &seeded(1), &["red"]).pictures[0],
            made.pictures[0]
        );
        let same = GivenNoise {
            known: listed
                .iter()
                .map(|l| {
                    let x = seed.normal(l.stage, l.occurrence, &l.shape, DType::F32);
                    (l.name(), x.unwrap())
                })
                .collect(),
            ..given(0)
        };
        assert_eq!(drawn(&p, &options, &same, &prompts).pictures, made.pictures);
        let short = GivenNoise {
            known: same.known,
            otherwise: seeded(1),
        };
        let outcome = p.generate(&prompts, Given::Text, &options, &short, &mut |_| Ok(()));
        assert!(outcome.err().unwrap().to_string().contains("given noise"));
    }
}

#[test]
fn what_the_decoder_is_inverted_from_comes_back() {
    let mut p = pipeline();
    // As noise, what an untrained network says goes beyond every limit; as v it stays within.
    p.decoder_scheduler.prediction_type = Prediction::Velocity;
    let options = Options {
        decoder_num_inference_steps: 6,
        decoder_guidance_scale: 1.0,
        decoder_sampler: SamplerKind::Ddim { eta: 0.0 },
        ..options()
    };
    let first = drawn(&p, &options, &seeded(0), &["red"]);
    let z = first.image_embeddings.unwrap();
    // Not what it would draw itself: half as bright.
    let small: Vec<f64> = first
        .small
        .to_f64_vec()
        .unwrap()
        .iter()
        .map(|v| 0.5 * v)
        .collect();
    let small = tensor::Tensor::from_f64(&small, first.small.shape(), DType::F32, Device::Cpu);
    let (text, unconditional) = p.condition(&[""], true).unwrap();
    let far = |iterations: usize| {
        let noise = p.invert_decoder(
            &small,
            &z,
            &text,
            &unconditional,
            &options,
            iterations,
            &mut |progress| {
                assert_eq!(progress.stage, Stage::Inversion);
                Ok(())
            },
        );
        let noise = GivenNoise {
            known: Default::default(),
            otherwise: seeded(0),
        }
        .decoder_from(noise.unwrap());
        let given = Given::ImageEmbeddings(&z);
        let back = p.generate(&[""], given, &options, &noise, &mut |_| Ok(()));
        let back = back.unwrap().small.to_f64_vec().unwrap();
        let far = back
            .iter()
            .zip(small.to_f64_vec().unwrap())
            .map(|(a, b)| (a - b).abs());
        far.fold(0.0, f64::max)
    };
    let (once, often) = (far(1), far(30));
    assert!(often < 1e-3 && often < 0.1 * once, "{once} {often}");
}

#[test]
fn what_is_known_of_a_picture_stays() {
    let p = pipeline();
    let [small, large] = [[4usize, 4], [8, 8]].map(|[h, w]| {
        let values: Vec<f64> = (0..h * w * 3)
            .map(|i| ((i * 37) % 19) as f64 / 9.5 - 1.0)
            .collect();
        tensor::Tensor::from_f64(&values, [1, h, w, 3], DType::F32, Device::Cpu)
    });
    // The left half is known.
    let left = |side: usize| {
        (0..side * side)
            .map(|i| i % side < side / 2)
            .collect::<Vec<_>>()
    };
    let known = |resamples: usize| Known {
        small: Region::new(&small, left(4)).unwrap(),
        large: Region::new(&large, left(8)).unwrap(),
        resamples,
    };
    for sampler in [
        SamplerKind::Ancestral,
        SamplerKind::Ddim { eta: 0.0 },
        SamplerKind::DpmSolver,
        SamplerKind::Heun,
    ] {
        let options = Options {
            decoder_sampler: sampler,
            super_res_sampler: sampler,
            ..options()
        };
        let inpaint = |known: &Known| {
            let mut done = Vec::new();
            let made = p.inpaint(
                &["red", "blue"],
                Given::Text,
                known,
                &options,
                &seeded(0),
                &mut |progress| {
                    if progress.stage == Stage::Decoder {
                        done.push((progress.step, progress.steps));
                    }
                    Ok(())
                },
            );
            made.map(|made| (made, done))
        };
        let (made, done) = inpaint(&known(1)).unwrap();
        assert_eq!(done.last(), Some(&(done.len(), done.len())));
        let plain = drawn(&p, &options, &seeded(0), &["red", "blue"]);
        let (new, old) = (
            made.small.to_f64_vec().unwrap(),
            plain.small.to_f64_vec().unwrap(),
        );
        let wanted = small.to_f64_vec().unwrap();
        for (i, (new, old)) in new.iter().zip(&old).enumerate() {
            if i / 3 % 4 < 2 {
                assert!((new - wanted[i % 48]).abs() < 2e-3, "{sampler:?}: {new}");
            } else {
                assert!(new.is_finite() && old.is_finite());
            }
        }
        let again = inpaint(&known(3));
        match sampler {
            SamplerKind::Heun => {
                assert!(
                    again
                        .err()
                        .unwrap()
                        .to_string()
                        .contains("heun cannot take")
                );
            }
            _ => {
                let (again, done) = again.unwrap();
                assert_eq!(done.len(), 2 * 3 + 1);
                assert!(!again.small.bit_equal(&made.small));
            }
        }
    }
    let refused = Region::new(&small, left(8)).err().unwrap();
    assert!(refused.to_string().contains("64 pixels"), "{refused}");
}
