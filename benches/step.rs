//! Times whole training steps (forward, loss, backward, gradient norm, clip + AdamW + moving average) in f32: of the
//! U-Net and of the CLIP model that `benches/peers/torch_step.py` times in PyTorch, from the same configurations.
//!
//! Ours does more in a step than theirs: it clips by the gradient's norm and keeps a moving average of the weights.
//! On the CPU, or where `UNCLIP_DEVICE=cuda:0` says. `UNCLIP_BENCH` records lines of JSON, as in `ops.rs`. FLOPs are those that PyTorch counts for the same step.

mod report;

use std::time::{Duration, Instant};

use autograd::ops::mse;
use autograd::{DType, Device, Tape, Tensor, Var};
use criterion::{Criterion, SamplingMode};
use models::clip::{CLIPConfig, CLIPModel};
use models::unet::{UNet2DConfig, UNet2DModel};
use models::{Loaded, Model};
use serde_json::json;
use tensor::ops::random::{self, Draw};
use train::config::Common;
use train::step::Step;

const SEED: u64 = 0;

/// A model, its configuration as its peer knows it, and one batch's loss.
struct Job<M: Model> {
    name: &'static str,
    config: M::Config,
    batch: usize,
    /// Of one step, forward and backward.
    flops: f64,
    weight_decay: f64,
}

impl<M: Model> Job<M> {
    fn measure(
        &self,
        criterion: &mut Criterion,
        peak_flops: Option<f64>,
        loss: impl Fn(&M, &Tape) -> train::Result<Var>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let mut samples: Vec<f64> = vec![];
        let mut begun: Option<(Loaded<M>, Step)> = None;
        let mut failed: Option<Box<dyn std::error::Error>> = None;
        let mut steps = 0;
        let mut losses = vec![];
        let mut group = criterion.benchmark_group("step");
        group.sampling_mode(SamplingMode::Flat);
        group.bench_function(self.name, |b| {
            if begun.is_none() {
                match self.begin() {
                    Ok(pair) => begun = Some(pair),
                    Err(error) => failed = Some(error),
                }
            }
            let Some((loaded, step)) = &mut begun else {
                return b.iter_custom(|_| Duration::from_nanos(1));
            };
            b.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                for _ in 0..iterations {
                    let start = Instant::now();
                    let outcome = step.take(steps, 1e-4, |t, _| loss(&loaded.model, t));
                    let elapsed = start.elapsed();
                    total += elapsed;
                    steps += 1;
                    // The first steps fill the pool.
                    if steps > 2 {
                        samples.push(elapsed.as_secs_f64());
                    }
                    match outcome {
                        Ok(outcome) => losses.push(outcome.loss),
                        Err(error) => failed = Some(error.into()),
                    }
                }
                total
            });
        });
        group.finish();
        if let Some(error) = failed {
            return Err(error);
        }
        let (Some((loaded, _)), Some(first), Some(last)) = (begun, losses.first(), losses.last())
        else {
            return Ok(()); // not selected on the command line
        };
        let timing = report::Timing::of(samples);
        println!(
            "step/{} | {:.1} ms [{:.1} {:.1}] | {:.1} samples/s | {:.1} GFLOP/s | {} parameters | loss {first:.4} -> {last:.4}",
            self.name,
            timing.median * 1e3,
            timing.p20 * 1e3,
            timing.p80 * 1e3,
            self.batch as f64 / timing.median,
            self.flops / timing.median / 1e9,
            loaded.params.layout().parameters(),
        );
        report::record(timing.json(DType::F32, json!({
            "name": format!("step/{}", self.name), "flops": self.flops, "peak_flops": peak_flops, "batch": self.batch,
            "parameters": loaded.params.layout().parameters(), "first_loss": first, "last_loss": last,
        })));
        // The result is verified by what training is for: the same batch again must become less wrong.
        assert!(last < first, "the loss went from {first} to {last}");
        Ok(())
    }

    fn begin(&self) -> Result<(Loaded<M>, Step), Box<dyn std::error::Error>> {
        let loaded = Loaded::<M>::init(&self.config, SEED, DType::F32, Device::Cpu)?;
        let common: Common = serde_json::from_value(json!({
            "stage": "clip", "data": "", "resolution": 64, "workers": 1, "max_bad_share": 0.0, "output_dir": "",
            "seed": SEED, "max_train_steps": 1000, "train_batch_size": self.batch, "gradient_accumulation_steps": 1,
            "learning_rate": 1e-4, "lr_scheduler": "constant", "lr_warmup_steps": 0, "lr_floor": 0.0,
            "optimizer": "adamw", "muon_learning_rate": 1e-4, "muon_momentum": 0.95,
            "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "adam_weight_decay": self.weight_decay,
            "max_grad_norm": 1.0, "ema_decay": 0.999, "checkpointing_steps": 1000, "checkpoints_total_limit": 1,
            "logging_steps": 1000, "validation_steps": 1000,
        }))?;
        // The step owns the parameters: two owners of one arena could not write it.
        let Loaded { model, params } = loaded;
        let shape_only = autograd::Params::zeros(params.layout().clone(), DType::F32, Device::Cpu);
        let step = Step::new(params.to_device(report::device())?, &common)?;
        Ok((
            Loaded {
                model,
                params: shape_only,
            },
            step,
        ))
    }
}

