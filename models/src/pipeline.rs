//! Text to image: the unCLIP pipeline over a directory that diffusers also opens.
//!
//! tokenizer → text encoder → prior → text projection and decoder → enlargement → upsampler → 8-bit picture.

use std::path::Path;

use autograd::ops::concat::concat;
use autograd::ops::resize::{self, Filter};
use autograd::{DType, Device, Draw, Tape, Tensor, Var};
use serde_json::{Value, json};

use crate::clip::CLIPTextModelWithProjection;
use crate::diffusion::{Sampler, SamplerKind, SchedulerConfig, guide};
use crate::folder::Folder;
use crate::model::{Loaded, Model};
use crate::nn::repeat;
use crate::prior::{PriorInputs, PriorTransformer};
use crate::text_proj::UnCLIPTextProjModel;
use crate::tokenizer::Tokenizer;
use crate::unet::{UNet2DConditionInputs, UNet2DConditionModel, UNet2DModel, extend_mask};
use crate::weights::{self, Precision};
use crate::{Error, Result};

/// The part of the pipeline that is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Denoises CLIP image embeddings; there are several candidates for each picture.
    Prior { candidate: usize },
    /// Denoises small pictures.
    Decoder,
    /// Denoises pictures of full size.
    SuperRes,
}

/// What is known before the pipeline begins, beside the text: the stages before it are not run.
#[derive(Clone, Copy, Debug)]
pub enum Given<'a> {
    /// Nothing: the prior draws the image embeddings.
    Text,
    /// Image embeddings [n, d]: the decoder begins.
    ImageEmbeddings(&'a Tensor),
    /// Pictures [n, sample_size, sample_size, 3] in −1 to 1, as the decoder makes them: only the upsampler runs.
    Small(&'a Tensor),
}

/// What a picture is made with; the names are those of diffusers' pipeline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    pub prior_num_inference_steps: usize,
    pub decoder_num_inference_steps: usize,
    pub super_res_num_inference_steps: usize,
    /// 1 switches guidance off.
    pub prior_guidance_scale: f64,
    /// 1 switches guidance off.
    pub decoder_guidance_scale: f64,
    pub prior_sampler: SamplerKind,
    pub decoder_sampler: SamplerKind,
    pub super_res_sampler: SamplerKind,
    /// Image embeddings drawn for each picture, of which the one closest to the text's is kept.
    pub prior_candidates: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            prior_num_inference_steps: 25,
            decoder_num_inference_steps: 25,
            super_res_num_inference_steps: 7,
            prior_guidance_scale: 4.0,
            decoder_guidance_scale: 8.0,
            prior_sampler: SamplerKind::Ancestral,
            decoder_sampler: SamplerKind::Ancestral,
            super_res_sampler: SamplerKind::Ancestral,
            prior_candidates: 2,
        }
    }
}

/// Where the pipeline's standard normals come from.
pub trait Noise {
    /// Draw number `occurrence` of a stage: 0 is what it starts from, i + 1 what its step i adds.
    ///
    /// # Shapes
    /// `shape` is [n, ..], one row a picture of the batch; pictures are [n, h, w, c]
    fn normal(
        &self,
        stage: Stage,
        occurrence: usize,
        shape: &[usize],
        dtype: DType,
    ) -> tensor::Result<Tensor>;
}

/// Noise that is a function of the seed, the picture's index, the stage and the occurrence: a picture does not depend
/// on what else is in its batch.
#[derive(Clone, Copy, Debug)]
pub struct SeededNoise {
    pub seed: u64,
    /// The index of the batch's first picture.
    pub first_image: u32,
    pub device: Device,
}

impl Noise for SeededNoise {
    fn normal(
        &self,
        stage: Stage,
        occurrence: usize,
        shape: &[usize],
        dtype: DType,
    ) -> tensor::Result<Tensor> {
        let name = match stage {
            Stage::Prior { candidate } => format!("prior.{candidate}"),
            Stage::Decoder => "decoder".into(),
            Stage::SuperRes => "super_res".into(),
        };
        let draw = Draw {
            first_sample: self.first_image,
            ..Draw::named(self.seed, &name, occurrence as u32)
        };
        let mut out = Tensor::uninit(shape, dtype, self.device);
        tensor::ops::random::fill_normal(&mut out, &draw, 1.0)?;
        Ok(out)
    }
}

