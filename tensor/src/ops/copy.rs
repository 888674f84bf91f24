//! Copies and additions into an existing tensor.

use kernels::ops::copy::ptx;

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Accum, Check, Result, Tensor};

/// `dst (+)= src`, same shape; `src` may have any strides.
pub fn accumulate(dst: &mut Tensor, accum: Accum, src: &Tensor) -> Result<()> {
    let check = Check::new("accumulate", &[("dst", dst), ("src", src)]);
    let dtype = check.same_float()?;
    check.shape("src", src, dst.dims())?;
    let src = src.contiguous()?;
    if let Some(gpu) = check.gpu() {
        return match accum {
            Accum::Replace => dst.overwrite(0, &src),
            Accum::Add => {
                let storage = gpu.storage(dtype);
                let plan = gpu.plan(ptx::Accumulate { storage }.config(src.len()))?;
                let n = Arg::number(src.len());
                gpu.launch(&plan, [Arg::Update(dst), Arg::Read(&src), n])
            }
        };
    }
    dispatch_float!(dtype, T => kernels::ops::copy::accumulate(dst.as_mut_slice::<T>()?, accum, src.as_slice()?));
    Ok(())
}
