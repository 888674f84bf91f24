//! From pictures to CLIP image embeddings, with whichever image tower a model directory has.

use autograd::{Device, Tape, Tensor};
use models::clip::{
    CLIPModel, CLIPVisionModelWithProjection, FEATURE_EXTRACTOR, ImageProcessorConfig,
};
use models::{Folder, Loaded, Model, weights};

use crate::stages::DTYPE;
use crate::{Error, Result};

/// The image tower of a CLIP, and how pictures are made ready for it.
pub struct ImageEncoder {
    tower: Tower,
    processor: ImageProcessorConfig,
}

enum Tower {
    /// `image_encoder/`, as diffusers' image variation pipeline has it.
    Alone(Box<Loaded<CLIPVisionModelWithProjection>>),
    /// `clip/`, as it was trained here.
    Whole(Box<Loaded<CLIPModel>>),
}

impl Tower {
    fn image_size(&self) -> usize {
        match self {
            Tower::Alone(tower) => tower.model.config().image_size,
            Tower::Whole(clip) => clip.model.config().vision().image_size,
        }
    }
}

impl ImageEncoder {
    /// Opens the one of a model directory. Pictures are made ready as its `feature_extractor/` says, or as for OpenAI's
    /// CLIP where there is none.
    ///
    /// # Errors
    /// If it has none, in words.
    pub fn of_model(dir: &Folder) -> Result<ImageEncoder> {
        let (alone, whole) = (dir.join("image_encoder"), dir.join("clip"));
        let tower = if alone.has("config.json") {
            Tower::Alone(Box::new(weights::load(alone, DTYPE, Device::Cpu)?))
        } else if whole.has("config.json") {
            Tower::Whole(Box::new(weights::load(whole, DTYPE, Device::Cpu)?))
        } else {
            return Err(Error::usage(format!(
                "{} has no image encoder to read pictures with: put a CLIP into its image_encoder/ or clip/",
                dir.path("").display()
            )));
        };
        let extractor = dir.join(FEATURE_EXTRACTOR);
        let processor = match ImageProcessorConfig::is_in(&extractor) {
            true => ImageProcessorConfig::load(&extractor)?,
            false => ImageProcessorConfig::of_size(tower.image_size()),
        };
        Ok(ImageEncoder { tower, processor })
    }

    /// # Shapes
    /// rgb [height, width, 3] → [1, d]
    pub fn embed(&self, extent: [usize; 2], rgb: &[u8]) -> Result<Tensor> {
        let pixels = self.processor.pixels(extent, rgb)?;
        let embeds = match &self.tower {
            Tower::Alone(tower) => {
                let Loaded { model, params } = &**tower;
                let t = Tape::inference(Some(params));
                model.forward(&t, &t.constant(pixels))?.image_embeds
            }
            Tower::Whole(clip) => {
                let Loaded { model, params } = &**clip;
                let t = Tape::inference(Some(params));
                model.vision(&t, &t.constant(pixels))?.image_embeds
            }
        };
        Ok(embeds.tensor().clone())
    }
}
