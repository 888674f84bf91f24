//! Elementwise functions of two operands that broadcast.

use tensor::ops::affine;
use tensor::ops::binary::{self, Binary};
use tensor::ops::reduce;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// a + b.
///
/// # Shapes
/// a and b broadcast to each other by NumPy's rule: aligned at the last dimension, extents equal or 1.
pub fn add(t: &Tape, a: &Var, b: &Var) -> Result<Var> {
    apply(t, Binary::Add, a, b)
}

/// a − b, shapes as for [`add`].
pub fn sub(t: &Tape, a: &Var, b: &Var) -> Result<Var> {
    apply(t, Binary::Sub, a, b)
}

/// a·b, shapes as for [`add`].
pub fn mul(t: &Tape, a: &Var, b: &Var) -> Result<Var> {
    apply(t, Binary::Mul, a, b)
}

fn apply(t: &Tape, f: Binary, a: &Var, b: &Var) -> Result<Var> {
    let y = binary::forward(f, &a.tensor, &b.tensor)?;
    let target = |operand: &Var| Target {
        to: operand.id,
        repeated: (operand.tensor.shape() != y.shape()).then(|| operand.tensor.outline()),
    };
    let targets = [target(a), target(b)];
    let factor =
        |of: &Var, other: &Var| (f == Binary::Mul && of.id.is_some()).then(|| other.tensor.clone());
    t.record(f.name(), &[a, b], y, || BinaryBackward {
        f,
        targets,
        factors: [factor(a, b), factor(b, a)],
    })
}

/// Saves what each operand of a product is multiplied with; of a sum, nothing.
struct BinaryBackward {
    f: Binary,
    targets: [Target; 2],
    factors: [Option<Tensor>; 2],
}

/// Where an operand's gradient goes, and the operand's outline where it is repeated to the shape of the result.
struct Target {
    to: Option<VarId>,
    repeated: Option<Tensor>,
}

impl Backward for BinaryBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        let BinaryBackward {
            f,
            targets: [a, b],
            factors,
        } = *self;
        match f {
            Binary::Mul => {
                for (target, factor) in [a, b].into_iter().zip(factors) {
                    if let Some(factor) = factor {
                        target.add_product(grads, &dy, &factor)?;
                    }
                }
                Ok(())
            }
            Binary::Add => {
                b.add(grads, dy.clone())?;
                a.add(grads, dy)
            }
            Binary::Sub => {
                b.subtract(grads, &dy)?;
                a.add(grads, dy)
            }
        }
    }
}

impl Target {
    fn add(&self, grads: &mut Grads, dy: Tensor) -> Result<()> {
        match &self.repeated {
            None => grads.give(self.to, dy),
            Some(like) => grads.sink(self.to, like, |d, accum| reduce::sum_to(d, accum, &dy, 1.0)),
        }
    }

    fn subtract(&self, grads: &mut Grads, dy: &Tensor) -> Result<()> {
        match &self.repeated {
            None => grads.sink(self.to, dy, |d, accum| {
                affine::accumulate(d, accum, dy, -1.0, 0.0)
            }),
            Some(like) => grads.sink(self.to, like, |d, accum| reduce::sum_to(d, accum, dy, -1.0)),
        }
    }

    fn add_product(&self, grads: &mut Grads, dy: &Tensor, factor: &Tensor) -> Result<()> {
        match &self.repeated {
            None => grads.sink(self.to, dy, |d, accum| {
                binary::accumulate(Binary::Mul, d, accum, dy, factor)
            }),
            Some(like) => grads.sink(self.to, like, |d, accum| {
                reduce::sum_to(d, accum, &binary::forward(Binary::Mul, dy, factor)?, 1.0)
            }),
        }
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "binary"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        let shapes: [(&[usize], &[usize]); 12] = [
            (&[1], &[1]),
            (&[3, 5, 7], &[3, 5, 7]),
            (&[2, 4099], &[2, 4099]),
            // A vector over rows, a scalar, one value a row, and one plane an image, each on either side.
            (&[6, 5, 19], &[19]),
            (&[19], &[6, 5, 19]),
            (&[4, 9], &[]),
            (&[1], &[4, 9]),
            (&[4, 9], &[4, 1]),
            (&[2, 1, 1, 5], &[2, 3, 4, 5]),
            (&[3, 4, 5], &[1, 4, 1]),
            // Each repeats where the other does not.
            (&[5, 1, 3], &[4, 1]),
            (&[1, 3], &[3]),
        ];
        Binary::ALL
            .into_iter()
            .flat_map(|f| shapes.map(|(a, b)| case(f, a, b)))
            .collect()
    }

    fn benches(&self) -> Vec<Case> {
        vec![
            case(Binary::Add, &[64, 16, 16, 64], &[64, 16, 16, 64]),
            case(Binary::Add, &[8, 77, 512], &[77, 512]),
            case(Binary::Mul, &[64, 16, 16, 64], &[64, 1, 1, 64]),
        ]
    }
}

fn case(f: Binary, a: &[usize], b: &[usize]) -> Case {
    let shape = broadcast(a, b);
    let elements = |shape: &[usize]| shape.iter().product::<usize>() as f64;
    Case {
        name: format!("{},a={a:?},b={b:?}", f.name()),
        inputs: vec![Input::normal("a", a), Input::normal("b", b)],
        run: Box::new(move |t, x| Ok(vec![apply(t, f, &x[0], &x[1])?])),
        cost: Cost {
            flops: elements(&shape),
            elements: elements(a) + elements(b) + elements(&shape),
        },
        reference: Box::new(move |x: &[Array]| {
            let at = |x: &Array, index: &[usize]| {
                let aligned = &index[index.len() - x.shape.len()..];
                let pairs = aligned.iter().zip(&x.shape);
                let index: Vec<usize> = pairs
                    .map(|(&i, &extent)| if extent == 1 { 0 } else { i })
                    .collect();
                x.at(&index)
            };
            vec![Array::from_fn(&shape, |index| {
                let (a, b) = (at(&x[0], index), at(&x[1], index));
                match f {
                    Binary::Add => a + b,
                    Binary::Sub => a - b,
                    Binary::Mul => a * b,
                }
            })]
        }),
    }
}

/// NumPy's rule for shapes that are known to broadcast.
fn broadcast(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let extent = |shape: &[usize], d: usize| (d + shape.len()).checked_sub(rank).map(|d| shape[d]);
    (0..rank)
        .map(|d| match (extent(a, d), extent(b, d)) {
            (Some(1) | None, Some(other)) | (Some(other), _) => other,
            (None, None) => 1,
        })
        .collect()
}
