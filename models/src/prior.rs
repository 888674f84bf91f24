//! The diffusion prior: from a text to the CLIP embedding of an image that it describes.
//!
//! Ramesh et al. (2022), section 2.2: a causal transformer reads the text's states, its embedding, the time step, the
//! noisy image embedding and a learned query, and predicts the clean image embedding at the query. Image embeddings
//! are whitened: their mean is subtracted and each component divided by its deviation.

mod autoregressive;
mod block;
mod codes;
mod draw;

pub use autoregressive::{AutoregressivePrior, AutoregressivePriorConfig};
pub use codes::Codes;
pub use draw::CodeSampling;

use autograd::ops::{binary, concat, reshape, split, timestep_embedding};
use autograd::{Decay, Init, ParamId, Params, ParamsBuilder, Tape, Tensor, Var};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tensor::Check;

use self::block::{BlockConfig, TransformerBlock};
use crate::Result;
use crate::config::{Checks, Extra};
use crate::model::{Class, Library, Loaded, Model};
use crate::nn::{LayerNorm, Linear, TimestepEmbedding, repeat};
use crate::pipeline::Component;
use crate::unet::extend_mask;

/// One of the two priors.
pub enum Prior {
    Diffusion(Box<Component<PriorTransformer>>),
    Autoregressive(Box<Component<AutoregressivePrior>>),
}

impl From<Loaded<PriorTransformer>> for Prior {
    fn from(prior: Loaded<PriorTransformer>) -> Prior {
        Prior::Diffusion(Box::new(prior.into()))
    }
}

impl From<Loaded<AutoregressivePrior>> for Prior {
    fn from(prior: Loaded<AutoregressivePrior>) -> Prior {
        Prior::Autoregressive(Box::new(prior.into()))
    }
}

/// A layer normalisation, where one may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    Layer,
}

/// A projection, where one may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectionKind {
    Linear,
}

/// A learned token at the end of the sequence, where one may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddedToken {
    Prd,
}

/// diffusers' configuration of `PriorTransformer`, with its defaults, which are Karlo's: 1,022,030,080 parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PriorConfig {
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    pub num_layers: usize,
    /// The width of text states and image embeddings.
    pub embedding_dim: usize,
    /// Text tokens.
    pub num_embeddings: usize,
    /// Tokens after the text.
    pub additional_embeddings: usize,
    pub dropout: f64,
    pub norm_in_type: Option<NormKind>,
    pub embedding_proj_norm_type: Option<NormKind>,
    pub encoder_hid_proj_type: Option<ProjectionKind>,
    pub added_emb_type: Option<AddedToken>,
    pub time_embed_dim: Option<usize>,
    /// The width of the text embedding, if it is not `embedding_dim`.
    pub embedding_proj_dim: Option<usize>,
    /// The width of the output, if it is not `embedding_dim`.
    pub clip_embed_dim: Option<usize>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for PriorConfig {
    fn default() -> PriorConfig {
        PriorConfig {
            num_attention_heads: 32,
            attention_head_dim: 64,
            num_layers: 20,
            embedding_dim: 768,
            num_embeddings: 77,
            additional_embeddings: 4,
            dropout: 0.0,
            norm_in_type: None,
            embedding_proj_norm_type: None,
            encoder_hid_proj_type: Some(ProjectionKind::Linear),
            added_emb_type: Some(AddedToken::Prd),
            time_embed_dim: None,
            embedding_proj_dim: None,
            clip_embed_dim: None,
            extra: Extra::new(),
        }
    }
}

/// diffusers' `PriorTransformer`. Widths below: d CLIP embeddings, c the transformer's own; l is the text's length.
#[derive(Debug)]
pub struct PriorTransformer {
    config: PriorConfig,
    time_embedding: TimestepEmbedding,
    proj_in: Linear,
    embedding_proj_norm: Option<LayerNorm>,
    embedding_proj: Linear,
    encoder_hidden_states_proj: Option<Linear>,
    positional_embedding: ParamId,
    prd_embedding: Option<ParamId>,
    transformer_blocks: Vec<TransformerBlock>,
    norm_in: Option<LayerNorm>,
    norm_out: LayerNorm,
    proj_to_clip_embeddings: Linear,
    clip_mean: ParamId,
    clip_std: ParamId,
    width: usize,
}

