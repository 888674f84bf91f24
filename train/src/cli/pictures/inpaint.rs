//! `unclip inpaint`: a part of a picture drawn anew.

use std::path::PathBuf;

use models::pipeline::Given;
use tensor::Device;

use super::{BATCH, PictureFlags, Studio, numbered};
use crate::picture::Picture;
use crate::{Error, Result};

/// Draw a part of a picture anew, as a prompt says; the rest stays as it is, byte for byte.
///
/// In every step of decoder and upsampler what the network sees outside the mask is replaced by the picture, so that
/// models that were not trained for it can do it.
#[derive(clap::Args)]
pub struct Inpaint {
    /// A PNG, JPEG or WebP; of what is not square the middle is taken.
    image: PathBuf,
    /// A picture of the same size: white where it is to be drawn anew, black where it stays.
    #[arg(long)]
    mask: PathBuf,
    /// What the whole picture is to show.
    #[arg(short, long)]
    prompt: String,
    /// Pictures, each from a noise of its own.
    #[arg(short, long, default_value_t = 1)]
    num_images: u32,
    /// How often the decoder takes each step, going back to more noise in between: more fit the new part better to the old.
    #[arg(long, default_value_t = 1)]
    resamples: usize,
    #[command(flatten)]
    flags: PictureFlags,
}

impl Inpaint {
    pub fn run(self, device: Device) -> Result<()> {
        if self.num_images == 0 {
            return Err(Error::usage("--num-images must be at least 1"));
        }
        let mut studio = Studio::open("inpaint", &self.flags, device, Ok)?;
        let (input, mask) = (studio.read(&self.image)?, studio.read(&self.mask)?);
        let known = input.outside(&mask, self.resamples)?;
        known.check(&studio.sampling.options())?;
        let batches = self.num_images.div_ceil(BATCH) as usize;
        let [prior, decoder, super_res, _] =
            studio.pipeline.evaluations(&studio.sampling.options());
        studio.expect(batches * (prior + decoder * self.resamples + super_res));
        let given = [
            ("Picture", input.name.clone()),
            ("Mask", mask.name.clone()),
            ("Resamples", self.resamples.to_string()),
        ];
        let original = input.picture()?;
        for first in (0..self.num_images).step_by(BATCH as usize) {
            let count = BATCH.min(self.num_images - first);
            let prompts = vec![self.prompt.as_str(); count as usize];
            let noise = studio.noise(first);
            let made = studio.draw(&prompts, Given::Text, Some(&known), &noise)?;
            for (number, picture) in (first..).zip(made.pictures) {
                let mut picture = Picture::from(picture);
                known.large.keep(&original.rgb, &mut picture.rgb);
                let path = numbered(&self.flags.output, number, self.num_images > 1);
                let record = studio.record(&self.prompt, number, &given);
                studio.save(&path, &picture, &record)?;
            }
        }
        studio.save_strip(&studio.record(&self.prompt, 0, &given))
    }
}
