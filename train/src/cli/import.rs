//! `unclip import`: other projects' checkpoints as a directory of this program's, which is diffusers' too.

use std::path::{Path, PathBuf};

use models::clip::{CLIPModel, CLIPTextModelWithProjection};
use models::diffusion::SchedulerConfig;
use models::pipeline::Pipeline;
use models::prior::PriorConfig;
use models::text_proj::UnCLIPTextProjConfig;
use models::tokenizer::Tokenizer;
use models::unet::{UNet2DConditionConfig, UNet2DConfig};
use models::weights::{self, Precision};
use models::{Loaded, Model, import};
use tensor::Device;

use crate::stages::DTYPE;
use crate::{Error, Result, files};

/// Convert weights under other projects' names to a model directory.
///
/// Files are safetensors; for a pickle (.ckpt, .pt, .bin) the refusal says the line that converts it.
#[derive(clap::Subcommand)]
pub enum Command {
    Clip(Clip),
    Karlo(Karlo),
}

/// A CLIP of OpenAI or OpenCLIP.
#[derive(clap::Args)]
pub struct Clip {
    /// The weights.
    weights: PathBuf,
    /// OpenCLIP's `open_clip_config.json`; without it the network is taken for one of OpenAI's.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A folder with the tokenizer: tokenizer.json, or vocab.json and merges.txt.
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Karlo's prior, decoder and upsampler, with the CLIP that it was trained with (ViT-L/14).
#[derive(clap::Args)]
pub struct Karlo {
    /// The prior's checkpoint.
    #[arg(long, value_name = "FILE")]
    prior: PathBuf,
    /// The mean and deviation of image embeddings, two vectors named mean and std.
    #[arg(long, value_name = "FILE")]
    statistics: PathBuf,
    /// The decoder's checkpoint.
    #[arg(long, value_name = "FILE")]
    decoder: PathBuf,
    /// The upsampler's checkpoint.
    #[arg(long, value_name = "FILE")]
    super_res: PathBuf,
    /// A folder with that CLIP in `clip` and its tokenizer in `tokenizer`, such as `unclip import clip` makes.
    #[arg(long, value_name = "DIR")]
    clip: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
struct Output {
    /// The model directory; what is there is replaced.
    #[arg(short, long = "output", value_name = "DIR")]
    dir: PathBuf,
    /// Round the weights to bf16, which halves them.
    #[arg(long)]
    bf16: bool,
}

impl Output {
    fn precision(&self) -> Precision {
        match self.bf16 {
            true => Precision::Bf16,
            false => Precision::Full,
        }
    }

    /// Replaces the directory by what `write` makes.
    fn write(&self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        files::replace_dir(&self.dir, write)?;
        println!("the model is in {}", self.dir.display());
        Ok(())
    }
}

impl Command {
    pub fn run(self) -> Result<()> {
        match self {
            Command::Clip(clip) => clip.run(),
            Command::Karlo(karlo) => karlo.run(),
        }
    }
}

fn tokenizer(dir: &Path) -> Result<Tokenizer> {
    Tokenizer::from_dir(dir).map_err(|error| Error::failure(error.to_string()))
}

impl Clip {
    fn run(self) -> Result<()> {
        let tokenizer = tokenizer(&self.tokenizer)?;
        let Loaded { model, params } =
            import::clip(&self.weights, self.config.as_deref(), DTYPE, Device::Cpu)?;
        self.output.write(|dir| {
            let folder = dir.join("tokenizer");
            files::create_dir(&folder)?;
            tokenizer
                .save(&folder)
                .map_err(|error| Error::failure(error.to_string()))?;
            let precision = self.output.precision();
            Ok(weights::save(
                &dir.join("clip"),
                &model,
                &params,
                precision,
            )?)
        })
    }
}

impl Karlo {
    fn run(self) -> Result<()> {
        let clip: Loaded<CLIPModel> = weights::load(&self.clip.join("clip"), DTYPE, Device::Cpu)?;
        let text = clip.model.config().text();
        let (decoder, text_proj) = import::karlo_decoder(
            &self.decoder,
            &UNet2DConditionConfig::karlo(),
            &UnCLIPTextProjConfig::karlo(),
            DTYPE,
            Device::Cpu,
        )?;
        let [super_res_first, super_res_last] =
            import::karlo_upsampler(&self.super_res, &UNet2DConfig::karlo(), DTYPE, Device::Cpu)?;
        let pipeline = Pipeline {
            // Karlo fills texts with token 0.
            tokenizer: tokenizer(&self.clip.join("tokenizer"))?
                .padded_with("!")
                .map_err(|error| Error::failure(error.to_string()))?,
            text_encoder: weights::cut::<CLIPTextModelWithProjection>(&clip.params, &text)?,
            prior: import::karlo_prior(
                &self.prior,
                &self.statistics,
                &PriorConfig::default(),
                DTYPE,
                Device::Cpu,
            )?
            .into(),
            prior_scheduler: SchedulerConfig::prior(),
            text_proj,
            decoder,
            decoder_scheduler: SchedulerConfig::decoder(),
            super_res_first,
            super_res_last,
            super_res_scheduler: SchedulerConfig::upsampler(),
            super_res_1024: None,
        };
        let precision = self.output.precision();
        self.output.write(|dir| Ok(pipeline.save(dir, precision)?))
    }
}