impl Model for PriorTransformer {
    type Config = PriorConfig;
    const CLASS: Class = Class {
        name: "PriorTransformer",
        library: Library::Diffusers,
    };

    fn new(config: &PriorConfig, p: &mut ParamsBuilder) -> Result<PriorTransformer> {
        let d = config.embedding_dim;
        let text_width = config.embedding_proj_dim.unwrap_or(d);
        let outputs = config.clip_embed_dim.unwrap_or(d);
        config.check(text_width, outputs)?;
        let block = BlockConfig {
            heads: config.num_attention_heads,
            head_dim: config.attention_head_dim,
            dropout: config.dropout,
        };
        let c = block.heads * block.head_dim;
        let hidden = config.time_embed_dim.unwrap_or(c);
        let tokens = config.num_embeddings + config.additional_embeddings;
        Ok(PriorTransformer {
            time_embedding: TimestepEmbedding::new(p, c, hidden, c),
            proj_in: Linear::new(p, "proj_in", d, c),
            embedding_proj_norm: config
                .embedding_proj_norm_type
                .map(|_| LayerNorm::new(p, "embedding_proj_norm", text_width, 1e-5)),
            embedding_proj: Linear::new(p, "embedding_proj", text_width, c),
            encoder_hidden_states_proj: config
                .encoder_hid_proj_type
                .map(|_| Linear::new(p, "encoder_hidden_states_proj", d, c)),
            positional_embedding: p.declare(
                "positional_embedding",
                [1, tokens, c],
                Init::Zeros,
                Decay::No,
            ),
            prd_embedding: config
                .added_emb_type
                .map(|_| p.declare("prd_embedding", [1, 1, c], Init::Zeros, Decay::No)),
            transformer_blocks: (0..config.num_layers)
                .map(|i| TransformerBlock::new(&mut p.at(format!("transformer_blocks.{i}")), block))
                .collect(),
            norm_in: config
                .norm_in_type
                .map(|_| LayerNorm::new(p, "norm_in", c, 1e-5)),
            norm_out: LayerNorm::new(p, "norm_out", c, 1e-5),
            proj_to_clip_embeddings: Linear::new(p, "proj_to_clip_embeddings", c, outputs),
            clip_mean: p.declare("clip_mean", [1, outputs], Init::Zeros, Decay::Frozen),
            // diffusers starts at zero, under which every sample would be the mean until the statistics are set.
            clip_std: p.declare("clip_std", [1, outputs], Init::Ones, Decay::Frozen),
            width: c,
            config: config.clone(),
        })
    }

    fn config(&self) -> &PriorConfig {
        &self.config
    }
}

impl PriorConfig {
    fn check(&self, text_width: usize, outputs: usize) -> Result<()> {
        let checks = Checks(PriorTransformer::CLASS.name);
        checks.neutral(&self.extra, &[("time_embed_act_fn", json!("silu"))])?;
        checks.sizes(&[
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_dim", self.attention_head_dim),
            ("embedding_dim", self.embedding_dim),
            ("num_embeddings", self.num_embeddings),
            ("embedding_proj_dim", text_width),
            ("clip_embed_dim", outputs),
            ("time_embed_dim", self.time_embed_dim.unwrap_or(1)),
        ])?;
        let width = self
            .num_attention_heads
            .saturating_mul(self.attention_head_dim);
        checks.sizes(&[("num_attention_heads × attention_head_dim", width)])?;
        checks.require(width.is_multiple_of(2), || {
            "num_attention_heads × attention_head_dim must be even: it is the width of sine and cosine pairs".into()
        })?;
        checks.require(self.num_layers <= 1024, || {
            format!("num_layers must be at most 1024, it is {}", self.num_layers)
        })?;
        let additional = 3 + usize::from(self.added_emb_type.is_some());
        checks.require(self.additional_embeddings == additional, || {
            format!(
                "additional_embeddings must be {additional}, it is {}",
                self.additional_embeddings
            )
        })?;
        checks.probability("dropout", self.dropout)
    }
}

