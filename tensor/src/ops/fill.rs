//! One value everywhere.

use crate::check::dispatch_float;
use crate::{Check, Result, Tensor};

/// Overwrites every element with `value`.
pub fn fill(out: &mut Tensor, value: f64) -> Result<()> {
    let dtype = Check::new("fill", &[("out", out)]).same_float()?;
    dispatch_float!(dtype, T => out.as_mut_slice::<T>()?.fill(value as T));
    Ok(())
}
