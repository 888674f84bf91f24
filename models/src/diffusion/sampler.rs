//! Samplers: from a network's outputs to the next, less noisy sample. They compute in f64 whatever the dtype.

use serde::{Deserialize, Serialize};
use tensor::{Check, Result, Tensor};

use super::{BetaSchedule, Prediction, Schedule};
use crate::Error;
use crate::config::{Checks, Extra};

/// The variance of an ancestral step; the names are diffusers'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// That of the posterior.
    FixedSmallLog,
    /// Between that of the posterior and β, where the network's second half of channels says.
    LearnedRange,
}

/// diffusers' configuration of `UnCLIPScheduler`, with its defaults: what a stage was trained with, from which every
/// sampler here is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    pub num_train_timesteps: usize,
    pub variance_type: VarianceType,
    pub clip_sample: bool,
    pub clip_sample_range: f64,
    pub prediction_type: Prediction,
    pub beta_schedule: BetaSchedule,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for SchedulerConfig {
    fn default() -> SchedulerConfig {
        SchedulerConfig {
            num_train_timesteps: 1000,
            variance_type: VarianceType::FixedSmallLog,
            clip_sample: true,
            clip_sample_range: 1.0,
            prediction_type: Prediction::Epsilon,
            beta_schedule: BetaSchedule::Cosine,
            extra: Extra::new(),
        }
    }
}

impl SchedulerConfig {
    pub const CLASS: &'static str = "UnCLIPScheduler";

    /// The prior predicts clean, whitened embeddings, clipped to ±5.
    pub fn prior() -> SchedulerConfig {
        SchedulerConfig {
            prediction_type: Prediction::Sample,
            clip_sample_range: 5.0,
            ..SchedulerConfig::default()
        }
    }

    /// The decoder predicts noise and a variance.
    pub fn decoder() -> SchedulerConfig {
        SchedulerConfig {
            variance_type: VarianceType::LearnedRange,
            ..SchedulerConfig::default()
        }
    }

    /// Upsamplers predict noise.
    pub fn upsampler() -> SchedulerConfig {
        SchedulerConfig::default()
    }

    pub fn check(&self) -> crate::Result<()> {
        let checks = Checks(Self::CLASS);
        checks.sizes(&[("num_train_timesteps", self.num_train_timesteps)])?;
        checks.epsilon("clip_sample_range", self.clip_sample_range)
    }

    pub fn schedule(&self) -> Schedule {
        Schedule::new(self.beta_schedule, self.num_train_timesteps)
    }
}

/// Which sampler to use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SamplerKind {
    /// Each step draws from the learned posterior: what unCLIP pipelines use.
    Ancestral,
    /// `eta` 0 is deterministic, 1 as noisy as ancestral sampling.
    Ddim { eta: f64 },
    /// DPM-Solver++ of second order, multistep.
    DpmSolver,
}

impl SamplerKind {
    /// A sampler of `steps` network evaluations.
    ///
    /// # Errors
    /// If the steps are none or more than the schedule has, or η is not in [0, 1].
    pub fn sampler(
        self,
        config: &SchedulerConfig,
        steps: usize,
    ) -> crate::Result<Box<dyn Sampler>> {
        config.check()?;
        let total = config.num_train_timesteps;
        if !(1..=total).contains(&steps) {
            let reason =
                format!("the number of sampling steps must be from 1 to {total}, it is {steps}");
            return Err(Error::Request(reason));
        }
        Ok(match self {
            SamplerKind::Ancestral => Box::new(Ancestral::new(config, steps)),
            SamplerKind::Ddim { eta } if !(0.0..=1.0).contains(&eta) => {
                return Err(Error::Request(format!(
                    "eta must be from 0 to 1, it is {eta}"
                )));
            }
            SamplerKind::Ddim { eta } => Box::new(Ddim::new(config, steps, eta)),
            SamplerKind::DpmSolver => Box::new(DpmSolver::new(config, steps)),
        })
    }
}

/// The outcome of a step.
pub struct Denoised {
    /// The sample at the next, smaller time step.
    pub sample: Tensor,
    /// The clean sample as the network sees it now, clipped.
    pub x0: Tensor,
}

