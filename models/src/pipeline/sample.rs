//! From texts to pictures, stage by stage.

use autograd::ops::concat::concat;
use autograd::ops::resize::{self, Filter};
use autograd::{DType, Tape, Tensor};

use super::guided::Guided;
use super::known::renoised;
use super::noise::{drawn, latents};
use super::{
    Component, Enlarger, Generated, Given, Known, Latent, Noise, OnProgress, Opened, Options,
    Picture, Pipeline, Progress, Region, Stage, TextConditioning,
};
use crate::clip::CLIPTextModelWithProjection;
use crate::config::Extent;
use crate::diffusion::{Inversion, Sampler, SamplerKind, SchedulerConfig};
use crate::embeddings::cosine;
use crate::model::{Loaded, Model};
use crate::nn::repeat;
use crate::prior::{AutoregressivePrior, Prior, PriorInputs, PriorTransformer};
use crate::unet::{UNet2DConditionInputs, UNet2DConditionModel, UNet2DModel, extend_mask};
use crate::{Error, Result};

impl Pipeline {
    /// One picture for each prompt, `noise` of shape [prompts, ..]. Where more than the text is given, an empty prompt
    /// stands for none.
    pub fn generate(
        &self,
        prompts: &[&str],
        given: Given,
        options: &Options,
        noise: &dyn Noise,
        on_progress: OnProgress,
    ) -> Result<Generated> {
        self.draw(prompts, given, None, options, noise, on_progress)
    }

    /// As [`generate`](Self::generate), with a part of every picture that is to stay as it is.
    ///
    /// # Errors
    /// Also if the known part does not have the sizes that the networks draw, or its steps cannot be taken again.
    pub fn inpaint(
        &self,
        prompts: &[&str],
        given: Given,
        known: &Known,
        options: &Options,
        noise: &dyn Noise,
        on_progress: OnProgress,
    ) -> Result<Generated> {
        self.draw(prompts, given, Some(known), options, noise, on_progress)
    }

