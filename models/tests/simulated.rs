//! Models on the simulated GPU, or on the one that `UNCLIP_DEVICE=cuda:0` names: the loss and every gradient within the error budget of the CPU.
//!
//! In f32, `max|y − y64| ≤ 2·max|naive − y64| + 2 ulp` for each parameter's gradient, naive being the CPU in f32, and f64
//! with every parameter moved by a few roundings. In bf16 there is no CPU to compare with: the squared error of all gradients
//! together, as a fraction of their square, is held to twice what was measured.
//!
//! The bias of attention's keys moves all of a query's logits alike, so its gradient is zero but for what cancels: there an
//! ulp is one of the gradient of the weight beside it.

mod common;

use autograd::harness::budget::{F64, Precision, largest, moved_array};
use autograd::harness::device::gpu;
use autograd::harness::values::Random;
use autograd::spec::Array;
use autograd::{DType, Device, ParamGrads, Params, Result, Tape, Tensor, Var};
use common::*;
use models::clip::CLIPModel;
use models::config::PerLevel;
use models::prior::{PriorConfig, PriorTransformer};
use models::text_proj::UnCLIPTextProjModel;
use models::unet::{UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig, UNet2DModel};
use models::{Loaded, Model};
use tensor::ops::optimizer::{AdamW, Arenas, Decay, Run, clip_factor, gradient_norm, update};

const F32_ULP: f64 = 1.0 / 8_388_608.0;

/// The same parameters, each moved by a few roundings of f32.
fn moved(params: &Params, random: &mut Random) -> Params {
    let arena = params.arena();
    let values = Array {
        shape: arena.dims().to_vec(),
        data: arena.to_f64_vec().unwrap(),
    };
    let values = moved_array(Precision::F32, &values, random);
    let arena = Tensor::from_f64(&values.data, arena.shape(), arena.dtype(), Device::Cpu);
    Params::from_arena(params.layout().clone(), arena).unwrap()
}

/// The same parameters in memory of their own, which can be trained.
fn copy(params: &Params) -> Params {
    let arena = params.arena().detach_copy().unwrap();
    Params::from_arena(params.layout().clone(), arena).unwrap()
}

/// Every gradient by itself, in f64.
fn values(grads: &ParamGrads) -> Vec<Vec<f64>> {
    let ids = grads.layout().iter().map(|(id, _)| id);
    ids.map(|id| grads.get(id).unwrap().to_f64_vec().unwrap())
        .collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.fold(0.0, |m, d| if d <= m { m } else { d })
}

/// The losses of ten steps of AdamW on one batch.
fn ten_losses(mut params: Params, loss: impl Fn(&Tape) -> Result<Var>) -> Vec<f64> {
    // Padding between parameters has no gradient, and stays zero.
    let runs = [Run {
        start: 0,
        end: params.arena().len(),
        decay: Decay::Yes,
    }];
    let zeros = || Tensor::zeros(params.arena().shape(), params.dtype(), params.device());
    let (mut m, mut v) = (zeros(), zeros());
    let adamw = AdamW {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
    };
    let losses = (1..=10).map(|number| {
        let (value, mut grads) = step(&params, &loss);
        let gradient = grads.finish().unwrap();
        let clip = clip_factor(gradient_norm(gradient).unwrap(), 1.0);
        let arenas = Arenas {
            parameters: params.arena_mut(),
            gradient,
            m: &mut m,
            v: &mut v,
            ema: None,
        };
        update(arenas, &adamw.at(number, 1e-3, clip, 0.0), &runs).unwrap();
        value
    });
    losses.collect()
}

