//! Cutting along any dimension.

use super::concat::{join, width};
use crate::check::dispatch_float;
use crate::{Accum, Check, Result, Tensor};

/// Consecutive pieces along `dim`, contiguous: copies, but for views where a piece already is contiguous.
///
/// # Shapes
/// x [.., Σ sizes, ..] → [.., sizeᵢ, ..] each
pub fn forward(x: &Tensor, dim: usize, sizes: &[usize]) -> Result<Vec<Tensor>> {
    let check = Check::new("split", &[("x", x)]);
    check.require(dim < x.rank(), || format!("there is no dimension {dim}"))?;
    check.require(sizes.iter().sum::<usize>() == x.dims()[dim], || {
        format!("{sizes:?} do not add up to the extent of dimension {dim}")
    })?;
    let mut start = 0;
    let pieces = sizes.iter().map(|&size| {
        start += size;
        x.narrow(dim, start - size, size)?.contiguous()
    });
    pieces.collect()
}

/// `dx (+)=` the gradients of consecutive pieces along `dim`; a piece whose gradient is `None` had none.
///
/// A piece is its extent along `dim` and its gradient.
pub fn backward(
    dx: &mut Tensor,
    accum: Accum,
    pieces: &[(usize, Option<&Tensor>)],
    dim: usize,
) -> Result<()> {
    let mut operands = vec![("dx", &*dx)];
    operands.extend(pieces.iter().filter_map(|&(_, dy)| Some(("dy", dy?))));
    let check = Check::new("split", &operands);
    let dtype = check.same_float()?;
    let total: usize = pieces.iter().map(|&(extent, _)| extent).sum();
    check.require(dx.dims().get(dim) == Some(&total), || {
        format!("the pieces do not add up to dimension {dim}")
    })?;
    if let Some(gpu) = check.gpu() {
        let widths = pieces.iter().map(|&(extent, dy)| {
            let mut shape = dx.shape();
            shape.dims_mut()[dim] = extent;
            (width(&shape, dim), dy)
        });
        let parts: Vec<_> = widths.collect();
        return join(&gpu, dx, accum, &parts);
    }
    let mut slices = Vec::with_capacity(pieces.len());
    for &(extent, dy) in pieces {
        let mut shape = dx.shape();
        shape.dims_mut()[dim] = extent;
        if let Some(dy) = dy {
            check.shape("dy", dy, &shape)?;
        }
        slices.push((width(&shape, dim), dy.map(Tensor::contiguous).transpose()?));
    }
    dispatch_float!(dtype, T => {
        let slices = slices
            .iter()
            .map(|(width, dy)| Ok((*width, dy.as_ref().map(|dy| dy.as_slice::<T>()).transpose()?)))
            .collect::<Result<Vec<_>>>()?;
        kernels::ops::concat::join(dx.as_mut_slice::<T>()?, accum, &slices);
    });
    Ok(())
}
