//! What pictures are made with.

use crate::diffusion::{Guidance, SamplerKind, SchedulerConfig};
use crate::prior::{CodeSampling, Prior};
use crate::{Error, Result};

/// The variance of the prior's ancestral steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PriorVariance {
    /// That of the posterior, as the scheduler says.
    #[default]
    Fixed,
    /// The best one for the data; see [`crate::diffusion::AnalyticVariance`].
    Analytic,
}

/// What a picture is made with; the names are those of diffusers' pipeline, where it has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    pub prior_num_inference_steps: usize,
    pub decoder_num_inference_steps: usize,
    pub super_res_num_inference_steps: usize,
    /// Of the second upsampler, where there is one.
    pub super_res_1024_num_inference_steps: usize,
    pub super_res_1024_sampler: SamplerKind,
    /// 1 switches guidance off.
    pub prior_guidance_scale: f64,
    /// 1 switches guidance off.
    pub decoder_guidance_scale: f64,
    /// See [`Guidance`].
    pub prior_guidance_interval: [f64; 2],
    pub decoder_guidance_interval: [f64; 2],
    pub prior_guidance_rescale: f64,
    pub decoder_guidance_rescale: f64,
    /// Keeps this share of a picture's values within the range and shrinks the rest of them to it, in place of clipping;
    /// see [`SchedulerConfig::dynamic_thresholding_ratio`].
    pub decoder_dynamic_thresholding_ratio: Option<f64>,
    pub prior_sampler: SamplerKind,
    pub decoder_sampler: SamplerKind,
    pub super_res_sampler: SamplerKind,
    pub prior_variance: PriorVariance,
    /// Of an autoregressive prior; see [`CodeSampling`].
    pub prior_temperature: f64,
    pub prior_top_p: f64,
    pub prior_nearness_percentile: f64,
    /// Image embeddings drawn for each picture, of which the one closest to the text's is kept.
    pub prior_candidates: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            prior_num_inference_steps: 25,
            decoder_num_inference_steps: 25,
            super_res_num_inference_steps: 7,
            // The paper's.
            super_res_1024_num_inference_steps: 15,
            super_res_1024_sampler: SamplerKind::Ddim { eta: 0.0 },
            prior_guidance_scale: 4.0,
            decoder_guidance_scale: 8.0,
            prior_guidance_interval: [0.0, 1.0],
            decoder_guidance_interval: [0.0, 1.0],
            prior_guidance_rescale: 0.0,
            decoder_guidance_rescale: 0.0,
            decoder_dynamic_thresholding_ratio: None,
            prior_sampler: SamplerKind::Ancestral,
            decoder_sampler: SamplerKind::Ancestral,
            super_res_sampler: SamplerKind::Ancestral,
            prior_variance: PriorVariance::Fixed,
            prior_temperature: 1.0,
            prior_top_p: 1.0,
            prior_nearness_percentile: 0.5,
            prior_candidates: 2,
        }
    }
}

impl Options {
    pub fn prior_guidance(&self) -> Guidance {
        Guidance {
            scale: self.prior_guidance_scale,
            interval: self.prior_guidance_interval,
            rescale: self.prior_guidance_rescale,
        }
    }

    pub fn code_sampling(&self) -> CodeSampling {
        CodeSampling {
            guidance_scale: self.prior_guidance_scale,
            temperature: self.prior_temperature,
            top_p: self.prior_top_p,
            nearness_percentile: self.prior_nearness_percentile,
        }
    }

    pub fn decoder_guidance(&self) -> Guidance {
        Guidance {
            scale: self.decoder_guidance_scale,
            interval: self.decoder_guidance_interval,
            rescale: self.decoder_guidance_rescale,
        }
    }

    /// How often prior, decoder and upsampler are evaluated for a batch of pictures.
    pub fn evaluations(&self) -> [usize; 3] {
        let prior = self
            .prior_sampler
            .evaluations(self.prior_num_inference_steps);
        [
            prior * self.prior_candidates.max(1),
            self.decoder_sampler
                .evaluations(self.decoder_num_inference_steps),
            self.super_res_sampler
                .evaluations(self.super_res_num_inference_steps),
        ]
    }

    /// How often the second upsampler is evaluated.
    pub fn second_evaluations(&self) -> usize {
        self.super_res_1024_sampler
            .evaluations(self.super_res_1024_num_inference_steps)
    }