/// A step that has been taken.
pub struct Progress<'a> {
    pub stage: Stage,
    /// Counts from 1.
    pub step: usize,
    pub steps: usize,
    /// The sample as it is now: embeddings [n, d], or pictures [n, h, w, 3].
    pub sample: &'a Tensor,
    /// The clean sample that the network sees in it; as pictures these make a denoising strip.
    pub x0: &'a Tensor,
}

/// Called after every step; an error ends the run.
pub type OnProgress<'a> = &'a mut dyn FnMut(&Progress) -> Result<()>;

/// An 8-bit picture, rows from the top, three bytes a pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Pictures of values in [−1, 1]; what lies outside is clipped.
    ///
    /// # Shapes
    /// [n, h, w, 3] → n pictures
    pub fn from_tensor(images: &Tensor) -> Result<Vec<Picture>> {
        let check = tensor::Check::new("picture", &[("images", images)]);
        let &[_, height, width, 3] = images.dims() else {
            return Err(check.error("pictures must be [n, h, w, 3]").into());
        };
        let byte = |v: &f64| ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        let values = images.to_f64_vec()?;
        let rows = values.chunks(height * width * 3);
        Ok(rows
            .map(|v| Picture {
                width,
                height,
                rgb: v.iter().map(byte).collect(),
            })
            .collect())
    }
}

/// What a run made.
pub struct Generated {
    pub pictures: Vec<Picture>,
    /// The pictures before the upsampler, in [−1, 1]. [n, h, w, 3]
    pub small: Tensor,
    /// The embeddings that the decoder drew them from, if it did. [n, d]
    pub image_embeddings: Option<Tensor>,
    /// [n, d]
    pub text_embeddings: Tensor,
}

/// What the text encoder says of n texts.
#[derive(Clone, Debug)]
pub struct TextConditioning {
    /// [n, d]
    pub embeds: Tensor,
    /// [n, l, c]
    pub states: Tensor,
    /// `Bool` [n, l], false for padding.
    pub mask: Tensor,
}

/// Every component of the pipeline.
pub struct Pipeline {
    pub tokenizer: Tokenizer,
    pub text_encoder: Loaded<CLIPTextModelWithProjection>,
    pub prior: Loaded<PriorTransformer>,
    pub prior_scheduler: SchedulerConfig,
    pub text_proj: Loaded<UnCLIPTextProjModel>,
    pub decoder: Loaded<UNet2DConditionModel>,
    pub decoder_scheduler: SchedulerConfig,
    /// Takes all steps of the upsampler but the last.
    pub super_res_first: Loaded<UNet2DModel>,
    /// Takes the last step.
    pub super_res_last: Loaded<UNet2DModel>,
    pub super_res_scheduler: SchedulerConfig,
}

/// What names the components of a directory.
pub const INDEX: &str = "model_index.json";
const PIPELINE_CLASS: &str = "UnCLIPPipeline";

impl Pipeline {
    /// Opens a directory as diffusers and [`Pipeline::save`] write it.
    pub fn load(dir: impl Into<Folder>, dtype: DType, device: Device) -> Result<Pipeline> {
        let dir = dir.into();
        let class = weights::load_object(&dir, INDEX)?["_class_name"].clone();
        if class != PIPELINE_CLASS {
            let reason =
                format!("it describes {class}, only a text-to-image {PIPELINE_CLASS} can be run");
            return Err(Error::Json {
                path: dir.path(INDEX),
                reason,
            });
        }
        let scheduler = |name: &str| weights::load_scheduler(&dir.join(name));
        Ok(Pipeline {
            tokenizer: Tokenizer::from_dir(dir.join("tokenizer"))
                .map_err(|e| Error::Request(e.to_string()))?,
            text_encoder: weights::load(dir.join("text_encoder"), dtype, device)?,
            prior: weights::load(dir.join("prior"), dtype, device)?,
            prior_scheduler: scheduler("prior_scheduler")?,
            text_proj: weights::load(dir.join("text_proj"), dtype, device)?,
            decoder: weights::load(dir.join("decoder"), dtype, device)?,
            decoder_scheduler: scheduler("decoder_scheduler")?,
            super_res_first: weights::load(dir.join("super_res_first"), dtype, device)?,
            super_res_last: weights::load(dir.join("super_res_last"), dtype, device)?,
            super_res_scheduler: scheduler("super_res_scheduler")?,
        })
    }

