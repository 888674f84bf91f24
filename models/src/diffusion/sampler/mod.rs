//! Samplers: from a network's outputs to the next, less noisy sample. They compute in f64 whatever the dtype.

mod analytic;
mod ancestral;
mod ddim;
mod dpm_solver;
mod heun;
mod inversion;
#[cfg(test)]
mod tests;

pub use analytic::AnalyticVariance;
pub use ancestral::Ancestral;
pub use ddim::Ddim;
pub use dpm_solver::DpmSolver;
pub use heun::Heun;
pub use inversion::Inversion;

use tensor::{Check, Result, Tensor};

use super::{Prediction, Schedule, SchedulerConfig};
use crate::Error;

/// Which sampler to use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SamplerKind {
    /// Each step draws from the learned posterior: what unCLIP pipelines use.
    Ancestral,
    /// `eta` 0 is deterministic, 1 as noisy as ancestral sampling.
    Ddim { eta: f64 },
    /// DPM-Solver++ of second order, multistep.
    DpmSolver,
    /// Heun's method of second order: every step but the last evaluates the network twice.
    Heun,
}

impl SamplerKind {
    /// A sampler of `steps` steps.
    ///
    /// # Errors
    /// If the steps are none or more than the schedule has, or η is not in [0, 1].
    pub fn sampler(
        self,
        config: &SchedulerConfig,
        steps: usize,
    ) -> crate::Result<Box<dyn Sampler>> {
        check_steps(config, steps)?;
        Ok(match self {
            SamplerKind::Ancestral => Box::new(Ancestral::new(config, steps)),
            SamplerKind::Ddim { eta } if !(0.0..=1.0).contains(&eta) => {
                return Err(Error::Request(format!(
                    "eta must be from 0 to 1, it is {eta}"
                )));
            }
            SamplerKind::Ddim { eta } => Box::new(Ddim::new(config, steps, eta)),
            SamplerKind::DpmSolver => Box::new(DpmSolver::new(config, steps)),
            SamplerKind::Heun => Box::new(Heun::new(config, steps)),
        })
    }

    /// Whether all steps but the last add noise.
    pub fn draws(self) -> bool {
        match self {
            SamplerKind::Ancestral => true,
            SamplerKind::Ddim { eta } => eta > 0.0,
            SamplerKind::DpmSolver | SamplerKind::Heun => false,
        }
    }

    /// How often `steps` steps evaluate the network.
    pub fn evaluations(self, steps: usize) -> usize {
        match self {
            SamplerKind::Heun => (2 * steps).saturating_sub(1),
            _ => steps,
        }
    }
}

fn check_steps(config: &SchedulerConfig, steps: usize) -> crate::Result<()> {
    config.check()?;
    let total = config.num_train_timesteps;
    match (1..=total).contains(&steps) {
        true => Ok(()),
        false => Err(Error::Request(format!(
            "the number of sampling steps must be from 1 to {total}, it is {steps}"
        ))),
    }
}

/// The outcome of an evaluation.
pub struct Denoised {
    /// The sample at which the network is evaluated next, or, after the last evaluation, the result.
    pub sample: Tensor,
    /// The clean sample as the network sees it now, clipped.
    pub x0: Tensor,
}

/// A walk from noise to a clean sample, or, in [`Inversion`], back.
pub trait Sampler {
    /// The time steps at which the network is evaluated, never rising; a time step that comes twice in a row belongs to
    /// a step of two evaluations.
    fn timesteps(&self) -> &[usize];

    /// Takes evaluation number `index`: `output` is the network's at `timesteps()[index]` on `sample`. They are taken
    /// in order. `noise` draws standard normals shaped like the sample, and is called only where they are needed.
    ///
    /// # Shapes
    /// sample [n, .., c]; output [n, .., c] or, with a learned variance, [n, .., 2c]
    fn step(
        &mut self,
        index: usize,
        output: &Tensor,
        sample: &Tensor,
        noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Denoised>;
}

/// Karlo's choice of `count` among `total` steps: evenly spaced, always with the first and the last.
pub fn respaced(total: usize, count: usize) -> Vec<usize> {
    if count == 1 {
        return vec![total - 1];
    }
    let stride = (total - 1) as f64 / (count - 1) as f64;
    (0..count)
        .rev()
        .map(|i| (i as f64 * stride).round_ties_even() as usize)
        .collect()
}

/// λ = ln(√ᾱ/√(1 − ᾱ)) below this is not sampled by the solvers of higher order: the cosine schedule's last steps are
/// almost pure noise, and their λ runs off (the bound that diffusers recommends for this schedule).
const SMALLEST_LAMBDA: f64 = -5.1;

/// `steps` time steps, evenly spaced down from the noisiest one whose λ is at least −5.1; the clean sample is the same
/// distance below the last.
fn bounded(schedule: &Schedule, steps: usize) -> Vec<usize> {
    let first = (0..schedule.steps())
        .rev()
        .find(|&t| schedule.lambda(t) >= SMALLEST_LAMBDA)
        .unwrap_or(0);
    (1..=steps)
        .rev()
        .map(|i| {
            let position = first as f64 * i as f64 / steps as f64;
            position.round_ties_even() as usize
        })
        .collect()
}

/// What keeps x₀ within the range of the data.
#[derive(Clone, Copy)]
enum Limit {
    None,
    /// Clips to ± the range.
    Static(f64),
    /// Saharia et al., "Photorealistic text-to-image diffusion models with deep language understanding" (2022), section
    /// 2.3: where the quantile of a sample's |x₀| is beyond the range, x₀ is clipped to ± that quantile and shrunk to the
    /// range.
    Dynamic {
        range: f64,
        ratio: f64,
    },
}

impl Limit {
    fn of(config: &SchedulerConfig) -> Limit {
        let range = config.clip_sample_range;
        match (config.dynamic_thresholding_ratio, config.clip_sample) {
            (Some(ratio), _) => Limit::Dynamic { range, ratio },
            (None, true) => Limit::Static(range),
            (None, false) => Limit::None,
        }
    }

