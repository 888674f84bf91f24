//! Look-up of rows in a table.

use kernels::ops::embedding;

use crate::check::dispatch_float;
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
    let (table, ids) = (table.contiguous(), ids.contiguous());
    let mut y = Tensor::uninit(Shape::new(&shape), dtype, table.device());
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
    let (dy, ids) = (dy.contiguous(), ids.contiguous());
    dispatch_float!(dtype, T => {
        embedding::backward(dtable.as_mut_slice::<T>()?, accum, dy.as_slice()?, ids.as_slice()?, c)
    });
    Ok(())
}
