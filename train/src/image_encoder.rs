//! From pictures to CLIP image embeddings, with whichever image tower a model directory has.

use autograd::{Device, Tape, Tensor};
use models::clip::{CLIPModel, CLIPVisionModelWithProjection};
use models::{Folder, Loaded, Model, weights};

use crate::stages::frozen::normalised;
use crate::stages::{DTYPE, source};
use crate::{Error, Result};

/// The image tower of a CLIP.
pub enum ImageEncoder {
    /// `image_encoder/`, as diffusers' image variation pipeline has it.
    Tower(Box<Loaded<CLIPVisionModelWithProjection>>),
    /// `clip/`, as it was trained here.
    Whole(Box<Loaded<CLIPModel>>),
}

impl ImageEncoder {
    /// Opens the one of a model directory.
    ///
    /// # Errors
    /// If it has none, in words.
    pub fn of_model(dir: &Folder) -> Result<ImageEncoder> {
        let (tower, whole) = (dir.join("image_encoder"), dir.join("clip"));
        if tower.has("config.json") {
            let tower = weights::load(tower, DTYPE, Device::Cpu)?;
            return Ok(ImageEncoder::Tower(Box::new(tower)));
        }
        if whole.has("config.json") {
            let whole = weights::load(whole, DTYPE, Device::Cpu)?;
            return Ok(ImageEncoder::Whole(Box::new(whole)));
        }
        Err(Error::usage(format!(
            "{} has no image encoder to read pictures with: put a CLIP into its image_encoder/ or clip/",
            dir.path("").display()
        )))
    }

    /// Height and width of the pictures that it reads.
    pub fn image_size(&self) -> usize {
        match self {
            ImageEncoder::Tower(tower) => tower.model.config().image_size,
            ImageEncoder::Whole(clip) => clip.model.config().vision().image_size,
        }
    }

    /// # Shapes
    /// pixels [n, image_size, image_size, 3] in 0..=255 → [n, d]
    pub fn embed(&self, pixels: &[u8]) -> Result<Tensor> {
        let side = self.image_size();
        let pictures = normalised(&source::shrunk(pixels, side, side))?;
        let embeds = match self {
            ImageEncoder::Tower(tower) => {
                let Loaded { model, params } = &**tower;
                let t = Tape::inference(Some(params));
                model.forward(&t, &t.constant(pictures))?.image_embeds
            }
            ImageEncoder::Whole(clip) => {
                let Loaded { model, params } = &**clip;
                let t = Tape::inference(Some(params));
                model.vision(&t, &t.constant(pictures))?.image_embeds
            }
        };
        Ok(embeds.tensor().clone())
    }
}
