//! The decoder's network: a U-Net that attends to context tokens and takes a CLIP embedding beside the time step
//! (Ramesh et al., "Hierarchical text-conditional image generation with CLIP latents", 2022, section 2.1).

use autograd::ops::{affine, binary, unary};
use autograd::{ParamsBuilder, Tape, Tensor, Var};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::backbone::{Attends, Backbone, Level, Mid, Plan};
use super::resnet::{ResnetStyle, TimeScaleShift};
use super::{Conditioning, Context, DownBlockKind, MidBlockKind, ResampleKind, UpBlockKind};
use crate::Result;
use crate::config::{Checks, Extent, Extra, PerLevel};
use crate::model::{Class, Library, Model};

/// How `class_labels` join the time embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassEmbedding {
    /// They are embeddings already, and are added.
    Identity,
}

/// diffusers' configuration of `UNet2DConditionModel`. The kinds of blocks have no default: diffusers' default blocks
/// are those of latent diffusion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UNet2DConditionConfig {
    #[serde(default)]
    pub sample_size: Option<Extent>,
    #[serde(default = "default::in_channels")]
    pub in_channels: usize,
    #[serde(default = "default::in_channels")]
    pub out_channels: usize,
    #[serde(default)]
    pub center_input_sample: bool,
    #[serde(default = "default::yes")]
    pub flip_sin_to_cos: bool,
    #[serde(default)]
    pub freq_shift: i32,
    pub down_block_types: Vec<DownBlockKind>,
    pub mid_block_type: Option<MidBlockKind>,
    pub up_block_types: Vec<UpBlockKind>,
    #[serde(default = "default::block_out_channels")]
    pub block_out_channels: Vec<usize>,
    #[serde(default = "default::layers_per_block")]
    pub layers_per_block: PerLevel<usize>,
    #[serde(default = "default::one")]
    pub mid_block_scale_factor: f64,
    #[serde(default)]
    pub dropout: f64,
    #[serde(default = "default::norm_num_groups")]
    pub norm_num_groups: usize,
    #[serde(default = "default::norm_eps")]
    pub norm_eps: f64,
    #[serde(default = "default::cross_attention_dim")]
    pub cross_attention_dim: PerLevel<usize>,
    #[serde(default = "default::attention_head_dim")]
    pub attention_head_dim: PerLevel<usize>,
    #[serde(default)]
    pub class_embed_type: Option<ClassEmbedding>,
    #[serde(default = "default::time_scale_shift")]
    pub resnet_time_scale_shift: TimeScaleShift,
    #[serde(default)]
    pub resnet_skip_time_act: bool,
    #[serde(default = "default::one")]
    pub resnet_out_scale_factor: f64,
    #[serde(default)]
    pub time_embedding_dim: Option<usize>,
    #[serde(default = "default::kernel")]
    pub conv_in_kernel: usize,
    #[serde(default = "default::kernel")]
    pub conv_out_kernel: usize,
    #[serde(flatten)]
    pub extra: Extra,
}

/// diffusers' defaults.
pub(super) mod default {
    use super::{PerLevel, TimeScaleShift};

    pub fn in_channels() -> usize {
        4
    }
    pub fn yes() -> bool {
        true
    }
    pub fn one() -> f64 {
        1.0
    }
    pub fn kernel() -> usize {
        3
    }
    pub fn block_out_channels() -> Vec<usize> {
        vec![320, 640, 1280, 1280]
    }
    pub fn layers_per_block() -> PerLevel<usize> {
        PerLevel::All(2)
    }
    pub fn norm_num_groups() -> usize {
        32
    }
    pub fn norm_eps() -> f64 {
        1e-5
    }
    pub fn cross_attention_dim() -> PerLevel<usize> {
        PerLevel::All(1280)
    }
    pub fn attention_head_dim() -> PerLevel<usize> {
        PerLevel::All(8)
    }
    pub fn time_scale_shift() -> TimeScaleShift {
        TimeScaleShift::Default
    }
}

