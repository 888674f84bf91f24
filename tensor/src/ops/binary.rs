//! Elementwise functions of two operands that broadcast.

pub use kernels::ops::binary::Binary;
use kernels::ops::binary::ptx::Forward;
use kernels::ops::binary::{self as kernel, Strided};

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Accum, Check, Result, Shape, Tensor};

/// f(a, b).
///
/// # Shapes
/// a and b broadcast to each other by NumPy's rule: aligned at the last dimension, extents equal or 1.
///
/// # Errors
/// If they do not broadcast, or differ in dtype.
pub fn forward(f: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let check = Check::new(f.name(), &[("a", a), ("b", b)]);
    let dtype = check.same_float()?;
    let shape = Shape::broadcast(&a.shape(), &b.shape());
    let shape = shape.ok_or_else(|| check.error("the shapes do not broadcast to each other"))?;
    let mut y = Tensor::uninit(shape, dtype, a.device());
    accumulate(f, &mut y, Accum::Replace, a, b)?;
    Ok(y)
}

/// y (+)= f(a, b), both broadcast to y.
///
/// # Errors
/// If an operand does not broadcast to y, or dtypes differ.
pub fn accumulate(f: Binary, y: &mut Tensor, accum: Accum, a: &Tensor, b: &Tensor) -> Result<()> {
    let check = Check::new(f.name(), &[("y", y), ("a", a), ("b", b)]);
    let dtype = check.same_float()?;
    let shape = y.shape();
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let a_strides = a.broadcast_to(shape)?.strides();
    let b_strides = b.broadcast_to(shape)?.strides();
    if let Some(gpu) = check.gpu() {
        let strides: [&[usize]; 2] = [&a_strides, &b_strides];
        let call = Forward::config(f, gpu.storage(dtype), accum, &shape, strides);
        let operands = [Arg::destination(y, accum), Arg::Read(&a), Arg::Read(&b)];
        return gpu.call(&gpu.plan(call)?, operands);
    }
    dispatch_float!(dtype, T => {
        let a = Strided { data: a.as_slice()?, strides: &a_strides };
        let b = Strided { data: b.as_slice()?, strides: &b_strides };
        kernel::forward::<T>(f, y.as_mut_slice()?, accum, &shape, a, b)
    });
    Ok(())
}
