//! Mean squared error with a weight for each sample.

use kernels::ops::mse::{self, ptx};

use crate::check::dispatch_float;
use crate::gpu::{Arg, statistics};
use crate::ops::reduce::total;
use crate::{Accum, Check, DType, Result, Tensor};

/// The mean over samples of weight · mean over the sample of (x − target)².
///
/// # Shapes
/// x [n, ..], target [n, ..], weight [n] → scalar
///
/// # Errors
/// If there is no element to take a mean of.
pub fn forward(x: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
    let check = Check::new("mse", &[("x", x), ("target", target)]).optional("weight", weight);
    let (dtype, samples) = checked(&check, x, target, weight)?;
    let (x, target) = (x.contiguous()?, target.contiguous()?);
    let weight = weight.map(Tensor::contiguous).transpose()?;
    let mut loss = Tensor::uninit([], statistics(dtype), x.device());
    if let Some(gpu) = check.gpu() {
        let shape = [samples, x.len() / samples];
        let call = ptx::Forward::config(gpu.storage(dtype), shape, weight.is_some());
        let (call, partials) = gpu.plan(call)?;
        let mut partial = Tensor::uninit([partials], DType::F32, x.device());
        let operands = [Arg::Write(&mut partial), Arg::Read(&x), Arg::Read(&target)];
        gpu.call(
            &call,
            operands.into_iter().chain(weight.as_ref().map(Arg::Read)),
        )?;
        total(&gpu, &mut loss, &partial, 1.0 / x.len() as f64)?;
        return Ok(loss);
    }
    dispatch_float!(dtype, T => {
        let weight = weight.as_ref().map(Tensor::as_slice).transpose()?;
        loss.as_mut_slice::<T>()?[0] =
            mse::forward(x.as_slice()?, target.as_slice()?, weight, samples);
    });
    Ok(loss)
}

/// `dx (+)= dy · ∂loss/∂x` for a scalar dy; by symmetry the gradient of the target is that of x with both exchanged.
pub fn backward(
    dx: &mut Tensor,
    accum: Accum,
    dy: &Tensor,
    x: &Tensor,
    target: &Tensor,
    weight: Option<&Tensor>,
) -> Result<()> {
    let operands = [("dx", &*dx), ("x", x), ("target", target)];
    let check = Check::new("mse", &operands).optional("weight", weight);
    let (dtype, samples) = checked(&check, x, target, weight)?;
    check.shape("dx", dx, x.dims())?;
    let check = check.optional("dy", Some(dy));
    check.same_device()?;
    check.dtype("dy", dy, statistics(dtype))?;
    check.shape("dy", dy, &[])?;
    let (x, target) = (x.contiguous()?, target.contiguous()?);
    let weight = weight.map(Tensor::contiguous).transpose()?;
    if let Some(gpu) = check.gpu() {
        let shape = [samples, x.len() / samples];
        let call = ptx::Backward::config(gpu.storage(dtype), accum, shape, weight.is_some());
        let read = [dy, &x, &target].into_iter().chain(&weight).map(Arg::Read);
        let dx = Arg::destination(dx, accum);
        return gpu.call(&gpu.plan(call)?, [dx].into_iter().chain(read));
    }
    let scale = dy.item()?;
    dispatch_float!(dtype, T => {
        let weight = weight.as_ref().map(Tensor::as_slice).transpose()?;
        let dx = dx.as_mut_slice::<T>()?;
        mse::backward(dx, accum, scale, x.as_slice()?, target.as_slice()?, weight, samples)
    });
    Ok(())
}

fn checked(
    check: &Check,
    x: &Tensor,
    target: &Tensor,
    weight: Option<&Tensor>,
) -> Result<(DType, usize)> {
    let dtype = check.same_float()?;
    check.require(x.rank() > 0 && !x.is_empty(), || {
        "the mean needs at least one sample and one element".into()
    })?;
    check.shape("target", target, x.dims())?;
    if let Some(weight) = weight {
        check.shape("weight", weight, &x.dims()[..1])?;
    }
    Ok((dtype, x.dims()[0]))
}
