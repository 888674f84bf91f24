//! Softmax over the last dimension.

use kernels::ops::softmax::{self, ptx};

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Accum, Check, Result, Tensor};

/// `exp(x) / Σ exp(x)` over the last dimension.
///
/// # Shapes
/// x [.., c] → [.., c]
pub fn forward(x: &Tensor) -> Result<Tensor> {
    let check = Check::new("softmax", &[("x", x)]);
    let dtype = check.same_float()?;
    let x = x.contiguous()?;
    let mut y = Tensor::uninit(x.shape(), dtype, x.device());
    if let Some(gpu) = check.gpu() {
        let call = ptx::Forward::config(gpu.storage(dtype), rows(&x));
        gpu.call(&gpu.plan(call)?, [Arg::Write(&mut y), Arg::Read(&x)])?;
        return Ok(y);
    }
    dispatch_float!(dtype, T => {
        softmax::forward(y.as_mut_slice::<T>()?, x.as_slice()?, x.shape().last_dim())
    });
    Ok(y)
}

/// `dx (+)= y·(dy − Σ y·dy)`, given the forward pass's result y.
pub fn backward(dx: &mut Tensor, accum: Accum, dy: &Tensor, y: &Tensor) -> Result<()> {
    let check = Check::new("softmax", &[("dx", dx), ("dy", dy), ("y", y)]);
    let dtype = check.same_float()?;
    check.shape("dy", dy, y.dims())?;
    check.shape("dx", dx, y.dims())?;
    let (dy, y) = (dy.contiguous()?, y.contiguous()?);
    if let Some(gpu) = check.gpu() {
        let call = ptx::Backward::config(gpu.storage(dtype), accum, rows(&y));
        let operands = [Arg::destination(dx, accum), Arg::Read(&dy), Arg::Read(&y)];
        return gpu.call(&gpu.plan(call)?, operands);
    }
    let c = y.shape().last_dim();
    dispatch_float!(dtype, T => {
        softmax::backward(dx.as_mut_slice::<T>()?, accum, dy.as_slice()?, y.as_slice()?, c)
    });
    Ok(())
}

/// How many rows a tensor has along its last dimension, and of how many elements.
pub(crate) fn rows(x: &Tensor) -> [usize; 2] {
    let c = x.shape().last_dim();
    [x.len() / c.max(1), c]
}
