//! Copies and additions into an existing tensor.

use crate::check::dispatch_float;
use crate::{Accum, Check, Result, Tensor};

/// `dst (+)= src`, same shape; `src` may have any strides.
pub fn accumulate(dst: &mut Tensor, accum: Accum, src: &Tensor) -> Result<()> {
    let check = Check::new("accumulate", &[("dst", dst), ("src", src)]);
    let dtype = check.same_float()?;
    check.shape("src", src, dst.dims())?;
    let src = src.contiguous();
    dispatch_float!(dtype, T => kernels::ops::copy::accumulate(dst.as_mut_slice::<T>()?, accum, src.as_slice()?));
    Ok(())
}
