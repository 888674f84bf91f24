//! Sums and means.

use tensor::ops::reduce;
use tensor::{Check, Result, Shape};

use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// The sum of all elements, a scalar [].
pub fn sum(t: &Tape, x: &Var) -> Result<Var> {
    sum_dims(t, x, &all(x))
}

/// The mean of all elements, a scalar [].
///
/// # Errors
/// If there are none.
pub fn mean(t: &Tape, x: &Var) -> Result<Var> {
    mean_dims(t, x, &all(x))
}

/// The sum over `dims`, which the result no longer has.
///
/// # Errors
/// If a dimension is named twice or does not exist.
pub fn sum_dims(t: &Tape, x: &Var, dims: &[usize]) -> Result<Var> {
    scaled(t, "sum", x, dims, 1.0)
}

/// The mean over `dims`, which the result no longer has.
///
/// # Errors
/// As for [`sum_dims`], and if there is nothing to average.
pub fn mean_dims(t: &Tape, x: &Var, dims: &[usize]) -> Result<Var> {
    let count: usize = dims.iter().filter_map(|&d| x.dims().get(d)).product();
    Check::new("mean", &[("x", &x.tensor)])
        .require(count > 0, || "there is nothing to average".into())?;
    scaled(t, "mean", x, dims, 1.0 / count as f64)
}

fn all(x: &Var) -> Vec<usize> {
    (0..x.dims().len()).collect()
}

fn scaled(t: &Tape, op: &'static str, x: &Var, dims: &[usize], scale: f64) -> Result<Var> {
    let y = reduce::sum_dims(&x.tensor, dims, scale)?;
    t.record(op, &[x], y, || ReduceBackward {
        dims: dims.to_vec(),
        scale,
        shape: x.tensor.shape(),
        to: x.id,
    })
}

/// Saves no tensor: the gradient repeats the upstream one.
struct ReduceBackward {
    dims: Vec<usize>,
    scale: f64,
    shape: Shape,
    to: Option<VarId>,
}

impl Backward for ReduceBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        let like = reduce::repeat(&dy, &self.dims, self.shape)?;
        grads.sink(self.to, &like, |dx, accum| {
            reduce::sum_dims_backward(dx, accum, &dy, &self.dims, self.scale)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for average in [false, true] {
            cases.push(case(&[1], &[0], average, 0.0));
            cases.push(case(&[3, 5, 7], &[0, 1, 2], average, 0.0));
            cases.push(case(&[3, 5, 7], &[], average, 0.0));
            cases.push(case(&[3, 5, 7], &[2], average, 0.0));
            cases.push(case(&[3, 5, 7], &[1], average, 0.0));
            cases.push(case(&[3, 5, 7], &[0], average, 0.0));
            cases.push(case(&[3, 5, 7], &[2, 0], average, 0.0));
            cases.push(case(&[2, 1, 3, 4, 1, 5], &[1, 3, 5], average, 0.0));
            // More than one block along a run, across runs, and more columns than one tile. Only a mean stays of a size
            // that finite differences resolve where the elements' mean is large.
            let large = if average { 100.0 } else { 0.0 };
            cases.push(case(&[33_000], &[0], average, large));
            cases.push(case(&[1000, 37], &[0], average, large));
            cases.push(case(&[3, 2, 1100], &[1], average, 0.0));
        }
        cases
    }

    fn benches(&self) -> Vec<Case> {
        vec![
            case(&[64, 16, 16, 64], &[0, 1, 2, 3], true, 0.0),
            case(&[64, 256, 64], &[1], true, 0.0),
            case(&[16384, 64], &[0], false, 0.0),
        ]
    }
}

fn case(shape: &[usize], dims: &[usize], average: bool, mean: f64) -> Case {
    let elements = shape.iter().product::<usize>() as f64;
    let (shape, dims) = (shape.to_vec(), dims.to_vec());
    let run_dims = dims.clone();
    Case {
        name: format!(
            "{},x={shape:?},dims={dims:?}{}",
            if average { "mean" } else { "sum" },
            if mean != 0.0 { ",large_mean" } else { "" },
        ),
        inputs: vec![Input::new("x", &shape, Fill::Normal { mean, std: 1.0 })],
        run: Box::new(move |t, x| {
            let x = &x[0];
            Ok(vec![match (run_dims.len() == x.dims().len(), average) {
                (true, false) => sum(t, x)?,
                (true, true) => self::mean(t, x)?,
                (false, false) => sum_dims(t, x, &run_dims)?,
                (false, true) => mean_dims(t, x, &run_dims)?,
            }])
        }),
        reference: Box::new(move |x: &[Array]| {
            let kept: Vec<usize> = (0..shape.len()).filter(|d| !dims.contains(d)).collect();
            let extents = |dims: &[usize]| dims.iter().map(|&d| shape[d]).collect::<Vec<_>>();
            let summed = extents(&dims);
            let count = summed.iter().product::<usize>() as f64;
            vec![Array::from_fn(&extents(&kept), |outer| {
                let terms = Array::from_fn(&summed, |inner| {
                    let mut index = vec![0; shape.len()];
                    let places = kept.iter().zip(outer).chain(dims.iter().zip(inner));
                    places.for_each(|(&d, &i)| index[d] = i);
                    x[0].at(&index)
                });
                let sum: f64 = terms.data.iter().sum();
                if average { sum / count } else { sum }
            })]
        }),
        cost: Cost {
            flops: elements,
            elements,
        },
    }
}
