//! The autoregressive prior: from a text to the codes of an image embedding, one after the other.
//!
//! Ramesh et al. (2022), section 2.2: a causal transformer reads the text's states and its embedding, then how near image
//! and text are, then the principal components of the image embedding, each as one of a thousand or so buckets
//! ([`Codes`]), and predicts each from those before it. Nobody else has weights for it: class and names are this program's, in
//! the files' form of diffusers.

use autograd::ops::{binary, concat, reshape, split};
use autograd::{Decay, Init, ParamId, Params, ParamsBuilder, Tape, Tensor, Var};
use serde::{Deserialize, Serialize};
use tensor::{Check, Device};

use super::block::{BlockConfig, Seen, TransformerBlock};
use super::codes::Codes;
use super::draw::CodeSampling;
use crate::config::Checks;
use crate::model::{Class, Library, Model};
use crate::nn::{Embedding, LayerNorm, Linear};
use crate::pipeline::TextConditioning;
use crate::unet::extend_mask;
use crate::{Error, Result};

/// The paper's has 24 blocks of width 1664 with 26 heads, and 319 components in 1,024 buckets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoregressivePriorConfig {
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    pub num_layers: usize,
    /// The width of text states and embeddings.
    pub embedding_dim: usize,
    /// Text tokens.
    pub num_embeddings: usize,
    /// Principal components that are predicted.
    pub num_components: usize,
    /// Buckets of each.
    pub num_buckets: usize,
    pub dropout: f64,
}

#[derive(Debug)]
pub struct AutoregressivePrior {
    config: AutoregressivePriorConfig,
    encoder_hidden_states_proj: Linear,
    embedding_proj: Linear,
    code_embedding: Embedding,
    positional_embedding: ParamId,
    transformer_blocks: Vec<TransformerBlock>,
    norm_out: LayerNorm,
    proj_to_buckets: Linear,
    clip_mean: ParamId,
    components: ParamId,
    bucket_low: ParamId,
    bucket_high: ParamId,
    width: usize,
}

impl Model for AutoregressivePrior {
    type Config = AutoregressivePriorConfig;
    const CLASS: Class = Class {
        name: "AutoregressivePrior",
        library: Library::Diffusers,
    };

    fn new(
        config: &AutoregressivePriorConfig,
        p: &mut ParamsBuilder,
    ) -> Result<AutoregressivePrior> {
        config.check()?;
        let (d, codes) = (config.embedding_dim, 1 + config.num_components);
        let block = BlockConfig {
            heads: config.num_attention_heads,
            head_dim: config.attention_head_dim,
            dropout: config.dropout,
        };
        let c = block.heads * block.head_dim;
        // The last code is predicted and never read.
        let tokens = config.num_embeddings + codes;
        let small = Init::Normal { std: 0.02 };
        let frozen = |p: &mut ParamsBuilder, name, shape: [usize; 2]| {
            p.declare(name, shape, Init::Zeros, Decay::Frozen)
        };
        Ok(AutoregressivePrior {
            encoder_hidden_states_proj: Linear::new(p, "encoder_hidden_states_proj", d, c),
            embedding_proj: Linear::new(p, "embedding_proj", d, c),
            code_embedding: Embedding::new(p, "code_embedding", [config.num_buckets, c], 0.02),
            positional_embedding: p.declare(
                "positional_embedding",
                [1, tokens, c],
                small,
                Decay::No,
            ),
            transformer_blocks: (0..config.num_layers)
                .map(|i| TransformerBlock::new(&mut p.at(format!("transformer_blocks.{i}")), block))
                .collect(),
            norm_out: LayerNorm::new(p, "norm_out", c, 1e-5),
            proj_to_buckets: Linear::new(p, "proj_to_buckets", c, config.num_buckets),
            clip_mean: frozen(p, "clip_mean", [1, d]),
            components: frozen(p, "components", [config.num_components, d]),
            bucket_low: frozen(p, "bucket_low", [1, codes]),
            bucket_high: frozen(p, "bucket_high", [1, codes]),
            width: c,
            config: config.clone(),
        })
    }

    fn config(&self) -> &AutoregressivePriorConfig {
        &self.config
    }
}

impl AutoregressivePriorConfig {
    fn check(&self) -> Result<()> {
        let checks = Checks(AutoregressivePrior::CLASS.name);
        checks.sizes(&[
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_dim", self.attention_head_dim),
            ("embedding_dim", self.embedding_dim),
            ("num_embeddings", self.num_embeddings),
            ("num_components", self.num_components),
            ("num_buckets", self.num_buckets),
        ])?;
        let width = self
            .num_attention_heads
            .saturating_mul(self.attention_head_dim);
        checks.sizes(&[("num_attention_heads × attention_head_dim", width)])?;
        checks.require(self.num_layers <= 1024, || {
            format!("num_layers must be at most 1024, it is {}", self.num_layers)
        })?;
        checks.require(self.num_components <= self.embedding_dim, || {
            format!(
                "num_components ({}) must be at most embedding_dim ({})",
                self.num_components, self.embedding_dim
            )
        })?;
        checks.probability("dropout", self.dropout)
    }

