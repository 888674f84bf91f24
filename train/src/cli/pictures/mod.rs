//! The commands that make pictures, and what they share: flags, the opened model, progress, and files that say how they
//! were made.

pub mod blend;
pub mod edit;
pub mod generate;
pub mod inpaint;
mod input;
pub mod vary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use models::Folder;
use models::pipeline::{
    Generated, Given, GivenNoise, Known, Noise, Pipeline, Progress as Step, SeededNoise, Stage,
};
use tensor::{Device, Tensor};

use crate::image_encoder::ImageEncoder;
use crate::interrupt::Interrupt;
use crate::model;
use crate::picture::Picture;
use crate::progress::Progress;
use crate::record::{Record, model_hash};
use crate::sampling::{SamplerName, Sampling, SamplingFlags, interruptible};
use crate::stages::DTYPE;
use crate::{Error, Result};
use input::Input;

/// What every command that makes pictures takes.
#[derive(clap::Args)]
pub struct PictureFlags {
    /// The noise is a function of it [default: 0].
    #[arg(short, long)]
    seed: Option<u64>,
    /// A demo run, or a model directory in diffusers' layout [default: the weights that the program carries].
    #[arg(short, long)]
    model: Option<PathBuf>,
    /// The picture's file; several get -1, -2, … before the extension.
    #[arg(short, long, default_value = "unclip.png")]
    output: PathBuf,
    /// Also write how the picture comes out of the noise, step by step.
    #[arg(long)]
    trajectory: bool,
    #[command(flatten)]
    sampling: SamplingFlags,
}

/// How a picture becomes noise again.
#[derive(clap::Args)]
pub struct InversionFlags {
    /// Evaluations of the network in each step of the way back: more bring the picture back more exactly.
    #[arg(long, default_value_t = 10)]
    iterations: usize,
}

/// Pictures that are made together.
const BATCH: u32 = 16;
/// Side of a picture in a strip.
const STRIP_SIDE: usize = 128;

/// An opened model, at work for one command.
struct Studio {
    command: &'static str,
    dir: Folder,
    pipeline: Pipeline,
    sampling: Sampling,
    seed: u64,
    device: Device,
    output: PathBuf,
    model: String,
    interrupt: Interrupt,
    progress: Progress,
    done: u64,
    /// The first picture as it was seen in each step, while it is being made.
    strip: Option<Vec<Picture>>,
}

impl Studio {
    /// Opens the model. `settled` has the last word on its settings.
    fn open(
        command: &'static str,
        flags: &PictureFlags,
        device: Device,
        settled: impl FnOnce(Sampling) -> Result<Sampling>,
    ) -> Result<Studio> {
        let dir = model::open(flags.model.as_deref())?;
        let interrupt = Interrupt::catch()?;
        let pipeline = Pipeline::load(dir.clone(), DTYPE, device)?;
        let sampling = settled(flags.sampling.over(Sampling::of_model(&dir)?))?;
        sampling.check(&pipeline)?;
        Ok(Studio {
            command,
            model: model_hash(&dir, &pipeline.prior_scheduler)?,
            dir,
            pipeline,
            sampling,
            seed: flags.seed.unwrap_or(0),
            device,
            output: flags.output.clone(),
            interrupt,
            progress: Progress::new(command, 0, 0),
            done: 0,
            strip: flags.trajectory.then(Vec::new),
        })
    }

    /// Begins to show progress over so many evaluations of networks.
    fn expect(&mut self, evaluations: usize) {
        self.progress = Progress::new(self.command, evaluations as u64, 0);
    }

    /// The noise of pictures from number `first` on.
    fn noise(&self, first: u32) -> SeededNoise {
        SeededNoise {
            seed: self.seed,
            first_image: first,
            device: self.device,
        }
    }

    /// The noise of the first picture, or, where it is known, the decoder's given start with it.
    fn noise_from(&self, first: u32, start: Option<&Tensor>) -> GivenNoise {
        let noise = GivenNoise {
            known: BTreeMap::new(),
            otherwise: self.noise(first),
        };
        match start {
            Some(start) => noise.decoder_from(start.clone()),
            None => noise,
        }
    }

    /// Draws one picture for each prompt. Of the first call the denoising strip is kept.
    fn draw(
        &mut self,
        prompts: &[&str],
        given: Given,
        known: Option<&Known>,
        noise: &dyn Noise,
    ) -> Result<Generated> {
        let first = self.strip.as_ref().is_some_and(Vec::is_empty);
        let Studio {
            pipeline,
            sampling,
            interrupt,
            progress,
            done,
            strip,
            ..
        } = self;
        let options = sampling.options();
        let seen = |step: &Step| {
            *done += 1;
            progress.count(*done);
            let drawn = matches!(
                step.stage,
                Stage::Decoder | Stage::SuperRes | Stage::SuperRes1024
            );
            if let Some(strip) = strip.as_mut().filter(|_| first && drawn) {
                let seen = models::pipeline::Picture::from_tensor(step.x0)?;
                strip.extend(seen.into_iter().next().map(Picture::from));
            }
            Ok(())
        };
        interruptible(interrupt, seen, |step| match known {
            None => pipeline.generate(prompts, given, &options, noise, step),
            Some(known) => pipeline.inpaint(prompts, given, known, &options, noise, step),
        })
    }

