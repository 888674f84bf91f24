//! `unclip generate`: pictures of a prompt.

use std::path::PathBuf;

use models::Folder;
use models::pipeline::{Given, Pipeline, SeededNoise, Stage};
use sha2::{Digest, Sha256};
use tensor::Device;

use crate::checkpoint::hex;
use crate::interrupt::Interrupt;
use crate::model;
use crate::picture::Picture;
use crate::progress::Progress;
use crate::sampling::{SamplerName, Sampling, generate};
use crate::stages::DTYPE;
use crate::{Error, Result};

/// Make pictures of a prompt.
///
/// The same prompt, seed, model and flags give the same bytes. The PNG carries them in its text chunk.
#[derive(clap::Args)]
pub struct Generate {
    /// What to show, such as "a large red circle on a white background".
    #[arg(short, long)]
    prompt: String,
    /// Pictures, each from a noise of its own.
    #[arg(short, long, default_value_t = 1)]
    num_images: u32,
    /// The noise is a function of it.
    #[arg(short, long, default_value_t = 0)]
    seed: u64,
    /// A demo run, or a model directory in diffusers' layout [default: the demo's].
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// The picture's file; several get -1, -2, … before the extension.
    #[arg(short, long, default_value = "unclip.png")]
    output: PathBuf,
    /// Also write how the picture comes out of the noise, step by step.
    #[arg(long)]
    trajectory: bool,
    /// Denoising steps of the prior [default: the model's].
    #[arg(long)]
    prior_num_inference_steps: Option<usize>,
    /// Denoising steps of the decoder [default: the model's].
    #[arg(long)]
    decoder_num_inference_steps: Option<usize>,
    /// Denoising steps of the upsampler [default: the model's].
    #[arg(long)]
    super_res_num_inference_steps: Option<usize>,
    /// How strongly the prior follows the prompt; 1 is plain sampling [default: the model's].
    #[arg(long)]
    prior_guidance_scale: Option<f64>,
    /// How strongly the decoder follows embedding and prompt; 1 is plain sampling [default: the model's].
    #[arg(long)]
    decoder_guidance_scale: Option<f64>,
    /// The decoder's sampler [default: the model's].
    #[arg(long, value_enum)]
    decoder_sampler: Option<SamplerName>,
    /// Image embeddings that the prior draws, of which the one nearest to the prompt is used [default: the model's].
    #[arg(long)]
    prior_candidates: Option<usize>,
}

/// Pictures that are made together.
const BATCH: u32 = 16;

impl Generate {
    pub fn run(self, device: Device) -> Result<()> {
        if self.num_images == 0 {
            return Err(Error::usage("--num-images must be at least 1"));
        }
        let dir = model::open(self.model.as_deref())?;
        let interrupt = Interrupt::catch()?;
        let pipeline = Pipeline::load(dir.clone(), DTYPE, device)?;
        let sampling = self.sampling(&dir)?;
        let parameters = self.parameters(&sampling, &pipeline)?;
        let steps = sampling.prior_candidates.max(1) * sampling.prior_num_inference_steps
            + sampling.decoder_num_inference_steps
            + sampling.super_res_num_inference_steps;
        let total = steps as u64 * u64::from(self.num_images.div_ceil(BATCH));
        let mut bar = Progress::new("generate", total, 0);
        let mut done = 0;
        let mut strip = Vec::new();
        for first in (0..self.num_images).step_by(BATCH as usize) {
            let count = BATCH.min(self.num_images - first);
            let noise = SeededNoise {
                seed: self.seed,
                first_image: first,
                device,
            };
            let prompts = vec![self.prompt.as_str(); count as usize];
            let made = generate(
                &pipeline,
                &prompts,
                Given::Text,
                &sampling,
                &noise,
                &interrupt,
                |step| {
                    done += 1;
                    bar.count(done);
                    if self.trajectory && first == 0 && !matches!(step.stage, Stage::Prior { .. }) {
                        let seen = models::pipeline::Picture::from_tensor(step.x0)?;
                        strip.extend(seen.into_iter().next().map(Picture::from));
                    }
                    Ok(())
                },
            )?;
            for (number, picture) in (first..).zip(made.pictures) {
                let path = self.path(number);
                let text = format!("{parameters}, Image: {number}");
                Picture::from(picture).save(&path, &[("parameters", &text)])?;
                bar.line(&path.display().to_string());
            }
        }
        if self.trajectory {
            let path = self.output.with_extension("trajectory.png");
            let strip = Picture::grid(&strip, &[], strip.len(), STRIP_SIDE);
            strip.save(&path, &[("parameters", &parameters)])?;
            bar.line(&path.display().to_string());
        }
        Ok(())
    }

