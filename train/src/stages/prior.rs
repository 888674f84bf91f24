//! The diffusion prior: predicts the whitened image embedding of a caption from its noisy version (Ramesh et al., 2022, 2.2).

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

use super::frozen::Texts;
use super::pairs::{self, Judged, Pairs};
use super::{DTYPE, Loss, Stage, denoise, denoising, draw, given, load_component, save_component};
use crate::interrupt::Interrupt;
use crate::picture::Picture;
use crate::progress::Progress;
use crate::{Result, config};

pub struct Prior {
    model: PriorTransformer,
    layout: Arc<ParamLayout>,
    pairs: Pairs,
    schedule: Schedule,
    config: config::Prior,
    /// Made by `prepare`.
    whitening: Option<Whitening>,
}

pub struct Batch {
    ids: Vec<u32>,
    /// Whitened, [n, d].
    embeddings: Tensor,
}

/// Steps that embeddings are drawn in to be judged.
const STEPS: usize = 25;

impl Prior {
    pub fn new(config: &config::Prior, position: u64, device: Device) -> Result<Prior> {
        let pairs = Pairs::open(config, position, device)?;
        let (model, layout) = declare::<PriorTransformer>(&PriorConfig {
            num_attention_heads: config.num_attention_heads,
            attention_head_dim: config.attention_head_dim,
            num_layers: config.num_layers,
            embedding_dim: pairs.clip.width(),
            num_embeddings: pairs.clip.tokenizer().context_length(),
            ..PriorConfig::default()
        })?;
        Ok(Prior {
            model,
            layout,
            pairs,
            schedule: SchedulerConfig::prior().schedule(),
            config: config.clone(),
            whitening: None,
        })
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
        if self.config.variance_samples == 0 {
            return Ok(None);
        }
        let batch = self.pairs.first(self.config.variance_samples)?;
        let texts = self.pairs.clip.texts(&batch.ids)?;
        let x0 = self.model.whitening(params)?.whiten(&batch.embeddings)?; // [n, d]
        let x0 = x0.to_device(params.device())?;
        let scheduler = SchedulerConfig::prior();
        let mut progress = Progress::new("variance", scheduler.num_train_timesteps as u64, 0);
        let noise = |at: usize| {
            let mut z = Tensor::uninit(x0.shape(), DTYPE, Device::Cpu);
            let draw = Draw::named(self.config.common.seed, "prior.variance", at as u32);
            tensor::ops::random::fill_normal(&mut z, &draw, 1.0)?;
            Ok(z)
        };
        let predict = |at: usize, noisy: &Tensor| {
            interrupt.check()?;
            let t = Tape::inference(Some(params));
            let noisy = t.constant(noisy.clone());
            let at_all = vec![at; x0.dims()[0]];
            let seen = self.predict(&t, &noisy, &at_all, &texts)?;
            progress.count(at as u64 + 1);
            Ok(seen.tensor().clone())
        };
        let measured: Result<_> = AnalyticVariance::measure(&scheduler, &x0, noise, predict);
        Ok(Some(measured?))
    }

    /// How near embeddings that are drawn for captions are to their pictures', if that is asked for.
    fn judged(&self, params: &Params, interrupt: &Interrupt) -> Result<Option<Judged>> {
        if self.config.evaluation_samples == 0 {
            return Ok(None);
        }
        let batch = self.pairs.first(self.config.evaluation_samples)?;
        let texts = self.pairs.clip.texts(&batch.ids)?;
        let predict = |at: usize, x: &Tensor| {
            let t = Tape::inference(Some(params));
            let all = vec![at; x.dims()[0]];
            let seen = self.predict(&t, &given(&t, x)?, &all, &texts)?;
            Ok(seen.tensor().to_host()?)
        };
        let scheduler = SchedulerConfig::prior();
        let drawn = denoise(
            &scheduler,
            STEPS,
            batch.embeddings.dims(),
            interrupt,
            predict,
        )?;
        let drawn = self.model.whitening(params)?.restore(&drawn)?;
        Ok(Some(Judged::new(&drawn, &batch.embeddings, &texts.embeds)?))
    }
}

impl Stage for Prior {
    type Batch = Batch;

    fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    fn prepare(&mut self, params: &mut Params, fresh: bool, interrupt: &Interrupt) -> Result<()> {
        self.pairs.prepare(interrupt)?;
        if fresh {
            let batch = self.pairs.first(self.config.whitening_samples)?;
            let whitening = Whitening::measure(&batch.embeddings)?;
            self.model.set_whitening(params, &whitening)?;
        }
        self.whitening = Some(self.model.whitening(params)?);
        Ok(())
    }

    fn batch(&mut self) -> Result<Batch> {
        let pairs::Batch { ids, embeddings } = self.pairs.next()?;
        Ok(Batch {
            embeddings: match &self.whitening {
                Some(whitening) => whitening.whiten(&embeddings)?,
                None => embeddings,
            },
            ids,
        })
    }

    fn loss(&self, t: &Tape, batch: &Batch) -> Result<Loss> {
        let n = batch.embeddings.dims()[0];
        let texts = self.pairs.texts(&batch.ids, n, t.step())?;
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
        weights::save_scheduler(&dir.join("prior_scheduler"), &scheduler)?;
        if let Some(judged) = self.judged(params, interrupt)? {
            println!("{judged}");
        }
        Ok(())
    }

    fn samples(&self, _: &Params, _: &Interrupt) -> Result<Option<Picture>> {
        Ok(None)
    }
}
