//! DPM-Solver++.

use tensor::{Result, Tensor};

use super::{Denoised, Sampler, Stage, bounded};
use crate::diffusion::SchedulerConfig;

/// Lu et al., "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models" (2022), algorithm 2: second
/// order, multistep; the first and the last step are of first order. The variance channels are dropped and x₀ is clipped.
pub struct DpmSolver {
    stage: Stage,
    /// λ and x₀ of the step before.
    history: Option<(f64, Vec<f64>)>,
}

impl DpmSolver {
    /// `steps` evaluations from the noisiest step whose λ is at least −5.1; the last jumps to the clean sample.
    pub fn new(config: &SchedulerConfig, steps: usize) -> DpmSolver {
        let timesteps = bounded(&config.schedule(), steps);
        DpmSolver {
            stage: Stage::new(config, timesteps),
            history: None,
        }
    }
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
        let (here, there) = (schedule.lambda(now), schedule.lambda(next));
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