    /// The noise that the decoder draws `small` of, under an image embedding and a text.
    fn invert(
        &mut self,
        small: &Tensor,
        embedding: &Tensor,
        prompt: &str,
        flags: &InversionFlags,
    ) -> Result<Tensor> {
        let (text, unconditional) = self.pipeline.condition(&[prompt], true)?;
        let Studio {
            pipeline,
            sampling,
            interrupt,
            progress,
            done,
            ..
        } = self;
        let options = sampling.options();
        let seen = |_: &Step| {
            *done += 1;
            progress.count(*done);
            Ok(())
        };
        interruptible(interrupt, seen, |step| {
            pipeline.invert_decoder(
                small,
                embedding,
                &text,
                &unconditional,
                &options,
                flags.iterations,
                step,
            )
        })
    }

    /// What the decoder and the upsampler take for a batch, and an inversion before it.
    fn evaluations(&self, inversion: Option<&InversionFlags>) -> usize {
        let options = self.sampling.options();
        let [_, decoder, super_res, second] = self.pipeline.evaluations(&options);
        let back = inversion.map_or(0, |flags| flags.iterations);
        decoder + super_res + second + back * options.decoder_num_inference_steps
    }

    /// Reads a picture as the model sees it.
    fn read(&self, path: &Path) -> Result<Input> {
        Input::read(path, &self.pipeline)
    }

    /// The CLIP image embedding of a picture.
    ///
    /// # Shapes
    /// → [1, d]
    fn embed(&self, encoder: &ImageEncoder, input: &Input) -> Result<Tensor> {
        let (extent, rgb) = input.rgb()?;
        let embedding = encoder.embed(extent, &rgb)?;
        let wanted = self.pipeline.text_proj.config().clip_embeddings_dim;
        let [_, width] = *embedding.dims() else {
            return Err(Error::failure("the image encoder makes no vectors"));
        };
        if width != wanted {
            return Err(Error::failure(format!(
                "the image encoder of {} makes embeddings of {width} numbers, its decoder takes {wanted}",
                self.dir.path("").display()
            )));
        }
        Ok(embedding.to_device(self.device)?)
    }

    fn record(&self, prompt: &str, image: u32, given: &[(&str, String)]) -> Record {
        let given = given
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()));
        Record {
            command: self.command.to_owned(),
            prompt: prompt.to_owned(),
            seed: self.seed,
            image,
            model: self.model.clone(),
            device: self.device.to_string(),
            sampling: self.sampling,
            given: given.collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Writes a picture with what it was made with.
    fn save(&self, path: &Path, picture: &Picture, record: &Record) -> Result<()> {
        let texts = record.texts()?;
        let texts = texts.each_ref().map(|(key, text)| (*key, text.as_str()));
        picture.save(path, &texts)?;
        self.progress.line(&path.display().to_string());
        Ok(())
    }

    /// Writes the denoising strip, if there is to be one.
    fn save_strip(&self, record: &Record) -> Result<()> {
        let Some(strip) = &self.strip else {
            return Ok(());
        };
        let grid = Picture::grid(strip, &[], strip.len(), STRIP_SIDE);
        self.save(&self.output.with_extension("trajectory.png"), &grid, record)
    }

    /// Writes pictures in one row, with what each is below it.
    fn save_row(&self, pictures: &[Picture], captions: &[String], record: &Record) -> Result<()> {
        let row = Picture::grid(pictures, captions, pictures.len(), STRIP_SIDE);
        self.save(&self.output, &row, record)
    }
}

/// The settings of a command that inverts: the decoder must be sampled by DDIM, and is, where nothing else is asked.
fn invertible(flags: &SamplingFlags, sampling: Sampling) -> Result<Sampling> {
    match flags.decoder_sampler {
        None | Some(SamplerName::Ddim) => Ok(Sampling {
            decoder_sampler: SamplerName::Ddim,
            ..sampling
        }),
        Some(_) => Err(Error::usage(
            "only ddim can be inverted: leave out --decoder-sampler, or give it ddim",
        )),
    }
}

/// `output`, or, of several, `output` with the number before its extension.
fn numbered(output: &Path, number: u32, several: bool) -> PathBuf {
    if !several {
        return output.to_owned();
    }
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    let extension = match output.extension() {
        Some(extension) => extension.to_string_lossy(),
        None => "png".into(),
    };
    output.with_file_name(format!("{stem}-{}.{extension}", number + 1))
}

/// `n` times the one row of `x`.
///
/// # Shapes
/// [1, ..] → [n, ..]
fn repeated(x: &Tensor, n: usize) -> Result<Tensor> {
    Ok(tensor::ops::concat::forward(&vec![x; n], 0)?)
}
