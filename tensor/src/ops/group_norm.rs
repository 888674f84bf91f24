//! Group normalisation with the scale-shift and SiLU that follow it in a U-Net.

use kernels::ops::group_norm::{self as kernel, GroupNormGradients};

use crate::check::{dispatch_float, slices_mut};
use crate::{Accum, Check, Result, Tensor};

/// The options of a group normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU, x·σ(x), follows.
    pub silu: bool,
}

/// What [`forward`] computes.
pub struct Output {
    /// Like x.
    pub y: Tensor,
    /// [n, groups].
    pub mean: Tensor,
    /// Reciprocal standard deviation [n, groups].
    pub rstd: Tensor,
}

/// y = act((x̂·γ + β)·(1 + scale) + shift), x̂ normalised over the pixels and channels of one group of one image.
///
/// # Shapes
/// x [n, .., c], gamma [c], beta [c], scale_shift [n, 2·c] (scales, then shifts) → y like x.
///
/// # Errors
/// If the operands have other than these shapes, the groups do not divide c, or dtypes differ.
pub fn forward(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    scale_shift: Option<&Tensor>,
    options: GroupNorm,
) -> Result<Output> {
    let check = Check::new("group_norm", &[("x", x), ("gamma", gamma), ("beta", beta)])
        .optional("scale_shift", scale_shift);
    let dtype = check.same_float()?;
    let d = descriptor(&check, x, options)?;
    check.shape("gamma", gamma, &[d.c])?;
    check.shape("beta", beta, &[d.c])?;
    if let Some(scale_shift) = scale_shift {
        check.shape("scale_shift", scale_shift, &[d.n, 2 * d.c])?;
    }
    let x = x.contiguous();
    let (gamma, beta) = (gamma.contiguous(), beta.contiguous());
    let scale_shift = scale_shift.map(Tensor::contiguous);
    let mut y = Tensor::uninit(x.shape(), dtype, x.device());
    let mut mean = Tensor::uninit([d.n, d.groups], dtype, x.device());
    let mut rstd = Tensor::uninit([d.n, d.groups], dtype, x.device());
    dispatch_float!(dtype, T => kernel::forward::<T>(
        &d,
        y.as_mut_slice()?,
        mean.as_mut_slice()?,
        rstd.as_mut_slice()?,
        x.as_slice()?,
        gamma.as_slice()?,
        beta.as_slice()?,
        scale_shift.as_ref().map(Tensor::as_slice).transpose()?,
    ));
    Ok(Output { y, mean, rstd })
}

/// What [`backward`] reads: the operands and statistics of [`forward`].
pub struct Saved<'a> {
    pub x: &'a Tensor,
    pub mean: &'a Tensor,
    pub rstd: &'a Tensor,
    pub gamma: &'a Tensor,
    pub beta: &'a Tensor,
    pub scale_shift: Option<&'a Tensor>,
}

/// Gradients of x, gamma, beta and scale_shift, in this order; one that is `None` is not computed.
pub fn backward(
    gradients: &mut [Option<(Tensor, Accum)>; 4],
    dy: &Tensor,
    saved: Saved,
    options: GroupNorm,
) -> Result<()> {
    let Saved {
        x,
        mean,
        rstd,
        gamma,
        beta,
        scale_shift,
    } = saved;
    let check = Check::new("group_norm", &[("dy", dy), ("x", x)]);
    let dtype = check.same_float()?;
    let d = descriptor(&check, x, options)?;
    check.shape("dy", dy, x.dims())?;
    let (dy, x) = (dy.contiguous(), x.contiguous());
    let (gamma, beta) = (gamma.contiguous(), beta.contiguous());
    let scale_shift = scale_shift.map(Tensor::contiguous);
    dispatch_float!(dtype, T => {
        let [dx, dgamma, dbeta, dscale_shift] = slices_mut::<T, 4>(gradients)?;
        kernel::backward::<T>(
            &d,
            GroupNormGradients { dx, dgamma, dbeta, dscale_shift },
            dy.as_slice()?,
            x.as_slice()?,
            mean.as_slice()?,
            rstd.as_slice()?,
            gamma.as_slice()?,
            beta.as_slice()?,
            scale_shift.as_ref().map(Tensor::as_slice).transpose()?,
        )
    });
    Ok(())
}

fn descriptor(check: &Check, x: &Tensor, options: GroupNorm) -> Result<kernel::GroupNorm> {
    check.require(x.rank() >= 2 && !x.is_empty(), || {
        "x must be [n, .., c] and not empty".into()
    })?;
    let (n, c) = (x.dims()[0], x.shape().last_dim());
    let GroupNorm { groups, eps, silu } = options;
    check.require(groups > 0 && c.is_multiple_of(groups), || {
        format!("{c} channels do not divide into {groups} groups")
    })?;
    Ok(kernel::GroupNorm {
        n,
        pixels: x.len() / (n * c),
        c,
        groups,
        eps,
        silu,
    })
}
