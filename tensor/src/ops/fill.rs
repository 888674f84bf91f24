//! One value everywhere.

use crate::{Check, Device, Result, Tensor};

/// Overwrites every element with `value`.
pub fn fill(out: &mut Tensor, value: f64) -> Result<()> {
    let dtype = Check::new("fill", &[("out", out)]).same_float()?;
    out.set_all(&Tensor::full([], value, dtype, Device::Cpu))
}
