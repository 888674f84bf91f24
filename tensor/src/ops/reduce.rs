//! Sums over any dimensions, and their gradients.

use kernels::ops::binary::{self, Binary, Strided};
use kernels::ops::reduce as kernel;

use crate::check::dispatch_float;
use crate::{Accum, Check, Result, Shape, Tensor};

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
    let x = x.contiguous();
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
    let dy = dy.contiguous();
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
