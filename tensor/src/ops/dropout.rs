//! Random zeros.

use kernels::ops::dropout::{self, ptx::Apply};
use kernels::random::Draw;

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::ops::random::Counters;
use crate::{Accum, Check, Result, Tensor};

/// `x / (1 − p)` with probability 1 − p, else 0: a function of the draw, whose counters the device has already. The outermost dimension counts samples.
///
/// # Shapes
/// x [n, ..] → [n, ..]
///
/// # Errors
/// If p is not in [0, 1).
pub fn forward(x: &Tensor, draw: &Draw, counters: &Counters, p: f64) -> Result<Tensor> {
    let mut y = Tensor::uninit(x.shape(), x.dtype(), x.device());
    backward(&mut y, Accum::Replace, x, draw, counters, p)?;
    Ok(y)
}

/// `dx (+)= dy / (1 − p)` where the forward pass kept x: the same function of dy.
pub fn backward(
    dx: &mut Tensor,
    accum: Accum,
    dy: &Tensor,
    draw: &Draw,
    counters: &Counters,
    p: f64,
) -> Result<()> {
    let check = Check::new("dropout", &[("x", dy)]);
    let dtype = check.same_float()?;
    check.require((0.0..1.0).contains(&p), || {
        format!("the probability must be at least 0 and below 1, it is {p}")
    })?;
    check.shape("x", dy, dx.dims())?;
    let dy = dy.contiguous()?;
    let per_sample = dy.len() / dy.dims().first().copied().unwrap_or(1).max(1);
    if let Some(gpu) = check.gpu() {
        let shape = [dy.len() / per_sample.max(1), per_sample];
        let call = Apply::config(gpu.storage(dtype), accum, shape, draw, p);
        let scale = Arg::F32((1.0 / (1.0 - p)) as f32);
        let read = [Arg::Read(&dy), counters.argument(), scale];
        let dx = Arg::destination(dx, accum);
        return gpu.call(&gpu.plan(call)?, [dx].into_iter().chain(read));
    }
    dispatch_float!(dtype, T => {
        dropout::apply(dx.as_mut_slice::<T>()?, accum, dy.as_slice()?, draw, per_sample, p)
    });
    Ok(())
}