fn normal(name: &str, shape: &[usize]) -> Result<Tensor, tensor::Error> {
    let mut x = Tensor::uninit(shape, DType::F32, Device::Cpu);
    random::fill_normal(&mut x, &Draw::named(SEED, name, 0), 1.0)?;
    Ok(x)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    kernels::parallel::adopt_current_thread();
    let mut criterion = Criterion::default()
        .without_plots()
        .warm_up_time(Duration::from_secs(3))
        .measurement_time(Duration::from_secs(15))
        .sample_size(10)
        .configure_from_args();
    let device = report::device();
    let peak = (device == Device::Cpu).then(|| kernels::peak::fused_multiply_adds(10));
    match peak {
        Some(peak) => println!(
            "peak: {:.1} GFLOP/s f32, {} threads",
            peak / 1e9,
            rayon::current_num_threads()
        ),
        None => println!("on {device}"),
    }

    let unet = Job::<UNet2DModel> {
        name: "unet2d 6.8M, batch 16, 32x32",
        config: serde_json::from_value::<UNet2DConfig>(json!({
            "sample_size": 32, "in_channels": 3, "out_channels": 3, "layers_per_block": 2,
            "block_out_channels": [64, 128, 128], "attention_head_dim": 64, "norm_num_groups": 32,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        }))?,
        batch: 16,
        flops: 156.3e9,
        weight_decay: 0.01,
    };
    let (x, noise) = (
        normal("x", &[16, 32, 32, 3])?,
        normal("noise", &[16, 32, 32, 3])?,
    );
    let times: Vec<f32> = (0..16).map(|i| (i * 62) as f32).collect();
    let times = Tensor::from_slice(&times, [16], Device::Cpu);
    unet.measure(&mut criterion, peak, |model, t| {
        let given = |x: &Tensor| x.to_device(t.device()).map(|x| t.constant(x));
        let y = model.forward(t, &given(&x)?, &given(&times)?, None)?; // [16, 32, 32, 3]
        Ok(mse::mse(t, &y, &given(&noise)?, None)?)
    })?;

    let clip = Job::<CLIPModel> {
        name: "clip 20.8M, batch 64, 64x64, 32 tokens",
        config: serde_json::from_value::<CLIPConfig>(json!({
            "projection_dim": 256,
            "vision_config": {
                "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4,
                "image_size": 64, "patch_size": 8,
            },
            "text_config": {
                "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
                "max_position_embeddings": 32, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407,
                "pad_token_id": 49407,
            },
        }))?,
        batch: 64,
        flops: 164e9,
        weight_decay: 0.1,
    };
    let pixels = normal("pixels", &[64, 64, 64, 3])?;
    // A first token, words, and the last token from position 24 on.
    let words = |i: usize| match i % 32 {
        0 => 49406,
        24.. => 49407,
        _ => (i * 7919 % 49_000) as i32,
    };
    let ids: Vec<i32> = (0..64 * 32).map(words).collect();
    let ids = Tensor::from_slice(&ids, [64, 32], Device::Cpu);
    clip.measure(&mut criterion, peak, |model, t| {
        let pixels = t.constant(pixels.to_device(t.device())?);
        let ids = ids.to_device(t.device())?;
        Ok(model.forward(t, &ids, None, &pixels)?.loss)
    })?;
    criterion.final_summary();
    Ok(())
}
