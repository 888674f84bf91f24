//! The residual block of ADM (Dhariwal and Nichol, 2021, appendix A), which also halves and doubles resolution.

use autograd::ops::{affine, avg_pool2, binary, dropout, nearest_up2, reshape};
use autograd::{ParamsBuilder, Result, Tape, Var};
use serde::{Deserialize, Serialize};

use super::Conditioning;
use crate::nn::{After, Conv2d, GroupNorm, Linear};

/// How the time embedding enters a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeScaleShift {
    /// Added before the second normalisation.
    Default,
    /// Scales and shifts after the second normalisation: ADM's adaptive group normalisation.
    ScaleShift,
}

/// What a block does to the resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resample {
    Keep,
    /// Averages 2×2 pixels.
    Down,
    /// Repeats each pixel 2×2.
    Up,
}

/// What all residual blocks of a network share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResnetStyle {
    pub time_channels: usize,
    pub groups: usize,
    pub eps: f64,
    pub dropout: f64,
    pub time_scale_shift: TimeScaleShift,
    /// Divides the block's output.
    pub output_scale: f64,
}

/// diffusers' `ResnetBlock2D`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResnetBlock2D {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    resample: Resample,
    style: ResnetStyle,
}

impl ResnetBlock2D {
    pub fn new(
        p: &mut ParamsBuilder,
        [inputs, outputs]: [usize; 2],
        resample: Resample,
        style: ResnetStyle,
    ) -> ResnetBlock2D {
        let ResnetStyle {
            time_channels,
            groups,
            eps,
            ..
        } = style;
        let time_outputs = match style.time_scale_shift {
            TimeScaleShift::Default => outputs,
            TimeScaleShift::ScaleShift => 2 * outputs,
        };
        ResnetBlock2D {
            norm1: GroupNorm::new(p, "norm1", inputs, groups, eps),
            conv1: Conv2d::new(p, "conv1", [inputs, outputs], 3, 1),
            time_emb_proj: Linear::new(p, "time_emb_proj", time_channels, time_outputs),
            norm2: GroupNorm::new(p, "norm2", outputs, groups, eps),
            conv2: Conv2d::zeros(p, "conv2", [outputs, outputs], 3),
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2d::new(p, "conv_shortcut", [inputs, outputs], 1, 1)),
            resample,
            style,
        }
    }

    /// # Shapes
    /// x [n, h, w, in] → [n, h', w', out], where h' and w' are h and w kept, halved or doubled
    pub fn forward(&self, t: &Tape, x: &Var, conditioning: &Conditioning) -> Result<Var> {
        if !conditioning.recompute {
            return self.compute(t, x, &conditioning.time);
        }
        let block = *self;
        let mut outputs = t.checkpoint(&[x, &conditioning.time], move |t, v| {
            Ok(vec![block.compute(t, &v[0], &v[1])?])
        })?;
        Ok(outputs.remove(0))
    }

    fn compute(&self, t: &Tape, x: &Var, time: &Var) -> Result<Var> {
        let h = self.norm1.forward(t, x, After::Silu)?; // [n, h, w, in]
        let h = self.resample(t, &h)?; // [n, h', w', in]
        let h = self.conv1.forward(t, &h)?; // [n, h', w', out]
        let time = self.time_emb_proj.forward(t, time)?; // [n, out] or [n, 2·out]
        let h = match self.style.time_scale_shift {
            TimeScaleShift::Default => {
                let time = reshape::reshape(t, &time, [time.dims()[0], 1, 1, time.dims()[1]])?; // [n, 1, 1, out]
                self.norm2
                    .forward(t, &binary::add(t, &h, &time)?, After::Silu)? // [n, h', w', out]
            }
            TimeScaleShift::ScaleShift => self.norm2.modulated(t, &h, Some(&time), After::Silu)?, // [n, h', w', out]
        };
        let h = if self.style.dropout > 0.0 {
            dropout::dropout(t, &h, self.style.dropout)? // [n, h', w', out]
        } else {
            h
        };
        let skip = self.resample(t, x)?; // [n, h', w', in]
        let skip = match &self.conv_shortcut {
            Some(conv) => conv.forward(t, &skip)?, // [n, h', w', out]
            None => skip,
        };
        let y = self.conv2.fused(t, &h, Some(&skip))?; // [n, h', w', out]
        scaled(t, y, self.style.output_scale)
    }

    fn resample(&self, t: &Tape, x: &Var) -> Result<Var> {
        match self.resample {
            Resample::Keep => Ok(x.clone()),
            Resample::Down => avg_pool2::avg_pool2(t, x),
            Resample::Up => nearest_up2::nearest_up2(t, x),
        }
    }
}

/// x / scale; nothing is recorded for a scale of 1.
pub(crate) fn scaled(t: &Tape, x: Var, scale: f64) -> Result<Var> {
    if scale == 1.0 {
        Ok(x)
    } else {
        affine::affine(t, &x, 1.0 / scale, 0.0)
    }
}
