//! Rows scaled to unit length.

use tensor::ops::l2_normalize;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// `x / max(‖x‖₂, eps)` over the last dimension.
///
/// # Shapes
/// x [.., c] → [.., c]
pub fn l2_normalize(t: &Tape, x: &Var, eps: f64) -> Result<Var> {
    let y = l2_normalize::forward(&x.tensor, eps)?;
    t.record("l2_normalize", &[x], y, || L2NormalizeBackward {
        x: x.tensor.clone(),
        eps,
        to: x.id,
    })
}

/// Saves x; its norms are one pass away.
struct L2NormalizeBackward {
    x: Tensor,
    eps: f64,
    to: Option<VarId>,
}

impl Backward for L2NormalizeBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.to, &self.x, |dx, accum| {
            l2_normalize::backward(dx, accum, &dy, &self.x, self.eps)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "l2_normalize"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(&[3, 1], 0.0, 1e-12),
            case(&[5, 2, 7], 0.0, 1e-12),
            case(&[3, 517], 100.0, 1e-12),
            // Rows shorter than eps are divided by eps.
            case(&[5, 7], 0.0, 50.0),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(&[1024, 768], 0.0, 1e-12)]
    }
}

fn case(shape: &[usize], mean: f64, eps: f64) -> Case {
    let elements = shape.iter().product::<usize>() as f64;
    Case {
        name: format!("x={shape:?},mean={mean},eps={eps:e}"),
        inputs: vec![Input::new("x", shape, Fill::Normal { mean, std: 1.0 })],
        run: Box::new(move |t, x| Ok(vec![l2_normalize(t, &x[0], eps)?])),
        reference: Box::new(move |x: &[Array]| {
            let mut y = x[0].clone();
            let c = y.shape[y.shape.len() - 1];
            for row in y.data.chunks_mut(c) {
                let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                row.iter_mut().for_each(|x| *x /= norm.max(eps));
            }
            vec![y]
        }),
        cost: Cost {
            flops: 3.0 * elements,
            elements: 2.0 * elements,
        },
    }
}
