//! The transformer block that both priors are made of.

use autograd::ops::attention::{self, Attention};
use autograd::ops::matmul::Activation;
use autograd::ops::{binary, concat, dropout};
use autograd::{ParamsBuilder, Tape, Tensor, Var};

use crate::nn::{LayerNorm, Linear};

/// What a block is built from.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockConfig {
    pub heads: usize,
    pub head_dim: usize,
    pub dropout: f64,
}

/// diffusers' `BasicTransformerBlock` without cross-attention: its `norm2` does not exist.
#[derive(Debug)]
pub(super) struct TransformerBlock {
    norm1: LayerNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
    config: BlockConfig,
}

/// Keys and values of the tokens that a block has seen, [n, seen, c] each.
pub(super) type Seen = Option<(Tensor, Tensor)>;

impl TransformerBlock {
    pub fn new(p: &mut ParamsBuilder, config: BlockConfig) -> TransformerBlock {
        let c = config.heads * config.head_dim;
        TransformerBlock {
            norm1: LayerNorm::new(p, "norm1", c, 1e-5),
            to_q: Linear::new(p, "attn1.to_q", c, c),
            to_k: Linear::new(p, "attn1.to_k", c, c),
            to_v: Linear::new(p, "attn1.to_v", c, c),
            to_out: Linear::new(p, "attn1.to_out.0", c, c),
            norm3: LayerNorm::new(p, "norm3", c, 1e-5),
            ff_in: Linear::new(p, "ff.net.0.proj", c, 4 * c),
            ff_out: Linear::new(p, "ff.net.2", 4 * c, c),
            config,
        }
    }

    /// # Shapes
    /// x [n, l, c], mask `Bool` [n, l] → [n, l, c]
    pub fn forward(&self, t: &Tape, x: &Var, mask: Option<&Tensor>) -> autograd::Result<Var> {
        self.around(t, x, |q, k, v| {
            let op = self.attention(mask.is_some());
            attention::attention(t, q, k, v, None, mask, op)
        })
    }

    /// Goes on behind the tokens that were seen, and remembers the new ones: the same as [`forward`](Self::forward) on all of
    /// them, causal, for the last.
    ///
    /// # Shapes
    /// x [n, l, c], where l is 1 unless nothing was seen; mask `Bool` [n, seen + l] → [n, l, c]
    pub fn extend(
        &self,
        t: &Tape,
        x: &Var,
        seen: &mut Seen,
        mask: &Tensor,
    ) -> autograd::Result<Var> {
        self.around(t, x, |q, k, v| {
            let op = self.attention(seen.is_none());
            let (k, v) = match seen.take() {
                Some((keys, values)) => (
                    concat::concat(t, &[&t.constant(keys), k], 1)?,
                    concat::concat(t, &[&t.constant(values), v], 1)?,
                ),
                None => (k.clone(), v.clone()),
            };
            *seen = Some((k.tensor().clone(), v.tensor().clone()));
            attention::attention(t, q, &k, &v, None, Some(mask), op)
        })
    }

    fn attention(&self, causal: bool) -> Attention {
        Attention {
            heads: self.config.heads,
            causal,
            scale: 1.0 / (self.config.head_dim as f64).sqrt(),
        }
    }

    /// Everything around the attention of queries, keys and values.
    fn around(
        &self,
        t: &Tape,
        x: &Var,
        attend: impl FnOnce(&Var, &Var, &Var) -> autograd::Result<Var>,
    ) -> autograd::Result<Var> {
        let h = self.norm1.forward(t, x)?; // [n, l, c]
        let q = self.to_q.forward(t, &h)?; // [n, l, c]
        let k = self.to_k.forward(t, &h)?; // [n, l, c]
        let v = self.to_v.forward(t, &h)?; // [n, l, c]
        let h = t.module("attn1", || attend(&q, &k, &v))?; // [n, l, c]
        let x = self.residual(t, &self.to_out, &h, x)?; // [n, l, c]
        let h = self.norm3.forward(t, &x)?; // [n, l, c]
        let h = self.ff_in.fused(t, &h, Activation::Gelu, None)?; // [n, l, 4c]
        let h = self.dropped(t, h)?; // [n, l, 4c]
        self.ff_out.fused(t, &h, Activation::None, Some(&x)) // [n, l, c]
    }

    /// x + dropout(projection(h)), fused where nothing is dropped.
    fn residual(&self, t: &Tape, projection: &Linear, h: &Var, x: &Var) -> autograd::Result<Var> {
        if self.config.dropout == 0.0 {
            return projection.fused(t, h, Activation::None, Some(x));
        }
        let h = self.dropped(t, projection.forward(t, h)?)?;
        binary::add(t, &h, x)
    }

    fn dropped(&self, t: &Tape, h: Var) -> autograd::Result<Var> {
        if self.config.dropout == 0.0 {
            Ok(h)
        } else {
            dropout::dropout(t, &h, self.config.dropout)
        }
    }
}
