//! Look-up of rows in a table.

use kernels::ops::embedding::{self, ptx};

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Accum, Check, Result, Shape, Tensor};

/// The rows of `table` that `ids` name.
///
/// # Shapes
/// table [v, c], ids i32 [..] → [.., c]
///
/// # Errors
/// If an id is outside the table.
pub fn forward(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let check = Check::new("embedding", &[("table", table), ("ids", ids)]);
    let dtype = check.floats(&[table])?;
    check.rank("table", table, 2)?;
    check.index("ids", ids, table.dims()[0])?;
    let c = table.dims()[1];
    let shape: Vec<usize> = ids.dims().iter().copied().chain([c]).collect();
    check.require(shape.len() <= crate::MAX_RANK, || {
        "ids have too many dimensions".into()
    })?;
    let (table, ids) = (table.contiguous()?, ids.contiguous()?);
    let mut y = Tensor::uninit(Shape::new(&shape), dtype, table.device());
    if let Some(gpu) = check.gpu() {
        let shape = [table.dims()[0], c];
        let call = ptx::Forward::config(gpu.storage(dtype), shape, ids.len());
        let operands = [Arg::Write(&mut y), Arg::Read(&table), Arg::Read(&ids)];
        gpu.call(&gpu.plan(call)?, operands)?;
        return Ok(y);
    }
    dispatch_float!(dtype, T => {
        embedding::forward(y.as_mut_slice::<T>()?, table.as_slice()?, ids.as_slice()?, c)
    });
    Ok(y)
}

/// `dtable[v] (+)=` the sum of dy where ids are v, in order of position.
pub fn backward(dtable: &mut Tensor, accum: Accum, dy: &Tensor, ids: &Tensor) -> Result<()> {
    let operands = [("dtable", &*dtable), ("dy", dy), ("ids", ids)];
    let check = Check::new("embedding", &operands);
    let dtype = check.floats(&[dtable, dy])?;
    check.rank("dtable", dtable, 2)?;
    check.index("ids", ids, dtable.dims()[0])?;
    let c = dtable.dims()[1];
    let shape: Vec<usize> = ids.dims().iter().copied().chain([c]).collect();
    check.shape("dy", dy, &shape)?;
    let (dy, ids) = (dy.contiguous()?, ids.contiguous()?);
    if let Some(gpu) = check.gpu() {
        let shape = [dtable.dims()[0], c];
        let call = ptx::Backward::config(gpu.storage(dtype), accum, shape, ids.len());
        let operands = [
            Arg::destination(dtable, accum),
            Arg::Read(&dy),
            Arg::Read(&ids),
        ];
        return gpu.call(&gpu.plan(call)?, operands);
    }
    dispatch_float!(dtype, T => {
        embedding::backward(dtable.as_mut_slice::<T>()?, accum, dy.as_slice()?, ids.as_slice()?, c)
    });
    Ok(())
}
