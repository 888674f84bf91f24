//! Cutting along any dimension: one node with an output for each piece.

use tensor::ops::split;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// Consecutive pieces along `dim`.
///
/// # Shapes
/// x [.., Σ sizes, ..] → [.., sizeᵢ, ..] each
pub fn split(t: &Tape, x: &Var, dim: usize, sizes: &[usize]) -> Result<Vec<Var>> {
    let pieces = split::forward(&x.tensor, dim, sizes)?;
    t.record_many("split", &[x], pieces, || SplitBackward {
        x: x.tensor.outline(),
        to: x.id,
        dim,
        before: 0,
        sizes: sizes.to_vec(),
    })
}

/// Elements `start..start + len` along `dim`.
///
/// # Shapes
/// x [.., d, ..] → [.., len, ..]
pub fn narrow(t: &Tape, x: &Var, dim: usize, start: usize, len: usize) -> Result<Var> {
    let piece = x.tensor.narrow(dim, start, len)?.contiguous()?;
    t.record("narrow", &[x], piece, || SplitBackward {
        x: x.tensor.outline(),
        to: x.id,
        dim,
        before: start,
        sizes: vec![len],
    })
}

/// Saves the form of x and where the pieces lie in it. What lies outside of them has gradient zero.
struct SplitBackward {
    x: Tensor,
    to: Option<VarId>,
    dim: usize,
    before: usize,
    sizes: Vec<usize>,
}

impl Backward for SplitBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let gradients = upstream.all();
        let after = self.x.dims()[self.dim] - self.before - self.sizes.iter().sum::<usize>();
        let mut pieces = vec![(self.before, None)];
        pieces.extend(
            self.sizes
                .iter()
                .copied()
                .zip(gradients.iter().map(Option::as_ref)),
        );
        pieces.push((after, None));
        grads.sink(self.to, &self.x, |dx, accum| {
            split::backward(dx, accum, &pieces, self.dim)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "split"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            split_case(&[1], 0, &[1]),
            split_case(&[3, 8, 5], 1, &[2, 1, 5]),
            split_case(&[5, 3], 0, &[1, 4]),
            split_case(&[65, 67, 12], 2, &[3, 1, 8]),
            // Rows longer than what one thread writes at a time, and rows cut anywhere by its end.
            split_case(&[2, 301, 67], 1, &[300, 1]),
            split_case(&[130, 67, 7], 2, &[2, 3, 2]),
            narrow_case(&[3, 9, 5], 1, 2, 6),
            narrow_case(&[7, 3], 0, 3, 4),
            narrow_case(&[65, 67, 8], 2, 0, 1),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![
            split_case(&[8, 64, 64, 6], 3, &[3, 3]),
            split_case(&[16, 77, 1536], 2, &[512, 512, 512]),
        ]
    }
}

fn split_case(shape: &[usize], dim: usize, sizes: &[usize]) -> Case {
    let sizes = sizes.to_vec();
    Case {
        name: format!("x={shape:?},dim={dim},sizes={sizes:?}"),
        inputs: vec![Input::normal("x", shape)],
        cost: cost(shape),
        run: Box::new({
            let sizes = sizes.clone();
            move |t, x| split(t, &x[0], dim, &sizes)
        }),
        reference: Box::new(move |x: &[Array]| {
            let start = |piece: usize| sizes[..piece].iter().sum();
            let pieces = sizes.iter().enumerate();
            pieces
                .map(|(i, &size)| block(&x[0], dim, start(i), size))
                .collect()
        }),
    }
}

fn narrow_case(shape: &[usize], dim: usize, start: usize, len: usize) -> Case {
    Case {
        name: format!("narrow,x={shape:?},dim={dim},start={start},len={len}"),
        inputs: vec![Input::normal("x", shape)],
        run: Box::new(move |t, x| Ok(vec![narrow(t, &x[0], dim, start, len)?])),
        reference: Box::new(move |x: &[Array]| vec![block(&x[0], dim, start, len)]),
        cost: cost(shape),
    }
}

fn cost(shape: &[usize]) -> Cost {
    Cost {
        flops: 0.0,
        elements: 2.0 * shape.iter().product::<usize>() as f64,
    }
}

fn block(x: &Array, dim: usize, start: usize, len: usize) -> Array {
    let mut shape = x.shape.clone();
    shape[dim] = len;
    Array::from_fn(&shape, |i| {
        let mut i = i.to_vec();
        i[dim] += start;
        x.at(&i)
    })
}
