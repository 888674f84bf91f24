//! Tiny instances of every model, with inputs.
#![allow(dead_code)] // each test binary uses a part

use autograd::{
    DType, Device, Draw, Init, ParamGrads, Params, Result, StepState, Tape, Tensor, Var,
};
use models::clip::{CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig};
use models::config::{Extent, PerLevel};
use models::diffusion::timesteps;
use models::prior::{PriorConfig, PriorInputs, PriorTransformer};
use models::text_proj::{UnCLIPTextProjConfig, UnCLIPTextProjModel};
use models::unet::{
    DownBlockKind, TimeScaleShift, UNet2DConditionConfig, UNet2DConditionInputs,
    UNet2DConditionModel, UNet2DConfig, UNet2DModel, UpBlockKind,
};
use models::{Loaded, Model};

pub const SEED: u64 = 7;

pub fn normal(name: &str, shape: &[usize], dtype: DType) -> Tensor {
    // What CPUs draw in; bf16 holds it rounded.
    let drawn = if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    };
    let mut out = Tensor::uninit(shape, drawn, Device::Cpu);
    tensor::ops::random::fill_normal(&mut out, &Draw::named(SEED, name, 0), 1.0).unwrap();
    out.cast(dtype).unwrap()
}

/// [`normal`] where the model lives.
pub fn constant(t: &Tape, name: &str, shape: &[usize], dtype: DType) -> Var {
    t.constant(normal(name, shape, dtype).to_device(t.device()).unwrap())
}

/// Time steps where the model lives; 16 bits do not count them.
fn steps_of(t: &Tape, steps: &[usize], dtype: DType) -> Var {
    let dtype = if dtype == DType::BF16 {
        DType::F32
    } else {
        dtype
    };
    t.constant(timesteps(steps, dtype, t.device()))
}

pub fn mask(rows: &[&[usize]]) -> Tensor {
    let bits: Vec<bool> = rows
        .iter()
        .flat_map(|row| row.iter().map(|&b| b != 0))
        .collect();
    Tensor::from_bools(&bits, [rows.len(), rows[0].len()], Device::Cpu)
}

/// A model whose constant parameters are perturbed too, so that none of them hides a mistake.
pub fn tiny<M: Model>(config: &M::Config, dtype: DType) -> Loaded<M> {
    let mut loaded = Loaded::<M>::init(config, SEED, dtype, Device::Cpu).unwrap();
    let layout = loaded.params.layout().clone();
    for (id, info) in layout.iter() {
        if matches!(info.init, Init::Zeros | Init::Ones) {
            let noise = normal(&info.name, &info.shape, DType::F64)
                .to_f64_vec()
                .unwrap();
            let old = loaded.params.get(id).unwrap().to_f64_vec().unwrap();
            let new: Vec<f64> = old.iter().zip(noise).map(|(o, z)| o + 0.1 * z).collect();
            let new = Tensor::from_f64(&new, info.shape, dtype, Device::Cpu);
            loaded.params.set(id, &new).unwrap();
        }
    }
    loaded
}

/// The loss and the gradients of one step.
pub fn step(params: &Params, loss: impl FnOnce(&Tape) -> Result<Var>) -> (f64, ParamGrads) {
    let state = StepState {
        seed: SEED,
        step: 3,
        first_sample: 0,
    };
    let tape = Tape::training(params, state);
    let loss = loss(&tape).unwrap();
    let value = loss.tensor().item().unwrap();
    let grads = tape.backward(&loss, ParamGrads::new(params)).unwrap();
    (value, grads.into_params())
}

/// Mean squared distance to a fixed target.
pub fn loss_of(t: &Tape, output: &Var) -> Result<Var> {
    let target = constant(t, "target", output.dims(), output.dtype());
    autograd::ops::mse::mse(t, output, &target, None)
}

pub fn decoder_config() -> UNet2DConditionConfig {
    UNet2DConditionConfig {
        sample_size: Some(Extent::Square(8)),
        layers_per_block: PerLevel::All(1),
        norm_num_groups: 4,
        cross_attention_dim: PerLevel::All(10),
        attention_head_dim: PerLevel::All(4),
        dropout: 0.1,
        ..UNet2DConditionConfig::unclip(&[8, 16])
    }
}

pub fn decoder_output(
    t: &Tape,
    model: &UNet2DConditionModel,
    n: usize,
    dtype: DType,
) -> Result<Var> {
    let config = model.config();
    let sample = constant(t, "sample", &[n, 4, 8, config.in_channels], dtype);
    let steps: Vec<usize> = (0..n).map(|i| 17 + 400 * i).collect();
    let context = constant(t, "context", &[n, 5, 10], dtype);
    let labels = constant(t, "labels", &[n, config.time_embed_dim()], dtype);
    let rows: Vec<&[usize]> = (0..n)
        .map(|i| {
            if i % 2 == 0 {
                &[1usize, 1, 1, 0, 0][..]
            } else {
                &[1, 1, 1, 1, 1]
            }
        })
        .collect();
    model.forward(
        t,
        UNet2DConditionInputs {
            sample: &sample,
            timestep: &steps_of(t, &steps, dtype),
            encoder_hidden_states: Some(&context),
            class_labels: Some(&labels),
            attention_mask: Some(&mask(&rows).to_device(t.device()).unwrap()),
        },
    )
}

