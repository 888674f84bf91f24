//! Sums over any dimensions, and their gradients.

use kernels::ops::binary::{self, Binary, Strided};
use kernels::ops::reduce::{self as kernel, ptx};

use super::affine;
use super::fill::fill;
use crate::check::dispatch_float;
use crate::gpu::{Arg, Gpu};
use crate::{Accum, Check, DType, Result, Shape, Tensor};

/// scale · the sum of x over `dims`, which the result no longer has.
///
/// # Errors
/// If a dimension is named twice or does not exist.
pub fn sum_dims(x: &Tensor, dims: &[usize], scale: f64) -> Result<Tensor> {
    let check = Check::new("sum", &[("x", x)]);
    let dtype = check.same_float()?;
    let mut kept = x.shape();
    for (i, &d) in dims.iter().enumerate() {
        check.require(d < x.rank() && !dims[..i].contains(&d), || {
            format!("{dims:?} does not name dimensions of x once each")
        })?;
        kept.dims_mut()[d] = 1;
    }
    let mut sums = Tensor::uninit(kept, dtype, x.device());
    sum_to(&mut sums, Accum::Replace, x, scale)?;
    let stays: Vec<usize> = (0..x.rank())
        .filter(|d| !dims.contains(d))
        .map(|d| x.dims()[d])
        .collect();
    sums.reshape(&stays)
}

/// sums (+)= scale · the sum of x over the dimensions that `sums` repeats along when it is broadcast to x.
///
/// # Shapes
/// sums broadcasts to x by NumPy's rule.
///
/// # Errors
/// If it does not, or dtypes differ.
pub fn sum_to(sums: &mut Tensor, accum: Accum, x: &Tensor, scale: f64) -> Result<()> {
    let check = Check::new("sum", &[("sums", sums), ("x", x)]);
    let dtype = check.same_float()?;
    let reduced = repeats(&check, sums, &x.shape())?;
    if let Some(gpu) = check.gpu() {
        return sum_on_gpu(&gpu, sums, accum, x, &reduced, scale);
    }
    let x = x.contiguous()?;
    dispatch_float!(dtype, T => kernel::sum::<T>(
        sums.as_mut_slice()?,
        accum,
        scale,
        x.as_slice()?,
        x.dims(),
        &reduced,
    ));
    Ok(())
}

/// sums (+)= scale · the sum of x over the dimensions marked in `reduced`.
pub(crate) fn sum_on_gpu(
    gpu: &Gpu,
    sums: &mut Tensor,
    accum: Accum,
    x: &Tensor,
    reduced: &[bool],
    scale: f64,
) -> Result<()> {
    if x.is_empty() {
        return match accum {
            Accum::Replace => fill(sums, 0.0),
            Accum::Add => Ok(()),
        };
    }
    let [from, to] = [x.dtype(), sums.dtype()].map(|dtype| gpu.storage(dtype));
    let mut passes = gpu.plan(ptx::config(from, to, accum, x.dims(), reduced))?;
    let Some(last) = passes.pop() else {
        return Err(gpu.error("the sum has no launch"));
    };
    let mut partial = x.clone();
    for pass in passes {
        let mut sums = Tensor::uninit([pass.written], DType::F32, x.device());
        let operands = [Arg::Write(&mut sums), Arg::Read(&partial), Arg::F32(1.0)];
        gpu.call(&pass.call, operands)?;
        partial = sums;
    }
    let scale = Arg::F32(scale as f32);
    gpu.call(
        &last.call,
        [Arg::destination(sums, accum), Arg::Read(&partial), scale],
    )
}

/// total = scale · the sum of all of x.
pub(crate) fn total(gpu: &Gpu, total: &mut Tensor, x: &Tensor, scale: f64) -> Result<()> {
    let all = vec![true; x.rank()];
    sum_on_gpu(gpu, total, Accum::Replace, x, &all, scale)
}

/// x repeated along `dims` of `shape`, which it does not have yet: a view of that shape.
///
/// # Errors
/// If x is not `shape` without `dims`.
pub fn repeat(x: &Tensor, dims: &[usize], shape: Shape) -> Result<Tensor> {
    let mut kept = shape;
    for &d in dims {
        kept.dims_mut()[d] = 1;
    }
    x.reshape(kept)?.broadcast_to(shape)
}

/// dx (+)= scale · dy repeated along `dims`: the gradient of [`sum_dims`].
///
/// # Errors
/// If dy is not dx without `dims`, or dtypes differ.
pub fn sum_dims_backward(
    dx: &mut Tensor,
    accum: Accum,
    dy: &Tensor,
    dims: &[usize],
    scale: f64,
) -> Result<()> {
    let check = Check::new("sum", &[("dx", dx), ("dy", dy)]);
    let dtype = check.same_float()?;
    let shape = dx.shape();
    if check.gpu().is_some() {
        return affine::accumulate(dx, accum, &repeat(dy, dims, shape)?, scale, 0.0);
    }
    let dy = dy.contiguous()?;
    let strides = repeat(&dy, dims, shape)?.strides();
    dispatch_float!(dtype, T => {
        let dy = Strided { data: dy.as_slice()?, strides: &strides };
        let scale = Strided { data: &[scale as T], strides: &[0; crate::MAX_RANK][..shape.len()] };
        binary::forward::<T>(Binary::Mul, dx.as_mut_slice()?, accum, &shape, dy, scale)
    });
    Ok(())
}

/// Which dimensions of `shape` the operand repeats along.
fn repeats(check: &Check, operand: &Tensor, shape: &Shape) -> Result<Vec<bool>> {
    check.require(
        Shape::broadcast(&operand.shape(), shape) == Some(*shape),
        || format!("{} does not broadcast to {shape}", operand.shape()),
    )?;
    let missing = shape.len() - operand.rank();
    let repeats = |(d, &extent): (usize, &usize)| {
        d < missing || (operand.dims()[d - missing] == 1 && extent != 1)
    };
    Ok(shape.iter().enumerate().map(repeats).collect())
}
