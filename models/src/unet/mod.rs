//! U-Nets of ADM (Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis", 2021) as diffusers names them:
//! the decoder is a [`UNet2DConditionModel`], an upsampler a [`UNet2DModel`]. Both are one [`backbone`] with a
//! configuration of its own.

mod attention;
mod backbone;
mod condition;
mod resnet;
mod unconditional;

use autograd::{Tensor, Var};
use serde::{Deserialize, Serialize};

pub use condition::{
    ClassEmbedding, UNet2DConditionConfig, UNet2DConditionInputs, UNet2DConditionModel,
};
pub use resnet::TimeScaleShift;
pub use unconditional::{ResampleKind, UNet2DConfig, UNet2DModel};

pub use attention::extend_mask;

/// What every block of a U-Net receives besides its feature map.
pub(crate) struct Conditioning {
    /// The time embedding as residual blocks project it, [n, 4·channels].
    pub time: Var,
    pub context: Option<Context>,
    /// Whether residual blocks keep their inputs alone and run again in the backward pass.
    pub recompute: bool,
}

/// Tokens that pixels attend to.
pub(crate) struct Context {
    /// [n, l, d]
    pub states: Var,
    /// `Bool` [n, l], false for padding.
    pub mask: Option<Tensor>,
}

/// A level of the way down; the names are diffusers' class names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlockKind {
    /// Halves by a strided convolution.
    DownBlock2D,
    /// The same with self-attention after every residual block.
    AttnDownBlock2D,
    /// Halves by a residual block.
    ResnetDownsampleBlock2D,
    /// The same with attention to context after every residual block.
    SimpleCrossAttnDownBlock2D,
}

/// A level of the way up; the names are diffusers' class names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlockKind {
    /// Doubles by repetition and a convolution.
    UpBlock2D,
    /// The same with self-attention after every residual block.
    AttnUpBlock2D,
    /// Doubles by a residual block.
    ResnetUpsampleBlock2D,
    /// The same with attention to context after every residual block.
    SimpleCrossAttnUpBlock2D,
}

/// The lowest resolution; the names are diffusers' class names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MidBlockKind {
    UNetMidBlock2D,
    UNetMidBlock2DSimpleCrossAttn,
}

impl DownBlockKind {
    pub(crate) fn attends(self) -> bool {
        use DownBlockKind::{AttnDownBlock2D, SimpleCrossAttnDownBlock2D};
        matches!(self, AttnDownBlock2D | SimpleCrossAttnDownBlock2D)
    }

    /// Whether diffusers passes `resnet_out_scale_factor` and `resnet_skip_time_act` on to the block.
    pub(crate) fn takes_resnet_options(self) -> bool {
        use DownBlockKind::{ResnetDownsampleBlock2D, SimpleCrossAttnDownBlock2D};
        matches!(self, ResnetDownsampleBlock2D | SimpleCrossAttnDownBlock2D)
    }
}

impl UpBlockKind {
    pub(crate) fn attends(self) -> bool {
        use UpBlockKind::{AttnUpBlock2D, SimpleCrossAttnUpBlock2D};
        matches!(self, AttnUpBlock2D | SimpleCrossAttnUpBlock2D)
    }

    /// As [`DownBlockKind::takes_resnet_options`].
    pub(crate) fn takes_resnet_options(self) -> bool {
        use UpBlockKind::{ResnetUpsampleBlock2D, SimpleCrossAttnUpBlock2D};
        matches!(self, ResnetUpsampleBlock2D | SimpleCrossAttnUpBlock2D)
    }
}