impl UNet2DConditionConfig {
    /// Karlo's decoder, 64×64: 885,439,686 parameters.
    pub fn karlo() -> UNet2DConditionConfig {
        UNet2DConditionConfig {
            sample_size: Some(Extent::Square(64)),
            layers_per_block: PerLevel::All(3),
            cross_attention_dim: PerLevel::All(1536),
            attention_head_dim: PerLevel::All(64),
            ..UNet2DConditionConfig::unclip(&[320, 640, 960, 1280])
        }
    }

    /// The shape of unCLIP's decoders: attention at every level but the first, learned variance, a CLIP embedding
    /// beside the time step.
    pub fn unclip(channels: &[usize]) -> UNet2DConditionConfig {
        let lower = channels.len().saturating_sub(1);
        let mut down = vec![DownBlockKind::ResnetDownsampleBlock2D];
        down.extend(vec![DownBlockKind::SimpleCrossAttnDownBlock2D; lower]);
        let mut up = vec![UpBlockKind::SimpleCrossAttnUpBlock2D; lower];
        up.push(UpBlockKind::ResnetUpsampleBlock2D);
        UNet2DConditionConfig {
            sample_size: None,
            in_channels: 3,
            out_channels: 6,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0,
            down_block_types: down,
            mid_block_type: Some(MidBlockKind::UNetMidBlock2DSimpleCrossAttn),
            up_block_types: up,
            block_out_channels: channels.to_vec(),
            layers_per_block: default::layers_per_block(),
            mid_block_scale_factor: 1.0,
            dropout: 0.0,
            norm_num_groups: default::norm_num_groups(),
            norm_eps: default::norm_eps(),
            cross_attention_dim: default::cross_attention_dim(),
            attention_head_dim: default::attention_head_dim(),
            class_embed_type: Some(ClassEmbedding::Identity),
            resnet_time_scale_shift: TimeScaleShift::ScaleShift,
            resnet_skip_time_act: false,
            resnet_out_scale_factor: 1.0,
            time_embedding_dim: None,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
            extra: Extra::new(),
        }
    }

    /// The width of the time embedding, which `class_labels` share.
    pub fn time_embed_dim(&self) -> usize {
        self.time_embedding_dim.unwrap_or_else(|| {
            self.block_out_channels
                .first()
                .map_or(0, |c| c.saturating_mul(4))
        })
    }

