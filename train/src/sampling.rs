//! How pictures are sampled from a model: its own recommendation, kept beside its weights, and what a user changes.

use std::path::Path;

use models::Folder;
use models::diffusion::SamplerKind;
use models::pipeline::{Generated, Given, Options, Pipeline, Progress as Step, SeededNoise};
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
    /// Deterministic after the first noise.
    Ddim,
    /// DPM-Solver++ of second order.
    Dpm,
}

impl From<SamplerName> for SamplerKind {
    fn from(name: SamplerName) -> SamplerKind {
        match name {
            SamplerName::Ancestral => SamplerKind::Ancestral,
            SamplerName::Ddim => SamplerKind::Ddim { eta: 0.0 },
            SamplerName::Dpm => SamplerKind::DpmSolver,
        }
    }
}

/// The settings of a pipeline; the names are diffusers'.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    pub prior_num_inference_steps: usize,
    pub decoder_num_inference_steps: usize,
    pub super_res_num_inference_steps: usize,
    pub prior_guidance_scale: f64,
    pub decoder_guidance_scale: f64,
    pub prior_sampler: SamplerName,
    pub decoder_sampler: SamplerName,
    pub super_res_sampler: SamplerName,
    pub prior_candidates: usize,
}

impl Default for Sampling {
    /// The values of diffusers' pipeline, for directories that it wrote.
    fn default() -> Sampling {
        let options = Options::default();
        Sampling {
            prior_num_inference_steps: options.prior_num_inference_steps,
            decoder_num_inference_steps: options.decoder_num_inference_steps,
            super_res_num_inference_steps: options.super_res_num_inference_steps,
            prior_guidance_scale: options.prior_guidance_scale,
            decoder_guidance_scale: options.decoder_guidance_scale,
            prior_sampler: SamplerName::Ancestral,
            decoder_sampler: SamplerName::Ancestral,
            super_res_sampler: SamplerName::Ancestral,
            prior_candidates: options.prior_candidates,
        }
    }
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

    pub fn options(&self) -> Options {
        Options {
            prior_num_inference_steps: self.prior_num_inference_steps,
            decoder_num_inference_steps: self.decoder_num_inference_steps,
            super_res_num_inference_steps: self.super_res_num_inference_steps,
            prior_guidance_scale: self.prior_guidance_scale,
            decoder_guidance_scale: self.decoder_guidance_scale,
            prior_sampler: self.prior_sampler.into(),
            decoder_sampler: self.decoder_sampler.into(),
            super_res_sampler: self.super_res_sampler.into(),
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
    noise: &SeededNoise,
    interrupt: &Interrupt,
    mut seen: impl FnMut(&Step) -> models::Result<()>,
) -> Result<Generated> {
    let mut stopped = None;
    let made = pipeline.generate(prompts, given, &sampling.options(), noise, &mut |step| {
        seen(step)?;
        interrupt.check().map_err(|error| {
            let reason = error.to_string();
            stopped = Some(error);
            models::Error::Request(reason)
        })
    });
    match stopped {
        Some(error) => Err(error),
        None => Ok(made?),
    }
}