    /// Refuses what the second upsampler would refuse later.
    ///
    /// # Errors
    /// With the setting.
    pub fn check_second(&self, scheduler: &SchedulerConfig) -> Result<()> {
        let steps = self.super_res_1024_num_inference_steps;
        let sampler = self.super_res_1024_sampler.sampler(scheduler, steps);
        of_stage("second upsampler", sampler)?;
        Ok(())
    }

    /// The prior's scheduler with the variance that is asked for.
    pub fn prior_scheduler(&self, own: &SchedulerConfig) -> SchedulerConfig {
        let mut scheduler = own.clone();
        if self.prior_variance == PriorVariance::Fixed {
            scheduler.analytic_variance = None;
        }
        scheduler
    }

    /// The decoder's scheduler with the thresholding that is asked for.
    pub fn decoder_scheduler(&self, own: &SchedulerConfig) -> SchedulerConfig {
        let ratio = self.decoder_dynamic_thresholding_ratio;
        SchedulerConfig {
            dynamic_thresholding_ratio: ratio.or(own.dynamic_thresholding_ratio),
            ..own.clone()
        }
    }

    /// Refuses what the prior at hand would refuse later, and what it would ignore.
    ///
    /// # Errors
    /// With the setting.
    pub fn check_prior(&self, prior: &Prior) -> Result<()> {
        let own = Options::default();
        let other = |ignored: &[(&str, bool)], kind: &str| match ignored.iter().find(|i| i.1) {
            Some((setting, _)) => Err(Error::Request(format!(
                "prior: {setting} is not a setting of {kind} prior, which this model has"
            ))),
            None => Ok(()),
        };
        match prior {
            Prior::Diffusion(_) => {
                let ignored = [
                    (
                        "temperature",
                        self.prior_temperature != own.prior_temperature,
                    ),
                    ("top_p", self.prior_top_p != own.prior_top_p),
                    (
                        "nearness_percentile",
                        self.prior_nearness_percentile != own.prior_nearness_percentile,
                    ),
                ];
                other(&ignored, "a diffusion")
            }
            Prior::Autoregressive(_) => {
                let ignored = [
                    (
                        "guidance_interval",
                        self.prior_guidance_interval != own.prior_guidance_interval,
                    ),
                    (
                        "guidance_rescale",
                        self.prior_guidance_rescale != own.prior_guidance_rescale,
                    ),
                    ("sampler", self.prior_sampler != own.prior_sampler),
                    ("variance", self.prior_variance != own.prior_variance),
                ];
                other(&ignored, "an autoregressive")?;
                of_stage("prior", self.code_sampling().check())
            }
        }
    }

    /// Refuses, before anything is computed, what the samplers would refuse later.
    ///
    /// # Errors
    /// With the stage that the setting is of.
    pub fn check(
        &self,
        prior: &SchedulerConfig,
        decoder: &SchedulerConfig,
        super_res: &SchedulerConfig,
    ) -> Result<()> {
        if self.prior_candidates == 0 {
            return Err(Error::Request(
                "prior: at least 1 candidate has to be drawn".into(),
            ));
        }
        if self.prior_variance == PriorVariance::Analytic && prior.analytic_variance.is_none() {
            return Err(Error::Request(
                "prior: this model has no analytic variance: ask for the fixed one, or train a prior with variance_samples above 0"
                    .into(),
            ));
        }
        let scheduler = self.prior_scheduler(prior);
        let steps = self.prior_num_inference_steps;
        let prior = self
            .prior_guidance()
            .check()
            .and_then(|()| self.prior_sampler.sampler(&scheduler, steps));
        of_stage("prior", prior)?;
        if let Some(ratio) = self.decoder_dynamic_thresholding_ratio
            && !(ratio > 0.0 && ratio <= 1.0)
        {
            return Err(Error::Request(format!(
                "decoder: the dynamic thresholding ratio must be above 0 and at most 1, it is {ratio}"
            )));
        }
        let scheduler = self.decoder_scheduler(decoder);
        let steps = self.decoder_num_inference_steps;
        let decoder = self
            .decoder_guidance()
            .check()
            .and_then(|()| self.decoder_sampler.sampler(&scheduler, steps));
        of_stage("decoder", decoder)?;
        let steps = self.super_res_num_inference_steps;
        of_stage(
            "upsampler",
            self.super_res_sampler.sampler(super_res, steps),
        )?;
        Ok(())
    }
}

/// Says which stage a refused request is of.
fn of_stage<T>(stage: &str, outcome: Result<T>) -> Result<T> {
    outcome.map_err(|error| match error {
        Error::Request(reason) => Error::Request(format!("{stage}: {reason}")),
        other => other,
    })
}
