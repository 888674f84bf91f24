//! Nearest-neighbour upsampling by two.

use kernels::ops::avg_pool2::{self, ptx::SumBlocks};
use kernels::ops::nearest_up2::{self, ptx::RepeatBlocks};

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Accum, Check, Result, Tensor};

/// Every pixel as a 2×2 block.
///
/// # Shapes
/// x [n, h, w, c] → [n, 2h, 2w, c]
pub fn forward(x: &Tensor) -> Result<Tensor> {
    let check = Check::new("nearest_up2", &[("x", x)]);
    let dtype = check.same_float()?;
    check.rank("x", x, 4)?;
    let [n, h, w, c] = [x.dims()[0], x.dims()[1], x.dims()[2], x.dims()[3]];
    let x = x.contiguous()?;
    let mut y = Tensor::uninit([n, 2 * h, 2 * w, c], dtype, x.device());
    if let Some(gpu) = check.gpu() {
        let call = RepeatBlocks::config(gpu.storage(dtype), Accum::Replace, [n, h, w, c]);
        let operands = [Arg::Write(&mut y), Arg::Read(&x), Arg::F32(1.0)];
        gpu.call(&gpu.plan(call)?, operands)?;
        return Ok(y);
    }
    dispatch_float!(dtype, T => {
        nearest_up2::repeat_blocks(y.as_mut_slice::<T>()?, Accum::Replace, x.as_slice()?, w, c, 1.0)
    });
    Ok(y)
}

/// `dx (+)=` the sums of dy's 2×2 blocks.
pub fn backward(dx: &mut Tensor, accum: Accum, dy: &Tensor) -> Result<()> {
    let check = Check::new("nearest_up2", &[("dx", dx), ("dy", dy)]);
    let dtype = check.same_float()?;
    check.rank("dx", dx, 4)?;
    let [n, h, w, c] = [dx.dims()[0], dx.dims()[1], dx.dims()[2], dx.dims()[3]];
    check.shape("dy", dy, &[n, 2 * h, 2 * w, c])?;
    let dy = dy.contiguous()?;
    if let Some(gpu) = check.gpu() {
        let call = SumBlocks::config(gpu.storage(dtype), accum, [n, h, w, c]);
        let operands = [Arg::destination(dx, accum), Arg::Read(&dy), Arg::F32(1.0)];
        return gpu.call(&gpu.plan(call)?, operands);
    }
    dispatch_float!(dtype, T => {
        avg_pool2::sum_blocks(dx.as_mut_slice::<T>()?, accum, dy.as_slice()?, w, c, 1.0)
    });
    Ok(())
}