    /// Writes the directory, its index last.
    pub fn save(&self, dir: &Path, precision: Precision) -> Result<()> {
        fn component<M: Model>(
            dir: &Path,
            name: &str,
            loaded: &Loaded<M>,
            precision: Precision,
        ) -> Result<()> {
            weights::save(&dir.join(name), &loaded.model, &loaded.params, precision)
        }
        let tokenizer = dir.join("tokenizer");
        std::fs::create_dir_all(&tokenizer).map_err(Error::write(&tokenizer))?;
        self.tokenizer
            .save(&tokenizer)
            .map_err(|e| Error::Request(e.to_string()))?;
        component(dir, "text_encoder", &self.text_encoder, precision)?;
        component(dir, "prior", &self.prior, precision)?;
        component(dir, "text_proj", &self.text_proj, precision)?;
        component(dir, "decoder", &self.decoder, precision)?;
        component(dir, "super_res_first", &self.super_res_first, precision)?;
        component(dir, "super_res_last", &self.super_res_last, precision)?;
        weights::save_scheduler(&dir.join("prior_scheduler"), &self.prior_scheduler)?;
        weights::save_scheduler(&dir.join("decoder_scheduler"), &self.decoder_scheduler)?;
        weights::save_scheduler(&dir.join("super_res_scheduler"), &self.super_res_scheduler)?;
        save_model_index(dir)
    }