    fn draw(
        &self,
        prompts: &[&str],
        given: Given,
        known: Option<&Known>,
        options: &Options,
        noise: &dyn Noise,
        on_progress: OnProgress,
    ) -> Result<Generated> {
        self.check(options)?;
        let (text, unconditional) = self.condition(prompts, !matches!(given, Given::Text))?;
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
                    known,
                    options,
                    noise,
                    on_progress,
                )?;
                (small, Some(embeddings))
            }
        };
        let known = known.map(|known| &known.large);
        let part = known.is_some();
        let mut large = self.upsample(&small, known, options, noise, on_progress)?;
        // What is to stay of a picture is known in the first upsampler's size only.
        if let (Some(second), false) = (&self.super_res_1024, part) {
            large = self.enlarge(second, &large, options, noise, on_progress)?;
        }
        Ok(Generated {
            pictures: Picture::from_tensor(&large)?,
            small,
            image_embeddings,
            text_embeddings: text.embeds,
        })
    }

    /// How often prior, decoder, upsampler and second upsampler are evaluated for a batch of pictures.
    pub fn evaluations(&self, options: &Options) -> [usize; 4] {
        let [prior, decoder, super_res] = options.evaluations();
        let prior = match &self.prior {
            Some(Prior::Autoregressive(prior)) => {
                prior.config().codes() * options.prior_candidates.max(1)
            }
            Some(Prior::Diffusion(_)) | None => prior,
        };
        let second = self.super_res_1024.iter();
        let second = second.map(|_| options.second_evaluations()).sum();
        [prior, decoder, super_res, second]
    }

    /// Refuses options that cannot be sampled with, before anything is computed.
    pub fn check(&self, options: &Options) -> Result<()> {
        if let Some(prior) = &self.prior {
            options.check_prior(prior)?;
        }
        if let Some(second) = &self.super_res_1024 {
            options.check_second(&second.scheduler)?;
        }
        options.check(
            &self.prior_scheduler,
            &self.decoder_scheduler,
            &self.super_res_scheduler,
        )
    }

    /// All noise that `images` pictures are made of, in the order in which it is drawn.
    pub fn latents(&self, options: &Options, images: usize) -> Result<Vec<Latent>> {
        let [[h, w], [large_h, large_w]] = [self.small_size()?, self.large_size()?];
        let embedding = match self.prior()? {
            Prior::Diffusion(prior) => {
                let steps = options.prior_num_inference_steps;
                let draws = drawn(options.prior_sampler, steps);
                (draws, prior.config().embedding_dim)
            }
            Prior::Autoregressive(prior) => (1, prior.config().codes()),
        };
        let small = [h, w, self.decoder.config().in_channels];
        let large = [large_h, large_w, self.colours()];
        let larger = match &self.super_res_1024 {
            Some(second) => {
                let [h, w] = second.size()?;
                Some([h, w, second.colours()])
            }
            None => None,
        };
        Ok(latents(options, images, embedding, small, large, larger))
    }

    /// Height and width of what the decoder draws.
    pub fn small_size(&self) -> Result<[usize; 2]> {
        let size = self.decoder.config().sample_size;
        sample_size(UNet2DConditionModel::CLASS.name, size)
    }

    /// Height and width of what the upsampler draws.
    pub fn large_size(&self) -> Result<[usize; 2]> {
        let size = self.super_res_first.config().sample_size;
        sample_size(UNet2DModel::CLASS.name, size)
    }

    /// Channels of what the upsampler draws; as many of its inputs are the enlarged picture.
    fn colours(&self) -> usize {
        self.super_res_first.config().in_channels / 2
    }

    /// What the text encoder says of the prompts, and of as many empty ones.
    ///
    /// # Errors
    /// If there is no prompt, one is too long, or one is empty and must not be.
    pub fn condition(
        &self,
        prompts: &[&str],
        may_be_empty: bool,
    ) -> Result<(TextConditioning, TextConditioning)> {
        if prompts.is_empty() {
            return Err(Error::Request("there is no prompt to draw".into()));
        }
        let refused = |e: crate::tokenizer::TokenizerError| Error::Request(e.to_string());
        let empty = self.tokenizer.encode_truncated("").map_err(refused)?;
        let ids = prompts.iter().map(|prompt| match prompt.is_empty() {
            true if may_be_empty => Ok(empty.clone()),
            _ => self.tokenizer.encode(prompt).map_err(refused),
        });
        let ids = ids.collect::<Result<Vec<_>>>()?;
        let encoder = self.text_encoder.open()?;
        let text = self.encode(&encoder, &ids)?;
        let unconditional = self.encode(&encoder, &vec![empty; prompts.len()])?;
        Ok((text, unconditional))
    }

    /// The text encoder on token ids, all of one length.
    fn encode(
        &self,
        Loaded { model, params }: &Loaded<CLIPTextModelWithProjection>,
        ids: &[Vec<u32>],
    ) -> Result<TextConditioning> {
        let end = self.tokenizer.end_id();
        let length = ids.first().map_or(0, Vec::len);
        let flat: Vec<i32> = ids.iter().flatten().map(|&id| id as i32).collect();
        // Padding is what follows the first end token, whichever id fills it.
        let mask = ids.iter().flat_map(|row| {
            let last = row.iter().position(|&id| id == end).unwrap_or(row.len());
            (0..row.len()).map(move |i| i <= last)
        });
        let mask: Vec<bool> = mask.collect();
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
        let prior = match self.prior()? {
            Prior::Diffusion(prior) => OpenedPrior::Diffusion(prior.open()?),
            Prior::Autoregressive(prior) => OpenedPrior::Autoregressive(prior.open()?),
        };
        let (n, d) = (text.embeds.dims()[0], text.embeds.shape().last_dim());
        let (dtype, device) = (text.embeds.dtype(), text.embeds.device());
        let texts = text.embeds.to_f64_vec()?;
        let mut best: Option<(Vec<f64>, Vec<f64>)> = None; // cosines [n], embeddings [n, d]
        for candidate in 0..options.prior_candidates.max(1) {
            let stage = Stage::Prior { candidate };
            let embeddings = match &prior {
                OpenedPrior::Diffusion(prior) => self.denoise_embeddings(
                    prior,
                    stage,
                    text,
                    unconditional,
                    options,
                    noise,
                    on_progress,
                )?,
                OpenedPrior::Autoregressive(prior) => {
                    let sampling = options.code_sampling();
                    let steps = prior.model.config().codes();
                    let z = noise.normal(stage, 0, &[n, steps], dtype)?;
                    let mut seen = |step: usize, embeddings: &Tensor| {
                        on_progress(&Progress {
                            stage,
                            step,
                            steps,
                            sample: embeddings,
                            x0: embeddings,
                        })
                    };
                    prior.model.sample(
                        &prior.params,
                        text,
                        unconditional,
                        &sampling,
                        &z,
                        &mut seen,
                    )?
                }
            };
            let embeddings = embeddings.to_f64_vec()?;
            let rows = embeddings.chunks(d).zip(texts.chunks(d));
            let cosines: Vec<f64> = rows.map(|(a, b)| cosine(a, b)).collect();
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
        Ok(Tensor::from_f64(&kept, [n, d], dtype, device))
    }

    /// Image embeddings of texts by the diffusion prior.
    ///
    /// # Shapes
    /// → [n, d]
    #[allow(clippy::too_many_arguments)]
    fn denoise_embeddings(
        &self,
        Loaded { model, params }: &Loaded<PriorTransformer>,
        stage: Stage,
        text: &TextConditioning,
        unconditional: &TextConditioning,
        options: &Options,
        noise: &dyn Noise,
        on_progress: OnProgress,
    ) -> Result<Tensor> {
        let [n, d] = [text.embeds.dims()[0], model.config().embedding_dim];
        let total = self.prior_scheduler.num_train_timesteps;
        let both = Guided::new(text, unconditional, options.prior_guidance(), total)?;
        let mut predict = |At { timestep, .. }: At, x: &Tensor| -> Result<Tensor> {
            let t = Tape::inference(Some(params));
            let row = |x: &Tensor| both.rows(x, timestep);
            let output = t.scope("prior", || {
                model.forward(
                    &t,
                    PriorInputs {
                        hidden_states: &t.constant(both.repeat(x, timestep)?),
                        timestep: &both.timestep(&t, timestep, x),
                        proj_embedding: &t.constant(row(&both.text.embeds)?),
                        encoder_hidden_states: &t.constant(row(&both.text.states)?),
                        attention_mask: Some(&row(&both.text.mask)?),
                    },
                )
            })?;
            Ok(both.guide(output.tensor(), timestep, d)?)
        };
        let scheduler = options.prior_scheduler(&self.prior_scheduler);
        let mut run = Run {
            stage,
            sampler: options
                .prior_sampler
                .sampler(&scheduler, options.prior_num_inference_steps)?,
            noise,
            kept: None,
        };
        let x = run.denoise(&[n, d], params.dtype(), &mut predict, on_progress)?;
        Ok(model.whitening(params)?.restore(&x)?)
    }

    /// Small pictures in [−1, 1] of image embeddings and texts.
    ///
    /// # Shapes
    /// image_embeddings [n, d] → [n, sample_size, sample_size, in_channels]
    #[allow(clippy::too_many_arguments)]
    pub fn sample_decoder(
        &self,
        image_embeddings: &Tensor,
        text: &TextConditioning,
        unconditional: &TextConditioning,
        known: Option<&Known>,
        options: &Options,
        noise: &dyn Noise,
        on_progress: OnProgress,
    ) -> Result<Tensor> {
        let mut predict = self.decoder(image_embeddings, text, unconditional, options)?;
        let scheduler = options.decoder_scheduler(&self.decoder_scheduler);
        let (kind, steps) = (options.decoder_sampler, options.decoder_num_inference_steps);
        if let Some(known) = known {
            known.check(options)?;
        }
        let [height, width] = self.small_size()?;
        let mut run = Run {
            stage: Stage::Decoder,
            sampler: kind.sampler(&scheduler, steps)?,
            noise,
            kept: known.map(|known| Kept {
                region: &known.small,
                resamples: known.resamples,
                scheduler: &scheduler,
            }),
        };
        let n = image_embeddings.dims()[0];
        let shape = [n, height, width, self.decoder.config().in_channels];
        let x = run.denoise(&shape, image_embeddings.dtype(), &mut predict, on_progress)?;
        let clipped: Vec<f64> = x.to_f64_vec()?.iter().map(|v| v.clamp(-1.0, 1.0)).collect();
        Ok(Tensor::from_f64(&clipped, x.shape(), x.dtype(), x.device()))
    }

    /// The noise from which the decoder, sampled by DDIM with η = 0 and the same options, draws `small` again (Ramesh et
    /// al., 2022, section 3.1). `iterations` is that of [`Inversion::new`].
    ///
    /// # Shapes
    /// small [n, sample_size, sample_size, in_channels] in −1 to 1, image_embeddings [n, d] → small's
    #[allow(clippy::too_many_arguments)]
    pub fn invert_decoder(
        &self,
        small: &Tensor,
        image_embeddings: &Tensor,
        text: &TextConditioning,
        unconditional: &TextConditioning,
        options: &Options,
        iterations: usize,
        on_progress: OnProgress,
    ) -> Result<Tensor> {
        let mut predict = self.decoder(image_embeddings, text, unconditional, options)?;
        let scheduler = options.decoder_scheduler(&self.decoder_scheduler);
        let steps = options.decoder_num_inference_steps;
        let mut run = Run {
            stage: Stage::Inversion,
            sampler: Box::new(Inversion::new(&scheduler, steps, iterations)?),
            noise: &NoNoise,
            kept: None,
        };
        run.walk(small.clone(), &mut predict, on_progress)
    }

    /// The decoder under its conditions, as a function of the time step and the noisy pictures.
    fn decoder(
        &self,
        image_embeddings: &Tensor,
        text: &TextConditioning,
        unconditional: &TextConditioning,
        options: &Options,
    ) -> Result<impl FnMut(At, &Tensor) -> Result<Tensor> + '_> {
        let total = self.decoder_scheduler.num_train_timesteps;
        let both = Guided::new(text, unconditional, options.decoder_guidance(), total)?;
        let text_proj = self.text_proj.open()?;
        let projection = &text_proj.model;
        let t = Tape::inference(Some(&text_proj.params));
        let conditioning = t.scope("text_proj", || {
            let mut images = t.constant(image_embeddings.clone()); // [n, d]
            if both.doubled() {
                let nothing = repeat(&t, &projection.unconditional(&t)?, images.dims()[0])?; // [n, d]
                images = concat(&t, &[&nothing, &images], 0)?; // [2n, d]
            }
            let embeds = t.constant(both.text.embeds.clone());
            projection.forward(&t, &images, &embeds, &t.constant(both.text.states.clone()))
        })?;
        let tokens = projection.config().clip_extra_context_tokens;
        let mask = extend_mask(&both.text.mask, tokens, 0)?;
        let context = conditioning.context.tensor().clone();
        let time = conditioning.time.tensor().clone();
        let channels = self.decoder.config().in_channels;
        let decoder = self.decoder.open()?;
        Ok(move |At { timestep, .. }: At, x: &Tensor| {
            let Loaded { model, params } = &*decoder;
            let t = Tape::inference(Some(params));
            let row = |x: &Tensor| both.rows(x, timestep);
            let output = t.scope("decoder", || {
                model.forward(
                    &t,
                    UNet2DConditionInputs {
                        sample: &t.constant(both.repeat(x, timestep)?),
                        timestep: &both.timestep(&t, timestep, x),
                        encoder_hidden_states: Some(&t.constant(row(&context)?)),
                        class_labels: Some(&t.constant(row(&time)?)),
                        attention_mask: Some(&row(&mask)?),
                    },
                )
            })?;
            Ok(both.guide(output.tensor(), timestep, channels)?)
        })
    }

    /// Pictures of full size, of which a part may be known.
    ///
    /// # Shapes
    /// small [n, h, w, 3] → [n, sample_size, sample_size, 3]
    pub fn upsample(
        &self,
        small: &Tensor,
        known: Option<&Region>,
        options: &Options,
        noise: &dyn Noise,
        on_progress: OnProgress,
    ) -> Result<Tensor> {
        let enlargement = Enlargement {
            stage: Stage::SuperRes,
            size: self.large_size()?,
            colours: self.colours(),
            networks: [&self.super_res_first, &self.super_res_last],
            scheduler: &self.super_res_scheduler,
            sampler: options.super_res_sampler,
            steps: options.super_res_num_inference_steps,
        };
        enlargement.run(small, known, noise, on_progress)
    }

    /// The same by the second upsampler.
    ///
    /// # Shapes
    /// pictures [n, h, w, 3] → [n, larger, larger, 3]
    fn enlarge(
        &self,
        second: &Enlarger,
        pictures: &Tensor,
        options: &Options,
        noise: &dyn Noise,
        on_progress: OnProgress,
    ) -> Result<Tensor> {
        let enlargement = Enlargement {
            stage: Stage::SuperRes1024,
            size: second.size()?,
            colours: second.colours(),
            networks: [&second.network; 2],
            scheduler: &second.scheduler,
            sampler: options.super_res_1024_sampler,
            steps: options.super_res_1024_num_inference_steps,
        };
        let values = pictures.to_f64_vec()?;
        let clipped: Vec<f64> = values.iter().map(|v| v.clamp(-1.0, 1.0)).collect();
        let (shape, dtype) = (pictures.shape(), pictures.dtype());
        let clipped = Tensor::from_f64(&clipped, shape, dtype, pictures.device());
        enlargement.run(&clipped, None, noise, on_progress)
    }
}

