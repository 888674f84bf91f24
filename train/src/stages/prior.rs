//! The prior: predicts the whitened image embedding of a caption from its noisy version (Ramesh et al., 2022, 2.2).

use std::path::Path;
use std::sync::Arc;

use autograd::ops::randn;
use autograd::{Device, Draw, ParamLayout, Params, Tape, Tensor, Var};
use models::diffusion::{
    AnalyticVariance, Prediction, Schedule, SchedulerConfig, add_noise, timesteps,
    uniform_timesteps,
};
use models::prior::{PriorConfig, PriorInputs, PriorTransformer, Whitening};
use models::{declare, weights};

use super::frozen::{FrozenClip, ImageEmbeddings, Texts};
use super::{
    DTYPE, Loss, Stage, denoising, draw, given, kept, load_component, save_component, source,
};
use crate::data::{self, Dataset, Loader};
use crate::interrupt::Interrupt;
use crate::picture::Picture;
use crate::progress::Progress;
use crate::{Result, config};

pub struct Prior {
    model: PriorTransformer,
    layout: Arc<ParamLayout>,
    clip: FrozenClip,
    dataset: Arc<Dataset>,
    loader: Loader,
    schedule: Schedule,
    config: config::Prior,
    /// Made by `prepare`.
    embeddings: Option<ImageEmbeddings>,
    whitening: Option<Whitening>,
}

pub struct Batch {
    ids: Vec<u32>,
    /// Whitened, [n, d].
    embeddings: Tensor,
}

impl Prior {
    pub fn new(config: &config::Prior, position: u64, device: Device) -> Result<Prior> {
        config::check_share("text_drop", config.text_drop)?;
        let clip = FrozenClip::open(&config.clip, device)?;
        let dataset = source::open(&config.common)?;
        let (model, layout) = declare::<PriorTransformer>(&PriorConfig {
            num_attention_heads: config.num_attention_heads,
            attention_head_dim: config.attention_head_dim,
            num_layers: config.num_layers,
            embedding_dim: clip.width(),
            num_embeddings: clip.tokenizer().context_length(),
            ..PriorConfig::default()
        })?;
        Ok(Prior {
            model,
            layout,
            loader: source::loader(&config.common, &dataset, Some(clip.tokenizer()), position)?,
            clip,
            dataset,
            schedule: SchedulerConfig::prior().schedule(),
            config: config.clone(),
            embeddings: None,
            whitening: None,
        })
    }

    fn embeddings(&self, batch: &data::Batch) -> Result<Tensor> {
        match &self.embeddings {
            Some(known) => known.of(&self.clip, batch),
            None => self.clip.images(&batch.images, self.dataset.size()),
        }
    }

    /// The clean, whitened embeddings that the network sees in noisy ones.
    ///
    /// # Shapes
    /// noisy [n, d], n time steps, n texts → [n, d]
    fn predict(&self, t: &Tape, noisy: &Var, at: &[usize], texts: &Texts) -> Result<Var> {
        let inputs = PriorInputs {
            hidden_states: noisy,
            timestep: &t.constant(timesteps(at, DTYPE, noisy.device())),
            proj_embedding: &given(t, &texts.embeds)?,
            encoder_hidden_states: &given(t, &texts.states)?,
            attention_mask: Some(&texts.mask.to_device(t.device())?),
        };
        Ok(self.model.forward(t, inputs)?)
    }