    fn plan(&self) -> Result<Plan> {
        let class = UNet2DConditionModel::CLASS.name;
        let checks = Checks(class);
        checks.neutral(
            &self.extra,
            &[
                ("downsample_padding", json!(1)),
                ("act_fn", json!("silu")),
                ("only_cross_attention", json!(false)),
                ("mid_block_only_cross_attention", json!(null)),
                ("encoder_hid_dim", json!(null)),
                ("encoder_hid_dim_type", json!(null)),
                ("num_attention_heads", json!(null)),
                ("addition_embed_type", json!(null)),
                ("num_class_embeds", json!(null)),
                ("time_embedding_type", json!("positional")),
                ("time_embedding_act_fn", json!(null)),
                ("timestep_post_act", json!(null)),
                ("time_cond_proj_dim", json!(null)),
                ("class_embeddings_concat", json!(false)),
                ("cross_attention_norm", json!(null)),
            ],
        )?;
        let levels = self.block_out_channels.len();
        let layers = self
            .layers_per_block
            .expand(class, "layers_per_block", levels)?;
        let heads = self
            .attention_head_dim
            .expand(class, "attention_head_dim", levels)?;
        let contexts = self
            .cross_attention_dim
            .expand(class, "cross_attention_dim", levels)?;
        check_blocks(
            checks,
            &self.block_out_channels,
            &self.down_block_types,
            &self.up_block_types,
        )?;
        let all_skip = self
            .down_block_types
            .iter()
            .all(|b| b.takes_resnet_options())
            && self.up_block_types.iter().all(|b| b.takes_resnet_options())
            && self.mid_block_type != Some(MidBlockKind::UNetMidBlock2D);
        checks.require(all_skip || !self.resnet_skip_time_act, || {
            "resnet_skip_time_act needs Resnet and SimpleCrossAttn blocks throughout: the others do not follow it".into()
        })?;
        let mid = self.mid_block_type.map(|kind| Mid {
            kind,
            output_scale: self.mid_block_scale_factor,
            // Here diffusers builds UNetMidBlock2D without attention and without a second residual block.
            pair: match kind {
                MidBlockKind::UNetMidBlock2D => None,
                MidBlockKind::UNetMidBlock2DSimpleCrossAttn => Some(Attends::Yes),
            },
            attention_groups: None,
        });
        let plan = Plan {
            inputs: self.in_channels,
            outputs: self.out_channels,
            conv_in_kernel: self.conv_in_kernel,
            conv_out_kernel: self.conv_out_kernel,
            levels: (0..levels)
                .map(|i| Level {
                    channels: self.block_out_channels[i],
                    resnets: layers[i],
                    head_dim: heads[i],
                    // diffusers does not reverse this list on the way up.
                    up_head_dim: heads[levels - 1 - i],
                    context: contexts[i],
                    down: self.down_block_types[i],
                    up: self.up_block_types[levels - 1 - i],
                })
                .collect(),
            mid,
            resnet: ResnetStyle {
                time_channels: self.time_embed_dim(),
                groups: self.norm_num_groups,
                eps: self.norm_eps,
                dropout: self.dropout,
                time_scale_shift: self.resnet_time_scale_shift,
                output_scale: self.resnet_out_scale_factor,
            },
            downsample: ResampleKind::Conv,
            upsample: ResampleKind::Conv,
            flip_sin_to_cos: self.flip_sin_to_cos,
            freq_shift: f64::from(self.freq_shift),
        };
        check_plan(checks, &plan)?;
        Ok(plan)
    }
}

/// Requires one down block and one up block for every level.
pub(super) fn check_blocks(
    checks: Checks,
    channels: &[usize],
    down: &[DownBlockKind],
    up: &[UpBlockKind],
) -> Result<()> {
    let levels = channels.len();
    checks.require((1..=16).contains(&levels), || {
        format!("block_out_channels must have from 1 to 16 values, it has {levels}")
    })?;
    for (field, len) in [
        ("down_block_types", down.len()),
        ("up_block_types", up.len()),
    ] {
        checks.require(len == levels, || {
            format!("{field} has {len} values, block_out_channels {levels}")
        })?;
    }
    Ok(())
}

/// Requires sizes that a network can be built from, so that building cannot fail.
pub(super) fn check_plan(checks: Checks, plan: &Plan) -> Result<()> {
    checks.sizes(&[
        ("in_channels", plan.inputs),
        ("out_channels", plan.outputs),
        ("time_embedding_dim", plan.resnet.time_channels),
    ])?;
    for (field, kernel) in [
        ("conv_in_kernel", plan.conv_in_kernel),
        ("conv_out_kernel", plan.conv_out_kernel),
    ] {
        checks.require(kernel % 2 == 1 && kernel <= 15, || {
            format!("{field} must be odd and at most 15, it is {kernel}")
        })?;
    }
    checks.epsilon("norm_eps", plan.resnet.eps)?;
    checks.probability("dropout", plan.resnet.dropout)?;
    let mid_scale = plan.mid.as_ref().map_or(1.0, |mid| mid.output_scale);
    checks.epsilon("mid_block_scale_factor", mid_scale)?;
    checks.epsilon("resnet_out_scale_factor", plan.resnet.output_scale)?;
    let groups = ("norm_num_groups", plan.resnet.groups);
    for (i, level) in plan.levels.iter().enumerate() {
        let channels = ("block_out_channels", level.channels);
        checks.sizes(&[channels, ("cross_attention_dim", level.context)])?;
        checks.require((1..=256).contains(&level.resnets), || {
            format!(
                "layers_per_block must be from 1 to 256, it is {}",
                level.resnets
            )
        })?;
        checks.divides(groups, channels)?;
        let mid_attends = i + 1 == plan.levels.len()
            && plan
                .mid
                .as_ref()
                .is_some_and(|mid| mid.pair == Some(Attends::Yes));
        if level.down.attends() || mid_attends {
            checks.divides(("attention_head_dim", level.head_dim), channels)?;
        }
        if level.up.attends() {
            checks.divides(("attention_head_dim", level.up_head_dim), channels)?;
        }
    }
    checks.require(plan.levels[0].channels.is_multiple_of(2), || {
        "the first of block_out_channels must be even: it is the width of sine and cosine pairs"
            .into()
    })
}