/// A walk from noise to a clean sample.
pub trait Sampler {
    /// The time steps at which the network is evaluated, falling.
    fn timesteps(&self) -> &[usize];

    /// Takes step number `index`: `output` is the network's at `timesteps()[index]` on `sample`. Steps are taken in
    /// order. `noise` draws standard normals shaped like the sample, and is called only by a step that needs them.
    ///
    /// # Shapes
    /// sample [.., c]; output [.., c] or, with a learned variance, [.., 2c]
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

/// What every sampler needs of a stage.
struct Stage {
    schedule: Schedule,
    prediction: Prediction,
    /// x₀ is clipped to ± this.
    clip: f64,
    timesteps: Vec<usize>,
}

impl Stage {
    fn new(config: &SchedulerConfig, timesteps: Vec<usize>) -> Stage {
        Stage {
            schedule: config.schedule(),
            prediction: config.prediction_type,
            clip: if config.clip_sample {
                config.clip_sample_range
            } else {
                f64::INFINITY
            },
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
            (kept + change * out).clamp(-self.clip, self.clip)
        });
        Ok(Reading {
            x0: x0.collect(),
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

/// diffusers' `UnCLIPScheduler`: each step draws from the posterior of a respaced chain.
pub struct Ancestral {
    stage: Stage,
    variance: VarianceType,
}

impl Ancestral {
    pub fn new(config: &SchedulerConfig, steps: usize) -> Ancestral {
        Ancestral {
            stage: Stage::new(config, respaced(config.num_train_timesteps, steps)),
            variance: config.variance_type,
        }
    }
}

impl Sampler for Ancestral {
    fn timesteps(&self) -> &[usize] {
        &self.stage.timesteps
    }

    fn step(
        &mut self,
        index: usize,
        output: &Tensor,
        sample: &Tensor,
        noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Denoised> {
        let read = self.stage.read(index, output, sample)?;
        let next = self.stage.next(index);
        let posterior = self
            .stage
            .schedule
            .posterior(self.stage.timesteps[index], next);
        let mut x: Vec<f64> = read
            .x0
            .iter()
            .zip(&read.xt)
            .map(|(x0, xt)| posterior.x0 * x0 + posterior.xt * xt)
            .collect();
        if next.is_some() {
            let z = drawn(noise, sample)?;
            let smallest = posterior.variance.max(1e-20).ln();
            match (self.variance, &read.variance) {
                (VarianceType::FixedSmallLog, _) => {
                    let std = (0.5 * smallest).exp();
                    x.iter_mut().zip(&z).for_each(|(x, z)| *x += std * z);
                }
                (VarianceType::LearnedRange, Some(variance)) => {
                    let largest = posterior.beta.ln();
                    for ((x, z), v) in x.iter_mut().zip(&z).zip(variance) {
                        let fraction = (v + 1.0) / 2.0;
                        let log = fraction * largest + (1.0 - fraction) * smallest;
                        *x += (0.5 * log).exp() * z;
                    }
                }
                (VarianceType::LearnedRange, None) => {
                    return Err(
                        Check::new("sampler", &[("output", output), ("sample", sample)])
                            .error("a learned variance needs twice the sample's channels"),
                    );
                }
            }
        }
        Ok(read.finish(x, sample))
    }
}

/// Song, Meng and Ermon, "Denoising diffusion implicit models" (2021), equation 12.
pub struct Ddim {
    stage: Stage,
    eta: f64,
}

impl Ddim {
    /// The same time steps as ancestral sampling, then the clean sample.
    pub fn new(config: &SchedulerConfig, steps: usize, eta: f64) -> Ddim {
        Ddim {
            stage: Stage::new(config, respaced(config.num_train_timesteps, steps)),
            eta,
        }
    }
}

impl Sampler for Ddim {
    fn timesteps(&self) -> &[usize] {
        &self.stage.timesteps
    }

    fn step(
        &mut self,
        index: usize,
        output: &Tensor,
        sample: &Tensor,
        noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Denoised> {
        let read = self.stage.read(index, output, sample)?;
        let next = self.stage.next(index);
        let alpha_bar = self.stage.schedule.alpha_bar(self.stage.timesteps[index]);
        let before = self.stage.schedule.alpha_bar(next);
        let sigma =
            self.eta * ((1.0 - before) / (1.0 - alpha_bar) * (1.0 - alpha_bar / before)).sqrt();
        let direction = (1.0 - before - sigma * sigma).max(0.0).sqrt();
        let mut x: Vec<f64> = read
            .x0
            .iter()
            .zip(&read.xt)
            .map(|(x0, xt)| {
                // The noise that agrees with x₀ as clipped.
                let eps = (xt - alpha_bar.sqrt() * x0) / (1.0 - alpha_bar).sqrt();
                before.sqrt() * x0 + direction * eps
            })
            .collect();
        if sigma > 0.0 {
            let z = drawn(noise, sample)?;
            x.iter_mut().zip(&z).for_each(|(x, z)| *x += sigma * z);
        }
        Ok(read.finish(x, sample))
    }
}

/// Lu et al., "DPM-Solver++" (2022), algorithm 2: second order, multistep; the first and the last step are of first
/// order. The variance channels are dropped and x₀ is clipped.
pub struct DpmSolver {
    stage: Stage,
    /// λ and x₀ of the step before.
    history: Option<(f64, Vec<f64>)>,
}

/// λ = ln(√ᾱ/√(1 − ᾱ)) below this is not sampled: the cosine schedule's last steps are almost pure noise, and their
/// λ runs off (the bound that diffusers recommends for this schedule).
const SMALLEST_LAMBDA: f64 = -5.1;

impl DpmSolver {
    /// `steps` evaluations, evenly spaced down from the noisiest step whose λ is at least −5.1; the last jumps to the
    /// clean sample.
    pub fn new(config: &SchedulerConfig, steps: usize) -> DpmSolver {
        let schedule = config.schedule();
        let first = (0..schedule.steps())
            .rev()
            .find(|&t| lambda(&schedule, Some(t)) >= SMALLEST_LAMBDA)
            .unwrap_or(0);
        let timesteps = (1..=steps).rev().map(|i| {
            let position = first as f64 * i as f64 / steps as f64;
            position.round_ties_even() as usize
        });
        DpmSolver {
            stage: Stage::new(config, timesteps.collect()),
            history: None,
        }
    }
}

fn lambda(schedule: &Schedule, t: Option<usize>) -> f64 {
    let alpha_bar = schedule.alpha_bar(t);
    0.5 * (alpha_bar / (1.0 - alpha_bar)).ln()
}

impl Sampler for DpmSolver {
    fn timesteps(&self) -> &[usize] {
        &self.stage.timesteps
    }

    fn step(
        &mut self,
        index: usize,
        output: &Tensor,
        sample: &Tensor,
        _noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Denoised> {
        let read = self.stage.read(index, output, sample)?;
        let schedule = &self.stage.schedule;
        let now = self.stage.timesteps[index];
        let Some(next) = self.stage.next(index) else {
            return Ok(read.finish(read.x0.clone(), sample)); // first order to λ = ∞
        };
        let (here, there) = (lambda(schedule, Some(now)), lambda(schedule, Some(next)));
        let h = there - here;
        let (alpha_bar, before) = (schedule.alpha_bar(now), schedule.alpha_bar(next));
        let keep = ((1.0 - before) / (1.0 - alpha_bar)).sqrt();
        let change = -before.sqrt() * (-h).exp_m1();
        // x₀ extrapolated to the middle of the step from the two latest estimates.
        let slope = match &self.history {
            Some((earlier, _)) if here > *earlier => 0.5 * h / (here - earlier),
            _ => 0.0,
        };
        let x = read.xt.iter().enumerate().map(|(i, xt)| {
            let x0 = read.x0[i];
            let earlier = self.history.as_ref().map_or(x0, |(_, x0)| x0[i]);
            keep * xt + change * (x0 + slope * (x0 - earlier))
        });
        let x = x.collect();
        let outcome = read.finish(x, sample);
        self.history = Some((here, read.x0));
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use tensor::{DType, Device};

    use super::*;

    fn tensor(data: &[f64], shape: &[usize]) -> Tensor {
        Tensor::from_f64(data, shape, DType::F64, Device::Cpu)
    }

    fn silent() -> Result<Tensor> {
        panic!("this step draws no noise")
    }

    /// Walks down with a network that knows the clean sample.
    fn walk_with_perfect_noise(kind: SamplerKind, steps: usize) -> Vec<f64> {
        let config = SchedulerConfig::upsampler();
        let schedule = config.schedule();
        let mut sampler = kind.sampler(&config, steps).unwrap();
        let clean = [0.3, -0.8, 0.95, 0.0];
        let mut x = tensor(&[1.1, -0.4, 0.2, -2.0], &[1, 4]);
        for (i, t) in sampler.timesteps().to_vec().into_iter().enumerate() {
            let alpha_bar = schedule.alpha_bar(t);
            let eps: Vec<f64> = x
                .to_f64_vec()
                .unwrap()
                .iter()
                .zip(clean)
                .map(|(x, x0)| (x - alpha_bar.sqrt() * x0) / (1.0 - alpha_bar).sqrt())
                .collect();
            x = sampler
                .step(i, &tensor(&eps, &[1, 4]), &x, &mut silent)
                .unwrap()
                .sample;
        }
        x.to_f64_vec()
            .unwrap()
            .iter()
            .zip(clean)
            .map(|(x, x0)| x - x0)
            .collect()
    }

    #[test]
    fn deterministic_samplers_recover_x0_from_perfect_noise() {
        for kind in [SamplerKind::Ddim { eta: 0.0 }, SamplerKind::DpmSolver] {
            for steps in [1, 2, 7, 25] {
                for error in walk_with_perfect_noise(kind, steps) {
                    // ᾱ at the first step is 2.4e-9, which magnifies rounding by 2e4.
                    assert!(error.abs() < 1e-10, "{kind:?} {steps} {error}");
                }
            }
        }
    }

    #[test]
    fn respacing_keeps_both_ends() {
        assert_eq!(respaced(1000, 7), [999, 832, 666, 500, 333, 166, 0]);
        let many = respaced(1000, 25);
        assert_eq!((many[0], many[1], many[23], many[24]), (999, 957, 42, 0));
        assert_eq!(respaced(1000, 1), [999]);
    }

    #[test]
    fn ancestral_steps_follow_the_posterior() {
        let config = SchedulerConfig::decoder();
        let schedule = config.schedule();
        let mut sampler = Ancestral::new(&config, 25);
        let (t, next) = (sampler.timesteps()[3], sampler.timesteps()[4]);
        let (xt, eps, v, z) = (0.4, 0.5, 0.2, -1.5);
        let alpha_bar = schedule.alpha_bar(t);
        let before = schedule.alpha_bar(next);
        let beta = 1.0 - alpha_bar / before;
        let x0 = ((xt - (1.0 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()).clamp(-1.0, 1.0);
        let mean = (before.sqrt() * beta * x0 + (1.0 - beta).sqrt() * (1.0 - before) * xt)
            / (1.0 - alpha_bar);
        let small: f64 = (1.0 - before) / (1.0 - alpha_bar) * beta;
        let std = (small.powf(0.4) * beta.powf(0.6)).sqrt();
        let mut noise = || Ok(tensor(&[z], &[1, 1]));
        let step = sampler
            .step(
                3,
                &tensor(&[eps, v], &[1, 2]),
                &tensor(&[xt], &[1, 1]),
                &mut noise,
            )
            .unwrap();
        assert!((step.sample.item().unwrap() - (mean + std * z)).abs() < 1e-12);
        assert!((step.x0.item().unwrap() - x0).abs() < 1e-12);
    }

    #[test]
    fn the_last_ancestral_step_draws_nothing_and_is_x0() {
        let mut sampler = Ancestral::new(&SchedulerConfig::prior(), 4);
        let out = tensor(&[7.0, -0.5], &[1, 2]);
        let step = sampler
            .step(3, &out, &tensor(&[0.1, 0.2], &[1, 2]), &mut silent)
            .unwrap();
        let x = step.sample.to_f64_vec().unwrap();
        assert!((x[0] - 5.0).abs() < 1e-12 && (x[1] + 0.5).abs() < 1e-12);
    }

    #[test]
    fn too_many_steps_are_refused_in_words() {
        let error = SamplerKind::Ancestral
            .sampler(&SchedulerConfig::default(), 1001)
            .err()
            .unwrap();
        assert!(error.to_string().contains("from 1 to 1000"));
    }
}