    /// One picture for each prompt, `noise` of shape [prompts, ..].
    pub fn generate(
        &self,
        prompts: &[&str],
        given: Given,
        options: &Options,
        noise: &dyn Noise,
        on_progress: OnProgress,
    ) -> Result<Generated> {
        if prompts.is_empty() {
            return Err(Error::Request("there is no prompt to draw".into()));
        }
        let ids = prompts.iter().map(|prompt| self.tokenizer.encode(prompt));
        let ids = ids
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| Error::Request(e.to_string()))?;
        let text = self.encode(&ids)?;
        let empty = self
            .tokenizer
            .encode_truncated("")
            .map_err(|e| Error::Request(e.to_string()))?;
        let unconditional = self.encode(&vec![empty; prompts.len()])?;
        let (small, image_embeddings) = match given {
            Given::Small(known) => (known.clone(), None),
            Given::Text | Given::ImageEmbeddings(_) => {
                let embeddings = match given {
                    Given::ImageEmbeddings(known) => known.clone(),
                    _ => self.sample_prior(&text, &unconditional, options, noise, on_progress)?,
                };
                let small = self.sample_decoder(
                    &embeddings,
                    &text,
                    &unconditional,
                    options,
                    noise,
                    on_progress,
                )?;
                (small, Some(embeddings))
            }
        };
        let large = self.upsample(&small, options, noise, on_progress)?;
        Ok(Generated {
            pictures: Picture::from_tensor(&large)?,
            small,
            image_embeddings,
            text_embeddings: text.embeds,
        })
    }

    /// The text encoder on token ids, all of one length.
    pub fn encode(&self, ids: &[Vec<u32>]) -> Result<TextConditioning> {
        let end = self.tokenizer.end_id();
        let length = ids.first().map_or(0, Vec::len);
        let flat: Vec<i32> = ids.iter().flatten().map(|&id| id as i32).collect();
        // Padding is what follows the first end token, whichever id fills it.
        let mask = ids.iter().flat_map(|row| {
            let last = row.iter().position(|&id| id == end).unwrap_or(row.len());
            (0..row.len()).map(move |i| i <= last)
        });
        let mask: Vec<bool> = mask.collect();
        let Loaded { model, params } = &self.text_encoder;
        let shape = [ids.len(), length];
        let input_ids = Tensor::from_slice(&flat, shape, params.device());
        let t = Tape::inference(Some(params));
        let output = t.scope("text_encoder", || model.forward(&t, &input_ids, None))?;
        Ok(TextConditioning {
            embeds: output.text_embeds.tensor().clone(),
            states: output.last_hidden_state.tensor().clone(),
            mask: Tensor::from_bools(&mask, shape, params.device()),
        })
    }

    /// For each text the image embedding, of several drawn, that points closest to the text's own.
    ///
    /// # Shapes
    /// → [n, d]
    pub fn sample_prior(
        &self,
        text: &TextConditioning,
        unconditional: &TextConditioning,
        options: &Options,
        noise: &dyn Noise,
        on_progress: OnProgress,
    ) -> Result<Tensor> {
        let Loaded { model, params } = &self.prior;
        let [n, d] = [text.embeds.dims()[0], model.config().embedding_dim];
        let scale = options.prior_guidance_scale;
        let both = Guided::new(text, unconditional, scale)?;
        let predict = |step: usize, x: &Tensor| {
            let t = Tape::inference(Some(params));
            let output = t.scope("prior", || {
                model.forward(
                    &t,
                    PriorInputs {
                        hidden_states: &t.constant(both.repeat(x)?),
                        timestep: &both.timestep(&t, step, x),
                        proj_embedding: &t.constant(both.text.embeds.clone()),
                        encoder_hidden_states: &t.constant(both.text.states.clone()),
                        attention_mask: Some(&both.text.mask),
                    },
                )
            })?;
            both.guide(output.tensor(), scale, d)
        };
        let whitening = model.whitening(params)?;
        let mut best: Option<(Vec<f64>, Vec<f64>)> = None; // cosines [n], embeddings [n, d]
        for candidate in 0..options.prior_candidates.max(1) {
            let mut run = Run {
                stage: Stage::Prior { candidate },
                sampler: options
                    .prior_sampler
                    .sampler(&self.prior_scheduler, options.prior_num_inference_steps)?,
                noise,
            };
            let x = run.denoise(&[n, d], params.dtype(), &predict, on_progress)?;
            let embeddings = whitening.restore(&x)?.to_f64_vec()?;
            let cosines = cosines(&embeddings, &text.embeds.to_f64_vec()?, d);
            match &mut best {
                None => best = Some((cosines, embeddings)),
                Some((highest, kept)) => {
                    for i in 0..n {
                        if cosines[i] > highest[i] {
                            highest[i] = cosines[i];
                            kept[i * d..(i + 1) * d]
                                .copy_from_slice(&embeddings[i * d..(i + 1) * d]);
                        }
                    }
                }
            }
        }
        let kept = best.map(|(_, kept)| kept).unwrap_or_default();
        Ok(Tensor::from_f64(
            &kept,
            [n, d],
            params.dtype(),
            params.device(),
        ))
    }

    /// Small pictures in [−1, 1] of image embeddings and texts.
    ///
    /// # Shapes
    /// image_embeddings [n, d] → [n, sample_size, sample_size, in_channels]
    pub fn sample_decoder(
        &self,
        image_embeddings: &Tensor,
        text: &TextConditioning,
        unconditional: &TextConditioning,
        options: &Options,
        noise: &dyn Noise,
        on_progress: OnProgress,
    ) -> Result<Tensor> {
        let Loaded { model, params } = &self.decoder;
        let scale = options.decoder_guidance_scale;
        let both = Guided::new(text, unconditional, scale)?;
        let projection = &self.text_proj.model;
        let t = Tape::inference(Some(&self.text_proj.params));
        let conditioning = t.scope("text_proj", || {
            let mut images = t.constant(image_embeddings.clone()); // [n, d]
            if both.doubled {
                let nothing = repeat(&t, &projection.unconditional(&t)?, images.dims()[0])?; // [n, d]
                images = concat(&t, &[&nothing, &images], 0)?; // [2n, d]
            }
            let embeds = t.constant(both.text.embeds.clone());
            projection.forward(&t, &images, &embeds, &t.constant(both.text.states.clone()))
        })?;
        let mask = extend_mask(
            &both.text.mask,
            projection.config().clip_extra_context_tokens,
            0,
        )?;
        let (context, time) = (conditioning.context.detach(), conditioning.time.detach());
        let channels = model.config().in_channels;
        let predict = |step: usize, x: &Tensor| {
            let t = Tape::inference(Some(params));
            let output = t.scope("decoder", || {
                model.forward(
                    &t,
                    UNet2DConditionInputs {
                        sample: &t.constant(both.repeat(x)?),
                        timestep: &both.timestep(&t, step, x),
                        encoder_hidden_states: Some(&context),
                        class_labels: Some(&time),
                        attention_mask: Some(&mask),
                    },
                )
            })?;
            both.guide(output.tensor(), scale, channels)
        };
        let [height, width] =
            sample_size(UNet2DConditionModel::CLASS.name, model.config().sample_size)?;
        let mut run = Run {
            stage: Stage::Decoder,
            sampler: options
                .decoder_sampler
                .sampler(&self.decoder_scheduler, options.decoder_num_inference_steps)?,
            noise,
        };
        let shape = [image_embeddings.dims()[0], height, width, channels];
        let x = run.denoise(&shape, params.dtype(), &predict, on_progress)?;
        let clipped = x.to_f64_vec()?;
        let clipped: Vec<f64> = clipped.iter().map(|v| v.clamp(-1.0, 1.0)).collect();
        Ok(Tensor::from_f64(&clipped, x.shape(), x.dtype(), x.device()))
    }

    /// Pictures of full size.
    ///
    /// # Shapes
    /// small [n, h, w, 3] → [n, sample_size, sample_size, 3]
    pub fn upsample(
        &self,
        small: &Tensor,
        options: &Options,
        noise: &dyn Noise,
        on_progress: OnProgress,
    ) -> Result<Tensor> {
        let config = self.super_res_first.model.config();
        let [height, width] = sample_size(UNet2DModel::CLASS.name, config.sample_size)?;
        let channels = config.in_channels / 2;
        let t = Tape::inference(None);
        let enlarged = resize::resize(
            &t,
            &t.constant(small.clone()),
            height,
            width,
            Filter::BicubicAntialias,
        )?;
        let steps = options.super_res_num_inference_steps;
        let mut run = Run {
            stage: Stage::SuperRes,
            sampler: options
                .super_res_sampler
                .sampler(&self.super_res_scheduler, steps)?,
            noise,
        };
        let last = run.sampler.timesteps().last().copied();
        let predict = |step: usize, x: &Tensor| {
            let Loaded { model, params } = if Some(step) == last {
                &self.super_res_last
            } else {
                &self.super_res_first
            };
            let t = Tape::inference(Some(params));
            let output = t.scope("super_res", || {
                // The noisy picture comes first.
                let input = concat(&t, &[&t.constant(x.clone()), &enlarged], 3)?; // [n, h, w, 6]
                let n = x.dims()[0];
                let timestep = Tensor::full([n], step as f64, x.dtype(), x.device());
                model.forward(&t, &input, &t.constant(timestep), None)
            })?;
            Ok(output.tensor().clone())
        };
        let shape = [small.dims()[0], height, width, channels];
        run.denoise(&shape, small.dtype(), &predict, on_progress)
    }
}

