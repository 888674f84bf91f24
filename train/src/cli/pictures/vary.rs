//! `unclip vary`: pictures like a picture (Ramesh et al., 2022, section 3.1).

use std::path::PathBuf;

use models::pipeline::Given;
use tensor::Device;

use super::{BATCH, InversionFlags, PictureFlags, Studio, invertible, numbered, repeated};
use crate::image_encoder::ImageEncoder;
use crate::picture::Picture;
use crate::{Error, Result};

/// Make variations of a picture: what its CLIP embedding says stays, the rest is drawn anew.
///
/// With --invert they start from the picture's own noise: the same picture comes back, and --decoder-eta above 0 varies it
/// the more the higher it is.
#[derive(clap::Args)]
pub struct Vary {
    /// A PNG, JPEG or WebP; of what is not square the middle is taken.
    image: PathBuf,
    /// What it shows, to help the decoder [default: nothing is said].
    #[arg(short, long, default_value = "")]
    prompt: String,
    /// Variations.
    #[arg(short, long, default_value_t = 1)]
    num_images: u32,
    /// Start from the noise of this picture, found by DDIM inversion.
    #[arg(long)]
    invert: bool,
    #[command(flatten)]
    inversion: InversionFlags,
    #[command(flatten)]
    flags: PictureFlags,
}

impl Vary {
    pub fn run(self, device: Device) -> Result<()> {
        if self.num_images == 0 {
            return Err(Error::usage("--num-images must be at least 1"));
        }
        let mut studio = Studio::open("vary", &self.flags, device, |sampling| match self.invert {
            true => invertible(&self.flags.sampling, sampling),
            false => Ok(sampling),
        })?;
        let input = studio.read(&self.image)?;
        let encoder = ImageEncoder::of_model(&studio.dir)?;
        let embedding = studio.embed(&encoder, &input)?;
        let batches = self.num_images.div_ceil(BATCH) as usize;
        let inversion = self.invert.then_some(&self.inversion);
        let back = studio.evaluations(inversion) - studio.evaluations(None);
        studio.expect(back + batches * studio.evaluations(None));
        let mut given = vec![("Picture", input.name.clone())];
        let start = match inversion {
            None => None,
            Some(flags) => {
                given.push(("Inversion iterations", flags.iterations.to_string()));
                let small = input.small()?.to_device(device)?;
                let noise = studio.invert(&small, &embedding, &self.prompt, flags)?;
                Some(repeated(&noise, self.num_images as usize)?)
            }
        };
        for first in (0..self.num_images).step_by(BATCH as usize) {
            let count = BATCH.min(self.num_images - first);
            let embeddings = repeated(&embedding, count as usize)?;
            let prompts = vec![self.prompt.as_str(); count as usize];
            let noise = studio.noise_from(first, start.as_ref());
            let made = studio.draw(&prompts, Given::ImageEmbeddings(&embeddings), None, &noise)?;
            for (number, picture) in (first..).zip(made.pictures) {
                let path = numbered(&self.flags.output, number, self.num_images > 1);
                let record = studio.record(&self.prompt, number, &given);
                studio.save(&path, &Picture::from(picture), &record)?;
            }
        }
        studio.save_strip(&studio.record(&self.prompt, 0, &given))
    }
}
