//! Rows scaled to unit length.

use kernels::ops::l2_normalize::{self, ptx};

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::ops::softmax::rows;
use crate::{Accum, Check, Result, Tensor};

/// `x / max(‖x‖₂, eps)` over the last dimension.
///
/// # Shapes
/// x [.., c] → [.., c]
pub fn forward(x: &Tensor, eps: f64) -> Result<Tensor> {
    let check = Check::new("l2_normalize", &[("x", x)]);
    let dtype = check.same_float()?;
    let x = x.contiguous()?;
    let mut y = Tensor::uninit(x.shape(), dtype, x.device());
    if let Some(gpu) = check.gpu() {
        let call = ptx::Forward::config(gpu.storage(dtype), rows(&x));
        let operands = [Arg::Write(&mut y), Arg::Read(&x), Arg::F32(eps as f32)];
        gpu.call(&gpu.plan(call)?, operands)?;
        return Ok(y);
    }
    dispatch_float!(dtype, T => {
        l2_normalize::forward(y.as_mut_slice::<T>()?, x.as_slice()?, x.shape().last_dim(), eps)
    });
    Ok(y)
}

/// `dx (+)=` the gradient from dy, given the forward pass's x.
pub fn backward(dx: &mut Tensor, accum: Accum, dy: &Tensor, x: &Tensor, eps: f64) -> Result<()> {
    let check = Check::new("l2_normalize", &[("dx", dx), ("dy", dy), ("x", x)]);
    let dtype = check.same_float()?;
    check.shape("dy", dy, x.dims())?;
    check.shape("dx", dx, x.dims())?;
    let (dy, x) = (dy.contiguous()?, x.contiguous()?);
    if let Some(gpu) = check.gpu() {
        let call = ptx::Backward::config(gpu.storage(dtype), accum, rows(&x));
        let operands = [Arg::destination(dx, accum), Arg::Read(&dy), Arg::Read(&x)];
        let eps = [Arg::F32(eps as f32)];
        return gpu.call(&gpu.plan(call)?, operands.into_iter().chain(eps));
    }
    let c = x.shape().last_dim();
    dispatch_float!(dtype, T => {
        l2_normalize::backward(dx.as_mut_slice::<T>()?, accum, dy.as_slice()?, x.as_slice()?, c, eps)
    });
    Ok(())
}
