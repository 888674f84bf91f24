//! Heun's method.

use tensor::{Result, Tensor};

use super::{Denoised, Sampler, Stage, bounded};
use crate::diffusion::SchedulerConfig;

/// Karras et al., "Elucidating the design space of diffusion-based generative models" (2022), algorithm 1: dx/dσ = ε(x, σ) of
/// the sample divided by √ᾱ, with σ = √(1 − ᾱ)/√ᾱ. An Euler step predicts, the mean of the slopes at both ends corrects.
pub struct Heun {
    stage: Stage,
    /// The sample and the noise in it where the step began.
    began: Option<(Vec<f64>, Vec<f64>)>,
}

impl Heun {
    /// `steps` steps from the noisiest time whose λ is at least −5.1. All but the last, which jumps to the clean sample,
    /// evaluate the network twice.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Heun {
        let times = bounded(&config.schedule(), steps);
        // The corrector of a step looks where the next step begins.
        let twice = times.iter().skip(1).flat_map(|&t| [t, t]);
        let timesteps = times.first().copied().into_iter().chain(twice).collect();
        Heun {
            stage: Stage::new(config, timesteps),
            began: None,
        }
    }
}

impl Sampler for Heun {
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
        let signal = schedule.alpha_bar(now).sqrt();
        let noise = (1.0 - schedule.alpha_bar(now)).sqrt();
        // The noise that agrees with x₀ as clipped.
        let eps = read.xt.iter().zip(&read.x0);
        let eps: Vec<f64> = eps.map(|(x, x0)| (x - signal * x0) / noise).collect();
        let corrects = index % 2 == 1;
        let (from, to) = match corrects {
            true => (Some(self.stage.timesteps[index - 1]), now),
            false => match self.stage.next(index) {
                Some(next) => (None, next),
                None => return Ok(read.finish(read.x0.clone(), sample)), // Euler to σ = 0
            },
        };
        let began = match self.began.take() {
            Some(began) if corrects => began,
            _ => (read.xt.clone(), eps.clone()),
        };
        let start = schedule.alpha_bar(from.unwrap_or(now));
        let end = schedule.alpha_bar(to);
        let sigma = |alpha_bar: f64| (1.0 / alpha_bar - 1.0).sqrt();
        let change = sigma(end) - sigma(start);
        let x = began.0.iter().zip(&began.1).zip(&eps).map(|((x, d), eps)| {
            let slope = 0.5 * (d + eps);
            end.sqrt() * (x / start.sqrt() + change * slope)
        });
        let outcome = read.finish(x.collect(), sample);
        self.began = (!corrects).then_some(began);
        Ok(outcome)
    }
}
