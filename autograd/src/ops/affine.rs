//! A line through every element.

use tensor::Result;
use tensor::ops::affine;

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// scale·x + shift, any shape.
pub fn affine(t: &Tape, x: &Var, scale: f64, shift: f64) -> Result<Var> {
    let y = affine::forward(&x.tensor, scale, shift)?;
    t.record("affine", &[x], y, || AffineBackward { scale, to: x.id })
}

/// Saves no tensor: the gradient is a multiple of the upstream one.
struct AffineBackward {
    scale: f64,
    to: Option<VarId>,
}

impl Backward for AffineBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        if self.scale == 1.0 {
            return grads.give(self.to, dy);
        }
        grads.sink(self.to, &dy, |dx, accum| {
            affine::accumulate(dx, accum, &dy, self.scale, 0.0)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        let shapes: [&[usize]; 3] = [&[1], &[3, 1, 7], &[5, 4099]];
        let lines = [(-2.5, 0.75), (1.0, 3.0), (0.5, 0.0)];
        lines
            .into_iter()
            .flat_map(|(scale, shift)| shapes.map(|shape| case(scale, shift, shape)))
            .collect()
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(2.0, -1.0, &[64, 16, 16, 64])]
    }
}

fn case(scale: f64, shift: f64, shape: &[usize]) -> Case {
    let elements = shape.iter().product::<usize>() as f64;
    Case {
        name: format!("x={shape:?},scale={scale},shift={shift}"),
        inputs: vec![Input::normal("x", shape)],
        run: Box::new(move |t, x| Ok(vec![affine(t, &x[0], scale, shift)?])),
        reference: Box::new(move |x: &[Array]| vec![x[0].map(|x| scale * x + shift)]),
        cost: Cost {
            flops: 2.0 * elements,
            elements: 2.0 * elements,
        },
    }
}
