//! Group normalisation with the scale-shift and SiLU that follow it in a U-Net.

use kernels::ops::group_norm::ptx::backward::{InputGradient, MergeSums, Parameters, Sums};
use kernels::ops::group_norm::ptx::forward::{Apply, Merge, Moments};
use kernels::ops::group_norm::{self as kernel, GroupNormGradients, ptx};
use kernels::ops::variants::Plan;
use kernels::ptx::Storage;

use crate::check::{dispatch_float, slices_mut};
use crate::gpu::{Arg, Gpu, statistics, treatments};
use crate::{Accum, Check, DType, Result, Tensor};

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
    let x = x.contiguous()?;
    let (gamma, beta) = (gamma.contiguous()?, beta.contiguous()?);
    let scale_shift = scale_shift.map(Tensor::contiguous).transpose()?;
    let mut y = Tensor::uninit(x.shape(), dtype, x.device());
    let mut mean = Tensor::uninit([d.n, d.groups], statistics(dtype), x.device());
    let mut rstd = Tensor::uninit([d.n, d.groups], statistics(dtype), x.device());
    if let Some(gpu) = check.gpu() {
        let output = Output { y, mean, rstd };
        let affine = [Some(&gamma), Some(&beta), scale_shift.as_ref()];
        return forward_on_gpu(&gpu, &d, output, &x, affine);
    }
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

