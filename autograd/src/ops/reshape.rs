//! The same elements under another shape.

use tensor::{Result, Shape};

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// x with the shape `shape`, which holds as many elements. A view.
pub fn reshape(t: &Tape, x: &Var, shape: impl Into<Shape>) -> Result<Var> {
    let from = x.tensor.shape();
    let y = x.tensor.reshape(shape)?;
    t.record("reshape", &[x], y, || ReshapeBackward { from, to: x.id })
}

/// Saves no tensor: the gradient is a view of the upstream one.
struct ReshapeBackward {
    from: Shape,
    to: Option<VarId>,
}

impl Backward for ReshapeBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        grads.give(self.to, upstream.single()?.reshape(self.from)?)
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(&[1], &[]),
            case(&[2, 3, 5], &[30]),
            case(&[7, 6], &[7, 2, 1, 3]),
            case(&[4, 1, 9], &[4, 1, 9]),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(&[64, 16, 16, 64], &[64, 256, 64])]
    }
}

fn case(from: &[usize], to: &[usize]) -> Case {
    let shape = Shape::new(to);
    Case {
        name: format!("{from:?}->{to:?}"),
        inputs: vec![Input::normal("x", from)],
        run: Box::new(move |t, x| Ok(vec![reshape(t, &x[0], shape)?])),
        reference: Box::new(move |x: &[Array]| {
            vec![Array {
                shape: shape.to_vec(),
                data: x[0].data.clone(),
            }]
        }),
        // Nothing is read and nothing is written.
        cost: Cost::default(),
    }
}
