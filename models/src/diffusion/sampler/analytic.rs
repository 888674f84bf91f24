//! The variance of ancestral steps that fits the data best (Bao et al., "Analytic-DPM: an analytic estimate of the optimal
//! reverse variance in diffusion probabilistic models", 2022).

use serde::{Deserialize, Serialize};
use tensor::{Check, Tensor};

use super::Stage;
use crate::config::Checks;
use crate::diffusion::{Posterior, Schedule, SchedulerConfig};
use crate::folder::Folder;
use crate::{Error, Result, weights};

/// How far a network's clean sample is from the data's at every training step: from it follows the best variance of any
/// step, also of a respaced chain.
///
/// A step knows neither x₀ nor, therefore, which of the posteriors q(x_prev | x_t, x₀) it is to draw from. By the law of total
/// variance the best Gaussian for all of them has the variance β̃ + c²·E‖x₀ − x̂₀‖²/d, where c is x₀'s factor in the posterior's
/// mean: theorem 1 of the paper, which writes the expectation as (1 − ᾱ)/ᾱ·(1 − (1 − ᾱ)·E‖score‖²/d). The two are the same for
/// a network that knows E[x₀ | x_t]. The form with the error is the best variance for any network (Bao et al., "Estimating
/// the optimal covariance with imperfect mean in diffusion probabilistic models", 2022), and has no difference of nearly equal
/// numbers, which the other multiplies by 1/ᾱ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalyticVariance {
    /// E‖x₀ − x̂₀‖²/d at every training step.
    x0_error: Vec<f64>,
    /// Samples that each was estimated from.
    samples: usize,
}

/// The file beside `scheduler_config.json`. diffusers does not know it, and leaves it alone.
const FILE: &str = "analytic_variance.json";
const WHAT: &str = "analytic variance";

impl AnalyticVariance {
    /// Estimates it from clean samples, `noise` for each training step, and a network that is asked for its output at a step
    /// on the noisy samples.
    ///
    /// # Shapes
    /// x0, noise [n, ..]; outputs as [`Sampler::step`](super::Sampler::step) takes them
    ///
    /// # Errors
    /// Those of noise and network; and if there is no sample, or an error is not finite.
    pub fn measure<E: From<tensor::Error> + From<Error>>(
        config: &SchedulerConfig,
        x0: &Tensor,
        mut noise: impl FnMut(usize) -> Result<Tensor, E>,
        mut predict: impl FnMut(usize, &Tensor) -> Result<Tensor, E>,
    ) -> Result<AnalyticVariance, E> {
        let check = Check::new(WHAT, &[("x0", x0)]);
        check.require(x0.rank() > 0 && !x0.is_empty(), || {
            "there are no samples to measure".into()
        })?;
        let stage = Stage::new(config, (0..config.num_train_timesteps).collect());
        let clean = x0.to_f64_vec()?;
        let mut x0_error = Vec::with_capacity(config.num_train_timesteps);
        for t in 0..config.num_train_timesteps {
            let alpha_bar = stage.schedule.alpha_bar(t);
            let (signal, spread) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
            let noise = noise(t)?;
            Check::new(WHAT, &[("noise", &noise), ("x0", x0)]).shape("noise", &noise, x0.dims())?;
            let noise = noise.to_f64_vec()?;
            let noisy = clean
                .iter()
                .zip(noise)
                .map(|(x, z)| signal * x + spread * z);
            let noisy: Vec<f64> = noisy.collect();
            let noisy = Tensor::from_f64(&noisy, x0.shape(), x0.dtype(), x0.device());
            let seen = stage.read(t, &predict(t, &noisy)?, &noisy)?.x0;
            let squares = clean.iter().zip(&seen).map(|(x, seen)| (x - seen).powi(2));
            x0_error.push(squares.sum::<f64>() / clean.len() as f64);
        }
        let measured = AnalyticVariance {
            x0_error,
            samples: x0.dims()[0],
        };
        measured.check(config.num_train_timesteps)?;
        Ok(measured)
    }

    /// Of an ancestral step from `t` with this posterior.
    pub(super) fn of_step(&self, schedule: &Schedule, t: usize, posterior: &Posterior) -> f64 {
        let alpha_bar = schedule.alpha_bar(t);
        // No network that knows E[x₀ | x_t] errs by more than x_t/√ᾱ does: theorem 2.
        let error = self.x0_error[t].min((1.0 - alpha_bar) / alpha_bar);
        posterior.variance + posterior.x0.powi(2) * error
    }

