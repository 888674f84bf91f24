//! How pictures are sampled from a model: its own recommendation, kept beside its weights, and what a user changes.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use models::Folder;
use models::diffusion::SamplerKind;
use models::pipeline::{
    Generated, Given, Noise, OnProgress, Options, Pipeline, PriorVariance, Progress as Step,
};
use serde::{Deserialize, Serialize};

use crate::interrupt::Interrupt;
use crate::{Error, Result, files};

/// The file in a model directory that holds its [`Sampling`].
const FILE: &str = "sampling.json";
const LONGEST: u64 = 1 << 20;

/// A sampler by the name that users give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerName {
    /// Draws from the learned posterior.
    Ancestral,
    /// Deterministic after the first noise, unless its eta is above 0.
    Ddim,
    /// DPM-Solver++ of second order.
    Dpm,
    /// Heun's method of second order: two evaluations a step.
    Heun,
}

impl SamplerName {
    fn kind(self, eta: f64) -> SamplerKind {
        match self {
            SamplerName::Ancestral => SamplerKind::Ancestral,
            SamplerName::Ddim => SamplerKind::Ddim { eta },
            SamplerName::Dpm => SamplerKind::DpmSolver,
            SamplerName::Heun => SamplerKind::Heun,
        }
    }

    /// What other programs call it.
    pub fn title(self) -> &'static str {
        match self {
            SamplerName::Ancestral => "DDPM",
            SamplerName::Ddim => "DDIM",
            SamplerName::Dpm => "DPM++ 2M",
            SamplerName::Heun => "Heun",
        }
    }
}

/// The variance of the prior's ancestral steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum VarianceName {
    /// That of the posterior.
    Fixed,
    /// The best one for the data, if it was measured when the prior was trained.
    Analytic,
}

/// A part of the time from 0, clean, to 1, noise; on the command line as `0.2,0.8`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Interval(pub [f64; 2]);

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Interval, String> {
        let number = |text: &str| text.trim().parse::<f64>().ok();
        match text
            .split_once(',')
            .map(|(low, high)| (number(low), number(high)))
        {
            Some((Some(low), Some(high))) => Ok(Interval([low, high])),
            _ => {
                Err("an interval is two numbers from 0, clean, to 1, noise, such as 0.2,0.8".into())
            }
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.0[0], self.0[1])
    }
}

