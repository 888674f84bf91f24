//! Text to image: the unCLIP pipeline over a directory that diffusers also opens.
//!
//! tokenizer → text encoder → prior → text projection and decoder → enlargement → upsampler → 8-bit picture.

mod component;
mod guided;
mod known;
mod noise;
mod options;
mod sample;

pub use component::{Component, Opened};
pub use known::{Known, Region};
pub use noise::{GivenNoise, Latent, Noise, SeededNoise};
pub use options::{Options, PriorVariance};

use std::path::Path;

use autograd::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::clip::CLIPTextModelWithProjection;
use crate::diffusion::SchedulerConfig;
use crate::folder::Folder;
use crate::model::{Class, Model};
use crate::prior::{AutoregressivePrior, Prior, PriorTransformer};
use crate::text_proj::UnCLIPTextProjModel;
use crate::tokenizer::Tokenizer;
use crate::unet::{UNet2DConditionModel, UNet2DModel};
use crate::weights::{self, Precision};
use crate::{Error, Result};

/// The part of the pipeline that is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Denoises CLIP image embeddings; there are several candidates for each picture.
    Prior { candidate: usize },
    /// Denoises small pictures.
    Decoder,
    /// Denoises pictures of full size.
    SuperRes,
    /// Denoises pictures that are larger still.
    SuperRes1024,
    /// The decoder backwards, from a picture to its noise.
    Inversion,
}

impl Stage {
    /// What its noise is called.
    fn name(self) -> String {
        match self {
            Stage::Prior { candidate } => format!("prior.{candidate}"),
            Stage::Decoder => "decoder".into(),
            Stage::SuperRes => "super_res".into(),
            Stage::SuperRes1024 => "super_res_1024".into(),
            Stage::Inversion => "inversion".into(),
        }
    }
}

/// What is known before the pipeline begins, beside the text: the stages before it are not run.
#[derive(Clone, Copy, Debug)]
pub enum Given<'a> {
    /// Nothing: the prior draws the image embeddings.
    Text,
    /// Image embeddings [n, d]: the decoder begins.
    ImageEmbeddings(&'a Tensor),
    /// Pictures [n, sample_size, sample_size, 3] in −1 to 1, as the decoder makes them: only the upsampler runs.
    Small(&'a Tensor),
}

/// A step that has been taken.
pub struct Progress<'a> {
    pub stage: Stage,
    /// Counts from 1.
    pub step: usize,
    pub steps: usize,
    /// The sample as it is now: embeddings [n, d], or pictures [n, h, w, 3].
    pub sample: &'a Tensor,
    /// The clean sample that the network sees in it; as pictures these make a denoising strip.
    pub x0: &'a Tensor,
}

/// Called after every step; an error ends the run.
pub type OnProgress<'a> = &'a mut dyn FnMut(&Progress) -> Result<()>;

/// An 8-bit picture, rows from the top, three bytes a pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Pictures of values in [−1, 1]; what lies outside is clipped.
    ///
    /// # Shapes
    /// [n, h, w, 3] → n pictures
    pub fn from_tensor(images: &Tensor) -> Result<Vec<Picture>> {
        let check = tensor::Check::new("picture", &[("images", images)]);
        let &[_, height, width, 3] = images.dims() else {
            return Err(check.error("pictures must be [n, h, w, 3]").into());
        };
        let byte = |v: &f64| ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        let values = images.to_f64_vec()?;
        let rows = values.chunks(height * width * 3);
        Ok(rows
            .map(|v| Picture {
                width,
                height,
                rgb: v.iter().map(byte).collect(),
            })
            .collect())
    }
}

/// What a run made.
pub struct Generated {
    pub pictures: Vec<Picture>,
    /// The pictures before the upsampler, in [−1, 1]. [n, h, w, 3]
    pub small: Tensor,
    /// The embeddings that the decoder drew them from, if it did. [n, d]
    pub image_embeddings: Option<Tensor>,
    /// [n, d]
    pub text_embeddings: Tensor,
}

/// What the text encoder says of n texts.
#[derive(Clone, Debug)]
pub struct TextConditioning {
    /// [n, d]
    pub embeds: Tensor,
    /// [n, l, c]
    pub states: Tensor,
    /// `Bool` [n, l], false for padding.
    pub mask: Tensor,
}