/// The arguments of [`PriorTransformer::forward`], under diffusers' names.
#[derive(Clone, Copy)]
pub struct PriorInputs<'a> {
    /// The noisy, whitened image embedding, [n, d].
    pub hidden_states: &'a Var,
    /// [n], of the embedding's dtype.
    pub timestep: &'a Var,
    /// The text's embedding, [n, d].
    pub proj_embedding: &'a Var,
    /// The text's states, [n, l, d].
    pub encoder_hidden_states: &'a Var,
    /// `Bool` [n, l], false for padding. As in diffusers the transformer is causal only where a mask is given; the
    /// pipeline and the trainer always give one.
    pub attention_mask: Option<&'a Tensor>,
}

impl PriorTransformer {
    /// The clean, whitened image embedding.
    ///
    /// # Shapes
    /// → [n, d]; [n, 1, d] for a network without the learned query
    pub fn forward(&self, t: &Tape, inputs: PriorInputs) -> autograd::Result<Var> {
        let PriorInputs {
            hidden_states,
            timestep,
            proj_embedding,
            encoder_hidden_states,
            attention_mask,
        } = inputs;
        let check = Check::new(
            "prior",
            &[
                ("hidden_states", hidden_states.tensor()),
                ("encoder_hidden_states", encoder_hidden_states.tensor()),
            ],
        );
        check.rank("encoder_hidden_states", encoder_hidden_states.tensor(), 3)?;
        let text_len = self.config.num_embeddings;
        check.require(encoder_hidden_states.dims()[1] == text_len, || {
            format!(
                "the text must have {text_len} tokens, it has {}",
                encoder_hidden_states.dims()[1]
            )
        })?;
        let (n, c) = (hidden_states.dims()[0], self.width);
        let token = |x: Var| reshape::reshape(t, &x, [n, 1, c]); // [n, c] → [n, 1, c]

        let sinusoids = timestep_embedding::timestep_embedding(t, timestep, c, true, 0.0)?; // [n, c]
        let time = token(self.time_embedding.forward(t, &sinusoids)?)?; // [n, 1, c]
        let normed;
        let proj_embedding = match &self.embedding_proj_norm {
            Some(norm) => {
                normed = norm.forward(t, proj_embedding)?; // [n, d]
                &normed
            }
            None => proj_embedding,
        };
        let pooled = token(self.embedding_proj.forward(t, proj_embedding)?)?; // [n, 1, c]
        let text = match &self.encoder_hidden_states_proj {
            Some(proj) => proj.forward(t, encoder_hidden_states)?, // [n, l, c]
            None => encoder_hidden_states.clone(),
        };
        let image = token(self.proj_in.forward(t, hidden_states)?)?; // [n, 1, c]
        let query = match self.prd_embedding {
            Some(id) => Some(repeat(t, &t.param(id)?, n)?), // [n, 1, c]
            None => None,
        };
        let mut sequence = vec![&text, &pooled, &time, &image];
        sequence.extend(&query);
        let x = concat::concat(t, &sequence, 1)?; // [n, l + 4, c]
        let mut x = binary::add(t, &x, &t.param(self.positional_embedding)?)?; // [n, l + 4, c]
        if let Some(norm) = &self.norm_in {
            x = norm.forward(t, &x)?; // [n, l + 4, c]
        }
        let mask = attention_mask
            .map(|mask| extend_mask(mask, 0, self.config.additional_embeddings))
            .transpose()?; // [n, l + 4]
        for (i, block) in self.transformer_blocks.iter().enumerate() {
            x = t.module(&format!("transformer_blocks.{i}"), || {
                block.forward(t, &x, mask.as_ref())
            })?; // [n, l + 4, c]
        }
        let last = x.dims()[1] - 1;
        // Normalisation and projection act on each token alone: the last is the only one needed.
        let x = split::narrow(t, &x, 1, last, 1)?; // [n, 1, c]
        let x = self.norm_out.forward(t, &x)?; // [n, 1, c]
        let y = self.proj_to_clip_embeddings.forward(t, &x)?; // [n, 1, d]
        match query {
            Some(_) => reshape::reshape(t, &y, [n, y.dims()[2]]), // [n, d]
            None => Ok(y),
        }
    }

