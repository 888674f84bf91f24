//! CLIP, and the tokenizer that it reads with.

use std::path::Path;
use std::sync::Arc;

use autograd::{ParamLayout, Params, Tape, Tensor};
use models::clip::{
    CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, INITIAL_LOGIT_BIAS,
    SIGMOID_LOGIT_SCALE,
};
use models::tokenizer::Tokenizer;
use models::{Model, declare};

use super::{Loss, Numbers, Stage, frozen, given, load_component, save_component, source};
use crate::config::ContrastiveLoss;
use crate::data::{Dataset, Loader, bpe};
use crate::interrupt::Interrupt;
use crate::picture::Picture;
use crate::{Error, Result, config};

pub struct Clip {
    model: CLIPModel,
    layout: Arc<ParamLayout>,
    tokenizer: Arc<Tokenizer>,
    loader: Loader,
    resolution: usize,
}

pub struct Batch {
    ids: Tensor,
    pixels: Tensor,
}

/// Captions that the tokenizer is trained on.
const CAPTIONS: u64 = 50_000;

impl Clip {
    pub fn new(config: &config::Clip, position: u64) -> Result<Clip> {
        let common = &config.common;
        source::check_divides(common.resolution, "image_size", config.image_size)?;
        let dataset = source::open(common)?;
        let tokenizer = Arc::new(tokenizer(config, &dataset)?);
        let (model, layout) = declare::<CLIPModel>(&architecture(config, &tokenizer))?;
        Ok(Clip {
            model,
            layout,
            loader: source::loader(common, &dataset, Some(&tokenizer), position)?,
            tokenizer,
            resolution: common.resolution,
        })
    }
}

/// The tokenizer that the configuration names, or one trained on the captions; the same captions give the same.
fn tokenizer(config: &config::Clip, dataset: &Dataset) -> Result<Tokenizer> {
    if config.tokenizer.is_empty() {
        let captions = dataset.captions(CAPTIONS)?;
        let captions = captions.iter().map(String::as_str);
        return Ok(bpe::train_tokenizer(
            captions,
            config.vocab_size,
            config.context_length,
        )?);
    }
    Tokenizer::from_dir(Path::new(&config.tokenizer)).map_err(|e| Error::usage(e.to_string()))
}

fn architecture(config: &config::Clip, tokenizer: &Tokenizer) -> CLIPConfig {
    let own = CLIPConfig::default();
    let (logit_scale, logit_bias) = match config.loss {
        ContrastiveLoss::Softmax => (own.logit_scale_init_value, None),
        ContrastiveLoss::Sigmoid => (SIGMOID_LOGIT_SCALE, Some(INITIAL_LOGIT_BIAS)),
    };
    CLIPConfig {
        logit_scale_init_value: logit_scale,
        logit_bias_init_value: logit_bias,
        text_config: CLIPTextConfig {
            vocab_size: tokenizer.vocab_size(),
            hidden_size: config.projection_dim,
            intermediate_size: 4 * config.projection_dim,
            projection_dim: config.projection_dim,
            num_hidden_layers: config.text_layers,
            num_attention_heads: config.text_heads,
            max_position_embeddings: tokenizer.context_length(),
            pad_token_id: Some(tokenizer.pad_id()),
            bos_token_id: Some(tokenizer.start_id()),
            eos_token_id: tokenizer.end_id(),
            ..CLIPTextConfig::default()
        },
        vision_config: CLIPVisionConfig {
            hidden_size: config.vision_hidden_size,
            intermediate_size: 4 * config.vision_hidden_size,
            projection_dim: config.projection_dim,
            num_hidden_layers: config.vision_layers,
            num_attention_heads: config.vision_heads,
            image_size: config.image_size,
            patch_size: config.patch_size,
            ..CLIPVisionConfig::default()
        },
        projection_dim: config.projection_dim,
        ..own
    }
}

impl Stage for Clip {
    type Batch = Batch;

    fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    fn prepare(&mut self, _: &mut Params, _: bool, _: &Interrupt) -> Result<()> {
        Ok(())
    }

    fn batch(&mut self) -> Result<Batch> {
        let batch = self.loader.next_batch()?;
        let side = self.model.config().vision().image_size;
        Ok(Batch {
            ids: source::tokens(&batch.token_ids, &self.tokenizer).0,
            pixels: frozen::normalised(&source::shrunk(&batch.images, self.resolution, side))?,
        })
    }

    fn loss(&self, t: &Tape, batch: &Batch) -> Result<Loss> {
        let (ids, pixels) = (given(t, &batch.ids)?, given(t, &batch.pixels)?);
        let out = self.model.forward(t, ids.tensor(), None, &pixels)?;
        let logits = out.logits_per_text.tensor().clone();
        let numbers = move || {
            let (n, logits) = (logits.dims()[0], logits.to_f64_vec()?);
            let found = logits.chunks(n).enumerate().filter(|(i, row)| {
                let best = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                row[*i] >= best
            });
            Ok(Numbers {
                parts: vec![("retrieval_at_1", found.count() as f64 / n as f64)],
                by_time: Vec::new(),
            })
        };
        Ok(Loss {
            total: out.loss,
            numbers: Box::new(numbers),
        })
    }

    fn constrain(&self, params: &mut Params) -> Result<()> {
        Ok(self.model.clamp_logit_scale(params)?)
    }

    fn save(&self, params: &Params, dir: &Path) -> Result<()> {
        save_component(&dir.join("clip"), &self.model, params)?;
        let tokenizer = dir.join("tokenizer");
        crate::files::create_dir(&tokenizer)?;
        self.tokenizer
            .save(&tokenizer)
            .map_err(|e| Error::failure(e.to_string()))
    }

    fn load(&self, dir: &Path) -> Result<Params> {
        load_component::<CLIPModel>(&dir.join("clip"), self.layout.clone())
    }

    fn samples(&self, _: &Params, _: &Interrupt) -> Result<Option<Picture>> {
        Ok(None)
    }
}