/// Every component of the pipeline.
pub struct Pipeline {
    pub tokenizer: Tokenizer,
    pub text_encoder: Component<CLIPTextModelWithProjection>,
    /// A directory for image variation has none: image embeddings are then given.
    pub prior: Option<Prior>,
    pub prior_scheduler: SchedulerConfig,
    pub text_proj: Component<UnCLIPTextProjModel>,
    pub decoder: Component<UNet2DConditionModel>,
    pub decoder_scheduler: SchedulerConfig,
    /// Takes all steps of the upsampler but the last.
    pub super_res_first: Component<UNet2DModel>,
    /// Takes the last step.
    pub super_res_last: Component<UNet2DModel>,
    pub super_res_scheduler: SchedulerConfig,
    /// Enlarges once more, to 1024² in the paper; diffusers' pipeline has none, and leaves its directory alone.
    pub super_res_1024: Option<Enlarger>,
}

/// The second upsampler.
pub struct Enlarger {
    pub network: Component<UNet2DModel>,
    pub scheduler: SchedulerConfig,
}

/// What names the components of a directory.
pub const INDEX: &str = "model_index.json";
const PIPELINE_CLASS: &str = "UnCLIPPipeline";
/// The class of directories whose pictures begin with a picture: an image encoder in place of the prior.
const VARIATION_CLASS: &str = "UnCLIPImageVariationPipeline";

impl Pipeline {
    /// Opens a directory as diffusers and [`Pipeline::save`] write it, for text to image or image variation. Everything
    /// is checked now; each network is read when its stage begins, and given back when it ends.
    pub fn load(dir: impl Into<Folder>, dtype: DType, device: Device) -> Result<Pipeline> {
        fn component<M: Model>(
            dir: &Folder,
            name: &str,
            dtype: DType,
            device: Device,
        ) -> Result<Component<M>> {
            Component::stored(dir.join(name), dtype, device)
        }
        let dir = &dir.into();
        let class = weights::load_object(dir, INDEX)?["_class_name"].clone();
        let has_prior = class == PIPELINE_CLASS;
        if !has_prior && class != VARIATION_CLASS {
            let reason =
                format!("it describes {class}, {PIPELINE_CLASS} or {VARIATION_CLASS} is needed");
            return Err(Error::Json {
                path: dir.path(INDEX),
                reason,
            });
        }
        let scheduler = |name: &str| weights::load_scheduler(&dir.join(name));
        Ok(Pipeline {
            tokenizer: Tokenizer::from_dir(dir.join("tokenizer"))
                .map_err(|e| Error::Request(e.to_string()))?,
            text_encoder: component(dir, "text_encoder", dtype, device)?,
            prior: match has_prior {
                true => Some(stored_prior(dir.join("prior"), dtype, device)?),
                false => None,
            },
            prior_scheduler: match has_prior {
                true => scheduler("prior_scheduler")?,
                false => SchedulerConfig::prior(),
            },
            text_proj: component(dir, "text_proj", dtype, device)?,
            decoder: component(dir, "decoder", dtype, device)?,
            decoder_scheduler: scheduler("decoder_scheduler")?,
            super_res_first: component(dir, "super_res_first", dtype, device)?,
            super_res_last: component(dir, "super_res_last", dtype, device)?,
            super_res_scheduler: scheduler("super_res_scheduler")?,
            super_res_1024: match dir.join("super_res_1024").has("config.json") {
                true => Some(Enlarger {
                    network: component(dir, "super_res_1024", dtype, device)?,
                    scheduler: scheduler("super_res_1024_scheduler")?,
                }),
                false => None,
            },
        })
    }

    /// The prior.
    ///
    /// # Errors
    /// If this is a pipeline for image variation, which has none.
    pub fn prior(&self) -> Result<&Prior> {
        self.prior.as_ref().ok_or_else(|| {
            Error::Request(
                "this model has no prior, so it cannot draw what a text says: vary a picture with it".into(),
            )
        })
    }

