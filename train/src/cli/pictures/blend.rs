//! `unclip blend`: from one picture to another (Ramesh et al., 2022, section 3.2).

use std::path::PathBuf;

use models::embeddings::slerp;
use models::pipeline::Given;
use tensor::Device;

use super::{InversionFlags, PictureFlags, Studio, invertible, numbered};
use crate::image_encoder::ImageEncoder;
use crate::picture::Picture;
use crate::{Error, Result};

/// Draw the way from one picture to another, as a strip: their CLIP embeddings are interpolated on the sphere.
///
/// All pictures are drawn from the same noise. With --invert they start from the noise of the first picture, found by DDIM
/// inversion, and end at that of the second, so that both ends of the strip are the pictures themselves.
#[derive(clap::Args)]
pub struct Blend {
    /// Where the strip begins: a PNG, JPEG or WebP; of what is not square the middle is taken.
    first: PathBuf,
    /// Where it ends.
    second: PathBuf,
    /// Pictures in the strip, both ends included.
    #[arg(short, long, default_value_t = 7)]
    num_images: u32,
    /// Interpolate between the noises of the two pictures as well.
    #[arg(long)]
    invert: bool,
    /// Also write every picture of the strip by itself.
    #[arg(long)]
    each: bool,
    #[command(flatten)]
    inversion: InversionFlags,
    #[command(flatten)]
    flags: PictureFlags,
}

impl Blend {
    pub fn run(self, device: Device) -> Result<()> {
        if self.num_images < 2 {
            return Err(Error::usage("--num-images must be at least 2: both ends"));
        }
        let mut studio =
            Studio::open("blend", &self.flags, device, |sampling| match self.invert {
                true => invertible(&self.flags.sampling, sampling),
                false => Ok(sampling),
            })?;
        let ends = [studio.read(&self.first)?, studio.read(&self.second)?];
        let encoder = ImageEncoder::of_model(&studio.dir)?;
        let [first, second] = [
            studio.embed(&encoder, &ends[0])?,
            studio.embed(&encoder, &ends[1])?,
        ];
        let inversion = self.invert.then_some(&self.inversion);
        let back = studio.evaluations(inversion) - studio.evaluations(None);
        studio.expect(2 * back + self.num_images as usize * studio.evaluations(None));
        let mut given = vec![("From", ends[0].name.clone()), ("To", ends[1].name.clone())];
        let noises = match inversion {
            None => None,
            Some(flags) => {
                given.push(("Inversion iterations", flags.iterations.to_string()));
                let small = [
                    ends[0].small()?.to_device(device)?,
                    ends[1].small()?.to_device(device)?,
                ];
                let from = studio.invert(&small[0], &first, "", flags)?;
                Some((from, studio.invert(&small[1], &second, "", flags)?))
            }
        };
        let (mut pictures, mut captions) = (Vec::new(), Vec::new());
        for number in 0..self.num_images {
            let part = f64::from(number) / f64::from(self.num_images - 1);
            let embedding = slerp(&first, &second, part)?;
            let start = match &noises {
                None => None,
                Some((from, to)) => Some(slerp(from, to, part)?),
            };
            // Always the noise of the first picture.
            let noise = studio.noise_from(0, start.as_ref());
            let made = studio.draw(&[""], Given::ImageEmbeddings(&embedding), None, &noise)?;
            let picture = made.pictures.into_iter().next().map(Picture::from);
            let picture = picture.ok_or_else(|| Error::failure("no picture was made"))?;
            let percent = format!("{:.0} %", part * 100.0);
            if self.each {
                let path = numbered(&self.flags.output, number, true);
                let mut given = given.clone();
                given.push(("Way", percent.clone()));
                studio.save(&path, &picture, &studio.record("", 0, &given))?;
            }
            pictures.push(picture);
            captions.push(percent);
        }
        let record = studio.record("", 0, &given);
        studio.save_row(&pictures, &captions, &record)?;
        studio.save_strip(&record)
    }
}
