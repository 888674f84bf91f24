//! Sinusoidal embeddings of diffusion time.

use kernels::ops::timestep_embedding::{self, ptx};

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Check, DType, Result, Tensor};

/// diffusers' `get_timestep_embedding`: `[sin(t·ω), cos(t·ω)]` with ωⱼ = 10000^(−j / (dim/2 − freq_shift)), cosines
/// first if `flip_sin_to_cos`; an odd `dim` ends in a zero.
///
/// # Shapes
/// steps [n] → [n, dim]
pub fn forward(
    steps: &Tensor,
    dim: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
) -> Result<Tensor> {
    let check = Check::new("timestep_embedding", &[("steps", steps)]);
    let dtype = check.same_float()?;
    check.rank("steps", steps, 1)?;
    check.require((dim / 2) as f64 > freq_shift, || {
        format!("half of dim {dim} must be above freq_shift {freq_shift}")
    })?;
    let steps = steps.contiguous()?;
    let mut y = Tensor::uninit([steps.len(), dim], dtype, steps.device());
    if let Some(gpu) = check.gpu() {
        let n = steps.len();
        let call = ptx::Forward::config(gpu.storage(dtype), n, dim, flip_sin_to_cos);
        let frequencies = ptx::frequencies(dim, freq_shift);
        let frequencies: &[f32] = frequencies.as_flattened();
        let frequencies = Tensor::from_slice(frequencies, [frequencies.len()], steps.device());
        let steps = steps.cast(DType::F32)?;
        let operands = [
            Arg::Write(&mut y),
            Arg::Read(&steps),
            Arg::Read(&frequencies),
        ];
        gpu.call(&gpu.plan(call)?, operands)?;
        return Ok(y);
    }
    dispatch_float!(dtype, T => {
        let y = y.as_mut_slice::<T>()?;
        timestep_embedding::forward(y, steps.as_slice()?, dim, flip_sin_to_cos, freq_shift)
    });
    Ok(y)
}
