//! Layer normalisation over the last dimension.

use kernels::ops::layer_norm::{self as kernel, LayerNorm, LayerNormGradients, ptx};

use crate::check::{dispatch_float, slices_mut};
use crate::gpu::{Arg, statistics};
use crate::ops::reduce::sum_on_gpu;
use crate::{Accum, Check, DType, Result, Tensor};

/// What [`forward`] computes.
pub struct Output {
    /// Like x.
    pub y: Tensor,
    /// [rows].
    pub mean: Tensor,
    /// Reciprocal standard deviation [rows].
    pub rstd: Tensor,
}

/// y = (x − mean)·rstd·γ + β over the last dimension.
///
/// # Shapes
/// x [.., c], gamma [c], beta [c] → y like x.
///
/// # Errors
/// If the operands have other than these shapes, or differ in dtype.
pub fn forward(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Output> {
    let check = Check::new("layer_norm", &[("x", x), ("gamma", gamma), ("beta", beta)]);
    let dtype = check.same_float()?;
    let d = descriptor(&check, x, eps)?;
    check.shape("gamma", gamma, &[d.c])?;
    check.shape("beta", beta, &[d.c])?;
    let x = x.contiguous()?;
    let (gamma, beta) = (gamma.contiguous()?, beta.contiguous()?);
    let mut y = Tensor::uninit(x.shape(), dtype, x.device());
    let mut mean = Tensor::uninit([d.rows], statistics(dtype), x.device());
    let mut rstd = Tensor::uninit([d.rows], statistics(dtype), x.device());
    if let Some(gpu) = check.gpu() {
        let call = gpu.plan(ptx::Forward::config(gpu.storage(dtype), &d))?;
        let written = [&mut y, &mut mean, &mut rstd].map(Arg::Write).into_iter();
        let read = [&x, &gamma, &beta].map(Arg::Read);
        gpu.call(&call, written.chain(read).chain([Arg::F32(eps as f32)]))?;
        return Ok(Output { y, mean, rstd });
    }
    dispatch_float!(dtype, T => kernel::forward::<T>(
        &d,
        y.as_mut_slice()?,
        mean.as_mut_slice()?,
        rstd.as_mut_slice()?,
        x.as_slice()?,
        gamma.as_slice()?,
        beta.as_slice()?,
    ));
    Ok(Output { y, mean, rstd })
}

/// What [`backward`] reads: the operands and statistics of [`forward`].
pub struct Saved<'a> {
    pub x: &'a Tensor,
    pub mean: &'a Tensor,
    pub rstd: &'a Tensor,
    pub gamma: &'a Tensor,
}

/// Gradients of x, gamma and beta, in this order; one that is `None` is not computed.
pub fn backward(
    gradients: &mut [Option<(Tensor, Accum)>; 3],
    dy: &Tensor,
    saved: Saved,
    eps: f64,
) -> Result<()> {
    let Saved {
        x,
        mean,
        rstd,
        gamma,
    } = saved;
    let check = Check::new("layer_norm", &[("dy", dy), ("x", x)]);
    let dtype = check.same_float()?;
    let d = descriptor(&check, x, eps)?;
    check.shape("dy", dy, x.dims())?;
    let (dy, x, gamma) = (dy.contiguous()?, x.contiguous()?, gamma.contiguous()?);
    check.dtype("mean", mean, statistics(dtype))?;
    check.dtype("rstd", rstd, statistics(dtype))?;
    if let Some(gpu) = check.gpu() {
        let [dx, dgamma, dbeta] = gradients;
        let accum = dx.as_ref().map_or(Accum::Replace, |(_, accum)| *accum);
        let config = ptx::Backward::config(gpu.storage(dtype), accum, &d);
        let (call, blocks) = gpu.plan(config)?;
        // The blocks' sums of the parameters' gradients that are wanted.
        let mut partials = [&dgamma, &dbeta].map(|gradient| {
            let wanted = gradient.is_some();
            wanted.then(|| Tensor::uninit([blocks, d.c], DType::F32, x.device()))
        });
        let sums = partials
            .each_mut()
            .map(|sums| sums.as_mut().map_or(Arg::Absent, Arg::Write));
        let written = [Arg::gradient(dx, accum)].into_iter().chain(sums);
        let read = [&dy, &x, mean, rstd, &gamma].map(Arg::Read);
        gpu.call(&call, written.chain(read))?;
        for (gradient, partials) in [dgamma, dbeta].into_iter().zip(&partials) {
            if let (Some((gradient, accum)), Some(partials)) = (gradient, partials) {
                sum_on_gpu(&gpu, gradient, *accum, partials, &[true, false], 1.0)?;
            }
        }
        return Ok(());
    }
    dispatch_float!(dtype, T => {
        let [dx, dgamma, dbeta] = slices_mut::<T, 3>(gradients)?;
        kernel::backward::<T>(
            &d,
            LayerNormGradients { dx, dgamma, dbeta },
            dy.as_slice()?,
            x.as_slice()?,
            mean.as_slice()?,
            rstd.as_slice()?,
            gamma.as_slice()?,
        )
    });
    Ok(())
}

fn descriptor(check: &Check, x: &Tensor, eps: f64) -> Result<LayerNorm> {
    check.require(x.rank() >= 1 && !x.is_empty(), || {
        "x must be [.., c] and not empty".into()
    })?;
    let c = x.shape().last_dim();
    Ok(LayerNorm {
        rows: x.len() / c,
        c,
        eps,
    })
}
