//! Softmax cross-entropy.

use kernels::ops::cross_entropy::{self, ptx};

use crate::check::dispatch_float;
use crate::gpu::{Arg, statistics};
use crate::ops::reduce::total;
use crate::{Accum, Check, DType, Result, Tensor};

/// The mean of `ln Σ exp(logits[i]) − logits[i, target[i]]`, and the `ln Σ exp` of every row for the backward pass.
///
/// # Shapes
/// logits [n, c], target i32 [n] → (scalar, [n])
///
/// # Errors
/// If a target is outside 0..c, or there is no sample.
pub fn forward(logits: &Tensor, target: &Tensor) -> Result<(Tensor, Tensor)> {
    let check = Check::new("cross_entropy", &[("logits", logits), ("target", target)]);
    let dtype = check.floats(&[logits])?;
    check.rank("logits", logits, 2)?;
    let [n, c] = [logits.dims()[0], logits.dims()[1]];
    check.require(n > 0 && c > 0, || {
        "the mean needs at least one sample and one class".into()
    })?;
    check.shape("target", target, &[n])?;
    check.index("target", target, c)?;
    let (logits, target) = (logits.contiguous()?, target.contiguous()?);
    let mut lse = Tensor::uninit([n], statistics(dtype), logits.device());
    let mut loss = Tensor::uninit([], statistics(dtype), logits.device());
    if let Some(gpu) = check.gpu() {
        let mut losses = Tensor::uninit([n], DType::F32, logits.device());
        let call = gpu.plan(ptx::Forward::config(gpu.storage(dtype), [n, c]))?;
        let written = [Arg::Write(&mut lse), Arg::Write(&mut losses)];
        let read = [Arg::Read(&logits), Arg::Read(&target)];
        gpu.call(&call, written.into_iter().chain(read))?;
        total(&gpu, &mut loss, &losses, 1.0 / n as f64)?;
        return Ok((loss, lse));
    }
    dispatch_float!(dtype, T => {
        let lse = lse.as_mut_slice::<T>()?;
        loss.as_mut_slice()?[0] =
            cross_entropy::forward(lse, logits.as_slice()?, target.as_slice()?, c);
    });
    Ok((loss, lse))
}

/// `dlogits (+)= dy / n · (softmax(logits) − onehot(target))` for a scalar dy.
pub fn backward(
    dlogits: &mut Tensor,
    accum: Accum,
    dy: &Tensor,
    logits: &Tensor,
    lse: &Tensor,
    target: &Tensor,
) -> Result<()> {
    let operands = [
        ("dlogits", &*dlogits),
        ("dy", dy),
        ("logits", logits),
        ("lse", lse),
        ("target", target),
    ];
    let check = Check::new("cross_entropy", &operands);
    let dtype = check.floats(&[dlogits, logits])?;
    check.dtype("lse", lse, statistics(dtype))?;
    check.dtype("dy", dy, statistics(dtype))?;
    check.shape("dy", dy, &[])?;
    check.rank("logits", logits, 2)?;
    let [n, c] = [logits.dims()[0], logits.dims()[1]];
    check.shape("dlogits", dlogits, &[n, c])?;
    check.shape("lse", lse, &[n])?;
    check.shape("target", target, &[n])?;
    check.index("target", target, c)?;
    let (logits, lse, target) = (
        logits.contiguous()?,
        lse.contiguous()?,
        target.contiguous()?,
    );
    if let Some(gpu) = check.gpu() {
        let call = gpu.plan(ptx::Backward::config(gpu.storage(dtype), accum, [n, c]))?;
        let read = [dy, &logits, &lse, &target].map(Arg::Read);
        let dlogits = Arg::destination(dlogits, accum);
        return gpu.call(&call, [dlogits].into_iter().chain(read));
    }
    let scale = dy.item()? / n as f64;
    dispatch_float!(dtype, T => {
        cross_entropy::backward(
            dlogits.as_mut_slice::<T>()?,
            accum,
            scale,
            logits.as_slice()?,
            lse.as_slice()?,
            target.as_slice()?,
            c,
        )
    });
    Ok(())
}
