//! DDIM backwards: from a clean sample to the noise that it comes from.

use tensor::{Result, Tensor};

use super::{Denoised, Sampler, Stage, check_steps, respaced};
use crate::Error;
use crate::diffusion::SchedulerConfig;

/// The inverse of [`Ddim`](super::Ddim) with η = 0 (Dhariwal and Nichol, "Diffusion models beat GANs on image synthesis",
/// 2021, appendix F; used for variations by Ramesh et al., 2022, section 3.1).
///
/// A DDIM step turns the sample by the angle δ between its two noise levels: x = cos δ·x' − sin δ·v(x'), with v as the
/// network sees it in the noisier sample x' (Salimans and Ho, "Progressive distillation", 2022, appendix D). Its inverse
/// solves that for x', which stands on both sides: x' = (x + sin δ·v(x'))/cos δ is iterated (Pan et al., "Effective real
/// image editing with accelerated iterative diffusion inversion", 2023), from where the step before points to. What v
/// is clipped to is clipped in both directions, so that a fixed point is exact.
pub struct Inversion {
    stage: Stage,
    iterations: usize,
    /// The sample at the cleaner end of the step that is being solved.
    cleaner: Vec<f64>,
}

impl Inversion {
    /// Backwards through the time steps of [`Ddim`](super::Ddim) with `steps` steps, with `iterations` evaluations of the
    /// network in each: the first step starts from the clean sample, the last ends in noise.
    ///
    /// # Errors
    /// If the steps are none or more than the schedule has, or there is no iteration.
    pub fn new(
        config: &SchedulerConfig,
        steps: usize,
        iterations: usize,
    ) -> crate::Result<Inversion> {
        check_steps(config, steps)?;
        if iterations == 0 {
            return Err(Error::Request(
                "an inversion needs at least 1 iteration a step".into(),
            ));
        }
        let times = respaced(config.num_train_timesteps, steps);
        let repeated = times.iter().rev().map(|&t| vec![t; iterations]);
        Ok(Inversion {
            stage: Stage::new(config, repeated.flatten().collect()),
            iterations,
            cleaner: Vec::new(),
        })
    }

    /// The cosine and sine of the angle from the noise level `cleaner` to `noisier`.
    fn turn(&self, cleaner: Option<usize>, noisier: usize) -> (f64, f64) {
        let (a, b) = (
            self.stage.schedule.alpha_bar(cleaner),
            self.stage.schedule.alpha_bar(noisier),
        );
        let (signal, noise) = (a.sqrt(), (1.0 - a).sqrt());
        let (less, more) = (b.sqrt(), (1.0 - b).sqrt());
        (signal * less + noise * more, more * signal - less * noise)
    }
}

impl Sampler for Inversion {
    /// Rising, each as often as there are iterations.
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
        if index == 0 {
            self.cleaner = read.xt.clone();
        }
        let now = self.stage.timesteps[index];
        let level = index / self.iterations;
        let before = level
            .checked_sub(1)
            .map(|level| self.stage.timesteps[level * self.iterations]);
        let alpha_bar = self.stage.schedule.alpha_bar(now);
        let (signal, noise) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        // The v that agrees with x₀ as clipped.
        let v = read.xt.iter().zip(&read.x0);
        let v: Vec<f64> = v.map(|(x, x0)| (signal * x - x0) / noise).collect();
        let (cos, sin) = self.turn(before, now);
        let solved = self.cleaner.iter().zip(&v);
        let mut x: Vec<f64> = solved.map(|(x, v)| (x + sin * v) / cos).collect();
        let next = self.stage.next(index);
        if let Some(next) = next.filter(|_| (index + 1).is_multiple_of(self.iterations)) {
            // On to the next step, with a first guess of where it ends: as if x₀ and the noise stayed as they are.
            self.cleaner = x.clone();
            let (cos, sin) = self.turn(Some(now), next);
            x.iter_mut()
                .zip(&v)
                .for_each(|(x, v)| *x = cos * *x + sin * v);
        }
        Ok(read.finish(x, sample))
    }
}
