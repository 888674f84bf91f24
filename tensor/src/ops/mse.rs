//! Mean squared error with a weight for each sample.

use kernels::ops::mse;

use crate::check::dispatch_float;
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
    let (x, target) = (x.contiguous(), target.contiguous());
    let weight = weight.map(Tensor::contiguous);
    let mut loss = Tensor::uninit([], dtype, x.device());
    dispatch_float!(dtype, T => {
        let weight = weight.as_ref().map(Tensor::as_slice).transpose()?;
        loss.as_mut_slice::<T>()?[0] =
            mse::forward(x.as_slice()?, target.as_slice()?, weight, samples);
    });
    Ok(loss)
}

/// `dx (+)= scale · ∂loss/∂x`; by symmetry the gradient of the target is that of x with `-scale`.
pub fn backward(
    dx: &mut Tensor,
    accum: Accum,
    scale: f64,
    x: &Tensor,
    target: &Tensor,
    weight: Option<&Tensor>,
) -> Result<()> {
    let operands = [("dx", &*dx), ("x", x), ("target", target)];
    let check = Check::new("mse", &operands).optional("weight", weight);
    let (dtype, samples) = checked(&check, x, target, weight)?;
    check.shape("dx", dx, x.dims())?;
    let (x, target) = (x.contiguous(), target.contiguous());
    let weight = weight.map(Tensor::contiguous);
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