    /// Measured on the first pictures of the stage's stream, if any are asked for.
    fn analytic_variance(
        &self,
        params: &Params,
        interrupt: &Interrupt,
    ) -> Result<Option<AnalyticVariance>> {
        let samples = (self.config.variance_samples as u64).min(self.dataset.len());
        if samples == 0 {
            return Ok(None);
        }
        let common = &self.config.common;
        let tokenizer = Some(self.clip.tokenizer());
        let batch = source::preview(common, &self.dataset, tokenizer, samples as usize)?;
        let texts = self.clip.texts(&batch.token_ids)?;
        let x0 = self
            .model
            .whitening(params)?
            .whiten(&self.embeddings(&batch)?)?; // [n, d]
        let x0 = x0.to_device(params.device())?;
        let scheduler = SchedulerConfig::prior();
        let mut progress = Progress::new("variance", scheduler.num_train_timesteps as u64, 0);
        let noise = |at: usize| {
            let mut z = Tensor::uninit(x0.shape(), DTYPE, Device::Cpu);
            let draw = Draw::named(common.seed, "prior.variance", at as u32);
            tensor::ops::random::fill_normal(&mut z, &draw, 1.0)?;
            Ok(z)
        };
        let predict = |at: usize, noisy: &Tensor| {
            interrupt.check()?;
            let t = Tape::inference(Some(params));
            let noisy = t.constant(noisy.clone());
            let seen = self.predict(&t, &noisy, &vec![at; samples as usize], &texts)?;
            progress.count(at as u64 + 1);
            Ok(seen.tensor().clone())
        };
        let measured: Result<_> = AnalyticVariance::measure(&scheduler, &x0, noise, predict);
        Ok(Some(measured?))
    }
}

impl Stage for Prior {
    type Batch = Batch;

    fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    fn prepare(&mut self, params: &mut Params, fresh: bool, interrupt: &Interrupt) -> Result<()> {
        self.embeddings = Some(ImageEmbeddings::new(&self.clip, &self.dataset, interrupt)?);
        if fresh {
            let samples = (self.config.whitening_samples as u64).min(self.dataset.len());
            let batch =
                source::preview(&self.config.common, &self.dataset, None, samples as usize)?;
            let whitening = Whitening::measure(&self.embeddings(&batch)?)?;
            self.model.set_whitening(params, &whitening)?;
        }
        self.whitening = Some(self.model.whitening(params)?);
        Ok(())
    }

    fn batch(&mut self) -> Result<Batch> {
        let batch = self.loader.next_batch()?;
        let embeddings = self.embeddings(&batch)?;
        Ok(Batch {
            embeddings: match &self.whitening {
                Some(whitening) => whitening.whiten(&embeddings)?,
                None => embeddings,
            },
            ids: batch.token_ids,
        })
    }

    fn loss(&self, t: &Tape, batch: &Batch) -> Result<Loss> {
        let n = batch.embeddings.dims()[0];
        let mut ids = batch.ids.clone();
        let keep = kept(t.step(), "prior.text_drop", n, self.config.text_drop);
        source::drop_texts(&mut ids, &keep, self.clip.empty());
        let texts = self.clip.texts(&ids)?;

        let at = uniform_timesteps(&draw(t.step(), "prior.timesteps"), n, self.schedule.steps());
        let x0 = given(t, &batch.embeddings)?; // [n, d]
        let noise = t.scope("noise", || randn::randn(t, x0.dims(), DTYPE))?; // [n, d]
        let noisy = add_noise(t, &self.schedule, &x0, &noise, &at)?; // [n, d]
        let output = self.predict(t, &noisy, &at, &texts)?; // [n, d]
        denoising(
            t,
            &self.schedule,
            Prediction::Sample,
            &output,
            &x0,
            &noise,
            at,
        )
    }

    fn save(&self, params: &Params, dir: &Path) -> Result<()> {
        save_component(&dir.join("prior"), &self.model, params)
    }

    fn load(&self, dir: &Path) -> Result<Params> {
        load_component::<PriorTransformer>(&dir.join("prior"), self.layout.clone())
    }

    fn conclude(&self, params: &Params, dir: &Path, interrupt: &Interrupt) -> Result<()> {
        let scheduler = SchedulerConfig {
            analytic_variance: self.analytic_variance(params, interrupt)?.map(Arc::new),
            ..SchedulerConfig::prior()
        };
        Ok(weights::save_scheduler(
            &dir.join("prior_scheduler"),
            &scheduler,
        )?)
    }

    fn samples(&self, _: &Params, _: &Interrupt) -> Result<Option<Picture>> {
        Ok(None)
    }
}