impl Enlarger {
    /// Height and width of what it draws.
    pub fn size(&self) -> Result<[usize; 2]> {
        let size = self.network.config().sample_size;
        sample_size(UNet2DModel::CLASS.name, size)
    }

    fn colours(&self) -> usize {
        self.network.config().in_channels / 2
    }
}

/// One upsampler at work.
struct Enlargement<'a> {
    stage: Stage,
    /// Height and width of what comes out.
    size: [usize; 2],
    colours: usize,
    /// For all steps but the last, and for the last.
    networks: [&'a Component<UNet2DModel>; 2],
    scheduler: &'a SchedulerConfig,
    sampler: SamplerKind,
    steps: usize,
}

impl Enlargement<'_> {
    /// # Shapes
    /// small [n, h, w, 3] → [n, ..size, 3]
    fn run(
        &self,
        small: &Tensor,
        known: Option<&Region>,
        noise: &dyn Noise,
        on_progress: OnProgress,
    ) -> Result<Tensor> {
        let [height, width] = self.size;
        let t = Tape::inference(None);
        let enlarged = resize::resize(
            &t,
            &t.constant(small.clone()),
            height,
            width,
            Filter::BicubicAntialias,
        )?;
        let mut run = Run {
            stage: self.stage,
            sampler: self.sampler.sampler(self.scheduler, self.steps)?,
            noise,
            kept: known.map(|region| Kept {
                region,
                resamples: 1,
                scheduler: self.scheduler,
            }),
        };
        let last = run.sampler.timesteps().len() - 1;
        let [first_network, last_network] = self.networks;
        let mut at_work: Option<(bool, Opened<UNet2DModel>)> = None;
        let mut predict = |At { index, timestep }: At, x: &Tensor| -> Result<Tensor> {
            // Where both are one, it stays.
            let is_last = index == last && !std::ptr::eq(first_network, last_network);
            let network = match at_work.take().filter(|&(of_last, _)| of_last == is_last) {
                Some((_, network)) => network,
                // The one before has been dropped.
                None if is_last => last_network.open()?,
                None => first_network.open()?,
            };
            let (_, network) = at_work.insert((is_last, network));
            let Loaded { model, params } = &**network;
            let t = Tape::inference(Some(params));
            let output = t.scope("super_res", || {
                // The noisy picture comes first.
                let input = concat(&t, &[&t.constant(x.clone()), &enlarged], 3)?; // [n, h, w, 6]
                let n = x.dims()[0];
                let timestep = Tensor::full([n], timestep as f64, x.dtype(), x.device());
                model.forward(&t, &input, &t.constant(timestep), None)
            })?;
            Ok(output.tensor().clone())
        };
        let shape = [small.dims()[0], height, width, self.colours];
        run.denoise(&shape, small.dtype(), &mut predict, on_progress)
    }
}

