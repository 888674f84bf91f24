//! Each sample from one of two sources: how classifier-free guidance drops its condition.

use tensor::ops::select_rows;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// Sample i of `a` where `keep[i]`, else of `b`.
///
/// # Shapes
/// keep Bool [n], a [n, ..], b [n, ..] or [1, ..] → [n, ..]
pub fn select_rows(t: &Tape, keep: &Tensor, a: &Var, b: &Var) -> Result<Var> {
    let y = select_rows::forward(keep, &a.tensor, &b.tensor)?;
    t.record("select_rows", &[a, b], y, || SelectRowsBackward {
        keep: keep.clone(),
        a: (a.id, a.tensor.outline()),
        b: (b.id, b.tensor.outline()),
    })
}

/// Saves the choice and the forms of a and b.
struct SelectRowsBackward {
    keep: Tensor,
    a: (Option<VarId>, Tensor),
    b: (Option<VarId>, Tensor),
}

impl Backward for SelectRowsBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.a.0, &self.a.1, |da, accum| {
            select_rows::backward_a(da, accum, &dy, &self.keep)
        })?;
        grads.sink(self.b.0, &self.b.1, |db, accum| {
            select_rows::backward_b(db, accum, &dy, &self.keep)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "select_rows"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(&[1], false),
            case(&[5, 7], true),
            case(&[5, 3, 7], false),
            case(&[7, 33, 129], true),
            case(&[7, 33, 129], false),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(&[64, 77, 512], true)]
    }
}

fn case(shape: &[usize], shared: bool) -> Case {
    let shape = shape.to_vec();
    let mut b = shape.clone();
    if shared {
        b[0] = 1;
    }
    Case {
        name: format!("a={shape:?},b={b:?}"),
        inputs: vec![
            Input::new("keep", &shape[..1], Fill::Mask { probability: 0.5 }),
            Input::normal("a", &shape),
            Input::normal("b", &b),
        ],
        run: Box::new(|t, x| Ok(vec![select_rows(t, x[0].tensor(), &x[1], &x[2])?])),
        cost: Cost {
            flops: 0.0,
            elements: 2.0 * shape.iter().product::<usize>() as f64,
        },
        reference: Box::new(move |x: &[Array]| {
            vec![Array::from_fn(&shape, |i| {
                let mut other = i.to_vec();
                other[0] = if shared { 0 } else { i[0] };
                if x[0].at(&i[..1]) != 0.0 {
                    x[1].at(i)
                } else {
                    x[2].at(&other)
                }
            })]
        }),
    }
}