    /// The model's settings with those of the command line.
    fn sampling(&self, dir: &Folder) -> Result<Sampling> {
        let own = Sampling::of_model(dir)?;
        Ok(Sampling {
            prior_num_inference_steps: self
                .prior_num_inference_steps
                .unwrap_or(own.prior_num_inference_steps),
            decoder_num_inference_steps: self
                .decoder_num_inference_steps
                .unwrap_or(own.decoder_num_inference_steps),
            super_res_num_inference_steps: self
                .super_res_num_inference_steps
                .unwrap_or(own.super_res_num_inference_steps),
            prior_guidance_scale: self
                .prior_guidance_scale
                .unwrap_or(own.prior_guidance_scale),
            decoder_guidance_scale: self
                .decoder_guidance_scale
                .unwrap_or(own.decoder_guidance_scale),
            decoder_sampler: self.decoder_sampler.unwrap_or(own.decoder_sampler),
            prior_candidates: self.prior_candidates.unwrap_or(own.prior_candidates),
            ..own
        })
    }

    /// What the pictures were made with, in the form that other programs read: prompt, then `key: value` pairs.
    fn parameters(&self, sampling: &Sampling, pipeline: &Pipeline) -> Result<String> {
        let sampler = |name: SamplerName| match name {
            SamplerName::Ancestral => "DDPM",
            SamplerName::Ddim => "DDIM",
            SamplerName::Dpm => "DPM++ 2M",
        };
        Ok(format!(
            "{}\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {}, Prior steps: {}, Prior sampler: {}, \
             Prior CFG scale: {}, Prior candidates: {}, Upsampler steps: {}, Upsampler sampler: {}, Model hash: {}, \
             Version: unclip {}",
            self.prompt.replace('\n', " "),
            sampling.decoder_num_inference_steps,
            sampler(sampling.decoder_sampler),
            sampling.decoder_guidance_scale,
            self.seed,
            sampling.prior_num_inference_steps,
            sampler(sampling.prior_sampler),
            sampling.prior_guidance_scale,
            sampling.prior_candidates,
            sampling.super_res_num_inference_steps,
            sampler(sampling.super_res_sampler),
            model_hash(pipeline)?,
            env!("CARGO_PKG_VERSION"),
        ))
    }

    fn path(&self, number: u32) -> PathBuf {
        if self.num_images == 1 {
            return self.output.clone();
        }
        let stem = self
            .output
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        let extension = self
            .output
            .extension()
            .unwrap_or_default()
            .to_string_lossy();
        let extension = if extension.is_empty() {
            "png".into()
        } else {
            extension
        };
        self.output
            .with_file_name(format!("{stem}-{}.{extension}", number + 1))
    }
}

/// Side of a picture in a trajectory.
const STRIP_SIDE: usize = 128;

/// The first eight digits of a hash over the weights that make a picture.
fn model_hash(pipeline: &Pipeline) -> Result<String> {
    let mut hash = Sha256::new();
    let parts = [
        &pipeline.text_encoder.params,
        &pipeline.prior.params,
        &pipeline.text_proj.params,
        &pipeline.decoder.params,
        &pipeline.super_res_first.params,
        &pipeline.super_res_last.params,
    ];
    for params in parts {
        hash.update(bytemuck::cast_slice::<f32, u8>(params.arena().as_slice()?));
    }
    Ok(hex(&hash.finalize()[..4]))
}
