//! Gradient norm, and one fused pass of clipping, AdamW and the moving average over flat arenas.

pub use kernels::ops::optimizer::{AdamW, Decay, Run, StepScalars, clip_factor};

use bytemuck::Zeroable;
use kernels::ops::optimizer::{self, Clip, UpdateScalars, ptx};

use crate::check::dispatch_float;
use crate::gpu::{Arg, Gpu};
use crate::{Check, DType, Device, Result, Tensor};

/// The L2 norm of an arena of gradients, summed in an order that does not depend on threads.
pub fn gradient_norm(gradient: &Tensor) -> Result<f64> {
    let check = Check::new("gradient_norm", &[("gradient", gradient)]);
    let dtype = check.same_float()?;
    if let Some(gpu) = check.gpu() {
        return norm_on_gpu(&gpu, gradient);
    }
    let gradient = gradient.contiguous()?;
    Ok(dispatch_float!(dtype, T => optimizer::gradient_norm(gradient.as_slice::<T>()?)))
}

/// [`gradient_norm`], read back from the device.
fn norm_on_gpu(gpu: &Gpu, gradient: &Tensor) -> Result<f64> {
    // Nothing is clipped here: whoever asks for the norm decides.
    let scalars = UpdateScalars {
        max_norm: f64::INFINITY,
        ..UpdateScalars::zeroed()
    };
    clip_on_gpu(gpu, gradient, &bytes(&[scalars], gradient.device()))?.norm()
}

/// A gradient's norm and what clips it, on a device; read when it is asked for.
#[derive(Clone, Debug)]
pub struct Clipped(Tensor);

impl Clipped {
    /// By a number that is known.
    pub(crate) fn by(gradient_scale: f64, device: Device) -> Clipped {
        let clip = Clip {
            gradient_scale: gradient_scale as f32,
            ..Clip::zeroed()
        };
        Clipped(bytes(&[clip], device))
    }

    /// The L2 norm before clipping.
    ///
    /// # Errors
    /// If the device failed at what it was asked before.
    pub fn norm(&self) -> Result<f64> {
        Ok(self.read()?.norm)
    }

    /// What multiplies the gradient.
    pub(crate) fn scale(&self) -> Result<f64> {
        Ok(self.read()?.gradient_scale.into())
    }

    fn read(&self) -> Result<Clip> {
        Ok(bytemuck::pod_read_unaligned(&self.0.to_vec::<u8>()?))
    }

    /// As a kernel reads it.
    pub(crate) fn operand(&self) -> Arg<'_> {
        Arg::Read(&self.0)
    }
}

/// Measures a gradient for a step with `scalars`, an [`UpdateScalars`].
fn clip_on_gpu(gpu: &Gpu, gradient: &Tensor, scalars: &Tensor) -> Result<Clipped> {
    let device = gradient.device();
    let storage = gpu.storage(gradient.dtype());
    let plan = gpu.plan(ptx::Squares { storage }.config(gradient.len()))?;
    let blocks = plan.grid[0] as usize;
    let mut partial = Tensor::uninit([blocks], DType::F64, device);
    let operands = [Arg::Write(&mut partial), Arg::Read(gradient)];
    let count = [Arg::U64(gradient.len() as u64)];
    gpu.launch(&plan, operands.into_iter().chain(count))?;
    let mut clip = Tensor::uninit([size_of::<Clip>()], DType::U8, device);
    let read = [Arg::Read(&partial), Arg::Read(scalars), Arg::number(blocks)];
    gpu.launch(
        &ptx::Norm.config(),
        [Arg::Write(&mut clip)].into_iter().chain(read),
    )?;
    Ok(Clipped(clip))
}

/// The runs of arenas as a GPU's update takes them: the same for every step.
#[derive(Debug)]
pub struct Portions {
    table: Tensor,
    count: usize,
}

impl Portions {
    /// # Errors
    /// If a run lies beyond what kernels count.
    pub fn new(runs: &[Run], device: Device) -> Result<Portions> {
        let portions = ptx::portions(runs)
            .map_err(|why| crate::Error::new("adamw", why.to_string(), vec![]))?;
        Ok(Portions {
            count: portions.len(),
            table: bytes(&portions, device),
        })
    }
}

/// The gradient's norm, clipping to `max_norm`, and [`update`], all on the device that the arenas live on: nothing is read
/// back, and where the norm is not finite nothing changes. The gradient's scale among the scalars is not used.
///
/// # Errors
/// As [`update`]; and on the CPU, where a step reads the norm before it goes on.
pub fn clip_and_update(
    arenas: Arenas,
    scalars: &StepScalars,
    max_norm: f64,
    portions: &Portions,
) -> Result<Clipped> {
    let dtype = arenas.check(|_| Ok(()))?;
    let check = Check::new("adamw", &[("gradient", arenas.gradient)]);
    let Some(gpu) = check.gpu() else {
        return Err(check.error("is for GPUs, and the arenas lie on the CPU"));
    };
    let device = arenas.gradient.device();
    let scalars = bytes(&[UpdateScalars::new(scalars, max_norm)], device);
    let clipped = clip_on_gpu(&gpu, arenas.gradient, &scalars)?;
    update_on_gpu(&gpu, arenas, dtype, &scalars, &clipped, portions)?;
    Ok(clipped)
}