/// Writes `model_index.json`: what diffusers' pipeline class finds its components by.
pub fn save_model_index(dir: &Path) -> Result<()> {
    let (diffusers, transformers) = ("diffusers", "transformers");
    let index: Value = json!({
        "_class_name": PIPELINE_CLASS,
        "_diffusers_version": weights::DIFFUSERS_VERSION,
        "decoder": [diffusers, UNet2DConditionModel::CLASS.name],
        "decoder_scheduler": [diffusers, SchedulerConfig::CLASS],
        "prior": [diffusers, PriorTransformer::CLASS.name],
        "prior_scheduler": [diffusers, SchedulerConfig::CLASS],
        "super_res_first": [diffusers, UNet2DModel::CLASS.name],
        "super_res_last": [diffusers, UNet2DModel::CLASS.name],
        "super_res_scheduler": [diffusers, SchedulerConfig::CLASS],
        "text_encoder": [transformers, CLIPTextModelWithProjection::CLASS.name],
        "text_proj": ["unclip", UnCLIPTextProjModel::CLASS.name],
        "tokenizer": [transformers, "CLIPTokenizer"],
    });
    weights::save_json(&dir.join(INDEX), &index)
}

fn sample_size(class: &'static str, size: Option<crate::config::Extent>) -> Result<[usize; 2]> {
    match size {
        Some(size) => Ok(size.height_width()),
        None => Err(Error::config(
            class,
            "sample_size is not set, so that the size of pictures is unknown",
        )),
    }
}

