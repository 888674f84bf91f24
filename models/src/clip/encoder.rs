//! The pre-normalised transformer of both towers, initialised as CLIP's is: residual branches shrink with depth.

use autograd::ops::attention::{self, Attention};
use autograd::ops::matmul::Activation;
use autograd::{Init, ParamsBuilder, Result, Tape, Tensor, Var};

use super::config::EncoderPlan;
use crate::nn::{LayerNorm, Linear};

#[derive(Debug)]
pub(super) struct Encoder {
    layers: Vec<EncoderLayer>,
}

impl Encoder {
    pub fn new(p: &mut ParamsBuilder, plan: &EncoderPlan) -> Encoder {
        let layers = (0..plan.layers)
            .map(|i| EncoderLayer::new(&mut p.at(format!("encoder.layers.{i}")), plan))
            .collect();
        Encoder { layers }
    }

    /// The states after every layer, those before the first in front. `mask` is false for keys that are padding.
    ///
    /// # Shapes
    /// x [n, l, c], mask `Bool` [n, l] → layers + 1 times [n, l, c]
    pub fn forward(&self, t: &Tape, x: &Var, mask: Option<&Tensor>) -> Result<Vec<Var>> {
        let mut states = vec![x.clone()];
        for (i, layer) in self.layers.iter().enumerate() {
            let x = &states[i];
            let y = t.module(&format!("encoder.layers.{i}"), || layer.forward(t, x, mask))?;
            states.push(y);
        }
        Ok(states)
    }
}

/// transformers' `CLIPEncoderLayer`.
#[derive(Debug)]
struct EncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl EncoderLayer {
    fn new(p: &mut ParamsBuilder, plan: &EncoderPlan) -> EncoderLayer {
        let width = plan.width as f64;
        let depth = 2.0 * plan.layers as f64;
        let normal = |std: f64| Init::Normal {
            std: std * plan.init_factor,
        };
        EncoderLayer {
            layer_norm1: LayerNorm::new(p, "layer_norm1", plan.width, plan.eps),
            self_attn: SelfAttention::new(
                p,
                plan,
                normal((width * depth).powf(-0.5)),
                normal(width.powf(-0.5)),
            ),
            layer_norm2: LayerNorm::new(p, "layer_norm2", plan.width, plan.eps),
            fc1: Linear::with(
                p,
                "mlp.fc1",
                [plan.width, plan.hidden],
                normal((2.0 * width).powf(-0.5)),
                Some(Init::Zeros),
            ),
            fc2: Linear::with(
                p,
                "mlp.fc2",
                [plan.hidden, plan.width],
                normal((width * depth).powf(-0.5)),
                Some(Init::Zeros),
            ),
            activation: plan.activation,
        }
    }

    /// # Shapes
    /// [n, l, c] → [n, l, c]
    fn forward(&self, t: &Tape, x: &Var, mask: Option<&Tensor>) -> Result<Var> {
        let h = self.layer_norm1.forward(t, x)?; // [n, l, c]
        let x = self.self_attn.forward(t, &h, mask, x)?; // [n, l, c]
        let h = self.layer_norm2.forward(t, &x)?; // [n, l, c]
        let h = self.fc1.fused(t, &h, self.activation, None)?; // [n, l, hidden]
        self.fc2.fused(t, &h, Activation::None, Some(&x)) // [n, l, c]
    }
}

/// transformers' `CLIPAttention`, with the residual connection around it.
#[derive(Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    op: Attention,
}

impl SelfAttention {
    fn new(p: &mut ParamsBuilder, plan: &EncoderPlan, inner: Init, outer: Init) -> SelfAttention {
        let p = &mut p.at("self_attn");
        let widths = [plan.width; 2];
        let head_dim = plan.width / plan.heads;
        SelfAttention {
            q_proj: Linear::with(p, "q_proj", widths, inner, Some(Init::Zeros)),
            k_proj: Linear::with(p, "k_proj", widths, inner, Some(Init::Zeros)),
            v_proj: Linear::with(p, "v_proj", widths, inner, Some(Init::Zeros)),
            out_proj: Linear::with(p, "out_proj", widths, outer, Some(Init::Zeros)),
            op: Attention {
                heads: plan.heads,
                causal: plan.causal,
                scale: 1.0 / (head_dim as f64).sqrt(),
            },
        }
    }

    fn forward(&self, t: &Tape, h: &Var, mask: Option<&Tensor>, residual: &Var) -> Result<Var> {
        t.scope("self_attn", || {
            let q = self.q_proj.forward(t, h)?; // [n, l, c]
            let k = self.k_proj.forward(t, h)?; // [n, l, c]
            let v = self.v_proj.forward(t, h)?; // [n, l, c]
            let h = attention::attention(t, &q, &k, &v, None, mask, self.op)?; // [n, l, c]
            self.out_proj.fused(t, &h, Activation::None, Some(residual)) // [n, l, c]
        })
    }
}
