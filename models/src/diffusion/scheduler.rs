//! What a stage was trained with, as diffusers writes it beside the weights: the start of every sampler.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{AnalyticVariance, BetaSchedule, Prediction, Schedule};
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
    /// See [`Schedule::with_zero_terminal_snr`]. diffusers has it in its other schedulers, under this name.
    #[serde(skip_serializing_if = "is_false")]
    pub rescale_betas_zero_snr: bool,
    /// The share of a sample's values that dynamic thresholding keeps within the range of the data; none where x₀ is
    /// clipped to it. diffusers has it in its other schedulers, under this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_thresholding_ratio: Option<f64>,
    /// What ancestral steps take in place of [`VarianceType::FixedSmallLog`]; kept in a file of its own.
    #[serde(skip)]
    pub analytic_variance: Option<Arc<AnalyticVariance>>,
    #[serde(flatten)]
    pub extra: Extra,
}

fn is_false(value: &bool) -> bool {
    !value
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
            rescale_betas_zero_snr: false,
            dynamic_thresholding_ratio: None,
            analytic_variance: None,
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
        checks.epsilon("clip_sample_range", self.clip_sample_range)?;
        if let Some(ratio) = self.dynamic_thresholding_ratio {
            checks.require(ratio > 0.0 && ratio <= 1.0, || {
                format!("dynamic_thresholding_ratio must be above 0 and at most 1, it is {ratio}")
            })?;
        }
        if let Some(variance) = &self.analytic_variance {
            variance.check(self.num_train_timesteps)?;
            checks.require(self.variance_type == VarianceType::FixedSmallLog, || {
                "an analytic variance takes the place of fixed_small_log, variance_type is another"
                    .into()
            })?;
        }
        if self.rescale_betas_zero_snr {
            checks.require(self.num_train_timesteps > 1, || {
                "rescale_betas_zero_snr needs more than one training step".into()
            })?;
            // Of pure noise the noise says nothing about x₀.
            checks.require(self.prediction_type != Prediction::Epsilon, || {
                "rescale_betas_zero_snr needs the prediction_type sample or v_prediction".into()
            })?;
        }
        Ok(())
    }

    pub fn schedule(&self) -> Schedule {
        let schedule = Schedule::new(self.beta_schedule, self.num_train_timesteps);
        match self.rescale_betas_zero_snr {
            true => schedule.with_zero_terminal_snr(),
            false => schedule,
        }
    }
}