/// [`forward`] with contiguous operands, of which `affine` are gamma, beta, and scale and shift if there are any.
fn forward_on_gpu(
    gpu: &Gpu,
    d: &kernel::GroupNorm,
    output: Output,
    x: &Tensor,
    affine: [Option<&Tensor>; 3],
) -> Result<Output> {
    let Output {
        mut y,
        mut mean,
        mut rstd,
    } = output;
    let storage = gpu.storage(x.dtype());
    let sizes = gpu.plan(ptx::sizes(d, storage))?;
    let eps = Arg::F32(d.eps as f32);
    if let Some(call) = ptx::whole::config(d, storage) {
        let written = [&mut y, &mut mean, &mut rstd].map(Arg::Write).into_iter();
        let read = [Arg::Read(x)].into_iter().chain(affine.map(Arg::optional));
        gpu.call(&call, written.chain(read).chain([eps]))?;
        return Ok(Output { y, mean, rstd });
    }
    let numbers = || [d.pixels, d.c, d.groups].map(Arg::number).into_iter();
    let mut partials = Tensor::uninit([sizes.partials], DType::F32, x.device());
    let plan = Plan {
        variant: Moments(sizes.channels),
        grid: sizes.pixels_grid,
    };
    let operands = [Arg::Write(&mut partials), Arg::Read(x)];
    gpu.launch(&plan, operands.into_iter().chain(numbers()))?;
    let plan = Plan {
        variant: Merge,
        grid: sizes.groups_grid,
    };
    let operands = [
        Arg::Write(&mut mean),
        Arg::Write(&mut rstd),
        Arg::Read(&partials),
    ];
    let beside = Arg::number(sizes.groups_beside);
    let last = [beside, eps];
    gpu.launch(&plan, operands.into_iter().chain(numbers()).chain(last))?;
    let variant = Apply {
        channels: sizes.channels,
        silu: d.silu,
    };
    let plan = Plan {
        variant,
        grid: sizes.pixels_grid,
    };
    let written = [Arg::Write(&mut y)].into_iter();
    let read = [x, &mean, &rstd].map(Arg::Read).into_iter();
    let read = read.chain(affine.map(Arg::optional));
    gpu.launch(&plan, written.chain(read).chain(numbers()))?;
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
    let (dy, x) = (dy.contiguous()?, x.contiguous()?);
    let (gamma, beta) = (gamma.contiguous()?, beta.contiguous()?);
    let scale_shift = scale_shift.map(Tensor::contiguous).transpose()?;
    check.dtype("mean", mean, statistics(dtype))?;
    check.dtype("rstd", rstd, statistics(dtype))?;
    if let Some(gpu) = check.gpu() {
        let saved = Saved {
            x: &x,
            mean,
            rstd,
            gamma: &gamma,
            beta: &beta,
            scale_shift: scale_shift.as_ref(),
        };
        return backward_on_gpu(&gpu, &d, gradients, &dy, saved);
    }
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

/// [`backward`] with contiguous operands.
fn backward_on_gpu(
    gpu: &Gpu,
    d: &kernel::GroupNorm,
    gradients: &mut [Option<(Tensor, Accum)>; 4],
    dy: &Tensor,
    saved: Saved,
) -> Result<()> {
    let Saved {
        x,
        mean,
        rstd,
        gamma,
        beta,
        scale_shift,
    } = saved;
    let (storage, device) = (gpu.storage(x.dtype()), x.device());
    let sizes = gpu.plan(ptx::sizes(d, storage))?;
    let (channels, silu) = (sizes.channels, d.silu);
    let [dx, dgamma, dbeta, dscale_shift] = gradients;
    let accum_of = |gradient: &Option<(Tensor, Accum)>| {
        gradient
            .as_ref()
            .map_or(Accum::Replace, |(_, accum)| *accum)
    };
    let [of_dx, of_scale] = [&*dx, &*dscale_shift].map(accum_of);
    let numbers = || [d.pixels, d.c, d.groups].map(Arg::number).into_iter();
    let coefficients = || {
        let read = [mean, rstd, gamma, beta].map(Arg::Read).into_iter();
        read.chain([Arg::optional(scale_shift)])
    };
    let operands = || [dy, x].map(Arg::Read).into_iter().chain(coefficients());
    let mut totals = Tensor::uninit([sizes.totals], DType::F32, device);

    if let Some(call) = ptx::whole_backward::config(d, storage, [of_dx, of_scale]) {
        let wanted = dgamma.is_some() || dbeta.is_some();
        let written = [
            Arg::gradient(dx, of_dx),
            Arg::gradient(dscale_shift, of_scale),
            if wanted {
                Arg::Write(&mut totals)
            } else {
                Arg::Absent
            },
        ];
        gpu.call(&call, written.into_iter().chain(operands()))?;
        return parameter_gradients(gpu, d, storage, [dgamma, dbeta], &totals, scale_shift);
    }

    let mut partials = Tensor::uninit([sizes.partials], DType::F32, device);
    let plan = Plan {
        variant: Sums { channels, silu },
        grid: sizes.pixels_grid,
    };
    let passed = [Arg::Write(&mut partials)].into_iter().chain(operands());
    gpu.launch(&plan, passed.chain(numbers()))?;

    let mut means = Tensor::uninit([d.n, d.groups, 2], DType::F32, device);
    let plan = Plan {
        variant: MergeSums {
            storage,
            accum: of_scale,
        },
        grid: sizes.groups_grid,
    };
    let written = [
        Arg::Write(&mut totals),
        Arg::Write(&mut means),
        Arg::gradient(dscale_shift, of_scale),
    ];
    let read = [Arg::Read(&partials)].into_iter().chain(coefficients());
    let beside = [Arg::number(sizes.groups_beside)];
    let passed = written.into_iter().chain(read).chain(numbers());
    gpu.launch(&plan, passed.chain(beside))?;
    parameter_gradients(gpu, d, storage, [dgamma, dbeta], &totals, scale_shift)?;

    let Some((dx, accum)) = dx else { return Ok(()) };
    let variant = InputGradient {
        channels,
        silu,
        accum: *accum,
    };
    let plan = Plan {
        variant,
        grid: sizes.pixels_grid,
    };
    let passed = [Arg::destination(dx, *accum), Arg::Read(&means)];
    let passed = passed.into_iter().chain(operands());
    gpu.launch(&plan, passed.chain(numbers()))
}

/// Those of γ and β, from the images' sums.
fn parameter_gradients(
    gpu: &Gpu,
    d: &kernel::GroupNorm,
    storage: Storage,
    [dgamma, dbeta]: [&mut Option<(Tensor, Accum)>; 2],
    totals: &Tensor,
    scale_shift: Option<&Tensor>,
) -> Result<()> {
    let sizes = gpu.plan(ptx::sizes(d, storage))?;
    for accum in treatments(&[dgamma, dbeta]) {
        let plan = Plan {
            variant: Parameters { storage, accum },
            grid: sizes.channels_grid,
        };
        let written = [&mut *dgamma, &mut *dbeta].map(|gradient| Arg::gradient(gradient, accum));
        let read = [Arg::Read(totals), Arg::optional(scale_shift)];
        let sizes = [d.c, d.n].map(Arg::number);
        gpu.launch(&plan, written.into_iter().chain(read).chain(sizes))?;
    }
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
