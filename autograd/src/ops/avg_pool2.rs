//! Average pooling over 2×2 blocks.

use tensor::ops::avg_pool2;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// The mean of each 2×2 block.
///
/// # Shapes
/// x [n, h, w, c] with even h and w → [n, h/2, w/2, c]
pub fn avg_pool2(t: &Tape, x: &Var) -> Result<Var> {
    let y = avg_pool2::forward(&x.tensor)?;
    t.record("avg_pool2", &[x], y, || AvgPool2Backward {
        x: x.tensor.outline(),
        to: x.id,
    })
}

/// Saves the form of x only: pooling is linear.
struct AvgPool2Backward {
    x: Tensor,
    to: Option<VarId>,
}

impl Backward for AvgPool2Backward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.to, &self.x, |dx, accum| {
            avg_pool2::backward(dx, accum, &dy)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "avg_pool2"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        let shapes = [[1, 2, 2, 1], [3, 2, 6, 5], [2, 10, 6, 67], [1, 34, 34, 33]];
        shapes.into_iter().map(case).collect()
    }

    fn benches(&self) -> Vec<Case> {
        vec![case([8, 32, 32, 128]), case([8, 64, 64, 64])]
    }
}

fn case(shape: [usize; 4]) -> Case {
    let [n, h, w, c] = shape;
    let elements = (n * h * w * c) as f64;
    Case {
        name: format!("x={shape:?}"),
        inputs: vec![Input::normal("x", &shape)],
        run: Box::new(|t, x| Ok(vec![avg_pool2(t, &x[0])?])),
        reference: Box::new(move |x: &[Array]| {
            vec![Array::from_fn(&[n, h / 2, w / 2, c], |i| {
                let pixel = |dy, dx| x[0].at(&[i[0], 2 * i[1] + dy, 2 * i[2] + dx, i[3]]);
                (pixel(0, 0) + pixel(0, 1) + pixel(1, 0) + pixel(1, 1)) / 4.0
            })]
        }),
        cost: Cost {
            flops: elements,
            elements: 1.25 * elements,
        },
    }
}
