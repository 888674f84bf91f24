//! Concatenation along any dimension.

use kernels::ops::{concat, split};

use crate::check::dispatch_float;
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
    let parts: Vec<Tensor> = parts.iter().map(|p| p.contiguous()).collect();
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
    let dy = dy.contiguous();
    let inner = dy.dims()[dim + 1..].iter().product::<usize>();
    let (row, start, width) = (dy.dims()[dim] * inner, start * inner, extent * inner);
    dispatch_float!(dtype, T => {
        split::narrow(dx.as_mut_slice::<T>()?, accum, dy.as_slice()?, row, start, width)
    });
    Ok(())
}

/// Elements that follow each other before a dimension outside `dim` advances.
pub(crate) fn width(shape: &Shape, dim: usize) -> usize {
    shape[dim..].iter().product()
}
