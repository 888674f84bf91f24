//! The decoder: predicts the noise in a small picture, given the CLIP embedding of the picture and its caption
//! (Ramesh et al., 2022, section 2.1). The projection of the embeddings is trained with it.

use std::path::Path;
use std::sync::Arc;

use autograd::ops::{randn, select_rows};
use autograd::{Device, ParamLayout, Params, ParamsBuilder, Tape, Tensor, Var};
use models::Model;
use models::config::{Extent, PerLevel};
use models::diffusion::{
    self, Schedule, SchedulerConfig, add_noise, hybrid_loss, timesteps, uniform_timesteps,
};
use models::text_proj::{UnCLIPTextProjConfig, UnCLIPTextProjModel};
use models::unet::{
    DownBlockKind, UNet2DConditionConfig, UNet2DConditionInputs, UNet2DConditionModel, UpBlockKind,
};

use super::frozen::{FrozenClip, ImageEmbeddings, Texts};
use super::{
    DTYPE, Loss, Numbers, Stage, denoise, draw, given, kept, load_component, part, put_part,
    save_component, source, squared_errors,
};
use crate::data::{Dataset, Loader};
use crate::interrupt::Interrupt;
use crate::picture::Picture;
use crate::{Error, Result, config};

const TEXT_PROJ: &str = "text_proj";
const DECODER: &str = "decoder";

pub struct Decoder {
    text_proj: UnCLIPTextProjModel,
    unet: UNet2DConditionModel,
    layout: Arc<ParamLayout>,
    clip: FrozenClip,
    dataset: Arc<Dataset>,
    loader: Loader,
    scheduler: SchedulerConfig,
    schedule: Schedule,
    config: config::Decoder,
    /// Made by `prepare`.
    embeddings: Option<ImageEmbeddings>,
}

pub struct Batch {
    ids: Vec<u32>,
    /// [n, d]
    embeddings: Tensor,
    /// [n, sample_size, sample_size, 3]
    pictures: Tensor,
}

/// Pictures of a sample grid, and the network evaluations that each takes.
const PREVIEW: usize = 8;
const PREVIEW_STEPS: usize = 20;

impl Decoder {
    pub fn new(config: &config::Decoder, position: u64, device: Device) -> Result<Decoder> {
        config::check_share("text_drop", config.text_drop)?;
        config::check_share("image_drop", config.image_drop)?;
        if !(config.snr_gamma.is_finite() && config.snr_gamma >= 1.0) {
            return Err(Error::usage("snr_gamma must be at least 1"));
        }
        source::check_divides(config.common.resolution, "sample_size", config.sample_size)?;
        let clip = FrozenClip::open(&config.clip, device)?;
        let dataset = source::open(&config.common)?;
        let mut layout = ParamLayout::default();
        let mut builder = ParamsBuilder::new(&mut layout);
        let unet = UNet2DConditionModel::new(&unet_config(config)?, &mut builder.at(DECODER))?;
        let text_proj = UnCLIPTextProjModel::new(
            &UnCLIPTextProjConfig {
                clip_extra_context_tokens: config.extra_context_tokens,
                clip_embeddings_dim: clip.width(),
                time_embed_dim: 4 * config.block_out_channels[0],
                cross_attention_dim: config.cross_attention_dim,
                extra: Default::default(),
            },
            &mut builder.at(TEXT_PROJ),
        )?;
        let scheduler = SchedulerConfig {
            prediction_type: config.prediction_type,
            ..SchedulerConfig::decoder()
        };
        Ok(Decoder {
            text_proj,
            unet,
            layout: Arc::new(layout),
            loader: source::loader(&config.common, &dataset, Some(clip.tokenizer()), position)?,
            clip,
            dataset,
            schedule: scheduler.schedule(),
            scheduler,
            config: config.clone(),
            embeddings: None,
        })
    }

