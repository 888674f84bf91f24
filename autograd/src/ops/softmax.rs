//! Softmax over the last dimension.

use tensor::ops::softmax;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// `exp(x) / Σ exp(x)` over the last dimension.
///
/// # Shapes
/// x [.., c] → [.., c]
pub fn softmax(t: &Tape, x: &Var) -> Result<Var> {
    let y = softmax::forward(&x.tensor)?;
    let saved = y.clone();
    t.record("softmax", &[x], y, || SoftmaxBackward {
        y: saved,
        to: x.id,
    })
}

/// Saves y: the derivative is a function of it.
struct SoftmaxBackward {
    y: Tensor,
    to: Option<VarId>,
}

impl Backward for SoftmaxBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.to, &self.y, |dx, accum| {
            softmax::backward(dx, accum, &dy, &self.y)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(&[3, 1], 0.0),
            case(&[2, 3, 7], 0.0),
            case(&[3, 131], 100.0),
            case(&[17, 1031], 0.0),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(&[1024, 1024], 0.0)]
    }
}

fn case(shape: &[usize], mean: f64) -> Case {
    let elements = shape.iter().product::<usize>() as f64;
    Case {
        name: format!("x={shape:?},mean={mean}"),
        inputs: vec![Input::new("x", shape, Fill::Normal { mean, std: 1.0 })],
        run: Box::new(|t, x| Ok(vec![softmax(t, &x[0])?])),
        reference: Box::new(|x: &[Array]| {
            let mut y = x[0].clone();
            let c = y.shape[y.shape.len() - 1];
            for row in y.data.chunks_mut(c) {
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                row.iter_mut().for_each(|x| *x = x.exp() / sum);
            }
            vec![y]
        }),
        cost: Cost {
            flops: 5.0 * elements,
            elements: 2.0 * elements,
        },
    }
}