pub fn upsampler_config() -> UNet2DConfig {
    UNet2DConfig {
        sample_size: Some(Extent::Square(16)),
        layers_per_block: 1,
        norm_num_groups: 4,
        ..UNet2DConfig::upsampler(&[8, 16])
    }
}

/// Every block that `UNet2DModel` has and the upsampler does not.
pub fn attending_config() -> UNet2DConfig {
    UNet2DConfig {
        layers_per_block: 1,
        norm_num_groups: 4,
        attention_head_dim: Some(4),
        down_block_types: vec![DownBlockKind::DownBlock2D, DownBlockKind::AttnDownBlock2D],
        up_block_types: vec![UpBlockKind::AttnUpBlock2D, UpBlockKind::UpBlock2D],
        block_out_channels: vec![8, 16],
        resnet_time_scale_shift: TimeScaleShift::ScaleShift,
        ..UNet2DConfig::default()
    }
}

pub fn unet_output(t: &Tape, model: &UNet2DModel, n: usize, dtype: DType) -> Result<Var> {
    let sample = constant(t, "sample", &[n, 6, 4, model.config().in_channels], dtype);
    let steps: Vec<usize> = (0..n).map(|i| 999 - 31 * i).collect();
    model.forward(t, &sample, &steps_of(t, &steps, dtype), None)
}

pub fn prior_config() -> PriorConfig {
    PriorConfig {
        num_attention_heads: 2,
        attention_head_dim: 6,
        num_layers: 2,
        embedding_dim: 10,
        num_embeddings: 5,
        ..PriorConfig::default()
    }
}

pub fn prior_output(t: &Tape, model: &PriorTransformer, n: usize, dtype: DType) -> Result<Var> {
    let value = |name: &str, shape: &[usize]| constant(t, name, shape, dtype);
    let steps: Vec<usize> = (0..n).map(|i| 3 + 250 * i).collect();
    let rows: Vec<&[usize]> = (0..n)
        .map(|i| {
            if i % 2 == 0 {
                &[1usize, 1, 1, 0, 0][..]
            } else {
                &[1, 1, 1, 1, 1]
            }
        })
        .collect();
    model.forward(
        t,
        PriorInputs {
            hidden_states: &value("image", &[n, 10]),
            timestep: &steps_of(t, &steps, dtype),
            proj_embedding: &value("pooled", &[n, 10]),
            encoder_hidden_states: &value("text", &[n, 5, 10]),
            attention_mask: Some(&mask(&rows).to_device(t.device()).unwrap()),
        },
    )
}

pub fn text_proj_config() -> UnCLIPTextProjConfig {
    UnCLIPTextProjConfig {
        clip_extra_context_tokens: 3,
        clip_embeddings_dim: 10,
        time_embed_dim: 12,
        cross_attention_dim: 14,
        ..UnCLIPTextProjConfig::karlo()
    }
}

/// A scalar that depends on both outputs and on the learned embedding.
pub fn text_proj_loss(t: &Tape, model: &UnCLIPTextProjModel, dtype: DType) -> Result<Var> {
    let value = |name: &str, shape: &[usize]| constant(t, name, shape, dtype);
    let keep = Tensor::from_bools(&[true, false], [2], t.device());
    let image = autograd::ops::select_rows::select_rows(
        t,
        &keep,
        &value("image", &[2, 10]),
        &model.unconditional(t)?,
    )?;
    let out = model.forward(
        t,
        &image,
        &value("pooled", &[2, 10]),
        &value("text", &[2, 4, 10]),
    )?;
    assert_eq!(out.context.dims(), [2, 7, 14]);
    assert_eq!(out.time.dims(), [2, 12]);
    autograd::ops::binary::add(t, &loss_of(t, &out.context)?, &loss_of(t, &out.time)?)
}

pub fn clip_config() -> CLIPConfig {
    CLIPConfig {
        projection_dim: 10,
        text_config: CLIPTextConfig {
            vocab_size: 20,
            hidden_size: 12,
            intermediate_size: 15,
            num_hidden_layers: 2,
            num_attention_heads: 3,
            max_position_embeddings: 6,
            eos_token_id: 19,
            ..CLIPTextConfig::default()
        },
        vision_config: CLIPVisionConfig {
            hidden_size: 8,
            intermediate_size: 11,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 8,
            patch_size: 4,
            ..CLIPVisionConfig::default()
        },
        ..CLIPConfig::default()
    }
}

pub fn clip_ids() -> Tensor {
    Tensor::from_slice(
        &[
            18i32, 3, 4, 19, 19, 19, 18, 7, 1, 2, 5, 19, 18, 9, 19, 19, 19, 19,
        ],
        [3, 6],
        Device::Cpu,
    )
}

pub fn clip_loss(t: &Tape, model: &CLIPModel, dtype: DType) -> Result<Var> {
    let pixels = constant(t, "pixels", &[3, 8, 8, 3], dtype);
    let ids = clip_ids().to_device(t.device()).unwrap();
    let out = model.forward(t, &ids, None, &pixels)?;
    assert_eq!(out.logits_per_text.dims(), [3, 3]);
    assert_eq!(out.text.hidden_states.len(), 3);
    Ok(out.loss)
}
