//! Ancestral sampling.

use std::sync::Arc;

use tensor::{Check, Result, Tensor};

use super::{AnalyticVariance, Denoised, Sampler, Stage, drawn, respaced};
use crate::diffusion::{SchedulerConfig, VarianceType};

/// diffusers' `UnCLIPScheduler`: each step draws from the posterior of a respaced chain (Ho et al., 2020, algorithm 2;
/// for the learned variance Nichol and Dhariwal, 2021, equation 15; for the analytic one [`AnalyticVariance`]).
pub struct Ancestral {
    stage: Stage,
    variance: VarianceType,
    /// In place of the fixed one.
    analytic: Option<Arc<AnalyticVariance>>,
}

impl Ancestral {
    pub fn new(config: &SchedulerConfig, steps: usize) -> Ancestral {
        Ancestral {
            stage: Stage::new(config, respaced(config.num_train_timesteps, steps)),
            variance: config.variance_type,
            analytic: config.analytic_variance.clone(),
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
        let (schedule, t) = (&self.stage.schedule, self.stage.timesteps[index]);
        let posterior = schedule.posterior(t, next);
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
                    let std = match &self.analytic {
                        Some(analytic) => analytic.of_step(schedule, t, &posterior).sqrt(),
                        None => (0.5 * smallest).exp(),
                    };
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
