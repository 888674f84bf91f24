//! The upsamplers' network: a U-Net without context, whose input holds the low-resolution image beside the noisy one.

use autograd::ops::{affine, binary, unary};
use autograd::{ParamsBuilder, Tape, Var};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::backbone::{Attends, Backbone, Level, Mid, Plan};
use super::condition::{check_blocks, check_plan, default, misuse};
use super::resnet::{ResnetStyle, TimeScaleShift};
use super::{ClassEmbedding, Conditioning, DownBlockKind, MidBlockKind, UpBlockKind};
use crate::Result;
use crate::config::{Checks, Extent, Extra};
use crate::model::{Class, Library, Model};

/// How blocks with self-attention change the resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResampleKind {
    /// A strided convolution down, repetition and a convolution up.
    Conv,
    /// A residual block.
    Resnet,
}

/// diffusers' configuration of `UNet2DModel`, with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UNet2DConfig {
    pub sample_size: Option<Extent>,
    pub in_channels: usize,
    pub out_channels: usize,
    pub center_input_sample: bool,
    pub time_embedding_dim: Option<usize>,
    pub freq_shift: i32,
    pub flip_sin_to_cos: bool,
    pub down_block_types: Vec<DownBlockKind>,
    pub mid_block_type: Option<MidBlockKind>,
    pub up_block_types: Vec<UpBlockKind>,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub mid_block_scale_factor: f64,
    pub downsample_type: ResampleKind,
    pub upsample_type: ResampleKind,
    pub dropout: f64,
    /// The width of a head; `None` means one head.
    pub attention_head_dim: Option<usize>,
    pub norm_num_groups: usize,
    pub attn_norm_num_groups: Option<usize>,
    pub norm_eps: f64,
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Whether the lowest resolution attends.
    pub add_attention: bool,
    pub class_embed_type: Option<ClassEmbedding>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for UNet2DConfig {
    fn default() -> UNet2DConfig {
        use DownBlockKind::{AttnDownBlock2D, DownBlock2D};
        use UpBlockKind::{AttnUpBlock2D, UpBlock2D};
        UNet2DConfig {
            sample_size: None,
            in_channels: 3,
            out_channels: 3,
            center_input_sample: false,
            time_embedding_dim: None,
            freq_shift: 0,
            flip_sin_to_cos: true,
            down_block_types: vec![
                DownBlock2D,
                AttnDownBlock2D,
                AttnDownBlock2D,
                AttnDownBlock2D,
            ],
            mid_block_type: Some(MidBlockKind::UNetMidBlock2D),
            up_block_types: vec![AttnUpBlock2D, AttnUpBlock2D, AttnUpBlock2D, UpBlock2D],
            block_out_channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            downsample_type: ResampleKind::Conv,
            upsample_type: ResampleKind::Conv,
            dropout: 0.0,
            attention_head_dim: Some(8),
            norm_num_groups: default::norm_num_groups(),
            attn_norm_num_groups: None,
            norm_eps: default::norm_eps(),
            resnet_time_scale_shift: TimeScaleShift::Default,
            add_attention: true,
            class_embed_type: None,
            extra: Extra::new(),
        }
    }
}

impl UNet2DConfig {
    /// One of Karlo's two upsampler networks, 64×64 to 256×256: 691,579,523 parameters.
    pub fn karlo() -> UNet2DConfig {
        UNet2DConfig {
            sample_size: Some(Extent::Square(256)),
            layers_per_block: 3,
            ..UNet2DConfig::upsampler(&[320, 640, 960, 1280])
        }
    }

    /// The shape of unCLIP's upsamplers: convolutions only; the noisy image and the enlarged one come in, noise goes
    /// out.
    pub fn upsampler(channels: &[usize]) -> UNet2DConfig {
        UNet2DConfig {
            in_channels: 6,
            out_channels: 3,
            down_block_types: vec![DownBlockKind::ResnetDownsampleBlock2D; channels.len()],
            up_block_types: vec![UpBlockKind::ResnetUpsampleBlock2D; channels.len()],
            block_out_channels: channels.to_vec(),
            add_attention: false,
            ..UNet2DConfig::default()
        }
    }

