//! Concatenation along any dimension.

use tensor::ops::concat;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// The operands one after the other along `dim`.
///
/// # Shapes
/// [.., dᵢ, ..] each, equal but for `dim` → [.., Σ dᵢ, ..]
pub fn concat(t: &Tape, parts: &[&Var], dim: usize) -> Result<Var> {
    let tensors: Vec<&Tensor> = parts.iter().map(|part| &part.tensor).collect();
    let y = concat::forward(&tensors, dim)?;
    t.record("concat", parts, y, || ConcatBackward {
        parts: parts.iter().map(|p| (p.id, p.tensor.outline())).collect(),
        dim,
    })
}

/// Saves the forms of the operands only.
struct ConcatBackward {
    parts: Vec<(Option<VarId>, Tensor)>,
    dim: usize,
}

impl Backward for ConcatBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        let mut start = 0;
        for (to, part) in &self.parts {
            grads.sink(*to, part, |dx, accum| {
                concat::backward(dx, accum, &dy, self.dim, start)
            })?;
            start += part.dims()[self.dim];
        }
        Ok(())
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(&[1], 0, &[1]),
            case(&[7, 0, 3], 1, &[2, 1, 5]),
            case(&[0, 5, 3], 0, &[1, 4]),
            case(&[2, 3, 5, 0], 3, &[7, 1, 64]),
            case(&[2, 65, 67, 0], 3, &[3, 1]),
            // Rows longer than what one thread writes at a time, and rows cut anywhere by its end.
            case(&[2, 0, 67], 1, &[300, 1]),
            case(&[2, 65, 67, 0], 3, &[2, 3, 2]),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![
            case(&[8, 32, 32, 0], 3, &[128, 128]),
            case(&[16, 0, 512], 1, &[77, 1, 1, 1, 1]),
        ]
    }
}

fn case(shape: &[usize], dim: usize, extents: &[usize]) -> Case {
    let with = |extent| {
        let mut shape = shape.to_vec();
        shape[dim] = extent;
        shape
    };
    let total = with(extents.iter().sum());
    let names = ["a", "b", "c", "d", "e"];
    let inputs = extents.iter().zip(names);
    Case {
        name: format!("dim={dim},extents={extents:?},total={total:?}"),
        inputs: inputs
            .map(|(&d, name)| Input::normal(name, &with(d)))
            .collect(),
        cost: Cost {
            flops: 0.0,
            elements: 2.0 * total.iter().product::<usize>() as f64,
        },
        run: Box::new(move |t, x| Ok(vec![concat(t, &x.iter().collect::<Vec<_>>(), dim)?])),
        reference: Box::new(move |x: &[Array]| {
            vec![Array::from_fn(&total, |i| {
                let mut i = i.to_vec();
                let mut parts = x.iter();
                let mut part = parts.next();
                while let Some(p) = part {
                    if i[dim] < p.shape[dim] {
                        return p.at(&i);
                    }
                    i[dim] -= p.shape[dim];
                    part = parts.next();
                }
                f64::NAN
            })]
        }),
    }
}
