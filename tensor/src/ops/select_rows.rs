//! Each sample from one of two sources.

use kernels::ops::select_rows::{self, ptx};

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Accum, Check, DType, Result, Tensor};

/// `y[i] = keep[i] ? a[i] : b[i]`.
///
/// # Shapes
/// keep Bool [n], a [n, ..], b [n, ..] or [1, ..] → [n, ..]
pub fn forward(keep: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let check = Check::new("select_rows", &[("keep", keep), ("a", a), ("b", b)]);
    let dtype = check.floats(&[a, b])?;
    check.dtype("keep", keep, DType::Bool)?;
    check.require(a.rank() > 0, || "a must have at least one dimension".into())?;
    check.shape("keep", keep, &a.dims()[..1])?;
    let mut shared = a.shape();
    shared.dims_mut()[0] = 1;
    check.require(b.shape() == a.shape() || b.shape() == shared, || {
        format!("b must be {} or {shared}, it is {}", a.shape(), b.shape())
    })?;
    let (keep, a, b) = (keep.contiguous()?, a.contiguous()?, b.contiguous()?);
    let mut y = Tensor::uninit(a.shape(), dtype, a.device());
    if let Some(gpu) = check.gpu() {
        // Where a has one sample, one row for all is a row of its own.
        let shape = [keep.len(), shared.elements()];
        let call = ptx::Forward::config(gpu.storage(dtype), shape, b.shape() != a.shape());
        let read = [&keep, &a, &b].map(Arg::Read);
        gpu.call(
            &gpu.plan(call)?,
            [Arg::Write(&mut y)].into_iter().chain(read),
        )?;
        return Ok(y);
    }
    dispatch_float!(dtype, T => {
        let y = y.as_mut_slice::<T>()?;
        select_rows::forward(y, keep.as_slice()?, a.as_slice()?, b.as_slice()?, shared.elements())
    });
    Ok(y)
}

/// `da[i] (+)= keep[i] ? dy[i] : 0`.
pub fn backward_a(da: &mut Tensor, accum: Accum, dy: &Tensor, keep: &Tensor) -> Result<()> {
    backward(da, accum, dy, keep, true)
}

/// `db[i] (+)= keep[i] ? 0 : dy[i]`, summed over the samples if b is one row for all.
pub fn backward_b(db: &mut Tensor, accum: Accum, dy: &Tensor, keep: &Tensor) -> Result<()> {
    backward(db, accum, dy, keep, false)
}

fn backward(dst: &mut Tensor, accum: Accum, dy: &Tensor, keep: &Tensor, side: bool) -> Result<()> {
    let operands = [("gradient", &*dst), ("dy", dy), ("keep", keep)];
    let check = Check::new("select_rows", &operands);
    let dtype = check.floats(&[dst, dy])?;
    check.dtype("keep", keep, DType::Bool)?;
    check.shape("keep", keep, &dy.dims()[..1])?;
    let mut expected = dy.shape();
    let shared = !side && dst.dims().first() == Some(&1);
    if shared {
        expected.dims_mut()[0] = 1;
    }
    check.shape("gradient", dst, &expected)?;
    let (dy, keep) = (dy.contiguous()?, keep.contiguous()?);
    let row = dy.len() / keep.len().max(1);
    if let Some(gpu) = check.gpu() {
        let (storage, shape) = (gpu.storage(dtype), [keep.len(), row]);
        let operands = [
            Arg::destination(dst, accum),
            Arg::Read(&keep),
            Arg::Read(&dy),
        ];
        return if shared {
            let call = ptx::BackwardShared::config(storage, accum, shape);
            gpu.call(&gpu.plan(call)?, operands)
        } else {
            let call = ptx::Backward::config(storage, accum, shape, side);
            gpu.call(&gpu.plan(call)?, operands)
        };
    }
    dispatch_float!(dtype, T => {
        let (dst, dy) = (dst.as_mut_slice::<T>()?, dy.as_slice()?);
        if shared {
            select_rows::backward_shared(dst, accum, dy, keep.as_slice()?)
        } else {
            select_rows::backward(dst, accum, dy, keep.as_slice()?, side, row)
        }
    });
    Ok(())
}
