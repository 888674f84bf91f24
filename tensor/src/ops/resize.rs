//! Resizing of images.

pub use kernels::ops::resize::Filter;

use kernels::ops::resize::ptx::{self, Table};
use kernels::ops::resize::{Taps, resample};

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Accum, Check, DType, Device, Result, Tensor};

/// PyTorch's `interpolate(size=(out_h, out_w), align_corners=False)` with this filter.
///
/// # Shapes
/// x [n, h, w, c] → [n, out_h, out_w, c]
pub fn forward(x: &Tensor, out_h: usize, out_w: usize, filter: Filter) -> Result<Tensor> {
    let check = Check::new("resize", &[("x", x)]);
    check.rank("x", x, 4)?;
    let [n, h, w, c] = [x.dims()[0], x.dims()[1], x.dims()[2], x.dims()[3]];
    check.require(h > 0 && w > 0 && out_h > 0 && out_w > 0, || {
        format!("cannot resize to {out_h}×{out_w}")
    })?;
    let rows = Taps::resize(filter, h, out_h);
    let columns = Taps::resize(filter, w, out_w);
    let mut y = Tensor::uninit([n, out_h, out_w, c], x.dtype(), x.device());
    apply(&check, &mut y, Accum::Replace, x, &rows, &columns)?;
    Ok(y)
}

/// `dx (+)=` the gradient from dy.
pub fn backward(dx: &mut Tensor, accum: Accum, dy: &Tensor, filter: Filter) -> Result<()> {
    let operands = [("dx", &dx.outline()), ("dy", dy)];
    let check = Check::new("resize", &operands);
    check.rank("dx", dx, 4)?;
    check.rank("dy", dy, 4)?;
    let [n, h, w, c] = [dx.dims()[0], dx.dims()[1], dx.dims()[2], dx.dims()[3]];
    let [_, out_h, out_w, _] = [dy.dims()[0], dy.dims()[1], dy.dims()[2], dy.dims()[3]];
    check.shape("dy", dy, &[n, out_h, out_w, c])?;
    let rows = Taps::resize(filter, h, out_h).transposed();
    let columns = Taps::resize(filter, w, out_w).transposed();
    apply(&check, dx, accum, dy, &rows, &columns)
}

pub(crate) fn apply(
    check: &Check,
    dst: &mut Tensor,
    accum: Accum,
    src: &Tensor,
    rows: &Taps,
    columns: &Taps,
) -> Result<()> {
    let dtype = check.same_float()?;
    let src = src.contiguous()?;
    let c = src.shape().last_dim();
    if let Some(gpu) = check.gpu() {
        let n = src.dims()[0];
        let tables = [Table::new(rows), Table::new(columns)];
        let calls = ptx::config(gpu.storage(dtype), accum, [n, c], &tables[0], &tables[1]);
        let [first, second] = gpu.plan(calls)?;
        let shape = [n, rows.outputs(), columns.inputs(), c];
        let mut between = Tensor::uninit(shape, DType::F32, src.device());
        let [(row_bands, row_weights), (column_bands, column_weights)] =
            tables.map(|table| on_device(&table, src.device()));
        let read = [&src, &row_bands, &row_weights].map(Arg::Read);
        gpu.call(&first, [Arg::Write(&mut between)].into_iter().chain(read))?;
        let read = [&between, &column_bands, &column_weights].map(Arg::Read);
        return gpu.call(
            &second,
            [Arg::destination(dst, accum)].into_iter().chain(read),
        );
    }
    dispatch_float!(dtype, T => {
        resample(dst.as_mut_slice::<T>()?, accum, src.as_slice()?, rows, columns, c)
    });
    Ok(())
}

/// The bands and the weights of a table, where kernels read them.
fn on_device(table: &Table, device: Device) -> (Tensor, Tensor) {
    let bands: &[i32] = bytemuck::cast_slice(table.bands.as_flattened());
    let bands = Tensor::from_slice(bands, [bands.len()], device);
    let weights = Tensor::from_slice(&table.weights, [table.weights.len()], device);
    (bands, weights)
}
