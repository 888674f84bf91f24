//! `unclip edit`: a picture changed by the difference of two texts (Ramesh et al., 2022, section 3.3).

use std::path::PathBuf;

use models::embeddings::{edited, text_difference};
use models::pipeline::Given;
use tensor::Device;

use super::{InversionFlags, PictureFlags, Studio, invertible, numbered};
use crate::image_encoder::ImageEncoder;
use crate::picture::Picture;
use crate::{Error, Result};

/// Change a picture in the direction from one text to another, as a strip of growing change.
///
/// The picture's CLIP embedding is turned towards the difference of the texts' embeddings, and all pictures are drawn from
/// the picture's own noise, found by DDIM inversion, so that what the texts do not speak of stays.
#[derive(clap::Args)]
pub struct Edit {
    /// A PNG, JPEG or WebP; of what is not square the middle is taken.
    image: PathBuf,
    /// What it is to show, such as "a red circle".
    #[arg(long)]
    to: String,
    /// What it shows now, such as "a blue circle"; nothing in particular if left out.
    #[arg(long, default_value = "")]
    from: String,
    /// How far the last picture of the strip is turned towards the difference, from 0 to 1; a quarter to a half is usual.
    #[arg(long, default_value_t = 0.5)]
    theta: f64,
    /// Pictures in the strip, the first of which is not changed.
    #[arg(short, long, default_value_t = 5)]
    num_images: u32,
    /// Also write every picture of the strip by itself.
    #[arg(long)]
    each: bool,
    #[command(flatten)]
    inversion: InversionFlags,
    #[command(flatten)]
    flags: PictureFlags,
}

impl Edit {
    pub fn run(self, device: Device) -> Result<()> {
        if self.num_images < 2 {
            return Err(Error::usage(
                "--num-images must be at least 2: the picture, and the change",
            ));
        }
        if !(0.0..=1.0).contains(&self.theta) {
            return Err(Error::usage(format!(
                "--theta must be from 0 to 1, it is {}",
                self.theta
            )));
        }
        if self.to.is_empty() {
            return Err(Error::usage("--to must say what the picture is to show"));
        }
        let settled = |sampling| invertible(&self.flags.sampling, sampling);
        let mut studio = Studio::open("edit", &self.flags, device, settled)?;
        let input = studio.read(&self.image)?;
        let encoder = ImageEncoder::of_model(&studio.dir)?;
        let embedding = studio.embed(&encoder, &input)?;
        let embeds = |studio: &Studio, text: &str| -> Result<_> {
            Ok(studio.pipeline.condition(&[text], true)?.0.embeds)
        };
        let [to, from] = [embeds(&studio, &self.to)?, embeds(&studio, &self.from)?];
        let difference = text_difference(&to, &from)?;
        let back = studio.evaluations(Some(&self.inversion)) - studio.evaluations(None);
        studio.expect(back + self.num_images as usize * studio.evaluations(None));
        let given = vec![
            ("Picture", input.name.clone()),
            ("From text", self.from.clone()),
            (
                "Inversion iterations",
                self.inversion.iterations.to_string(),
            ),
        ];
        let small = input.small()?.to_device(device)?;
        let start = studio.invert(&small, &embedding, "", &self.inversion)?;
        let (mut pictures, mut captions) = (Vec::new(), Vec::new());
        let theta = |number: u32| self.theta * f64::from(number) / f64::from(self.num_images - 1);
        for number in 0..self.num_images {
            let turned = edited(&embedding, &difference, theta(number))?;
            let noise = studio.noise_from(0, Some(&start));
            let made = studio.draw(&[""], Given::ImageEmbeddings(&turned), None, &noise)?;
            let picture = made.pictures.into_iter().next().map(Picture::from);
            let picture = picture.ok_or_else(|| Error::failure("no picture was made"))?;
            if self.each {
                let path = numbered(&self.flags.output, number, true);
                let mut given = given.clone();
                given.push(("Theta", theta(number).to_string()));
                studio.save(&path, &picture, &studio.record(&self.to, 0, &given))?;
            }
            pictures.push(picture);
            captions.push(format!("{:.3}", theta(number)));
        }
        let mut given = given;
        given.push(("Theta", self.theta.to_string()));
        let record = studio.record(&self.to, 0, &given);
        studio.save_row(&pictures, &captions, &record)?;
        studio.save_strip(&record)
    }
}
