//! DDIM.

use tensor::{Result, Tensor};

use super::{Denoised, Sampler, Stage, drawn, respaced};
use crate::diffusion::SchedulerConfig;

/// Song, Meng and Ermon, "Denoising diffusion implicit models" (2021), equation 12, with the σ of equation 16.
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
