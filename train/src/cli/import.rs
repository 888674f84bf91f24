//! `unclip import`: other projects' checkpoints as a directory of this program's, which is diffusers' too.

use std::path::{Path, PathBuf};

use models::clip::{CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection};
use models::diffusion::SchedulerConfig;
use models::pipeline::save_frame;
use models::prior::PriorTransformer;
use models::tokenizer::Tokenizer;
use models::weights::{self, Precision};
use models::{Loaded, Model, import};
use tensor::Device;

use super::model::Name;
use super::output::Output;
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
    /// The sizes of the networks, where they are not Karlo's own.
    #[arg(long, value_enum, default_value_t = Name::Karlo)]
    architecture: Name,
    #[command(flatten)]
    output: Output,
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
    /// One network after the other, so that the largest alone decides how much memory it takes.
    fn run(self) -> Result<()> {
        let architecture = self.architecture.architecture();
        let precision = self.output.precision();
        // Karlo fills texts with token 0.
        let tokenizer = tokenizer(&self.clip.join("tokenizer"))?
            .padded_with("!")
            .map_err(|error| Error::failure(error.to_string()))?;
        fn save<M: Model>(
            dir: &Path,
            name: &str,
            loaded: &Loaded<M>,
            precision: Precision,
        ) -> Result<()> {
            let (model, params) = (&loaded.model, &loaded.params);
            Ok(weights::save(&dir.join(name), model, params, precision)?)
        }
        self.output.write(|dir| {
            let clip: Loaded<CLIPModel> =
                weights::load(&self.clip.join("clip"), DTYPE, Device::Cpu)?;
            let text = clip.model.config().text();
            let text = weights::cut::<CLIPTextModelWithProjection>(&clip.params, &text)?;
            save(dir, "text_encoder", &text, precision)?;
            let image = clip.model.config().vision();
            let image = weights::cut::<CLIPVisionModelWithProjection>(&clip.params, &image)?;
            save(dir, "image_encoder", &image, precision)?;
            drop((clip, text, image));
            let prior = import::karlo_prior(
                &self.prior,
                &self.statistics,
                &architecture.prior,
                DTYPE,
                Device::Cpu,
            )?;
            save(dir, "prior", &prior, precision)?;
            drop(prior);
            let (decoder, text_proj) = import::karlo_decoder(
                &self.decoder,
                &architecture.decoder,
                &architecture.text_proj,
                DTYPE,
                Device::Cpu,
            )?;
            save(dir, "decoder", &decoder, precision)?;
            save(dir, "text_proj", &text_proj, precision)?;
            drop((decoder, text_proj));
            let [first, last] = import::karlo_upsampler(
                &self.super_res,
                &architecture.super_res,
                DTYPE,
                Device::Cpu,
            )?;
            save(dir, "super_res_first", &first, precision)?;
            save(dir, "super_res_last", &last, precision)?;
            let schedulers = [
                &SchedulerConfig::prior(),
                &SchedulerConfig::decoder(),
                &SchedulerConfig::upsampler(),
            ];
            Ok(save_frame(
                dir,
                &tokenizer,
                PriorTransformer::CLASS,
                schedulers,
            )?)
        })
    }
}
