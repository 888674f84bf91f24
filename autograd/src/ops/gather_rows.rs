//! One row of each sample.

use tensor::ops::gather_rows;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// Row `index[i]` of every sample i.
///
/// # Shapes
/// x [n, l, c], index i32 [n] → [n, c]
pub fn gather_rows(t: &Tape, x: &Var, index: &Var) -> Result<Var> {
    let y = gather_rows::forward(&x.tensor, &index.tensor)?;
    t.record("gather_rows", &[x], y, || GatherRowsBackward {
        x: x.tensor.outline(),
        index: index.tensor.clone(),
        to: x.id,
    })
}

/// Saves the index and the form of x.
struct GatherRowsBackward {
    x: Tensor,
    index: Tensor,
    to: Option<VarId>,
}

impl Backward for GatherRowsBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.to, &self.x, |dx, accum| {
            gather_rows::backward(dx, accum, &dy, &self.index)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![case(1, 1, 1), case(3, 7, 5), case(5, 77, 67)]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(64, 77, 512)]
    }
}

fn case(n: usize, l: usize, c: usize) -> Case {
    Case {
        name: format!("n={n},l={l},c={c}"),
        inputs: vec![
            Input::normal("x", &[n, l, c]),
            Input::new("index", &[n], Fill::Index { below: l }),
        ],
        run: Box::new(|t, x| Ok(vec![gather_rows(t, &x[0], &x[1])?])),
        reference: Box::new(move |x: &[Array]| {
            vec![Array::from_fn(&[n, c], |i| {
                x[0].at(&[i[0], x[1].at(&[i[0]]) as usize, i[1]])
            })]
        }),
        cost: Cost {
            flops: 0.0,
            elements: 2.0 * (n * c) as f64,
        },
    }
}
