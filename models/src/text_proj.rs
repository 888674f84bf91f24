//! From CLIP embeddings and text states to what the decoder takes: an addition to the time embedding, and context
//! tokens (Ramesh et al., 2022, section 2.1).

use autograd::ops::{binary, concat, permute, reshape};
use autograd::{Decay, Init, ParamId, ParamsBuilder, Tape, Var};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::config::{Checks, Extra};
use crate::model::{Class, Library, Model};
use crate::nn::{LayerNorm, Linear};

/// diffusers' configuration of `UnCLIPTextProjModel`, with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnCLIPTextProjConfig {
    /// Tokens that the image embedding becomes.
    #[serde(default = "four")]
    pub clip_extra_context_tokens: usize,
    #[serde(default = "clip_width")]
    pub clip_embeddings_dim: usize,
    pub time_embed_dim: usize,
    pub cross_attention_dim: usize,
    #[serde(flatten)]
    pub extra: Extra,
}

fn four() -> usize {
    4
}

fn clip_width() -> usize {
    768
}

impl UnCLIPTextProjConfig {
    /// Karlo's: 7,878,400 parameters.
    pub fn karlo() -> UnCLIPTextProjConfig {
        UnCLIPTextProjConfig {
            clip_extra_context_tokens: 4,
            clip_embeddings_dim: 768,
            time_embed_dim: 1280,
            cross_attention_dim: 1536,
            extra: Extra::new(),
        }
    }
}

/// diffusers' `UnCLIPTextProjModel`. Widths below: d CLIP embeddings, e time embedding, x context tokens.
#[derive(Debug)]
pub struct UnCLIPTextProjModel {
    config: UnCLIPTextProjConfig,
    learned_classifier_free_guidance_embeddings: ParamId,
    embedding_proj: Linear,
    clip_image_embeddings_project_to_time_embeddings: Linear,
    clip_extra_context_tokens_proj: Linear,
    encoder_hidden_states_proj: Linear,
    text_encoder_hidden_states_norm: LayerNorm,
}

impl Model for UnCLIPTextProjModel {
    type Config = UnCLIPTextProjConfig;
    const CLASS: Class = Class {
        name: "UnCLIPTextProjModel",
        library: Library::Diffusers,
    };

    fn new(config: &UnCLIPTextProjConfig, p: &mut ParamsBuilder) -> Result<UnCLIPTextProjModel> {
        let &UnCLIPTextProjConfig {
            clip_extra_context_tokens: tokens,
            clip_embeddings_dim: d,
            time_embed_dim: e,
            cross_attention_dim: x,
            ..
        } = config;
        Checks(Self::CLASS.name).sizes(&[
            ("clip_extra_context_tokens", tokens),
            ("clip_embeddings_dim", d),
            ("time_embed_dim", e),
            ("cross_attention_dim", x),
        ])?;
        let name = "learned_classifier_free_guidance_embeddings";
        let time_from_image = "clip_image_embeddings_project_to_time_embeddings";
        Ok(UnCLIPTextProjModel {
            config: config.clone(),
            learned_classifier_free_guidance_embeddings: p.declare(
                name,
                [d],
                Init::Zeros,
                Decay::No,
            ),
            embedding_proj: Linear::new(p, "embedding_proj", d, e),
            clip_image_embeddings_project_to_time_embeddings: Linear::new(p, time_from_image, d, e),
            clip_extra_context_tokens_proj: Linear::new(
                p,
                "clip_extra_context_tokens_proj",
                d,
                tokens * x,
            ),
            encoder_hidden_states_proj: Linear::new(p, "encoder_hidden_states_proj", d, x),
            text_encoder_hidden_states_norm: LayerNorm::new(
                p,
                "text_encoder_hidden_states_norm",
                x,
                1e-5,
            ),
        })
    }

    fn config(&self) -> &UnCLIPTextProjConfig {
        &self.config
    }
}

/// What the decoder is conditioned on.
pub struct DecoderConditioning {
    /// `encoder_hidden_states`: image tokens first, then text states. [n, tokens + l, x]
    pub context: Var,
    /// `class_labels`: added to the time embedding. [n, e]
    pub time: Var,
}

impl UnCLIPTextProjModel {
    /// # Shapes
    /// image_embeddings [n, d], prompt_embeds [n, d], text_encoder_hidden_states [n, l, d]
    pub fn forward(
        &self,
        t: &Tape,
        image_embeddings: &Var,
        prompt_embeds: &Var,
        text_encoder_hidden_states: &Var,
    ) -> autograd::Result<DecoderConditioning> {
        let n = image_embeddings.dims()[0];
        let tokens = self.config.clip_extra_context_tokens;
        let from_text = self.embedding_proj.forward(t, prompt_embeds)?; // [n, e]
        let from_image = self
            .clip_image_embeddings_project_to_time_embeddings
            .forward(t, image_embeddings)?; // [n, e]
        let time = binary::add(t, &from_image, &from_text)?; // [n, e]

        // The token index runs fastest in the projection.
        let image = self
            .clip_extra_context_tokens_proj
            .forward(t, image_embeddings)?; // [n, x·tokens]
        let image = reshape::reshape(t, &image, [n, self.config.cross_attention_dim, tokens])?; // [n, x, tokens]
        let image = permute::permute(t, &image, &[0, 2, 1])?; // [n, tokens, x]
        let text = self
            .encoder_hidden_states_proj
            .forward(t, text_encoder_hidden_states)?; // [n, l, x]
        let text = self.text_encoder_hidden_states_norm.forward(t, &text)?; // [n, l, x]
        let context = concat::concat(t, &[&image, &text], 1)?; // [n, tokens + l, x]
        Ok(DecoderConditioning { context, time })
    }

    /// The learned vector that stands for no image embedding, [1, d].
    pub fn unconditional(&self, t: &Tape) -> autograd::Result<Var> {
        let learned = t.param(self.learned_classifier_free_guidance_embeddings)?; // [d]
        reshape::reshape(t, &learned, [1, self.config.clip_embeddings_dim])
    }
}
