//! Elementwise functions of one operand.

pub use kernels::ops::unary::Unary;
use kernels::ops::unary::ptx;

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Accum, Check, Result, Tensor};

/// `f(x)`, any shape.
pub fn forward(f: Unary, x: &Tensor) -> Result<Tensor> {
    let check = Check::new(f.name(), &[("x", x)]);
    let dtype = check.same_float()?;
    let x = x.contiguous()?;
    let mut y = Tensor::uninit(x.shape(), dtype, x.device());
    if let Some(gpu) = check.gpu() {
        let (function, storage) = (f, gpu.storage(dtype));
        let plan = gpu.plan(ptx::Forward { function, storage }.config(x.len()))?;
        gpu.launch(
            &plan,
            [Arg::Write(&mut y), Arg::Read(&x), Arg::number(x.len())],
        )?;
        return Ok(y);
    }
    dispatch_float!(dtype, T => kernels::ops::unary::forward(f, y.as_mut_slice::<T>()?, x.as_slice()?));
    Ok(y)
}

/// `dx (+)= dy · f′(x)`.
pub fn backward(f: Unary, dx: &mut Tensor, accum: Accum, dy: &Tensor, x: &Tensor) -> Result<()> {
    let check = Check::new(f.name(), &[("dx", dx), ("dy", dy), ("x", x)]);
    let dtype = check.same_float()?;
    check.shape("dy", dy, x.dims())?;
    check.shape("dx", dx, x.dims())?;
    let (dy, x) = (dy.contiguous()?, x.contiguous()?);
    if let Some(gpu) = check.gpu() {
        let variant = ptx::Backward {
            function: f,
            storage: gpu.storage(dtype),
            accum,
        };
        let plan = gpu.plan(variant.config(x.len()))?;
        let dx = Arg::destination(dx, accum);
        return gpu.launch(
            &plan,
            [dx, Arg::Read(&dy), Arg::Read(&x), Arg::number(x.len())],
        );
    }
    dispatch_float!(dtype, T => {
        kernels::ops::unary::backward(f, dx.as_mut_slice::<T>()?, accum, dy.as_slice()?, x.as_slice()?)
    });
    Ok(())
}