    /// What a scheduler's directory holds.
    pub(crate) fn load(dir: &Folder) -> Result<Option<AnalyticVariance>> {
        if !dir.has(FILE) {
            return Ok(None);
        }
        let path = dir.path(FILE);
        let fields = weights::load_object(dir, FILE)?;
        match serde_json::from_value(fields) {
            Ok(read) => Ok(Some(read)),
            Err(e) => Err(Error::Json {
                path,
                reason: e.to_string(),
            }),
        }
    }

    pub(crate) fn save(&self, dir: &std::path::Path) -> Result<()> {
        let path = dir.join(FILE);
        let fields = serde_json::to_value(self).map_err(|e| Error::Json {
            path: path.clone(),
            reason: e.to_string(),
        })?;
        weights::save_json(&path, &fields)
    }

    /// An error unless it is one of a schedule of `steps` steps.
    pub(crate) fn check(&self, steps: usize) -> Result<()> {
        let checks = Checks(WHAT);
        checks.require(self.x0_error.len() == steps, || {
            format!(
                "it has {} training steps, the schedule {steps}",
                self.x0_error.len()
            )
        })?;
        let wrong = self
            .x0_error
            .iter()
            .position(|e| !(*e >= 0.0 && e.is_finite()));
        checks.require(wrong.is_none(), || {
            format!(
                "the error at training step {} is not a number from 0 on",
                wrong.unwrap_or_default()
            )
        })
    }