    /// Writes the directory, its index last.
    ///
    /// # Errors
    /// Also if there is no prior.
    pub fn save(&self, dir: &Path, precision: Precision) -> Result<()> {
        fn component<M: Model>(
            dir: &Path,
            name: &str,
            network: &Component<M>,
            precision: Precision,
        ) -> Result<()> {
            let loaded = network.open()?;
            weights::save(&dir.join(name), &loaded.model, &loaded.params, precision)
        }
        let prior = self.prior()?;
        component(dir, "text_encoder", &self.text_encoder, precision)?;
        let class = match prior {
            Prior::Diffusion(prior) => {
                component(dir, "prior", prior, precision)?;
                PriorTransformer::CLASS
            }
            Prior::Autoregressive(prior) => {
                component(dir, "prior", prior, precision)?;
                AutoregressivePrior::CLASS
            }
        };
        component(dir, "text_proj", &self.text_proj, precision)?;
        component(dir, "decoder", &self.decoder, precision)?;
        component(dir, "super_res_first", &self.super_res_first, precision)?;
        component(dir, "super_res_last", &self.super_res_last, precision)?;
        if let Some(Enlarger { network, scheduler }) = &self.super_res_1024 {
            component(dir, "super_res_1024", network, precision)?;
            weights::save_scheduler(&dir.join("super_res_1024_scheduler"), scheduler)?;
        }
        save_frame(
            dir,
            &self.tokenizer,
            class,
            [
                &self.prior_scheduler,
                &self.decoder_scheduler,
                &self.super_res_scheduler,
            ],
        )
    }
}

/// Writes what a directory holds beside its networks: the tokenizer, the schedulers of prior, decoder and upsampler, and the
/// index last.
pub fn save_frame(
    dir: &Path,
    tokenizer: &Tokenizer,
    prior: Class,
    schedulers: [&SchedulerConfig; 3],
) -> Result<()> {
    let place = dir.join("tokenizer");
    std::fs::create_dir_all(&place).map_err(Error::write(&place))?;
    tokenizer
        .save(&place)
        .map_err(|e| Error::Request(e.to_string()))?;
    let names = [
        "prior_scheduler",
        "decoder_scheduler",
        "super_res_scheduler",
    ];
    for (name, scheduler) in names.into_iter().zip(schedulers) {
        weights::save_scheduler(&dir.join(name), scheduler)?;
    }
    save_model_index(dir, prior)
}

/// Either prior of a folder, which is not read yet: its configuration says which.
pub fn stored_prior(dir: Folder, dtype: DType, device: Device) -> Result<Prior> {
    Ok(
        match weights::class_of(&dir)? == AutoregressivePrior::CLASS.name {
            true => Prior::Autoregressive(Box::new(Component::stored(dir, dtype, device)?)),
            false => Prior::Diffusion(Box::new(Component::stored(dir, dtype, device)?)),
        },
    )
}

/// Writes `model_index.json`: what diffusers' pipeline class finds its components by.
fn save_model_index(dir: &Path, prior: Class) -> Result<()> {
    let (diffusers, transformers) = ("diffusers", "transformers");
    // No other library has the autoregressive one.
    let library = match prior == AutoregressivePrior::CLASS {
        true => "unclip",
        false => diffusers,
    };
    let prior = [library, prior.name];
    let index: Value = json!({
        "_class_name": PIPELINE_CLASS,
        "_diffusers_version": weights::DIFFUSERS_VERSION,
        "decoder": [diffusers, UNet2DConditionModel::CLASS.name],
        "decoder_scheduler": [diffusers, SchedulerConfig::CLASS],
        "prior": prior,
        "prior_scheduler": [diffusers, SchedulerConfig::CLASS],
        "super_res_first": [diffusers, UNet2DModel::CLASS.name],
        "super_res_last": [diffusers, UNet2DModel::CLASS.name],
        "super_res_scheduler": [diffusers, SchedulerConfig::CLASS],
        "text_encoder": [transformers, CLIPTextModelWithProjection::CLASS.name],
        "text_proj": ["unclip", UnCLIPTextProjModel::CLASS.name],
        "tokenizer": [transformers, "CLIPTokenizer"],
    });
    weights::save_json(&dir.join(INDEX), &index)
}