/// The settings of a pipeline, and the flags of the same names, some with a shorter one, that change them.
macro_rules! settings {
    ($($(#[$doc:meta])+ $name:ident $(| $alias:literal)?: $kind:ty = $default:expr,)+) => {
        /// The settings of a pipeline; the names are diffusers', where it has them.
        #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Sampling {
            $($(#[$doc])+ pub $name: $kind,)+
        }

        impl Default for Sampling {
            /// The values of diffusers' pipeline, for directories that it wrote.
            fn default() -> Sampling {
                Sampling { $($name: $default,)+ }
            }
        }

        /// What of a model's settings is changed.
        #[derive(Clone, Debug, Default, clap::Args)]
        #[command(next_help_heading = "Sampling [default: as the model's sampling.json says]")]
        pub struct SamplingFlags {
            $($(#[$doc])+ #[arg(long $(, visible_alias = $alias)?)] pub $name: Option<$kind>,)+
        }

        impl SamplingFlags {
            /// `own` with what is changed.
            pub fn over(&self, own: Sampling) -> Sampling {
                Sampling { $($name: self.$name.unwrap_or(own.$name),)+ }
            }
        }
    };
}

settings! {
    /// Denoising steps of the prior.
    prior_num_inference_steps | "prior-steps": usize = 25,
    /// Denoising steps of the decoder.
    decoder_num_inference_steps | "decoder-steps": usize = 25,
    /// Denoising steps of the upsampler.
    super_res_num_inference_steps | "sr-steps": usize = 7,
    /// Denoising steps of the second upsampler, where the model has one.
    super_res_1024_num_inference_steps: usize = 15,
    /// How strongly the prior follows the prompt; 1 is plain sampling.
    prior_guidance_scale: f64 = 4.0,
    /// How strongly the decoder follows embedding and prompt; 1 is plain sampling.
    decoder_guidance_scale: f64 = 8.0,
    /// The part of the time in which the prior is guided, from 0, clean, to 1, noise, such as 0.2,0.8.
    prior_guidance_interval: Interval = Interval([0.0, 1.0]),
    /// The part of the time in which the decoder is guided, from 0, clean, to 1, noise, such as 0.2,0.8.
    decoder_guidance_interval: Interval = Interval([0.0, 1.0]),
    /// How far the spread that guidance adds in the prior is taken back, from 0 to 1.
    prior_guidance_rescale: f64 = 0.0,
    /// How far the contrast that guidance adds in the decoder is taken back, from 0 to 1.
    decoder_guidance_rescale: f64 = 0.0,
    /// The share of a picture's values that the decoder keeps in range, the others shrunk with them; 0 clips each value.
    decoder_dynamic_thresholding_ratio: f64 = 0.0,
    /// The prior's sampler.
    prior_sampler: SamplerName = SamplerName::Ancestral,
    /// The decoder's sampler.
    decoder_sampler: SamplerName = SamplerName::Ancestral,
    /// The upsampler's sampler.
    super_res_sampler: SamplerName = SamplerName::Ancestral,
    /// The second upsampler's sampler.
    super_res_1024_sampler: SamplerName = SamplerName::Ddim,
    /// Noise that the prior's ddim adds in its steps: 0 none, 1 as much as ancestral.
    prior_eta: f64 = 0.0,
    /// Noise that the decoder's ddim adds in its steps: 0 none, 1 as much as ancestral.
    decoder_eta: f64 = 0.0,
    /// Noise that the upsampler's ddim adds in its steps: 0 none, 1 as much as ancestral.
    super_res_eta: f64 = 0.0,
    /// Noise that the second upsampler's ddim adds in its steps: 0 none, 1 as much as ancestral.
    super_res_1024_eta: f64 = 0.0,
    /// The variance of the prior's ancestral steps.
    prior_variance: VarianceName = VarianceName::Fixed,
    /// How much an autoregressive prior ventures: 1 draws as it learned, 0 takes what is most probable.
    prior_temperature: f64 = 1.0,
    /// The share of the probability that an autoregressive prior draws from, the most probable first.
    prior_top_p: f64 = 1.0,
    /// The lower share of how near pictures are to the prompt, which an autoregressive prior leaves out.
    prior_nearness_percentile: f64 = 0.5,
    /// Image embeddings that the prior draws, of which the one nearest to the prompt is used.
    prior_candidates: usize = 2,
}

impl Sampling {
    /// What a model directory recommends; diffusers' defaults where it says nothing.
    pub fn of_model(dir: &Folder) -> Result<Sampling> {
        let path = dir.path(FILE);
        match dir.read(FILE, LONGEST) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::failure(format!("{}: {e}", path.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Sampling::default()),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    pub fn save(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::failure(format!("cannot write {FILE}: {e}")))?;
        files::replace(&dir.join(FILE), format!("{text}\n").as_bytes())
    }

    /// Refuses what would be ignored, and what no sampler takes.
    pub fn check(&self, pipeline: &Pipeline) -> Result<()> {
        for (stage, sampler, eta) in [
            ("prior", self.prior_sampler, self.prior_eta),
            ("decoder", self.decoder_sampler, self.decoder_eta),
            ("super_res", self.super_res_sampler, self.super_res_eta),
            (
                "super_res_1024",
                self.super_res_1024_sampler,
                self.super_res_1024_eta,
            ),
        ] {
            if eta != 0.0 && sampler != SamplerName::Ddim {
                return Err(Error::usage(format!(
                    "{stage}_eta = {eta} is for the sampler ddim, {stage}_sampler is another: change one of the two"
                )));
            }
        }
        let analytic = self.prior_variance == VarianceName::Analytic;
        if analytic && self.prior_sampler != SamplerName::Ancestral {
            return Err(Error::usage(
                "prior_variance = analytic is for the sampler ancestral, prior_sampler is another: change one of the two",
            ));
        }
        Ok(pipeline.check(&self.options())?)
    }

    pub fn options(&self) -> Options {
        let ratio = self.decoder_dynamic_thresholding_ratio;
        Options {
            prior_num_inference_steps: self.prior_num_inference_steps,
            decoder_num_inference_steps: self.decoder_num_inference_steps,
            super_res_num_inference_steps: self.super_res_num_inference_steps,
            super_res_1024_num_inference_steps: self.super_res_1024_num_inference_steps,
            super_res_1024_sampler: self.super_res_1024_sampler.kind(self.super_res_1024_eta),
            prior_guidance_scale: self.prior_guidance_scale,
            decoder_guidance_scale: self.decoder_guidance_scale,
            prior_guidance_interval: self.prior_guidance_interval.0,
            decoder_guidance_interval: self.decoder_guidance_interval.0,
            prior_guidance_rescale: self.prior_guidance_rescale,
            decoder_guidance_rescale: self.decoder_guidance_rescale,
            decoder_dynamic_thresholding_ratio: (ratio != 0.0).then_some(ratio),
            prior_sampler: self.prior_sampler.kind(self.prior_eta),
            decoder_sampler: self.decoder_sampler.kind(self.decoder_eta),
            super_res_sampler: self.super_res_sampler.kind(self.super_res_eta),
            prior_variance: match self.prior_variance {
                VarianceName::Fixed => PriorVariance::Fixed,
                VarianceName::Analytic => PriorVariance::Analytic,
            },
            prior_temperature: self.prior_temperature,
            prior_top_p: self.prior_top_p,
            prior_nearness_percentile: self.prior_nearness_percentile,
            prior_candidates: self.prior_candidates,
        }
    }
}

/// One picture for each prompt; `seen` is told of every step. A signal ends it.
pub fn generate(
    pipeline: &Pipeline,
    prompts: &[&str],
    given: Given,
    sampling: &Sampling,
    noise: &dyn Noise,
    interrupt: &Interrupt,
    seen: impl FnMut(&Step) -> models::Result<()>,
) -> Result<Generated> {
    let options = sampling.options();
    interruptible(interrupt, seen, |step| {
        pipeline.generate(prompts, given, &options, noise, step)
    })
}

/// Runs a part of the pipeline that a signal ends between two steps.
pub fn interruptible<T>(
    interrupt: &Interrupt,
    mut seen: impl FnMut(&Step) -> models::Result<()>,
    run: impl FnOnce(OnProgress) -> models::Result<T>,
) -> Result<T> {
    let mut stopped = None;
    let outcome = run(&mut |step| {
        seen(step)?;
        interrupt.check().map_err(|error| {
            let reason = error.to_string();
            stopped = Some(error);
            models::Error::Request(reason)
        })
    });
    match stopped {
        Some(error) => Err(error),
        None => Ok(outcome?),
    }
}