/// Texts, behind as many empty ones where guidance compares the two: one evaluation does both.
struct Guided {
    text: TextConditioning,
    doubled: bool,
}

impl Guided {
    fn new(
        text: &TextConditioning,
        unconditional: &TextConditioning,
        scale: f64,
    ) -> Result<Guided> {
        let doubled = scale != 1.0;
        let text = if doubled {
            TextConditioning {
                embeds: stack(&unconditional.embeds, &text.embeds)?,
                states: stack(&unconditional.states, &text.states)?,
                mask: stack_masks(&unconditional.mask, &text.mask)?,
            }
        } else {
            text.clone()
        };
        Ok(Guided { text, doubled })
    }

    /// # Shapes
    /// [n, ..] → [n, ..] or [2n, ..]
    fn repeat(&self, x: &Tensor) -> tensor::Result<Tensor> {
        if self.doubled {
            stack(x, x)
        } else {
            Ok(x.clone())
        }
    }

    fn timestep(&self, t: &Tape, step: usize, x: &Tensor) -> Var {
        let n = self.text.embeds.dims()[0];
        t.constant(Tensor::full([n], step as f64, x.dtype(), x.device()))
    }

    /// # Shapes
    /// [n, ..] or [2n, ..] → [n, ..]
    fn guide(&self, output: &Tensor, scale: f64, channels: usize) -> tensor::Result<Tensor> {
        if !self.doubled {
            return Ok(output.clone());
        }
        let n = output.dims()[0] / 2;
        guide(
            &output.narrow(0, 0, n)?,
            &output.narrow(0, n, n)?,
            scale,
            channels,
        )
    }
}

/// # Shapes
/// [n, ..] and [m, ..] → [n + m, ..]
fn stack(a: &Tensor, b: &Tensor) -> tensor::Result<Tensor> {
    tensor::ops::concat::forward(&[a, b], 0)
}

fn stack_masks(a: &Tensor, b: &Tensor) -> tensor::Result<Tensor> {
    let rows = a.to_vec::<u8>()?.into_iter().chain(b.to_vec::<u8>()?);
    let rows: Vec<bool> = rows.map(|v| v != 0).collect();
    Ok(Tensor::from_bools(
        &rows,
        [a.dims()[0] + b.dims()[0], a.dims()[1]],
        a.device(),
    ))
}

/// The cosine of each row of `a` and `b`, both [n, d].
fn cosines(a: &[f64], b: &[f64], d: usize) -> Vec<f64> {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    a.chunks(d)
        .zip(b.chunks(d))
        .map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt())
        .collect()
}

/// One walk of a sampler.
struct Run<'a> {
    stage: Stage,
    sampler: Box<dyn Sampler>,
    noise: &'a dyn Noise,
}

impl Run<'_> {
    fn denoise(
        &mut self,
        shape: &[usize],
        dtype: DType,
        predict: &dyn Fn(usize, &Tensor) -> tensor::Result<Tensor>,
        on_progress: OnProgress,
    ) -> Result<Tensor> {
        let Run {
            stage,
            sampler,
            noise,
        } = self;
        let timesteps = sampler.timesteps().to_vec();
        let mut x = noise.normal(*stage, 0, shape, dtype)?;
        for (i, &step) in timesteps.iter().enumerate() {
            let output = predict(step, &x)?;
            let mut draw = || noise.normal(*stage, i + 1, shape, dtype);
            let denoised = sampler.step(i, &output, &x, &mut draw)?;
            x = denoised.sample;
            on_progress(&Progress {
                stage: *stage,
                step: i + 1,
                steps: timesteps.len(),
                sample: &x,
                x0: &denoised.x0,
            })?;
        }
        Ok(x)
    }
}