    /// E‖x₀ − x̂₀‖²/d at every training step.
    pub fn x0_error(&self) -> &[f64] {
        &self.x0_error
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tensor::ops::random::{Draw, fill_normal};
    use tensor::{DType, Device};

    use super::*;
    use crate::diffusion::{Prediction, SamplerKind};

    /// Data of this variance, around zero.
    const DATA: f64 = 0.3;

    fn scheduler() -> SchedulerConfig {
        SchedulerConfig {
            prediction_type: Prediction::Sample,
            clip_sample: false,
            ..SchedulerConfig::default()
        }
    }

    fn normal(name: &str, occurrence: usize, n: usize, variance: f64) -> Tensor {
        let mut x = Tensor::uninit([n, 1], DType::F64, Device::Cpu);
        let draw = Draw::named(1, name, occurrence as u32);
        fill_normal(&mut x, &draw, variance.sqrt()).unwrap();
        x
    }

    /// The variance of x_t.
    fn noisy(alpha_bar: f64) -> f64 {
        alpha_bar * DATA + 1.0 - alpha_bar
    }

    /// E[x₀ | x_t].
    fn denoised(alpha_bar: f64, xt: &Tensor) -> Tensor {
        let gain = alpha_bar.sqrt() * DATA / noisy(alpha_bar);
        let x0: Vec<f64> = xt.to_f64_vec().unwrap().iter().map(|x| gain * x).collect();
        Tensor::from_f64(&x0, xt.shape(), xt.dtype(), xt.device())
    }

    /// What a network that knows E[x₀ | x_t] is measured as: the variance of x₀ given x_t.
    fn exact(config: &SchedulerConfig) -> AnalyticVariance {
        let schedule = config.schedule();
        let error = |t: usize| {
            let alpha_bar = schedule.alpha_bar(t);
            DATA * (1.0 - alpha_bar) / noisy(alpha_bar)
        };
        AnalyticVariance {
            x0_error: (0..schedule.steps()).map(error).collect(),
            samples: 1,
        }
    }

    /// Of a Gaussian, x_prev given x_t is one too, and its variance is known: V − (Cov²)/V_t.
    #[test]
    fn steps_of_any_length_have_the_variance_that_a_gaussian_has() {
        let config = scheduler();
        let schedule = config.schedule();
        for (t, previous) in [(999, 500), (999, 998), (700, 20), (20, 19), (1, 0)] {
            let (now, before) = (schedule.alpha_bar(t), schedule.alpha_bar(previous));
            let v = noisy(before);
            let want = v - now / before * v * v / noisy(now);
            let posterior = schedule.posterior(t, Some(previous));
            let got = exact(&config).of_step(&schedule, t, &posterior);
            assert!(
                (got / want - 1.0).abs() < 1e-9,
                "{t} to {previous}: {got} {want}"
            );
            assert!(got > posterior.variance && got < posterior.beta, "{t}");
        }
    }

    /// Theorem 1 as the paper writes it, by the score of a Gaussian, where it does not cancel.
    #[test]
    fn it_is_the_papers_formula() {
        let config = scheduler();
        let schedule = config.schedule();
        for (t, previous) in [(600, 500), (300, 20), (20, 19)] {
            let (now, before) = (schedule.alpha_bar(t), schedule.alpha_bar(previous));
            let posterior = schedule.posterior(t, Some(previous));
            let score = 1.0 / noisy(now); // E‖∇ log q‖²
            let lambda = posterior.variance;
            let root = ((1.0 - now) * before / now).sqrt() - (1.0 - before - lambda).sqrt();
            let want = lambda + root * root * (1.0 - (1.0 - now) * score);
            let got = exact(&config).of_step(&schedule, t, &posterior);
            assert!(
                (got / want - 1.0).abs() < 1e-9,
                "{t} to {previous}: {got} {want}"
            );
        }
    }

    #[test]
    fn measuring_finds_the_gaussians_variance() {
        let n = 4000;
        let config = SchedulerConfig {
            num_train_timesteps: 50,
            ..scheduler()
        };
        let schedule = config.schedule();
        let measured = AnalyticVariance::measure::<Error>(
            &config,
            &normal("data", 0, n, DATA),
            |t| Ok(normal("noise", t, n, 1.0)),
            |t, xt| Ok(denoised(schedule.alpha_bar(t), xt)),
        )
        .unwrap();
        for (t, (got, want)) in measured
            .x0_error
            .iter()
            .zip(exact(&config).x0_error)
            .enumerate()
        {
            // Five deviations of a variance estimated from 4000 samples.
            assert!((got / want - 1.0).abs() < 0.112, "{t}: {got} {want}");
        }
    }

    /// Samples of few steps keep the data's variance, which they lose under the posterior's.
    #[test]
    fn few_steps_draw_as_wide_as_the_data() {
        let n = 20_000;
        let variance = |analytic: Option<AnalyticVariance>| {
            let config = SchedulerConfig {
                analytic_variance: analytic.map(Arc::new),
                ..scheduler()
            };
            config.check().unwrap();
            let schedule = config.schedule();
            let mut sampler = SamplerKind::Ancestral.sampler(&config, 5).unwrap();
            let mut x = normal("start", 0, n, 1.0);
            for (i, t) in sampler.timesteps().to_vec().into_iter().enumerate() {
                let output = denoised(schedule.alpha_bar(t), &x);
                let mut draw = || Ok(normal("step", i, n, 1.0));
                x = sampler.step(i, &output, &x, &mut draw).unwrap().sample;
            }
            let squares = x.to_f64_vec().unwrap();
            squares.iter().map(|x| x * x).sum::<f64>() / n as f64
        };
        let (fixed, analytic) = (variance(None), variance(Some(exact(&scheduler()))));
        // Five deviations of a variance estimated from 20,000 samples.
        assert!((analytic / DATA - 1.0).abs() < 0.05, "{analytic}");
        assert!(fixed < 0.7 * DATA, "{fixed}");
    }

    #[test]
    fn files_that_do_not_fit_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::from(&dir);
        let config = SchedulerConfig {
            num_train_timesteps: 3,
            analytic_variance: Some(Arc::new(AnalyticVariance {
                x0_error: vec![0.1, 0.2, 0.25],
                samples: 7,
            })),
            ..scheduler()
        };
        weights::save_scheduler(dir.path(), &config).unwrap();
        assert_eq!(weights::load_scheduler(&folder).unwrap(), config);
        let refused = |text: &str| {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            weights::load_scheduler(&folder).unwrap_err().to_string()
        };
        let said = refused(r#"{"x0_error": [0.1, 0.2], "samples": 7}"#);
        assert!(said.contains("2 training steps, the schedule 3"), "{said}");
        let said = refused(r#"{"x0_error": [0.1, -0.2, 1e999], "samples": 7}"#);
        assert!(said.contains("analytic_variance.json"), "{said}");
        let said = refused(r#"{"x0_error": [0.1, -0.2, 1], "samples": 7}"#);
        assert!(said.contains("training step 1"), "{said}");
        assert!(refused("[]").contains("analytic_variance.json"));
    }
}