    /// Limits the values of one sample.
    fn apply(self, x0: &mut [f64]) {
        let (most, scale) = match self {
            Limit::None => return,
            Limit::Static(range) => (range, 1.0),
            Limit::Dynamic { range, ratio } => {
                let most = quantile(x0, ratio).max(range);
                (most, range / most)
            }
        };
        x0.iter_mut()
            .for_each(|x| *x = x.clamp(-most, most) * scale);
    }
}

/// The quantile of the magnitudes, between two of them in a straight line.
fn quantile(values: &[f64], ratio: f64) -> f64 {
    let mut magnitudes: Vec<f64> = values.iter().map(|x| x.abs()).collect();
    magnitudes.sort_unstable_by(f64::total_cmp);
    let Some(last) = magnitudes.len().checked_sub(1) else {
        return 0.0;
    };
    let position = ratio * last as f64;
    let below = (position as usize).min(last);
    let above = (below + 1).min(last);
    let part = position - below as f64;
    magnitudes[below] + part * (magnitudes[above] - magnitudes[below])
}

/// What every sampler needs of a stage.
struct Stage {
    schedule: Schedule,
    prediction: Prediction,
    limit: Limit,
    /// Where the network is evaluated.
    timesteps: Vec<usize>,
}

impl Stage {
    fn new(config: &SchedulerConfig, timesteps: Vec<usize>) -> Stage {
        Stage {
            schedule: config.schedule(),
            prediction: config.prediction_type,
            limit: Limit::of(config),
            timesteps,
        }
    }

    /// The time step after number `index`, `None` for the clean sample.
    fn next(&self, index: usize) -> Option<usize> {
        self.timesteps.get(index + 1).copied()
    }

    /// Splits a network's output, and finds the clean sample it speaks of.
    fn read(&self, index: usize, output: &Tensor, sample: &Tensor) -> Result<Reading> {
        let check = Check::new("sampler", &[("output", output), ("sample", sample)]);
        check.require(index < self.timesteps.len(), || {
            format!("there is no step {index}")
        })?;
        let c = sample.shape().last_dim();
        let width = output.shape().last_dim();
        let outer = |t: &Tensor| t.dims()[..t.rank().saturating_sub(1)].to_vec();
        check.require(
            outer(output) == outer(sample) && (width == c || width == 2 * c),
            || {
                format!(
                    "the output must have the sample's shape, with {c} or {} channels",
                    2 * c
                )
            },
        )?;
        let output = output.to_f64_vec()?;
        let half = |first: usize| -> Vec<f64> {
            let rows = output.chunks(width);
            rows.flat_map(|row| row[first..first + c].to_vec())
                .collect()
        };
        let (keep, change) = self
            .prediction
            .to_x0(self.schedule.alpha_bar(self.timesteps[index]));
        let xt = sample.to_f64_vec()?;
        let x0 = xt.iter().zip(half(0)).map(|(x, out)| {
            // A factor of zero must also cancel what is not finite.
            let kept = if keep == 0.0 { 0.0 } else { keep * x };
            kept + change * out
        });
        let mut x0: Vec<f64> = x0.collect();
        let samples = sample.dims().first().copied().unwrap_or(1).max(1);
        x0.chunks_mut((xt.len() / samples).max(1))
            .for_each(|x0| self.limit.apply(x0));
        Ok(Reading {
            x0,
            variance: (width == 2 * c).then(|| half(c)),
            xt,
        })
    }
}

/// A network's output, taken apart.
struct Reading {
    xt: Vec<f64>,
    x0: Vec<f64>,
    /// Where the variance lies between its bounds, −1 to 1.
    variance: Option<Vec<f64>>,
}

impl Reading {
    fn finish(&self, sample: Vec<f64>, like: &Tensor) -> Denoised {
        let tensor =
            |data: &[f64]| Tensor::from_f64(data, like.shape(), like.dtype(), like.device());
        Denoised {
            sample: tensor(&sample),
            x0: tensor(&self.x0),
        }
    }
}

fn drawn(noise: &mut dyn FnMut() -> Result<Tensor>, like: &Tensor) -> Result<Vec<f64>> {
    let z = noise()?;
    Check::new("sampler", &[("noise", &z), ("sample", like)]).shape("noise", &z, like.dims())?;
    z.to_f64_vec()
}
