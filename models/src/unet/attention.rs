//! Attention among the pixels of a feature map, and from them to context tokens.

use autograd::ops::attention::{self, Attention as AttentionOp};
use autograd::ops::matmul::Activation;
use autograd::ops::reshape;
use autograd::{ParamsBuilder, Result, Tape, Tensor, Var};

use super::resnet::scaled;
use super::{Conditioning, Context};
use crate::nn::{After, GroupNorm, Linear};

/// diffusers' `Attention` as image networks use it: normalisation, joint softmax over context tokens and pixels
/// (context first; it is not normalised), projection, residual.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpatialAttention {
    group_norm: Option<GroupNorm>,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    context: Option<ContextProjection>,
    to_out: Linear,
    heads: usize,
    scale: f64,
    /// Divides the block's output.
    output_scale: f64,
}

/// Keys and values of context tokens.
#[derive(Clone, Copy, Debug)]
struct ContextProjection {
    add_k_proj: Linear,
    add_v_proj: Linear,
}

pub(crate) struct AttentionStyle {
    pub head_dim: usize,
    /// Groups and ε; `None` leaves the normalisation out.
    pub norm: Option<(usize, f64)>,
    /// The width of context tokens, for attention to them.
    pub context: Option<usize>,
    pub output_scale: f64,
}

impl SpatialAttention {
    /// The caller has checked that the head width divides `channels`.
    pub fn new(p: &mut ParamsBuilder, channels: usize, style: &AttentionStyle) -> SpatialAttention {
        let heads = channels / style.head_dim;
        SpatialAttention {
            group_norm: style
                .norm
                .map(|(groups, eps)| GroupNorm::new(p, "group_norm", channels, groups, eps)),
            to_q: Linear::new(p, "to_q", channels, channels),
            to_k: Linear::new(p, "to_k", channels, channels),
            to_v: Linear::new(p, "to_v", channels, channels),
            context: style.context.map(|width| ContextProjection {
                add_k_proj: Linear::new(p, "add_k_proj", width, channels),
                add_v_proj: Linear::new(p, "add_v_proj", width, channels),
            }),
            to_out: Linear::zeros(p, "to_out.0", [channels, channels]),
            heads,
            scale: 1.0 / (style.head_dim as f64).sqrt(),
            output_scale: style.output_scale,
        }
    }

    /// # Shapes
    /// x [n, h, w, c], context [n, l, d] → [n, h, w, c]
    pub fn forward(&self, t: &Tape, x: &Var, conditioning: &Conditioning) -> Result<Var> {
        let &[n, height, width, c] = x.dims() else {
            return Err(tensor::Check::new("attention", &[("x", x.tensor())])
                .error("x must be [n, h, w, c]"));
        };
        let pixels = height * width;
        let x = reshape::reshape(t, x, [n, pixels, c])?; // [n, h·w, c]
        let h = match &self.group_norm {
            Some(norm) => norm.forward(t, &x, After::Nothing)?, // [n, h·w, c]
            None => x.clone(),
        };
        let q = self.to_q.forward(t, &h)?; // [n, h·w, c]
        let k = self.to_k.forward(t, &h)?; // [n, h·w, c]
        let v = self.to_v.forward(t, &h)?; // [n, h·w, c]
        let op = AttentionOp {
            heads: self.heads,
            causal: false,
            scale: self.scale,
        };
        let h = match (&self.context, &conditioning.context) {
            (Some(projection), Some(Context { states, mask })) => {
                let k0 = projection.add_k_proj.forward(t, states)?; // [n, l, c]
                let v0 = projection.add_v_proj.forward(t, states)?; // [n, l, c]
                let mask = mask
                    .as_ref()
                    .map(|mask| extend_mask(mask, 0, pixels))
                    .transpose()?; // [n, l + h·w]
                attention::attention(t, &q, &k, &v, Some((&k0, &v0)), mask.as_ref(), op)?
            }
            (Some(_), None) => {
                return Err(tensor::Error::new(
                    "attention",
                    "this block attends to encoder_hidden_states, and none were given",
                    vec![],
                ));
            }
            (None, _) => attention::attention(t, &q, &k, &v, None, None, op)?,
        }; // [n, h·w, c]
        let y = self.to_out.fused(t, &h, Activation::None, Some(&x))?; // [n, h·w, c]
        let y = scaled(t, y, self.output_scale)?;
        reshape::reshape(t, &y, [n, height, width, c])
    }
}

/// A `Bool` mask [n, l] with `before` and `after` columns of true around it.
pub fn extend_mask(mask: &Tensor, before: usize, after: usize) -> Result<Tensor> {
    tensor::Check::new("extend_mask", &[("mask", mask)]).rank("mask", mask, 2)?;
    let [n, l] = [mask.dims()[0], mask.dims()[1]];
    let old = mask.to_vec::<u8>()?;
    let width = before + l + after;
    let mut new = vec![true; n * width];
    for row in 0..n {
        for column in 0..l {
            new[row * width + before + column] = old[row * l + column] != 0;
        }
    }
    Ok(Tensor::from_bools(&new, [n, width], mask.device()))
}