    /// Codes of an embedding.
    pub fn codes(&self) -> usize {
        1 + self.num_components
    }
}

impl AutoregressivePrior {
    /// What is said of each code, given the text and the codes before it.
    ///
    /// # Shapes
    /// text of n; codes i32 [n, 1 + num_components] → logits [n, 1 + num_components, num_buckets]
    pub fn forward(
        &self,
        t: &Tape,
        text: &TextConditioning,
        codes: &Tensor,
    ) -> autograd::Result<Var> {
        let (l, k) = (self.config.num_embeddings, self.config.codes());
        Check::new("autoregressive_prior", &[("codes", codes)]).shape(
            "codes",
            codes,
            &[text.embeds.dims()[0], k],
        )?;
        let prefix = self.prefix(t, text)?; // [n, l + 1, c]
        let read = t.constant(codes.narrow(1, 0, k - 1)?.contiguous()?);
        let read = self.code_embedding.forward(t, &read)?; // [n, k - 1, c]
        let x = concat::concat(t, &[&prefix, &read], 1)?; // [n, l + k, c]
        let mut x = binary::add(t, &x, &t.param(self.positional_embedding)?)?; // [n, l + k, c]
        let mask = extend_mask(&text.mask, 0, k)?.to_device(t.device())?; // [n, l + k]
        for (i, block) in self.transformer_blocks.iter().enumerate() {
            x = t.module(&format!("transformer_blocks.{i}"), || {
                block.forward(t, &x, Some(&mask))
            })?; // [n, l + k, c]
        }
        let x = split::narrow(t, &x, 1, l, k)?; // [n, k, c]
        self.logits(t, &x)
    }

    /// The tokens of the text: its states, and its embedding.
    ///
    /// # Shapes
    /// → [n, l + 1, c]
    fn prefix(&self, t: &Tape, text: &TextConditioning) -> autograd::Result<Var> {
        let (n, l) = (text.embeds.dims()[0], self.config.num_embeddings);
        let check = Check::new("autoregressive_prior", &[("states", &text.states)]);
        check.shape("states", &text.states, &[n, l, self.config.embedding_dim])?;
        let states = t.constant(text.states.clone());
        let states = self.encoder_hidden_states_proj.forward(t, &states)?; // [n, l, c]
        let pooled = self
            .embedding_proj
            .forward(t, &t.constant(text.embeds.clone()))?;
        let pooled = reshape::reshape(t, &pooled, [n, 1, self.width])?; // [n, 1, c]
        concat::concat(t, &[&states, &pooled], 1)
    }

    /// # Shapes
    /// [n, k, c] → [n, k, num_buckets]
    fn logits(&self, t: &Tape, x: &Var) -> autograd::Result<Var> {
        let x = self.norm_out.forward(t, x)?; // [n, k, c]
        self.proj_to_buckets.forward(t, &x)
    }

    /// Draws image embeddings for texts, code by code. `without` is the empty text n times, for guidance. `seen` is told of
    /// each code with the number drawn and the embeddings that the codes so far stand for.
    ///
    /// # Shapes
    /// z: standard normals [n, 1 + num_components] → [n, embedding_dim]
    pub fn sample(
        &self,
        params: &Params,
        text: &TextConditioning,
        without: &TextConditioning,
        sampling: &CodeSampling,
        z: &Tensor,
        mut seen: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        sampling.check()?;
        let (n, k) = (text.embeds.dims()[0], self.config.codes());
        Check::new("autoregressive_prior", &[("z", z)]).shape("z", z, &[n, k])?;
        let z = z.to_f64_vec()?;
        let table = self.codes(params)?;
        let guided = sampling.guidance_scale != 1.0;
        let mut readers = vec![Reader::new(self, params, text)?];
        if guided {
            readers.push(Reader::new(self, params, without)?);
        }
        let mut codes: Vec<Vec<i32>> = vec![Vec::new(); n];
        let buckets = self.config.num_buckets;
        let d = self.config.embedding_dim;
        let dtype = params.dtype();
        let mut embeddings = Tensor::zeros([n, d], dtype, params.device());
        for i in 0..k {
            let last: Vec<i32> = codes
                .iter()
                .filter_map(|codes| codes.last().copied())
                .collect();
            let logits = readers
                .iter_mut()
                .map(|reader| Ok(reader.read(&last)?.to_f64_vec()?))
                .collect::<Result<Vec<Vec<f64>>>>()?;
            for (row, codes) in codes.iter_mut().enumerate() {
                let of_row = |logits: &'_ Vec<f64>| logits[row * buckets..][..buckets].to_vec();
                let with = of_row(&logits[0]);
                if with.iter().any(|x| !x.is_finite()) {
                    return Err(Error::Request(
                        "the prior's weights give numbers that are not finite: train it again, or use another".into(),
                    ));
                }
                let without = logits.get(1).map(of_row);
                let code = sampling.choose(&with, without.as_deref(), i == 0, z[row * k + i]);
                codes.push(code as i32);
            }
            let rows: Vec<f64> = codes
                .iter()
                .flat_map(|codes| table.decode(&codes[1..]))
                .collect();
            embeddings = Tensor::from_f64(&rows, [n, d], dtype, params.device());
            seen(i + 1, &embeddings)?;
        }
        Ok(embeddings)
    }

