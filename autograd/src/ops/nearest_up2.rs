//! Nearest-neighbour upsampling by two.

use tensor::ops::nearest_up2;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// Every pixel as a 2×2 block.
///
/// # Shapes
/// x [n, h, w, c] → [n, 2h, 2w, c]
pub fn nearest_up2(t: &Tape, x: &Var) -> Result<Var> {
    let y = nearest_up2::forward(&x.tensor)?;
    t.record("nearest_up2", &[x], y, || NearestUp2Backward {
        x: x.tensor.outline(),
        to: x.id,
    })
}

/// Saves the form of x only: repetition is linear.
struct NearestUp2Backward {
    x: Tensor,
    to: Option<VarId>,
}

impl Backward for NearestUp2Backward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.to, &self.x, |dx, accum| {
            nearest_up2::backward(dx, accum, &dy)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "nearest_up2"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        let shapes = [[1, 1, 1, 1], [3, 1, 5, 7], [2, 5, 3, 67], [1, 17, 17, 33]];
        shapes.into_iter().map(case).collect()
    }

    fn benches(&self) -> Vec<Case> {
        vec![case([8, 16, 16, 128]), case([8, 32, 32, 64])]
    }
}

fn case(shape: [usize; 4]) -> Case {
    let [n, h, w, c] = shape;
    Case {
        name: format!("x={shape:?}"),
        inputs: vec![Input::normal("x", &shape)],
        run: Box::new(|t, x| Ok(vec![nearest_up2(t, &x[0])?])),
        reference: Box::new(move |x: &[Array]| {
            vec![Array::from_fn(&[n, 2 * h, 2 * w, c], |i| {
                x[0].at(&[i[0], i[1] / 2, i[2] / 2, i[3]])
            })]
        }),
        cost: Cost {
            flops: 0.0,
            elements: 5.0 * (n * h * w * c) as f64,
        },
    }
}