/// Holds a model's step on the simulated GPU to the CPU's; `nmse` bounds the error of all gradients in bf16.
fn hold<M: Model>(
    name: &str,
    config: &M::Config,
    nmse: f64,
    loss: impl Fn(&Tape, &M, DType) -> Result<Var>,
) {
    let Loaded { model, params } = tiny::<M>(config, DType::F32);
    let run = |params: &Params, dtype| {
        let (value, grads) = step(params, |t| loss(t, &model, dtype));
        (value, values(&grads))
    };
    let wide = params.cast(DType::F64).unwrap();
    let (loss64, exact) = run(&wide, DType::F64);

    let mut random = Random::new(name);
    let mut naive = vec![run(&params, DType::F32)];
    naive.extend((0..2).map(|_| run(&moved(&wide, &mut random), DType::F64)));
    let (loss_sim, got) = run(&params.to_device(gpu()).unwrap(), DType::F32);
    let mut wrong = vec![];
    let mut worst: f64 = 0.0;
    let mut used = |what: &str, got: &[f64], exact: &[f64], naive: Vec<&[f64]>, from: f64| {
        let budget = naive.iter().map(|n| distance(n, exact)).fold(0.0, f64::max);
        let vanishes = largest(exact) <= F64 * from;
        let unit = if vanishes { from } else { largest(exact) };
        let budget = 2.0 * budget + 2.0 * F32_ULP * unit;
        let used = distance(got, exact) / budget.max(f64::MIN_POSITIVE);
        worst = worst.max(used);
        if used.is_nan() || used > 1.0 {
            wrong.push(format!("{what} is {used:.2} of its budget off"));
        }
    };
    let losses: Vec<[f64; 1]> = naive.iter().map(|(loss, _)| [*loss]).collect();
    let losses = losses.iter().map(|loss| &loss[..]).collect();
    used("the loss", &[loss_sim], &[loss64], losses, 0.0);
    for (i, (_, info)) in params.layout().iter().enumerate() {
        let naive = naive.iter().map(|(_, grads)| &grads[i][..]).collect();
        let weight = info.name.strip_suffix("bias").map(|s| format!("{s}weight"));
        let weight = weight.and_then(|name| params.layout().find(&name));
        let from = weight.map_or(0.0, |id| largest(&exact[id.index()]));
        used(&info.name, &got[i], &exact[i], naive, from);
    }

    // Ten steps. Where they lead depends on every rounding on the way, so losses are held together.
    let train = |params: Params, dtype| ten_losses(params, |t| loss(t, &model, dtype));
    let exact_losses = train(copy(&wide), DType::F64);
    let mut naive_losses = vec![train(copy(&params), DType::F32)];
    naive_losses.extend((0..2).map(|_| train(moved(&wide, &mut random), DType::F64)));
    let got_losses = train(params.to_device(gpu()).unwrap(), DType::F32);
    let naive_losses = naive_losses.iter().map(Vec::as_slice).collect();
    used(
        "ten steps' loss",
        &got_losses,
        &exact_losses,
        naive_losses,
        0.0,
    );

    // In bf16, on the numbers that it holds.
    let rounded = params.cast(DType::BF16).unwrap();
    let (loss64, exact) = run(&rounded.cast(DType::F64).unwrap(), DType::F64);
    let (loss_sim, got) = run(&rounded.to_device(gpu()).unwrap(), DType::BF16);
    let pairs = || got.iter().flatten().zip(exact.iter().flatten());
    let off: f64 = pairs().map(|(got, exact)| (got - exact).powi(2)).sum();
    let off = off / pairs().map(|(_, exact)| exact.powi(2)).sum::<f64>();
    let loss_off = (loss_sim - loss64).abs() / loss64.abs();
    eprintln!(
        "{name}: f32 {worst:.2} of the budget; bf16 squared error {off:.1e}, loss {loss_off:.1e}"
    );
    if off.is_nan() || off > nmse {
        wrong.push(format!(
            "in bf16 the squared error of all gradients is {off:.2e}"
        ));
    }
    if loss_off.is_nan() || loss_off > nmse.sqrt() {
        wrong.push(format!("in bf16 the loss is {loss_off:.2e} off"));
    }
    assert!(wrong.is_empty(), "{name} on sim:\n{}", wrong.join("\n"));
}

#[test]
fn the_upsampler_is_within_the_budget() {
    hold::<UNet2DModel>(
        "upsampler",
        &upsampler_config(),
        1.3e-3,
        |t, model, dtype| loss_of(t, &unet_output(t, model, 2, dtype)?),
    );
}

/// Its head dim is one that GPU kernels have.
#[test]
fn the_decoder_is_within_the_budget() {
    let config = UNet2DConditionConfig {
        block_out_channels: vec![32, 32],
        attention_head_dim: PerLevel::All(32),
        ..decoder_config()
    };
    hold::<UNet2DConditionModel>("decoder", &config, 4e-4, |t, model, dtype| {
        loss_of(t, &decoder_output(t, model, 2, dtype)?)
    });
}

/// Its head dim is one that GPU kernels have.
#[test]
fn a_net_with_attention_is_within_the_budget() {
    let config = UNet2DConfig {
        block_out_channels: vec![32, 32],
        attention_head_dim: Some(32),
        ..attending_config()
    };
    hold::<UNet2DModel>("attending net", &config, 4e-4, |t, model, dtype| {
        loss_of(t, &unet_output(t, model, 2, dtype)?)
    });
}

#[test]
fn the_text_projection_is_within_the_budget() {
    let config = text_proj_config();
    hold::<UnCLIPTextProjModel>("text projection", &config, 3e-5, text_proj_loss);
}

/// Its head dim is one that GPU kernels have.
#[test]
fn the_prior_is_within_the_budget() {
    let config = PriorConfig {
        attention_head_dim: 32,
        ..prior_config()
    };
    hold::<PriorTransformer>("prior", &config, 1e-3, |t, model, dtype| {
        loss_of(t, &prior_output(t, model, 2, dtype)?)
    });
}

/// Its head dims are ones that GPU kernels have.
#[test]
fn clip_is_within_the_budget() {
    let mut config = clip_config();
    config.text_config.hidden_size = 96;
    config.vision_config.hidden_size = 64;
    hold::<CLIPModel>("CLIP", &config, 1e-3, clip_loss);
}
