//! Layer normalisation over the last dimension (Ba et al., arXiv 1607.06450).

use tensor::ops::layer_norm::{self, Output, Saved};
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var};

/// (x − mean) / √(variance + eps) · γ + β over the last dimension.
///
/// # Shapes
/// x [.., c], gamma [c], beta [c] → like x.
pub fn layer_norm(t: &Tape, x: &Var, gamma: &Var, beta: &Var, eps: f64) -> Result<Var> {
    let Output { y, mean, rstd } =
        layer_norm::forward(&x.tensor, &gamma.tensor, &beta.tensor, eps)?;
    t.record("layer_norm", &[x, gamma, beta], y, || LayerNormBackward {
        eps,
        x: x.clone(),
        gamma: gamma.clone(),
        beta: beta.clone(),
        mean,
        rstd,
    })
}

/// Saves x, γ and the statistics of each row.
struct LayerNormBackward {
    eps: f64,
    x: Var,
    gamma: Var,
    beta: Var,
    mean: Tensor,
    rstd: Tensor,
}

impl Backward for LayerNormBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        let LayerNormBackward {
            eps,
            x,
            gamma,
            beta,
            mean,
            rstd,
        } = *self;
        let targets = [&x, &gamma, &beta].map(|v| (v.id, &v.tensor));
        grads.sink_many(targets, |gradients| {
            let saved = Saved {
                x: &x.tensor,
                mean: &mean,
                rstd: &rstd,
                gamma: &gamma.tensor,
            };
            layer_norm::backward(gradients, &dy, saved, eps)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(&[1], 0.0),
            case(&[3, 1], 0.0),
            case(&[7], 0.0),
            case(&[2, 5, 33], 0.0),
            // More rows than one part of any kernel holds.
            case(&[131, 20], 0.0),
            case(&[3, 50], 100.0),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(&[4096, 256], 0.0), case(&[8, 77, 512], 0.0)]
    }
}

const EPS: f64 = 1e-5;

fn case(shape: &[usize], mean: f64) -> Case {
    let c = shape[shape.len() - 1];
    let elements = shape.iter().product::<usize>() as f64;
    Case {
        name: format!(
            "x={shape:?}{}",
            if mean != 0.0 { ",large_mean" } else { "" }
        ),
        inputs: vec![
            Input::new("x", shape, Fill::Normal { mean, std: 1.0 }),
            Input::normal("gamma", &[c]),
            Input::normal("beta", &[c]),
        ],
        run: Box::new(|t, x| Ok(vec![layer_norm(t, &x[0], &x[1], &x[2], EPS)?])),
        reference: Box::new(move |x: &[Array]| {
            let (gamma, beta) = (&x[1], &x[2]);
            let mut y = x[0].clone();
            for row in y.data.chunks_exact_mut(c) {
                let mean = row.iter().sum::<f64>() / c as f64;
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
                for (j, x) in row.iter_mut().enumerate() {
                    *x = (*x - mean) / (variance + EPS).sqrt() * gamma.data[j] + beta.data[j];
                }
            }
            vec![y]
        }),
        cost: Cost {
            flops: 8.0 * elements,
            elements: 2.0 * elements,
        },
    }
}
