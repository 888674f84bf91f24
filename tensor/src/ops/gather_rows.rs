//! One row of each sample.

use kernels::ops::gather_rows::{self, ptx};

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Accum, Check, Result, Tensor};

/// `y[i] = x[i, index[i]]`.
///
/// # Shapes
/// x [n, l, c], index i32 [n] → [n, c]
///
/// # Errors
/// If an index is outside 0..l.
pub fn forward(x: &Tensor, index: &Tensor) -> Result<Tensor> {
    let check = Check::new("gather_rows", &[("x", x), ("index", index)]);
    let dtype = check.floats(&[x])?;
    check.rank("x", x, 3)?;
    let [n, l, c] = [x.dims()[0], x.dims()[1], x.dims()[2]];
    check.shape("index", index, &[n])?;
    check.index("index", index, l)?;
    let (x, index) = (x.contiguous()?, index.contiguous()?);
    let mut y = Tensor::uninit([n, c], dtype, x.device());
    if let Some(gpu) = check.gpu() {
        let call = ptx::Forward::config(gpu.storage(dtype), [n, l, c]);
        let operands = [Arg::Write(&mut y), Arg::Read(&x), Arg::Read(&index)];
        gpu.call(&gpu.plan(call)?, operands)?;
        return Ok(y);
    }
    dispatch_float!(dtype, T => {
        gather_rows::forward(y.as_mut_slice::<T>()?, x.as_slice()?, index.as_slice()?, l, c)
    });
    Ok(y)
}

/// `dx[i, index[i]] (+)= dy[i]`, zero elsewhere.
pub fn backward(dx: &mut Tensor, accum: Accum, dy: &Tensor, index: &Tensor) -> Result<()> {
    let operands = [("dx", &*dx), ("dy", dy), ("index", index)];
    let check = Check::new("gather_rows", &operands);
    let dtype = check.floats(&[dx, dy])?;
    check.rank("dx", dx, 3)?;
    let [n, l, c] = [dx.dims()[0], dx.dims()[1], dx.dims()[2]];
    check.shape("dy", dy, &[n, c])?;
    check.shape("index", index, &[n])?;
    check.index("index", index, l)?;
    let (dy, index) = (dy.contiguous()?, index.contiguous()?);
    if let Some(gpu) = check.gpu() {
        let call = ptx::Backward::config(gpu.storage(dtype), accum, [n, l, c]);
        let operands = [
            Arg::destination(dx, accum),
            Arg::Read(&dy),
            Arg::Read(&index),
        ];
        return gpu.call(&gpu.plan(call)?, operands);
    }
    dispatch_float!(dtype, T => {
        gather_rows::backward(dx.as_mut_slice::<T>()?, accum, dy.as_slice()?, index.as_slice()?, l, c)
    });
    Ok(())
}
