//! The trained CLIP as the later stages use it: frozen, and asked for each picture only once where they fit in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use autograd::{Device, Tape, Tensor};
use models::clip::{CLIPModel, PIXEL_MEAN, PIXEL_STD};
use models::tokenizer::Tokenizer;
use models::{Folder, Loaded, Model, weights};

use super::{DTYPE, source};
use crate::data::{Batch, Dataset};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::{Error, Result};

/// A CLIP that is not trained any more.
pub struct FrozenClip {
    clip: Loaded<CLIPModel>,
    tokenizer: Arc<Tokenizer>,
    /// The empty text, which stands for none.
    empty: Vec<u32>,
}

/// What texts condition on.
pub use models::pipeline::TextConditioning as Texts;

impl FrozenClip {
    /// Opens the CLIP of a run, or of a model directory, on a device.
    pub fn open(path: &str, device: Device) -> Result<FrozenClip> {
        let root = [Path::new(path).join("model"), PathBuf::from(path)]
            .into_iter()
            .find(|dir| dir.join("clip").is_dir())
            .ok_or_else(|| {
                Error::usage(format!(
                    "clip = \"{path}\" is neither a finished CLIP run nor a model directory with clip/ in it: train \
                     the clip stage first, or point clip at one"
                ))
            })?;
        FrozenClip::of_model(&Folder::from(&root), device)
    }

    /// The CLIP of a model directory, on a device.
    pub fn of_model(dir: &Folder, device: Device) -> Result<FrozenClip> {
        let tokenizer = Tokenizer::from_dir(dir.join("tokenizer"))
            .map_err(|e| Error::failure(e.to_string()))?;
        let empty = tokenizer
            .encode_truncated("")
            .map_err(|e| Error::failure(e.to_string()))?;
        Ok(FrozenClip {
            clip: weights::load::<CLIPModel>(dir.join("clip"), DTYPE, device)?,
            tokenizer: Arc::new(tokenizer),
            empty,
        })
    }

    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    pub fn empty(&self) -> &[u32] {
        &self.empty
    }

    /// The width of embeddings and text states.
    pub fn width(&self) -> usize {
        self.clip.model.config().projection_dim
    }

    pub fn image_size(&self) -> usize {
        self.clip.model.config().vision().image_size
    }

    /// Where the CLIP is.
    ///
    /// # Shapes
    /// ids [n, l]
    pub fn texts(&self, ids: &[u32]) -> Result<Texts> {
        let t = Tape::inference(Some(&self.clip.params));
        let (ids, mask) = source::tokens(ids, &self.tokenizer);
        let out = self
            .clip
            .model
            .text(&t, &ids.to_device(t.device())?, None)?;
        Ok(Texts {
            embeds: out.text_embeds.tensor().clone(),
            states: out.last_hidden_state.tensor().clone(),
            mask,
        })
    }

    /// On the host, wherever the CLIP is.
    ///
    /// # Shapes
    /// images [n, resolution, resolution, 3] → [n, d]
    pub fn images(&self, images: &[u8], resolution: usize) -> Result<Tensor> {
        self.pictures(&normalised(&source::shrunk(
            images,
            resolution,
            self.image_size(),
        ))?)
    }

    /// On the host, wherever the CLIP is.
    ///
    /// # Shapes
    /// pixels [n, image_size, image_size, 3] on CLIP's scale → [n, d]
    pub fn pictures(&self, pixels: &Tensor) -> Result<Tensor> {
        let t = Tape::inference(Some(&self.clip.params));
        let pixels = t.constant(pixels.to_device(t.device())?);
        let out = self.clip.model.vision(&t, &pixels)?;
        Ok(out.image_embeds.tensor().to_host()?)
    }
}

/// Pixels from −1 … 1 to CLIP's scale.
///
/// # Shapes
/// [n, h, w, 3] → [n, h, w, 3]
pub fn normalised(pictures: &Tensor) -> Result<Tensor> {
    let mut out = pictures.detach_copy()?;
    for pixel in out.as_mut_slice::<f32>()?.chunks_mut(3) {
        for ((value, mean), std) in pixel.iter_mut().zip(PIXEL_MEAN).zip(PIXEL_STD) {
            *value = ((f64::from(*value) * 0.5 + 0.5 - mean) / std) as f32;
        }
    }
    Ok(out)
}

/// The image embedding of every picture of a data set, or, of one too large to be kept in memory, the means to make it.
pub struct ImageEmbeddings {
    known: Option<Vec<f32>>,
    resolution: usize,
}

/// Pictures that are embedded together.
const CHUNK: u64 = 64;
/// Embeddings that are kept take at most this many bytes.
const KEPT: u64 = 256 << 20;

impl ImageEmbeddings {
    /// Embeds all pictures, if their embeddings fit in memory, always in the same order and groups, so that a resumed run
    /// works with the same bits.
    pub fn new(clip: &FrozenClip, dataset: &Dataset, interrupt: &Interrupt) -> Result<Self> {
        source::check_divides(
            dataset.size(),
            "the image_size of the CLIP",
            clip.image_size(),
        )?;
        let resolution = dataset.size();
        if dataset.len() * clip.width() as u64 * size_of::<f32>() as u64 > KEPT {
            return Ok(ImageEmbeddings {
                known: None,
                resolution,
            });
        }
        let mut decoder = dataset.decoder();
        let mut known = Vec::with_capacity(dataset.len() as usize * clip.width());
        let mut images = Vec::new();
        let mut progress = Progress::new("embed", dataset.len(), 0);
        for first in (0..dataset.len()).step_by(CHUNK as usize) {
            interrupt.check()?;
            let last = dataset.len().min(first + CHUNK);
            images.resize((last - first) as usize * dataset.picture_bytes(), 0);
            for (i, pixels) in images.chunks_mut(dataset.picture_bytes()).enumerate() {
                // A sample that cannot be used leaves whatever was there: nobody asks for it.
                let _ = dataset.fetch(first + i as u64, &mut decoder, pixels)?;
            }
            known.extend(clip.images(&images, resolution)?.as_slice::<f32>()?);
            progress.count(last);
        }
        Ok(ImageEmbeddings {
            known: Some(known),
            resolution,
        })
    }

    /// # Shapes
    /// → [n, d]
    pub fn of(&self, clip: &FrozenClip, batch: &Batch) -> Result<Tensor> {
        let Some(known) = &self.known else {
            return clip.images(&batch.images, self.resolution);
        };
        let width = clip.width();
        let rows: Vec<f32> = batch
            .indices
            .iter()
            .flat_map(|&i| &known[i as usize * width..][..width])
            .copied()
            .collect();
        Ok(Tensor::from_slice(&rows, [batch.len(), width], Device::Cpu))
    }
}
