//! From four trained stages to one directory that makes pictures, in the layout that diffusers opens.

use std::path::Path;

use autograd::{Device, Params};
use models::clip::{CLIPModel, CLIPTextModelWithProjection};
use models::diffusion::{Prediction, SchedulerConfig};
use models::pipeline::{Component, Enlarger, Pipeline, stored_prior};
use models::tokenizer::Tokenizer;
use models::weights::{self, Precision};
use models::{Folder, Loaded, Model, declare};

use crate::config::Config;
use crate::sampling::Sampling;
use crate::stages::DTYPE;
use crate::trainer::{self, model_dir};
use crate::{Error, Result, files};

/// The runs that a pipeline is made of.
pub struct Runs<'a> {
    pub clip: &'a Path,
    pub prior: &'a Path,
    pub decoder: &'a Path,
    pub upsampler: &'a Path,
    /// From the first one's size on.
    pub second_upsampler: Option<&'a Path>,
}

/// Writes the pipeline of finished runs to `target`, replacing what was there.
pub fn assemble(
    runs: &Runs,
    sampling: &Sampling,
    precision: Precision,
    target: &Path,
) -> Result<()> {
    let needed = [runs.clip, runs.prior, runs.decoder, runs.upsampler];
    for run in needed.into_iter().chain(runs.second_upsampler) {
        if !model_dir(run).is_dir() {
            return Err(Error::usage(format!(
                "{} holds no finished model: train it to its end first",
                run.display()
            )));
        }
    }
    let clip_dir = model_dir(runs.clip);
    let clip: Loaded<CLIPModel> = weights::load(&clip_dir.join("clip"), DTYPE, Device::Cpu)?;
    let tokenizer = Tokenizer::from_dir(&clip_dir.join("tokenizer"))
        .map_err(|e| Error::failure(e.to_string()))?;
    let prior = Folder::from(&model_dir(runs.prior));
    // Runs of older versions have none of their own.
    let prior_scheduler = prior.join("prior_scheduler");
    let prior_scheduler = match prior.join("prior_scheduler").has("scheduler_config.json") {
        true => weights::load_scheduler(&prior_scheduler)?,
        false => SchedulerConfig::prior(),
    };
    let decoder = model_dir(runs.decoder);
    let super_res = model_dir(runs.upsampler).join("upsampler");
    let pipeline = Pipeline {
        tokenizer,
        text_encoder: text_encoder(&clip)?.into(),
        prior: Some(stored_prior(prior.join("prior"), DTYPE, Device::Cpu)?),
        prior_scheduler,
        text_proj: stored(&decoder.join("text_proj"))?,
        decoder: stored(&decoder.join("decoder"))?,
        decoder_scheduler: SchedulerConfig {
            prediction_type: prediction_of(runs.decoder)?,
            ..SchedulerConfig::decoder()
        },
        // One trained network takes all steps, the last one too.
        super_res_first: stored(&super_res)?,
        super_res_last: stored(&super_res)?,
        super_res_scheduler: upsampler_scheduler(runs.upsampler)?,
        super_res_1024: match runs.second_upsampler {
            Some(run) => Some(Enlarger {
                network: stored(&model_dir(run).join("upsampler"))?,
                scheduler: upsampler_scheduler(run)?,
            }),
            None => None,
        },
    };
    files::replace_dir(target, |dir| {
        files::create_dir(&dir.join("tokenizer"))?;
        pipeline.save(dir, precision)?;
        weights::save(&dir.join("clip"), &clip.model, &clip.params, precision)?;
        sampling.save(dir)
    })
}

/// A network that is read when it is copied.
fn stored<M: Model>(dir: &Path) -> Result<Component<M>> {
    Ok(Component::stored(dir.into(), DTYPE, Device::Cpu)?)
}

/// What the network of a decoder's run predicts.
fn prediction_of(run: &Path) -> Result<Prediction> {
    match Config::load(&run.join(trainer::CONFIG), &[])? {
        Config::Decoder(c) => Ok(c.prediction_type),
        other => Err(misplaced(run, &other, "a decoder")),
    }
}

/// What an upsampler was trained with.
fn upsampler_scheduler(run: &Path) -> Result<SchedulerConfig> {
    match Config::load(&run.join(trainer::CONFIG), &[])? {
        Config::Upsampler(c) => Ok(SchedulerConfig {
            prediction_type: c.prediction_type,
            beta_schedule: c.beta_schedule,
            ..SchedulerConfig::upsampler()
        }),
        other => Err(misplaced(run, &other, "an upsampler")),
    }
}

fn misplaced(run: &Path, config: &Config, needed: &str) -> Error {
    Error::usage(format!(
        "{} is a run of the {} stage, {needed} is needed there",
        run.display(),
        config.stage()
    ))
}

/// The text tower of a CLIP, as the pipeline holds it: the same names, without the image tower.
fn text_encoder(clip: &Loaded<CLIPModel>) -> Result<Loaded<CLIPTextModelWithProjection>> {
    let (model, layout) = declare::<CLIPTextModelWithProjection>(&clip.model.config().text())?;
    let mut params = Params::zeros(layout.clone(), DTYPE, Device::Cpu);
    for (id, info) in layout.iter() {
        let source =
            clip.params.layout().find(&info.name).ok_or_else(|| {
                Error::failure(format!("the CLIP has no parameter {}", info.name))
            })?;
        params.set(id, &clip.params.get(source)?)?;
    }
    Ok(Loaded { model, params })
}