/// The decoder's network.
#[derive(Debug)]
pub struct UNet2DConditionModel {
    config: UNet2DConditionConfig,
    backbone: Backbone,
    recompute: bool,
}

impl Model for UNet2DConditionModel {
    type Config = UNet2DConditionConfig;
    const CLASS: Class = Class {
        name: "UNet2DConditionModel",
        library: Library::Diffusers,
    };

    fn new(config: &UNet2DConditionConfig, p: &mut ParamsBuilder) -> Result<UNet2DConditionModel> {
        let plan = config.plan()?;
        Ok(UNet2DConditionModel {
            config: config.clone(),
            backbone: Backbone::new(p, &plan),
            recompute: false,
        })
    }

    fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }
}

/// The arguments of [`UNet2DConditionModel::forward`], under diffusers' names.
#[derive(Clone, Copy)]
pub struct UNet2DConditionInputs<'a> {
    /// The noisy image, [n, h, w, in_channels].
    pub sample: &'a Var,
    /// [n], of the sample's dtype.
    pub timestep: &'a Var,
    /// Context tokens, [n, l, cross_attention_dim].
    pub encoder_hidden_states: Option<&'a Var>,
    /// Added to the time embedding where `class_embed_type` is identity, [n, 4·channels].
    pub class_labels: Option<&'a Var>,
    /// `Bool` [n, l], false for context tokens that are padding.
    pub attention_mask: Option<&'a Tensor>,
}

impl UNet2DConditionModel {
    /// Sets whether residual blocks keep their inputs alone and run again in the backward pass. Gradients have the
    /// same bits either way.
    pub fn with_recompute(self, recompute: bool) -> UNet2DConditionModel {
        UNet2DConditionModel { recompute, ..self }
    }

    /// # Shapes
    /// sample [n, h, w, in_channels] → [n, h, w, out_channels]; h and w divisible by 2^(levels − 1)
    pub fn forward(&self, t: &Tape, inputs: UNet2DConditionInputs) -> autograd::Result<Var> {
        let UNet2DConditionInputs {
            sample,
            timestep,
            encoder_hidden_states,
            class_labels,
            attention_mask,
        } = inputs;
        let mut time = self.backbone.embed_time(t, timestep)?; // [n, 4·channels]
        match (self.config.class_embed_type, class_labels) {
            (Some(ClassEmbedding::Identity), Some(labels)) => time = binary::add(t, &time, labels)?,
            (None, None) => {}
            (Some(_), None) => {
                return Err(misuse("class_labels are missing: class_embed_type is set"));
            }
            (None, Some(_)) => {
                return Err(misuse(
                    "class_labels were given, class_embed_type is not set",
                ));
            }
        }
        if !self.config.resnet_skip_time_act {
            // Every residual block applies the same SiLU before its projection: once is enough.
            time = unary::silu(t, &time)?;
        }
        let centred;
        let sample = if self.config.center_input_sample {
            centred = affine::affine(t, sample, 2.0, -1.0)?;
            &centred
        } else {
            sample
        };
        let context = encoder_hidden_states.map(|states| Context {
            states: states.clone(),
            mask: attention_mask.cloned(),
        });
        let conditioning = Conditioning {
            time,
            context,
            recompute: self.recompute,
        };
        self.backbone.forward(t, sample, &conditioning)
    }
}

pub(super) fn misuse(reason: &str) -> tensor::Error {
    tensor::Error::new("unet", reason, vec![])
}
