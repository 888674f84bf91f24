//! Layer normalisation over the last dimension.

use kernels::ops::layer_norm::{self as kernel, LayerNorm, LayerNormGradients};

use crate::check::{dispatch_float, slices_mut};
use crate::{Accum, Check, Result, Tensor};

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
    if let Some(gpu) = check.gpu() {
        return Err(gpu.missing("the op"));
    }
    let mut mean = Tensor::uninit([d.rows], dtype, x.device());
    let mut rstd = Tensor::uninit([d.rows], dtype, x.device());
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
    if let Some(gpu) = check.gpu() {
        return Err(gpu.missing("the gradient"));
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
