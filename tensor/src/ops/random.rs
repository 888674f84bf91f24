//! Random fills; see [`kernels::random`] for what a draw is.

use kernels::ops::random::ptx::{self, Distribution};
pub use kernels::random::Draw;

use crate::check::dispatch_float;
use crate::gpu::Arg;
use crate::{Check, Device, Result, Tensor};

/// What of draws changes from step to step, where kernels read it: one for all draws of a step.
#[derive(Clone, Debug)]
pub struct Counters(Option<Tensor>);

impl Counters {
    /// Those of `draw`, for `device`. CPUs take them from the draw.
    pub fn of(draw: &Draw, device: Device) -> Counters {
        let words = ptx::Counters::from(*draw);
        let words: &[i32] = bytemuck::cast_slice(std::slice::from_ref(&words));
        Counters((device != Device::Cpu).then(|| Tensor::from_slice(words, [words.len()], device)))
    }

    /// As kernels take them.
    pub(crate) fn argument(&self) -> Arg<'_> {
        Arg::optional(self.0.as_ref())
    }
}

/// Standard normals times `std`. The outermost dimension counts samples.
pub fn fill_normal(out: &mut Tensor, draw: &Draw, std: f64) -> Result<()> {
    let counters = Counters::of(draw, out.device());
    fill_normal_at(out, draw, &counters, std)
}

/// [`fill_normal`] with the counters of `draw` where the device has them already.
pub fn fill_normal_at(out: &mut Tensor, draw: &Draw, counters: &Counters, std: f64) -> Result<()> {
    let (dtype, per_sample) = check(out)?;
    if draws_on_gpu(out, draw, counters, Distribution::Normal, std, 0.0)? {
        return Ok(());
    }
    dispatch_float!(dtype, T => kernels::random::normal(out.as_mut_slice::<T>()?, draw, per_sample, std));
    Ok(())
}

/// Uniform in [low, high). The outermost dimension counts samples.
pub fn fill_uniform(out: &mut Tensor, draw: &Draw, low: f64, high: f64) -> Result<()> {
    let (dtype, per_sample) = check(out)?;
    let counters = Counters::of(draw, out.device());
    if draws_on_gpu(out, draw, &counters, Distribution::Uniform, high - low, low)? {
        return Ok(());
    }
    dispatch_float!(dtype, T => kernels::random::uniform(out.as_mut_slice::<T>()?, draw, per_sample, low, high));
    Ok(())
}

/// Fills a tensor that lives on a GPU; false where it does not.
fn draws_on_gpu(
    out: &mut Tensor,
    draw: &Draw,
    counters: &Counters,
    distribution: Distribution,
    scale: f64,
    offset: f64,
) -> Result<bool> {
    let (dtype, per_sample) = check(out)?;
    let Some(gpu) = Check::new("random", &[("out", out)]).gpu() else {
        return Ok(false);
    };
    let samples = out.len() / per_sample.max(1);
    let plan = ptx::config(distribution, gpu.storage(dtype), samples, per_sample);
    let numbers = [draw.key[0], draw.key[1], draw.stream].map(Arg::U32);
    let sizes = [samples, per_sample].map(Arg::number);
    let operands = [Arg::Write(out), counters.argument()].into_iter();
    let operands = operands.chain(numbers).chain(sizes);
    let line = [scale, offset].map(|x| Arg::F32(x as f32));
    gpu.launch(&gpu.plan(plan)?, operands.chain(line))?;
    Ok(true)
}

fn check(out: &Tensor) -> Result<(crate::DType, usize)> {
    let dtype = Check::new("random", &[("out", out)]).same_float()?;
    Ok((
        dtype,
        out.len() / out.dims().first().copied().unwrap_or(1).max(1),
    ))
}