    /// The statistics that image embeddings are whitened by.
    pub fn whitening(&self, params: &Params) -> autograd::Result<Whitening> {
        Ok(Whitening {
            mean: params.get(self.clip_mean)?.to_f64_vec()?,
            std: params.get(self.clip_std)?.to_f64_vec()?,
        })
    }

    /// Stores the statistics beside the weights.
    pub fn set_whitening(
        &self,
        params: &mut Params,
        whitening: &Whitening,
    ) -> autograd::Result<()> {
        let (dtype, device) = (params.dtype(), params.device());
        let row = |values: &[f64]| Tensor::from_f64(values, [1, values.len()], dtype, device);
        params.set(self.clip_mean, &row(&whitening.mean))?;
        params.set(self.clip_std, &row(&whitening.std))
    }
}

/// The mean and the deviation of every component of image embeddings.
#[derive(Clone, Debug, PartialEq)]
pub struct Whitening {
    pub mean: Vec<f64>,
    pub std: Vec<f64>,
}

impl Whitening {
    /// The statistics of `embeddings` [n, d]; a component that never changes gets a deviation of 1.
    pub fn measure(embeddings: &Tensor) -> autograd::Result<Whitening> {
        let check = Check::new("whitening", &[("embeddings", embeddings)]);
        check.rank("embeddings", embeddings, 2)?;
        check.require(!embeddings.is_empty(), || {
            "there are no embeddings to measure".into()
        })?;
        let [n, d] = [embeddings.dims()[0], embeddings.dims()[1]];
        let values = embeddings.to_f64_vec()?;
        let mut mean = vec![0.0; d];
        for row in values.chunks(d) {
            mean.iter_mut()
                .zip(row)
                .for_each(|(m, v)| *m += v / n as f64);
        }
        let mut variance = vec![0.0; d];
        for row in values.chunks(d) {
            for ((s, v), m) in variance.iter_mut().zip(row).zip(&mean) {
                *s += (v - m).powi(2) / n as f64;
            }
        }
        let std = variance
            .iter()
            .map(|&v| if v > 0.0 { v.sqrt() } else { 1.0 })
            .collect();
        Ok(Whitening { mean, std })
    }

    /// (z − mean)/deviation.
    ///
    /// # Shapes
    /// [n, d] → [n, d]
    pub fn whiten(&self, embeddings: &Tensor) -> autograd::Result<Tensor> {
        self.map(embeddings, |z, mean, std| (z - mean) / std)
    }

    /// z·deviation + mean.
    ///
    /// # Shapes
    /// [n, d] → [n, d]
    pub fn restore(&self, whitened: &Tensor) -> autograd::Result<Tensor> {
        self.map(whitened, |z, mean, std| z * std + mean)
    }

    fn map(&self, x: &Tensor, f: impl Fn(f64, f64, f64) -> f64) -> autograd::Result<Tensor> {
        let d = self.mean.len();
        Check::new("whitening", &[("embeddings", x)])
            .require(x.rank() == 2 && x.dims()[1] == d, || {
                format!("embeddings must be [n, {d}]")
            })?;
        let values: Vec<f64> = x
            .to_f64_vec()?
            .iter()
            .enumerate()
            .map(|(i, &z)| f(z, self.mean[i % d], self.std[i % d]))
            .collect();
        Ok(Tensor::from_f64(&values, x.shape(), x.dtype(), x.device()))
    }
}