    fn batch_of(&self, batch: crate::data::Batch) -> Result<Batch> {
        Ok(Batch {
            embeddings: match &self.embeddings {
                Some(known) => known.of(&self.clip, &batch)?,
                None => self.clip.images(&batch.images, self.dataset.size())?,
            },
            pictures: source::shrunk(&batch.images, self.dataset.size(), self.config.sample_size),
            ids: batch.token_ids,
        })
    }

    /// # Shapes
    /// noisy [n, h, w, 3], steps [n], embeddings [n, d] → [n, h, w, 6]
    fn predict(
        &self,
        t: &Tape,
        noisy: &Var,
        steps: &[usize],
        embeddings: &Var,
        texts: &Texts,
    ) -> Result<Var> {
        let (embeds, states) = (given(t, &texts.embeds)?, given(t, &texts.states)?);
        let conditioning = t.scope(TEXT_PROJ, || {
            self.text_proj.forward(t, embeddings, &embeds, &states)
        })?;
        let mask = models::unet::extend_mask(&texts.mask, self.config.extra_context_tokens, 0)?;
        let mask = mask.to_device(t.device())?;
        let output = t.module(DECODER, || {
            self.unet.forward(
                t,
                UNet2DConditionInputs {
                    sample: noisy,
                    timestep: &t.constant(timesteps(steps, DTYPE, t.device())),
                    encoder_hidden_states: Some(&conditioning.context),
                    class_labels: Some(&conditioning.time),
                    attention_mask: Some(&mask),
                },
            )
        })?;
        Ok(output)
    }
}

fn unet_config(config: &config::Decoder) -> Result<UNet2DConditionConfig> {
    let levels = config.block_out_channels.len();
    if levels == 0 || config.attention_levels > levels {
        return Err(Error::usage(format!(
            "attention_levels = {} must not be above the {levels} levels of block_out_channels",
            config.attention_levels
        )));
    }
    let attends = |level: usize| level + config.attention_levels >= levels;
    let down = (0..levels).map(|level| match attends(level) {
        true => DownBlockKind::SimpleCrossAttnDownBlock2D,
        false => DownBlockKind::ResnetDownsampleBlock2D,
    });
    let up = (0..levels).rev().map(|level| match attends(level) {
        true => UpBlockKind::SimpleCrossAttnUpBlock2D,
        false => UpBlockKind::ResnetUpsampleBlock2D,
    });
    Ok(UNet2DConditionConfig {
        sample_size: Some(Extent::Square(config.sample_size)),
        down_block_types: down.collect(),
        up_block_types: up.collect(),
        layers_per_block: PerLevel::All(config.layers_per_block),
        cross_attention_dim: PerLevel::All(config.cross_attention_dim),
        attention_head_dim: PerLevel::All(config.attention_head_dim),
        norm_num_groups: config.norm_num_groups,
        ..UNet2DConditionConfig::unclip(&config.block_out_channels)
    })
}

impl Stage for Decoder {
    type Batch = Batch;

    fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    fn prepare(&mut self, _: &mut Params, _: bool, interrupt: &Interrupt) -> Result<()> {
        self.embeddings = Some(ImageEmbeddings::new(&self.clip, &self.dataset, interrupt)?);
        Ok(())
    }

    fn batch(&mut self) -> Result<Batch> {
        let batch = self.loader.next_batch()?;
        self.batch_of(batch)
    }

