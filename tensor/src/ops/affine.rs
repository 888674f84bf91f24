//! A line through every element.

use kernels::ops::affine::ptx::Forward;

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Accum, Check, Result, Tensor};

/// scale·x + shift, any shape.
pub fn forward(x: &Tensor, scale: f64, shift: f64) -> Result<Tensor> {
    let dtype = Check::new("affine", &[("x", x)]).same_float()?;
    let mut y = Tensor::uninit(x.shape(), dtype, x.device());
    accumulate(&mut y, Accum::Replace, x, scale, shift)?;
    Ok(y)
}

/// y (+)= scale·x + shift, same shapes.
pub fn accumulate(y: &mut Tensor, accum: Accum, x: &Tensor, scale: f64, shift: f64) -> Result<()> {
    let check = Check::new("affine", &[("y", y), ("x", x)]);
    let dtype = check.same_float()?;
    check.shape("y", y, x.dims())?;
    if let Some(gpu) = check.gpu() {
        let storage = gpu.storage(dtype);
        let plan = gpu.plan(Forward { storage, accum }.config(x.len()))?;
        let y = Arg::destination(y, accum);
        let (scale, shift) = (Arg::F32(scale as f32), Arg::F32(shift as f32));
        return gpu.launch(&plan, [y, Arg::Read(x), scale, shift, Arg::number(x.len())]);
    }
    let x = x.contiguous()?;
    dispatch_float!(dtype, T => {
        kernels::ops::affine::forward::<T>(y.as_mut_slice()?, accum, x.as_slice()?, scale, shift)
    });
    Ok(())
}