    /// What embeddings are coded by.
    pub fn codes(&self, params: &Params) -> autograd::Result<Codes> {
        let read = |id| params.get(id)?.to_f64_vec();
        Ok(Codes {
            mean: read(self.clip_mean)?,
            components: read(self.components)?,
            low: read(self.bucket_low)?,
            high: read(self.bucket_high)?,
            buckets: self.config.num_buckets,
        })
    }

    /// Stores what embeddings are coded by beside the weights.
    ///
    /// # Errors
    /// If it is of other sizes.
    pub fn set_codes(&self, params: &mut Params, codes: &Codes) -> autograd::Result<()> {
        let (dtype, device) = (params.dtype(), params.device());
        let [components, d] = [self.config.num_components, self.config.embedding_dim];
        for (id, values, shape) in [
            (self.clip_mean, &codes.mean, [1, d]),
            (self.components, &codes.components, [components, d]),
            (self.bucket_low, &codes.low, [1, 1 + components]),
            (self.bucket_high, &codes.high, [1, 1 + components]),
        ] {
            Check::new("codes", &[]).require(values.len() == shape[0] * shape[1], || {
                format!("{} numbers are not {shape:?}", values.len())
            })?;
            params.set(id, &Tensor::from_f64(values, shape, dtype, device))?;
        }
        Ok(())
    }
}

/// A text and the codes behind it, as far as they were read: every block's keys and values are kept, so that each code costs
/// one token.
struct Reader<'a> {
    prior: &'a AutoregressivePrior,
    params: &'a Params,
    text: &'a TextConditioning,
    mask: Vec<bool>,
    seen: Vec<Seen>,
    /// Tokens read.
    tokens: usize,
}

impl<'a> Reader<'a> {
    fn new(
        prior: &'a AutoregressivePrior,
        params: &'a Params,
        text: &'a TextConditioning,
    ) -> Result<Reader<'a>> {
        let mask = text.mask.to_vec::<u8>()?;
        Ok(Reader {
            prior,
            params,
            text,
            mask: mask.into_iter().map(|v| v != 0).collect(),
            seen: prior.transformer_blocks.iter().map(|_| None).collect(),
            tokens: 0,
        })
    }

    /// What is said of the next code, after the text or the code `last` of each row.
    ///
    /// # Shapes
    /// → [n, num_buckets]
    fn read(&mut self, last: &[i32]) -> autograd::Result<Tensor> {
        let AutoregressivePrior {
            config,
            code_embedding,
            positional_embedding,
            transformer_blocks,
            ..
        } = self.prior;
        let t = Tape::inference(Some(self.params));
        let n = self.text.embeds.dims()[0];
        t.scope("prior", || {
            let x = match self.tokens {
                0 => self.prior.prefix(&t, self.text)?, // [n, l + 1, c]
                _ => {
                    let ids = Tensor::from_slice(last, [n, 1], Device::Cpu);
                    code_embedding.forward(&t, &t.constant(ids.to_device(t.device())?))? // [n, 1, c]
                }
            };
            let new = x.dims()[1];
            let positions = t.param(*positional_embedding)?;
            let positions = split::narrow(&t, &positions, 1, self.tokens, new)?;
            let mut x = binary::add(&t, &x, &positions)?; // [n, new, c]
            self.tokens += new;
            let mask = self.mask();
            let blocks = transformer_blocks.iter().zip(&mut self.seen);
            for (i, (block, seen)) in blocks.enumerate() {
                x = t.module(&format!("transformer_blocks.{i}"), || {
                    block.extend(&t, &x, seen, &mask)
                })?; // [n, new, c]
            }
            let x = split::narrow(&t, &x, 1, new - 1, 1)?; // [n, 1, c]
            let logits = self.prior.logits(&t, &x)?; // [n, 1, num_buckets]
            logits.tensor().reshape([n, config.num_buckets])
        })
    }

    /// What of the tokens read may be attended: the text without its padding, and everything behind it.
    fn mask(&self) -> Tensor {
        let l = self.prior.config.num_embeddings;
        let n = self.text.embeds.dims()[0];
        let row = |row: &[bool]| [row, &vec![true; self.tokens - l]].concat();
        let rows: Vec<bool> = self.mask.chunks(l).flat_map(row).collect();
        Tensor::from_bools(&rows, [n, self.tokens], self.params.device())
    }
}