fn update_on_gpu(
    gpu: &Gpu,
    arenas: Arenas,
    dtype: DType,
    scalars: &Tensor,
    clip: &Clipped,
    portions: &Portions,
) -> Result<()> {
    let Arenas {
        parameters,
        gradient,
        m,
        v,
        ema,
    } = arenas;
    let storage = gpu.storage(dtype);
    let plan = gpu.plan(ptx::Update { storage }.config(portions.count))?;
    let updated = [parameters, m, v].map(Arg::Update).into_iter();
    let optional = [ema.map_or(Arg::Absent, Arg::Update), Arg::Absent];
    let read = [gradient, &portions.table, scalars].map(Arg::Read);
    let read = read.into_iter().chain([clip.operand()]);
    gpu.launch(&plan, updated.chain(optional).chain(read))
}

/// Plain data where kernels read it.
pub(crate) fn bytes<T: bytemuck::NoUninit>(data: &[T], device: Device) -> Tensor {
    let bytes: &[u8] = bytemuck::cast_slice(data);
    Tensor::from_slice(bytes, [bytes.len()], device)
}

/// The dtype of the gradient. On the CPU the other arenas have it too; on GPUs they are f32, whatever it is stored in.
pub(crate) fn gradient_dtype(
    check: &Check,
    gradient: &Tensor,
    others: &[(&str, &Tensor)],
) -> Result<DType> {
    if check.gpu().is_none() {
        return check.same_float();
    }
    for (name, arena) in others {
        check.dtype(name, arena, DType::F32)?;
    }
    check.floats(&[gradient])
}

/// The arenas of an optimiser, all of one layout and flat.
#[derive(Debug)]
pub struct Arenas<'a> {
    pub parameters: &'a mut Tensor,
    pub gradient: &'a Tensor,
    /// First moment.
    pub m: &'a mut Tensor,
    /// Second moment.
    pub v: &'a mut Tensor,
    /// Moving average of the parameters.
    pub ema: Option<&'a mut Tensor>,
}

impl Arenas<'_> {
    /// Checks that all are of one layout, and whatever else is asked for; returns the gradient's dtype.
    fn check(&self, more: impl FnOnce(&Check) -> Result<()>) -> Result<DType> {
        let (parameters, m, v) = (&*self.parameters, &*self.m, &*self.v);
        let mut others = vec![("parameters", parameters), ("m", m), ("v", v)];
        others.extend(self.ema.as_deref().map(|ema| ("ema", ema)));
        let gradient = [("gradient", self.gradient)];
        let operands = [&others[..1], &gradient, &others[1..]].concat();
        let check = Check::new("adamw", &operands);
        let dtype = gradient_dtype(&check, self.gradient, &others)?;
        for (name, tensor) in &operands {
            check.shape(name, tensor, &[parameters.len()])?;
        }
        more(&check)?;
        Ok(dtype)
    }
}

/// One step of PyTorch's AdamW (decay first, then the moments), then one of the moving average, in one pass.
///
/// Frozen runs, and elements outside every run, stay as they are.
///
/// # Errors
/// If the arenas differ in length or dtype, one of them is shared, or the runs are not ascending and inside.
pub fn update(arenas: Arenas, scalars: &StepScalars, runs: &[Run]) -> Result<()> {
    let len = arenas.parameters.len();
    let ascending = runs.windows(2).all(|pair| pair[0].end <= pair[1].start);
    let inside = runs
        .iter()
        .all(|run| run.start <= run.end && run.end <= len);
    let dtype = arenas.check(|check| {
        check.require(ascending && inside, || {
            "the runs must be ascending and inside the arenas".into()
        })
    })?;
    if let Some(gpu) = Check::new("adamw", &[("gradient", arenas.gradient)]).gpu() {
        let device = arenas.gradient.device();
        let of_step = bytes(&[UpdateScalars::new(scalars, f64::INFINITY)], device);
        let clip = Clipped::by(scalars.gradient_scale, device);
        let portions = Portions::new(runs, device)?;
        return update_on_gpu(&gpu, arenas, dtype, &of_step, &clip, &portions);
    }
    let Arenas {
        parameters,
        gradient,
        m,
        v,
        ema,
    } = arenas;
    let gradient = gradient.contiguous()?;
    dispatch_float!(dtype, T => {
        let arenas = optimizer::Arenas::<T> {
            parameters: parameters.as_mut_slice()?,
            gradient: gradient.as_slice()?,
            m: m.as_mut_slice()?,
            v: v.as_mut_slice()?,
            ema: ema.map(Tensor::as_mut_slice).transpose()?,
        };
        optimizer::update(arenas, scalars, runs)
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_that_do_not_match_are_refused() {
        let arena = |len: usize| Tensor::zeros([len], DType::F32, Device::Cpu);
        let scalars = AdamW {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        }
        .at(1, 1e-3, 1.0, 0.0);
        let attempt = |gradient: usize, end: usize| {
            let run = Run {
                start: 0,
                end,
                decay: Decay::No,
            };
            let arenas = Arenas {
                parameters: &mut arena(4),
                gradient: &arena(gradient),
                m: &mut arena(4),
                v: &mut arena(4),
                ema: None,
            };
            update(arenas, &scalars, &[run]).map_err(|e| e.to_string())
        };
        assert_eq!(attempt(4, 4), Ok(()));
        assert!(attempt(5, 4).is_err_and(|e| e.contains("gradient must be [4]")));
        assert!(attempt(4, 5).is_err_and(|e| e.contains("inside the arenas")));
    }
}