fn sample_size(class: &'static str, size: Option<Extent>) -> Result<[usize; 2]> {
    match size {
        Some(size) => Ok(size.height_width()),
        None => Err(Error::config(
            class,
            "sample_size is not set, so that the size of pictures is unknown",
        )),
    }
}

/// Where a walk is: the evaluation's number, and its time step.
#[derive(Clone, Copy)]
struct At {
    index: usize,
    timestep: usize,
}

/// A network under its conditions.
type Predict<'a> = &'a mut dyn FnMut(At, &Tensor) -> Result<Tensor>;

/// Either prior at work.
enum OpenedPrior<'a> {
    Diffusion(Opened<'a, PriorTransformer>),
    Autoregressive(Opened<'a, AutoregressivePrior>),
}

/// One walk of a sampler.
struct Run<'a> {
    stage: Stage,
    sampler: Box<dyn Sampler>,
    noise: &'a dyn Noise,
    /// What is known of the result.
    kept: Option<Kept<'a>>,
}

struct Kept<'a> {
    region: &'a Region,
    resamples: usize,
    scheduler: &'a SchedulerConfig,
}

/// Noise for a walk that draws none.
struct NoNoise;

impl Noise for NoNoise {
    fn normal(&self, _: Stage, _: usize, _: &[usize], _: DType) -> tensor::Result<Tensor> {
        Err(tensor::Check::new("noise", &[]).error("this walk draws none"))
    }
}

