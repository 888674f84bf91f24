//! `unclip generate`: pictures of a prompt, or a picture once more.

use std::collections::BTreeMap;
use std::path::PathBuf;

use models::pipeline::{Given, GivenNoise};
use tensor::Device;

use super::{BATCH, PictureFlags, Studio, numbered};
use crate::latents;
use crate::picture::Picture;
use crate::record::Record;
use crate::{Error, Result};

/// Make pictures of a prompt.
///
/// The same prompt, seed, model and flags give the same bytes. The PNG carries them in its text chunks, and --from makes it
/// again.
#[derive(clap::Args)]
pub struct Generate {
    /// What to show, such as "a large red circle on a white background".
    #[arg(short, long, required_unless_present = "from")]
    prompt: Option<String>,
    /// Pictures, each from a noise of its own [default: 1].
    #[arg(short, long, conflicts_with = "from")]
    num_images: Option<u32>,
    /// Take everything that is not given from a picture that this command made: alone, it is made again, byte for byte.
    #[arg(long, value_name = "PNG")]
    from: Option<PathBuf>,
    /// Take every noise tensor from this safetensors file in place of drawing it (docs/sampling.md names them).
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    /// Write every noise tensor to this safetensors file.
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    #[command(flatten)]
    flags: PictureFlags,
}

/// What was given with the noise.
const LATENTS: &str = "Latents";
const COMMAND: &str = "generate";

impl Generate {
    pub fn run(mut self, device: Device) -> Result<()> {
        let count = self.num_images.unwrap_or(1);
        if count == 0 {
            return Err(Error::usage("--num-images must be at least 1"));
        }
        let earlier = match &self.from {
            None => None,
            Some(path) => Some(self.earlier(path)?),
        };
        if let Some(earlier) = &earlier {
            self.flags.seed = self.flags.seed.or(Some(earlier.seed));
        }
        let recorded = earlier.as_ref().map(|earlier| earlier.sampling);
        let sampling = &self.flags.sampling;
        let settled = |own| Ok(recorded.map_or(own, |recorded| sampling.over(recorded)));
        let mut studio = Studio::open(COMMAND, &self.flags, device, settled)?;
        let prompt = match (&self.prompt, &earlier) {
            (Some(prompt), _) => prompt.clone(),
            (None, Some(earlier)) => earlier.prompt.clone(),
            (None, None) => return Err(Error::usage("there is no --prompt")),
        };
        // Pictures of one seed are numbered; one that is made again keeps its number.
        let first = earlier.as_ref().map_or(0, |earlier| earlier.image);
        let end = first
            .checked_add(count)
            .ok_or_else(|| Error::usage("there are no so many pictures of one seed"))?;
        let (known, given) = self.latents(&studio, earlier.as_ref(), end)?;
        if let Some(earlier) = &earlier {
            self.compare(earlier, &studio)?;
        }
        let evaluations = studio.pipeline.evaluations(&studio.sampling.options());
        let per_batch: usize = evaluations.iter().sum();
        studio.expect(per_batch * (count.div_ceil(BATCH) as usize));
        for number in (first..end).step_by(BATCH as usize) {
            let batch = BATCH.min(end - number);
            let noise = GivenNoise {
                known: known.clone(),
                otherwise: studio.noise(number),
            };
            let prompts = vec![prompt.as_str(); batch as usize];
            let made = studio.draw(&prompts, Given::Text, None, &noise)?;
            for (number, picture) in (number..).zip(made.pictures) {
                let path = numbered(&self.flags.output, number, count > 1);
                let record = studio.record(&prompt, number, &given);
                studio.save(&path, &Picture::from(picture), &record)?;
            }
        }
        studio.save_strip(&studio.record(&prompt, first, &given))
    }

    /// What an earlier picture was made with.
    fn earlier(&self, path: &std::path::Path) -> Result<Record> {
        let record = Record::read(path)?;
        if record.command != COMMAND {
            return Err(Error::usage(format!(
                "{} was made by `unclip {}`, which starts from pictures that are not in it: run that command again",
                path.display(),
                record.command
            )));
        }
        Ok(record)
    }

    /// The noise that is given, by name, and what the record says of it. Saves the noise if that is asked for.
    #[allow(clippy::type_complexity)]
    fn latents(
        &self,
        studio: &Studio,
        earlier: Option<&Record>,
        images: u32,
    ) -> Result<(
        BTreeMap<String, tensor::Tensor>,
        Vec<(&'static str, String)>,
    )> {
        let wanted = studio
            .pipeline
            .latents(&studio.sampling.options(), images as usize)?;
        let recorded = earlier.and_then(|earlier| earlier.given.get(LATENTS));
        let (known, given) = match (&self.latents, recorded) {
            (None, Some(hash)) => {
                return Err(Error::usage(format!(
                    "that picture was made with noise from a file of the hash {hash}: give it with --latents"
                )));
            }
            (None, None) => Default::default(),
            (Some(path), recorded) => {
                let latents = latents::load(path, &wanted)?;
                if let Some(hash) = recorded.filter(|&hash| *hash != latents.hash) {
                    eprintln!(
                        "note: {} has the hash {}, that picture was made with {hash}",
                        path.display(),
                        latents.hash
                    );
                }
                (latents.tensors, vec![(LATENTS, latents.hash)])
            }
        };
        if let Some(path) = &self.save_latents {
            let noise = GivenNoise {
                known: known.clone(),
                otherwise: studio.noise(0),
            };
            latents::save(path, &wanted, &noise)?;
        }
        Ok((known, given))
    }

    /// Says what keeps a picture from being made again as it was.
    fn compare(&self, earlier: &Record, studio: &Studio) -> Result<()> {
        if earlier.model != studio.model {
            return Err(Error::usage(format!(
                "that picture was made by a model of the hash {}, this one has {}: name the model with --model",
                earlier.model, studio.model
            )));
        }
        let device = studio.device.to_string();
        if earlier.device != device {
            eprintln!(
                "note: that picture was made on {}, whose bits differ from those of {device}",
                earlier.device
            );
        }
        Ok(())
    }
}
