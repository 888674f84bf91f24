//! Two-dimensional convolution of NHWC images.

use kernels::ops::conv2d::{self as kernel, Conv2d, ptx};

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::ops::matmul::{Epilogue, merge_parts};
use crate::{Accum, Check, DType, Result, Tensor};

/// How the kernel moves over the image, in both directions alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv {
    pub stride: usize,
    /// Zeros on each side of the image.
    pub padding: usize,
}

/// y = conv(x, weight) + bias + residual, cross-correlation as PyTorch's `conv2d`.
///
/// # Shapes
/// x [n, h, w, in], weight [out, kernel_h, kernel_w, in], bias [out], residual like y
/// → y [n, (h + 2·padding − kernel_h) / stride + 1, (w + 2·padding − kernel_w) / stride + 1, out].
///
/// # Errors
/// If the operands have other than these shapes, the kernel is larger than the padded image, or dtypes differ.
pub fn forward(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    conv: Conv,
) -> Result<Tensor> {
    let check = Check::new("conv2d", &[("x", x), ("weight", weight)])
        .optional("bias", bias)
        .optional("residual", residual);
    let dtype = check.same_float()?;
    let d = descriptor(&check, x, weight, conv)?;
    let shape = [d.n, d.out_h(), d.out_w(), d.c_out];
    if let Some(bias) = bias {
        check.shape("bias", bias, &[d.c_out])?;
    }
    if let Some(residual) = residual {
        check.shape("residual", residual, &shape)?;
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let (bias, residual) = (
        bias.map(Tensor::contiguous).transpose()?,
        residual.map(Tensor::contiguous).transpose()?,
    );
    let mut y = Tensor::uninit(shape, dtype, x.device());
    if let Some(gpu) = check.gpu() {
        let plan = gpu.plan(ptx::config(&d, gpu.storage(dtype), gpu.arch))?;
        let read = [Arg::Read(&x), Arg::Read(&weight)].into_iter();
        let added = [bias.as_ref(), residual.as_ref()].map(Arg::optional);
        let sizes = ptx::Forward::sizes(&d).map(Arg::U32);
        let operands = [Arg::Write(&mut y)].into_iter().chain(read);
        gpu.launch(&plan, operands.chain(added).chain(sizes))?;
        return Ok(y);
    }
    dispatch_float!(dtype, T => kernel::forward::<T>(
        &d,
        y.as_mut_slice()?,
        x.as_slice()?,
        weight.as_slice()?,
        bias.as_ref().map(Tensor::as_slice).transpose()?,
        residual.as_ref().map(Tensor::as_slice).transpose()?,
    ));
    Ok(y)
}

/// dx (+)= the gradient of the image.
pub fn backward_input(
    dx: &mut Tensor,
    accum: Accum,
    dy: &Tensor,
    weight: &Tensor,
    conv: Conv,
) -> Result<()> {
    let check = Check::new("conv2d", &[("dx", dx), ("dy", dy), ("weight", weight)]);
    let dtype = check.same_float()?;
    let d = descriptor(&check, dx, weight, conv)?;
    check.shape("dy", dy, &[d.n, d.out_h(), d.out_w(), d.c_out])?;
    let (dy, weight) = (dy.contiguous()?, weight.contiguous()?);
    if let Some(gpu) = check.gpu() {
        let storage = gpu.storage(dtype);
        let plans = ptx::config_backward_input(&d, storage, accum, gpu.arch);
        let (flip, product) = gpu.plan(plans)?;
        let mut flipped = Tensor::uninit([weight.len()], dtype, weight.device());
        let sizes = ptx::Flip::sizes(&d).map(Arg::U32);
        let operands = [Arg::Write(&mut flipped), Arg::Read(&weight)];
        gpu.launch(&flip, operands.into_iter().chain(sizes))?;
        let sizes = ptx::BackwardInput::sizes(&d).map(Arg::U32);
        let operands = [
            Arg::destination(dx, accum),
            Arg::Read(&dy),
            Arg::Read(&flipped),
        ];
        let operands = operands.into_iter().chain([Arg::Absent, Arg::Absent]);
        return gpu.launch(&product, operands.chain(sizes));
    }
    dispatch_float!(dtype, T => {
        kernel::backward_input::<T>(&d, dx.as_mut_slice()?, accum, dy.as_slice()?, weight.as_slice()?)
    });
    Ok(())
}

/// dw (+)= the gradient of the weight.
pub fn backward_weight(
    dw: &mut Tensor,
    accum: Accum,
    dy: &Tensor,
    x: &Tensor,
    conv: Conv,
) -> Result<()> {
    let check = Check::new("conv2d", &[("dw", dw), ("dy", dy), ("x", x)]);
    let dtype = check.same_float()?;
    let d = descriptor(&check, x, dw, conv)?;
    check.shape("dy", dy, &[d.n, d.out_h(), d.out_w(), d.c_out])?;
    let (dy, x) = (dy.contiguous()?, x.contiguous()?);
    if let Some(gpu) = check.gpu() {
        let storage = gpu.storage(dtype);
        let launches = gpu.plan(ptx::config_backward_weight(&d, storage, accum, gpu.arch))?;
        let read = [Arg::Read(&dy), Arg::Read(&x)].into_iter();
        let Some(merge) = &launches.merge else {
            let dw = [Arg::destination(dw, accum)];
            return gpu.call(&launches.product, dw.into_iter().chain(read));
        };
        let mut partials = Tensor::uninit([launches.partials], DType::F32, x.device());
        let sums = [Arg::Write(&mut partials)];
        gpu.call(&launches.product, sums.into_iter().chain(read))?;
        return merge_parts(&gpu, merge, dw, accum, &partials, Epilogue::default());
    }
    dispatch_float!(dtype, T => {
        kernel::backward_weight::<T>(&d, dw.as_mut_slice()?, accum, dy.as_slice()?, x.as_slice()?)
    });
    Ok(())
}

fn descriptor(check: &Check, x: &Tensor, weight: &Tensor, conv: Conv) -> Result<Conv2d> {
    check.rank("x", x, 4)?;
    check.rank("weight", weight, 4)?;
    let &[n, h, w, c_in] = x.dims() else {
        unreachable!("rank checked above")
    };
    let &[c_out, kernel_h, kernel_w, expected] = weight.dims() else {
        unreachable!("rank checked above")
    };
    check.require(c_in == expected, || {
        format!("weight expects {expected} input channels, x has {c_in}")
    })?;
    check.require(conv.stride > 0, || "the stride must be at least 1".into())?;
    let (padded_h, padded_w) = (h + 2 * conv.padding, w + 2 * conv.padding);
    check.require(
        (1..=padded_h).contains(&kernel_h) && (1..=padded_w).contains(&kernel_w),
        || {
            format!(
                "a kernel of {kernel_h}×{kernel_w} does not fit an image of {padded_h}×{padded_w} (padded)"
            )
        },
    )?;
    Ok(Conv2d {
        n,
        h,
        w,
        c_in,
        c_out,
        kernel_h,
        kernel_w,
        stride: conv.stride,
        padding: conv.padding,
    })
}
