//! Concatenation along any dimension.

use kernels::ops::concat::{self, ptx::Join};
use kernels::ops::split::{self, ptx::Narrow};

use crate::check::dispatch_float;
use crate::gpu::{Arg, Gpu};
use crate::{Accum, Check, Result, Shape, Tensor};

/// The operands one after the other along `dim`.
///
/// # Shapes
/// [.., dᵢ, ..] each, equal but for `dim` → [.., Σ dᵢ, ..]
pub fn forward(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    let named: Vec<_> = parts.iter().map(|&part| ("part", part)).collect();
    let check = Check::new("concat", &named);
    check.require(!parts.is_empty(), || "needs at least one operand".into())?;
    let dtype = check.same_float()?;
    let first = parts[0].shape();
    check.require(dim < first.len(), || format!("there is no dimension {dim}"))?;
    let mut shape = first;
    shape.dims_mut()[dim] = parts
        .iter()
        .map(|p| p.dims().get(dim).copied().unwrap_or(0))
        .sum();
    for part in parts {
        let mut expected = first;
        expected.dims_mut()[dim] = part.dims().get(dim).copied().unwrap_or(0);
        check.require(part.shape() == expected, || {
            format!("operands may differ in dimension {dim} only")
        })?;
    }
    let mut y = Tensor::uninit(shape, dtype, parts[0].device());
    if let Some(gpu) = check.gpu() {
        let parts: Vec<_> = parts
            .iter()
            .map(|p| (width(&p.shape(), dim), Some(*p)))
            .collect();
        join(&gpu, &mut y, Accum::Replace, &parts)?;
        return Ok(y);
    }
    let parts: Vec<Tensor> = parts
        .iter()
        .map(|p| p.contiguous())
        .collect::<Result<_>>()?;
    dispatch_float!(dtype, T => {
        let slices = parts
            .iter()
            .map(|p| Ok((width(&p.shape(), dim), Some(p.as_slice::<T>()?))))
            .collect::<Result<Vec<_>>>()?;
        concat::join(y.as_mut_slice::<T>()?, Accum::Replace, &slices);
    });
    Ok(y)
}

/// `dx (+)=` dy's elements from `start` along `dim`: the gradient of the operand that begins there.
pub fn backward(
    dx: &mut Tensor,
    accum: Accum,
    dy: &Tensor,
    dim: usize,
    start: usize,
) -> Result<()> {
    let check = Check::new("concat", &[("dx", dx), ("dy", dy)]);
    let dtype = check.same_float()?;
    let extent = dx.dims().get(dim).copied().unwrap_or(0);
    check.shape("dx", dx, dy.narrow(dim, start, extent)?.dims())?;
    let dy = dy.contiguous()?;
    let inner = dy.dims()[dim + 1..].iter().product::<usize>();
    let (row, start, width) = (dy.dims()[dim] * inner, start * inner, extent * inner);
    if let Some(gpu) = check.gpu() {
        let rows = dx.len() / width.max(1);
        let call = Narrow::config(gpu.storage(dtype), accum, [rows, row, start, width]);
        return gpu.call(
            &gpu.plan(call)?,
            [Arg::destination(dx, accum), Arg::Read(&dy)],
        );
    }
    dispatch_float!(dtype, T => {
        split::narrow(dx.as_mut_slice::<T>()?, accum, dy.as_slice()?, row, start, width)
    });
    Ok(())
}

/// `dst (+)=` the interleaved rows of all parts, each with its row's width and zeros where it is absent.
pub(crate) fn join(
    gpu: &Gpu,
    dst: &mut Tensor,
    accum: Accum,
    parts: &[(usize, Option<&Tensor>)],
) -> Result<()> {
    let widths: Vec<_> = parts
        .iter()
        .map(|(width, part)| (*width, part.is_some()))
        .collect();
    let row: usize = widths.iter().map(|(width, _)| width).sum();
    let call = Join::config(
        gpu.storage(dst.dtype()),
        accum,
        dst.len() / row.max(1),
        &widths,
    );
    let call = gpu.plan(call)?;
    let taken = call.plan.variant.parts as usize;
    let parts = parts.iter().map(|&(_, part)| Arg::optional(part));
    let absent = std::iter::repeat_with(|| Arg::Absent);
    let operands = [Arg::destination(dst, accum)].into_iter();
    gpu.call(&call, operands.chain(parts.chain(absent).take(taken)))
}

/// Elements that follow each other before a dimension outside `dim` advances.
pub(crate) fn width(shape: &Shape, dim: usize) -> usize {
    shape[dim..].iter().product()
}
