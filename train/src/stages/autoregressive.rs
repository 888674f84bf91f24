//! The autoregressive prior: predicts the codes of a caption's image embedding, one from those before it (Ramesh et al.,
//! 2022, 2.2).

use std::path::Path;
use std::sync::Arc;

use autograd::ops::{cross_entropy, reshape};
use autograd::{Device, Draw, ParamLayout, Params, Tape, Tensor};
use models::declare;
use models::prior::{AutoregressivePrior, AutoregressivePriorConfig, CodeSampling, Codes};

use super::pairs::{self, Judged, Pairs};
use super::{DTYPE, Loss, Numbers, Stage, load_component, save_component};
use crate::interrupt::Interrupt;
use crate::picture::Picture;
use crate::progress::Progress;
use crate::{Error, Result, config};

pub struct Autoregressive {
    model: AutoregressivePrior,
    layout: Arc<ParamLayout>,
    pairs: Pairs,
    config: config::Prior,
    /// Made by `prepare`.
    codes: Option<Codes>,
}

impl Autoregressive {
    pub fn new(config: &config::Prior, position: u64, device: Device) -> Result<Autoregressive> {
        let pairs = Pairs::open(config, position, device)?;
        let (model, layout) = declare::<AutoregressivePrior>(&AutoregressivePriorConfig {
            num_attention_heads: config.num_attention_heads,
            attention_head_dim: config.attention_head_dim,
            num_layers: config.num_layers,
            embedding_dim: pairs.clip.width(),
            num_embeddings: pairs.clip.tokenizer().context_length(),
            num_components: config.num_components,
            num_buckets: config.num_buckets,
            dropout: 0.0,
        })?;
        Ok(Autoregressive {
            model,
            layout,
            pairs,
            config: config.clone(),
            codes: None,
        })
    }

    fn judged(&self, params: &Params, interrupt: &Interrupt) -> Result<Option<Judged>> {
        if self.config.evaluation_samples == 0 {
            return Ok(None);
        }
        let batch = self.pairs.first(self.config.evaluation_samples)?;
        let n = batch.embeddings.dims()[0];
        let text = self.pairs.clip.texts(&batch.ids)?;
        let sampling = CodeSampling {
            guidance_scale: 1.0,
            temperature: 1.0,
            top_p: 1.0,
            nearness_percentile: 0.5,
        };
        let codes = 1 + self.config.num_components;
        let mut z = Tensor::uninit([n, codes], DTYPE, Device::Cpu);
        let draw = Draw::named(self.config.common.seed, "prior.evaluation", 0);
        tensor::ops::random::fill_normal(&mut z, &draw, 1.0)?;
        let mut progress = Progress::new("draw", codes as u64, 0);
        let mut stopped = None;
        // Nothing is guided: the text takes the place of the empty one.
        let drawn = self
            .model
            .sample(params, &text, &text, &sampling, &z, |i, _| {
                progress.count(i as u64);
                interrupt.check().map_err(|error| {
                    let reason = error.to_string();
                    stopped = Some(error);
                    models::Error::Request(reason)
                })
            });
        if let Some(stopped) = stopped {
            return Err(stopped);
        }
        Ok(Some(Judged::new(&drawn?, &batch.embeddings, &text.embeds)?))
    }
}

pub struct Batch {
    ids: Vec<u32>,
    /// i32 [n, 1 + num_components], on the host.
    codes: Tensor,
}

impl Stage for Autoregressive {
    type Batch = Batch;

    fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    fn prepare(&mut self, params: &mut Params, fresh: bool, interrupt: &Interrupt) -> Result<()> {
        self.pairs.prepare(interrupt)?;
        if fresh {
            let batch = self.pairs.first(self.config.whitening_samples)?;
            let texts = self.pairs.clip.texts(&batch.ids)?.embeds.to_host()?;
            let [components, buckets] = [self.config.num_components, self.config.num_buckets];
            let codes = Codes::measure(&batch.embeddings, &texts, components, buckets)?;
            println!(
                "codes: {components} components in {buckets} buckets lose {:.2} % of the embeddings' variance",
                100.0 * codes.lost(&batch.embeddings)?
            );
            self.model.set_codes(params, &codes)?;
        }
        self.codes = Some(self.model.codes(params)?);
        Ok(())
    }

    fn batch(&mut self) -> Result<Batch> {
        let pairs::Batch { ids, embeddings } = self.pairs.next()?;
        let Some(table) = &self.codes else {
            return Err(Error::failure("the prior was not prepared"));
        };
        // How near the picture is to its caption is said also where the caption is dropped.
        let texts = self.pairs.clip.texts(&ids)?.embeds.to_host()?;
        let codes = table.encode(&embeddings, &texts)?;
        let shape = [embeddings.dims()[0], table.count()];
        Ok(Batch {
            ids,
            codes: Tensor::from_slice(&codes, shape, Device::Cpu),
        })
    }

    fn loss(&self, t: &Tape, batch: &Batch) -> Result<Loss> {
        let [n, k] = [batch.codes.dims()[0], batch.codes.dims()[1]];
        let codes = batch.codes.to_device(t.device())?;
        let texts = self.pairs.texts(&batch.ids, n, t.step())?;
        let logits = self.model.forward(t, &texts, &codes)?; // [n, k, buckets]
        let logits = reshape::reshape(t, &logits, [n * k, self.config.num_buckets])?;
        let targets = t.constant(codes.reshape([n * k])?);
        let total = cross_entropy::cross_entropy(t, &logits, &targets)?;
        Ok(Loss {
            total,
            numbers: Box::new(|| Ok(Numbers::default())),
        })
    }

    fn save(&self, params: &Params, dir: &Path) -> Result<()> {
        save_component(&dir.join("prior"), &self.model, params)
    }

    fn load(&self, dir: &Path) -> Result<Params> {
        load_component::<AutoregressivePrior>(&dir.join("prior"), self.layout.clone())
    }

    fn conclude(&self, params: &Params, _: &Path, interrupt: &Interrupt) -> Result<()> {
        if let Some(judged) = self.judged(params, interrupt)? {
            println!("{judged}");
        }
        Ok(())
    }

    fn samples(&self, _: &Params, _: &Interrupt) -> Result<Option<Picture>> {
        Ok(None)
    }
}