    fn loss(&self, t: &Tape, batch: &Batch) -> Result<Loss> {
        let n = batch.embeddings.dims()[0];
        let mut ids = batch.ids.clone();
        // One draw for both, so that the unconditional output, which guidance subtracts, is trained as often as the
        // rarer of the two is dropped.
        let keep = kept(t.step(), "decoder.drop", n, self.config.text_drop);
        source::drop_texts(&mut ids, &keep, self.clip.empty());
        let texts = self.clip.texts(&ids)?;
        let keep = kept(t.step(), "decoder.drop", n, self.config.image_drop);
        let keep = Tensor::from_bools(&keep, [n], t.device());
        let embeddings = given(t, &batch.embeddings)?; // [n, d]
        let nothing = self.text_proj.unconditional(t)?; // [1, d]
        let embeddings = select_rows::select_rows(t, &keep, &embeddings, &nothing)?; // [n, d]

        let at = uniform_timesteps(
            &draw(t.step(), "decoder.timesteps"),
            n,
            self.schedule.steps(),
        );
        let x0 = given(t, &batch.pictures)?; // [n, h, w, 3]
        let noise = t.scope("noise", || randn::randn(t, x0.dims(), DTYPE))?; // [n, h, w, 3]
        let noisy = add_noise(t, &self.schedule, &x0, &noise, &at)?; // [n, h, w, 3]
        let output = self.predict(t, &noisy, &at, &embeddings, &texts)?; // [n, h, w, 6]
        let target = diffusion::target(
            t,
            &self.schedule,
            self.config.prediction_type,
            &x0,
            &noise,
            &at,
        )?;
        let loss = hybrid_loss(
            t,
            &self.schedule,
            self.config.prediction_type,
            self.config.weighting(),
            &output,
            &x0,
            &noise,
            &noisy,
            &at,
        )?;
        let (output, target) = (output.tensor().clone(), target.tensor().clone());
        let (error, bound) = (loss.error.tensor().clone(), loss.bound.tensor().clone());
        let numbers = move || {
            let errors = squared_errors(&output, &target)?;
            Ok(Numbers {
                parts: vec![("mse", error.item()?), ("vb", bound.item()?)],
                by_time: at.into_iter().zip(errors).collect(),
            })
        };
        Ok(Loss {
            total: loss.total,
            numbers: Box::new(numbers),
        })
    }

    fn save(&self, params: &Params, dir: &Path) -> Result<()> {
        let own = part(params, DECODER, &self.unet)?;
        save_component(&dir.join(DECODER), &self.unet, &own)?;
        let own = part(params, TEXT_PROJ, &self.text_proj)?;
        save_component(&dir.join(TEXT_PROJ), &self.text_proj, &own)
    }

    fn load(&self, dir: &Path) -> Result<Params> {
        let mut joint = Params::zeros(self.layout.clone(), DTYPE, Device::Cpu);
        let own = models::declare::<UNet2DConditionModel>(self.unet.config())?.1;
        let own = load_component::<UNet2DConditionModel>(&dir.join(DECODER), own)?;
        put_part(&mut joint, DECODER, &own)?;
        let own = models::declare::<UnCLIPTextProjModel>(self.text_proj.config())?.1;
        let own = load_component::<UnCLIPTextProjModel>(&dir.join(TEXT_PROJ), own)?;
        put_part(&mut joint, TEXT_PROJ, &own)?;
        Ok(joint)
    }

    /// Pictures of the first captions and embeddings of the data, without guidance, the true ones above.
    fn samples(&self, params: &Params, interrupt: &Interrupt) -> Result<Option<Picture>> {
        let preview = source::preview(
            &self.config.common,
            &self.dataset,
            Some(self.clip.tokenizer()),
            PREVIEW,
        )?;
        let captions = preview.captions.clone();
        let batch = self.batch_of(preview)?;
        let texts = self.clip.texts(&batch.ids)?;
        let made = denoise(
            &self.scheduler,
            PREVIEW_STEPS,
            batch.pictures.dims(),
            interrupt,
            |step, x| {
                let t = Tape::inference(Some(params));
                let embeddings = given(&t, &batch.embeddings)?;
                let steps = vec![step; PREVIEW];
                let output = self.predict(&t, &given(&t, x)?, &steps, &embeddings, &texts)?;
                Ok(output.tensor().to_host()?)
            },
        )?;
        let mut pictures = Picture::from_tensor(&batch.pictures)?;
        pictures.extend(Picture::from_tensor(&made)?);
        let captions: Vec<String> = captions.iter().cycle().take(2 * PREVIEW).cloned().collect();
        Ok(Some(Picture::grid(&pictures, &captions, PREVIEW, 96)))
    }
}
