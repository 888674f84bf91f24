//! Average pooling over 2×2 blocks.

use kernels::ops::avg_pool2::{self, ptx::SumBlocks};
use kernels::ops::nearest_up2::{self, ptx::RepeatBlocks};

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Accum, Check, Result, Tensor};

/// The mean of each 2×2 block.
///
/// # Shapes
/// x [n, h, w, c] with even h and w → [n, h/2, w/2, c]
pub fn forward(x: &Tensor) -> Result<Tensor> {
    let check = Check::new("avg_pool2", &[("x", x)]);
    let dtype = check.same_float()?;
    check.rank("x", x, 4)?;
    let [n, h, w, c] = [x.dims()[0], x.dims()[1], x.dims()[2], x.dims()[3]];
    check.require(h % 2 == 0 && w % 2 == 0, || {
        "height and width must be even".into()
    })?;
    let x = x.contiguous()?;
    let mut y = Tensor::uninit([n, h / 2, w / 2, c], dtype, x.device());
    if let Some(gpu) = check.gpu() {
        let shape = [n, h / 2, w / 2, c];
        let call = SumBlocks::config(gpu.storage(dtype), Accum::Replace, shape);
        let operands = [Arg::Write(&mut y), Arg::Read(&x), Arg::F32(0.25)];
        gpu.call(&gpu.plan(call)?, operands)?;
        return Ok(y);
    }
    dispatch_float!(dtype, T => {
        avg_pool2::sum_blocks(y.as_mut_slice::<T>()?, Accum::Replace, x.as_slice()?, w / 2, c, 0.25)
    });
    Ok(y)
}

/// `dx (+)= dy / 4`, each pixel over its 2×2 block.
pub fn backward(dx: &mut Tensor, accum: Accum, dy: &Tensor) -> Result<()> {
    let check = Check::new("avg_pool2", &[("dx", dx), ("dy", dy)]);
    let dtype = check.same_float()?;
    check.rank("dy", dy, 4)?;
    let [n, h, w, c] = [dy.dims()[0], dy.dims()[1], dy.dims()[2], dy.dims()[3]];
    check.shape("dx", dx, &[n, 2 * h, 2 * w, c])?;
    let dy = dy.contiguous()?;
    if let Some(gpu) = check.gpu() {
        let call = RepeatBlocks::config(gpu.storage(dtype), accum, [n, h, w, c]);
        let operands = [Arg::destination(dx, accum), Arg::Read(&dy), Arg::F32(0.25)];
        return gpu.call(&gpu.plan(call)?, operands);
    }
    dispatch_float!(dtype, T => {
        nearest_up2::repeat_blocks(dx.as_mut_slice::<T>()?, accum, dy.as_slice()?, w, c, 0.25)
    });
    Ok(())
}
