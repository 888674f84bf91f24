//! Random fills; see [`kernels::random`] for what a draw is.

pub use kernels::random::Draw;

use crate::check::dispatch_float;
use crate::{Check, Result, Tensor};

/// Standard normals times `std`. The outermost dimension counts samples.
pub fn fill_normal(out: &mut Tensor, draw: &Draw, std: f64) -> Result<()> {
    let (dtype, per_sample) = check(out)?;
    dispatch_float!(dtype, T => kernels::random::normal(out.as_mut_slice::<T>()?, draw, per_sample, std));
    Ok(())
}

/// Uniform in [low, high). The outermost dimension counts samples.
pub fn fill_uniform(out: &mut Tensor, draw: &Draw, low: f64, high: f64) -> Result<()> {
    let (dtype, per_sample) = check(out)?;
    dispatch_float!(dtype, T => kernels::random::uniform(out.as_mut_slice::<T>()?, draw, per_sample, low, high));
    Ok(())
}

fn check(out: &Tensor) -> Result<(crate::DType, usize)> {
    let dtype = Check::new("random", &[("out", out)]).same_float()?;
    Ok((
        dtype,
        out.len() / out.dims().first().copied().unwrap_or(1).max(1),
    ))
}