impl Run<'_> {
    /// From the stage's first noise.
    fn denoise(
        &mut self,
        shape: &[usize],
        dtype: DType,
        predict: Predict,
        on_progress: OnProgress,
    ) -> Result<Tensor> {
        let x = self.noise.normal(self.stage, 0, shape, dtype)?;
        self.walk(x, predict, on_progress)
    }

    fn walk(&mut self, mut x: Tensor, predict: Predict, on_progress: OnProgress) -> Result<Tensor> {
        let Run {
            stage,
            sampler,
            noise,
            kept,
        } = self;
        let timesteps = sampler.timesteps().to_vec();
        let last = timesteps.len().saturating_sub(1);
        let schedule = kept.as_ref().map(|kept| kept.scheduler.schedule());
        let rounds = kept.as_ref().map_or(1, |kept| kept.resamples);
        let (mut done, total) = (0, last * rounds + 1);
        // What taking steps again draws is numbered after what the steps draw.
        let mut further = timesteps.len();
        for (index, &timestep) in timesteps.iter().enumerate() {
            // The last step has no noise to go back to.
            for round in 0..if index < last { rounds } else { 1 } {
                let mut occurrence = index + 1;
                if let (Some(schedule), true) = (&schedule, round > 0) {
                    let z = noise.normal(*stage, further + 1, x.dims(), x.dtype())?;
                    x = renoised(schedule, (timestep, timesteps[index + 1]), &x, &z)?;
                    occurrence = further + 2;
                    further += 2;
                }
                let mut output = predict(At { index, timestep }, &x)?;
                if let (Some(kept), Some(schedule)) = (&*kept, &schedule) {
                    let prediction = kept.scheduler.prediction_type;
                    let alpha_bar = schedule.alpha_bar(timestep);
                    output = kept.region.project(prediction, alpha_bar, &output, &x)?;
                }
                let mut draw = || noise.normal(*stage, occurrence, x.dims(), x.dtype());
                let denoised = sampler.step(index, &output, &x, &mut draw)?;
                x = denoised.sample;
                done += 1;
                on_progress(&Progress {
                    stage: *stage,
                    step: done,
                    steps: total,
                    sample: &x,
                    x0: &denoised.x0,
                })?;
            }
        }
        Ok(x)
    }
}