    fn plan(&self) -> Result<Plan> {
        let checks = Checks(UNet2DModel::CLASS.name);
        checks.neutral(
            &self.extra,
            &[
                ("downsample_padding", json!(1)),
                ("act_fn", json!("silu")),
                ("time_embedding_type", json!("positional")),
                ("num_class_embeds", json!(null)),
            ],
        )?;
        let channels = &self.block_out_channels;
        let levels = channels.len();
        check_blocks(
            checks,
            channels,
            &self.down_block_types,
            &self.up_block_types,
        )?;
        let attends_to_context = self
            .down_block_types
            .contains(&DownBlockKind::SimpleCrossAttnDownBlock2D)
            || self
                .up_block_types
                .contains(&UpBlockKind::SimpleCrossAttnUpBlock2D)
            || self.mid_block_type == Some(MidBlockKind::UNetMidBlock2DSimpleCrossAttn);
        checks.require(!attends_to_context, || {
            "blocks that attend to encoder_hidden_states belong to UNet2DConditionModel".into()
        })?;
        let mid = self.mid_block_type.map(|kind| Mid {
            kind,
            output_scale: self.mid_block_scale_factor,
            pair: Some(if self.add_attention {
                Attends::Yes
            } else {
                Attends::No
            }),
            attention_groups: self.attn_norm_num_groups.or_else(|| {
                (self.resnet_time_scale_shift == TimeScaleShift::Default)
                    .then_some(self.norm_num_groups)
            }),
        });
        if let (Some(groups), Some(&last)) = (self.attn_norm_num_groups, channels.last()) {
            checks.divides(
                ("attn_norm_num_groups", groups),
                ("block_out_channels", last),
            )?;
        }
        let plan = Plan {
            inputs: self.in_channels,
            outputs: self.out_channels,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
            levels: (0..levels)
                .map(|i| Level {
                    channels: channels[i],
                    resnets: self.layers_per_block,
                    head_dim: self.attention_head_dim.unwrap_or(channels[i]),
                    up_head_dim: self.attention_head_dim.unwrap_or(channels[i]),
                    context: 1,
                    down: self.down_block_types[i],
                    up: self.up_block_types[levels - 1 - i],
                })
                .collect(),
            mid,
            resnet: ResnetStyle {
                time_channels: self
                    .time_embedding_dim
                    .unwrap_or(channels[0].saturating_mul(4)),
                groups: self.norm_num_groups,
                eps: self.norm_eps,
                dropout: self.dropout,
                time_scale_shift: self.resnet_time_scale_shift,
                output_scale: 1.0,
            },
            downsample: self.downsample_type,
            upsample: self.upsample_type,
            flip_sin_to_cos: self.flip_sin_to_cos,
            freq_shift: f64::from(self.freq_shift),
        };
        check_plan(checks, &plan)?;
        Ok(plan)
    }
}

/// An upsampler's network.
#[derive(Debug)]
pub struct UNet2DModel {
    config: UNet2DConfig,
    backbone: Backbone,
    recompute: bool,
}

impl Model for UNet2DModel {
    type Config = UNet2DConfig;
    const CLASS: Class = Class {
        name: "UNet2DModel",
        library: Library::Diffusers,
    };

    fn new(config: &UNet2DConfig, p: &mut ParamsBuilder) -> Result<UNet2DModel> {
        let plan = config.plan()?;
        Ok(UNet2DModel {
            config: config.clone(),
            backbone: Backbone::new(p, &plan),
            recompute: false,
        })
    }

    fn config(&self) -> &UNet2DConfig {
        &self.config
    }
}

impl UNet2DModel {
    /// Sets whether residual blocks keep their inputs alone and run again in the backward pass. Gradients have the
    /// same bits either way.
    pub fn with_recompute(self, recompute: bool) -> UNet2DModel {
        UNet2DModel { recompute, ..self }
    }

    /// `timestep` is of the sample's dtype; `class_labels` [n, 4·channels] are given exactly if `class_embed_type`
    /// is set.
    ///
    /// # Shapes
    /// sample [n, h, w, in_channels], timestep [n] → [n, h, w, out_channels]; h and w divisible by 2^(levels − 1)
    pub fn forward(
        &self,
        t: &Tape,
        sample: &Var,
        timestep: &Var,
        class_labels: Option<&Var>,
    ) -> autograd::Result<Var> {
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
        let time = unary::silu(t, &time)?; // [n, 4·channels]
        let conditioning = Conditioning {
            time,
            context: None,
            recompute: self.recompute,
        };
        if self.config.center_input_sample {
            let centred = affine::affine(t, sample, 2.0, -1.0)?; // [n, h, w, in]
            self.backbone.forward(t, &centred, &conditioning)
        } else {
            self.backbone.forward(t, sample, &conditioning)
        }
    }
}
