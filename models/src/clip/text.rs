//! CLIP's text tower.

use autograd::ops::{binary, gather_rows, split};
use autograd::{DType, Init, ParamsBuilder, Tape, Tensor, Var};
use tensor::Check;

use super::config::{CLIPTextConfig, EncoderPlan};
use super::encoder::Encoder;
use crate::Result;
use crate::model::{Class, Library, Model};
use crate::nn::{Embedding, LayerNorm, Linear};

/// What a text becomes.
pub struct TextOutput {
    /// The pooled state in the space that texts and images share, not normalised. [n, projection_dim]
    pub text_embeds: Var,
    /// The normalised states of all tokens. [n, l, c]
    pub last_hidden_state: Var,
    /// The normalised state of the end token. [n, c]
    pub pooled: Var,
    /// The states before the first layer and after each. layers + 1 times [n, l, c]
    pub hidden_states: Vec<Var>,
}

/// transformers' `CLIPTextModelWithProjection`.
#[derive(Debug)]
pub struct CLIPTextModelWithProjection {
    config: CLIPTextConfig,
    tower: TextTower,
}

impl Model for CLIPTextModelWithProjection {
    type Config = CLIPTextConfig;
    const CLASS: Class = Class {
        name: "CLIPTextModelWithProjection",
        library: Library::Transformers,
    };

    fn new(config: &CLIPTextConfig, p: &mut ParamsBuilder) -> Result<CLIPTextModelWithProjection> {
        let plan = config.plan(Self::CLASS.name)?;
        Ok(CLIPTextModelWithProjection {
            tower: TextTower::new(p, config, &plan),
            config: config.clone(),
        })
    }

    fn config(&self) -> &CLIPTextConfig {
        &self.config
    }
}

impl CLIPTextModelWithProjection {
    /// `input_ids` are i32 or i64; `attention_mask` is false for padding. The unCLIP pipeline passes none: the text
    /// is read causally, so that padding never reaches the end token.
    ///
    /// # Shapes
    /// input_ids [n, l], attention_mask `Bool` [n, l]
    pub fn forward(
        &self,
        t: &Tape,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
    ) -> autograd::Result<TextOutput> {
        self.tower.forward(t, input_ids, attention_mask)
    }
}

/// `text_model` and `text_projection`, also inside `CLIPModel`.
#[derive(Debug)]
pub(super) struct TextTower {
    token_embedding: Embedding,
    position_embedding: Embedding,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    text_projection: Linear,
    positions: usize,
    eos_token_id: u32,
}

impl TextTower {
    pub fn new(p: &mut ParamsBuilder, config: &CLIPTextConfig, plan: &EncoderPlan) -> TextTower {
        let width = config.hidden_size;
        let std = 0.02 * config.initializer_factor;
        let m = &mut p.at("text_model");
        let token_embedding = Embedding::new(
            m,
            "embeddings.token_embedding",
            [config.vocab_size, width],
            std,
        );
        let positions = config.max_position_embeddings;
        let position_embedding =
            Embedding::new(m, "embeddings.position_embedding", [positions, width], std);
        let encoder = Encoder::new(m, plan);
        let final_layer_norm = LayerNorm::new(m, "final_layer_norm", width, config.layer_norm_eps);
        let init = Init::Normal {
            std: config.initializer_factor / (width as f64).sqrt(),
        };
        TextTower {
            token_embedding,
            position_embedding,
            encoder,
            final_layer_norm,
            text_projection: Linear::with(
                p,
                "text_projection",
                [width, config.projection_dim],
                init,
                None,
            ),
            positions,
            eos_token_id: config.eos_token_id,
        }
    }

    pub fn forward(
        &self,
        t: &Tape,
        input_ids: &Tensor,
        mask: Option<&Tensor>,
    ) -> autograd::Result<TextOutput> {
        let check = Check::new("text", &[("input_ids", input_ids)]);
        check.rank("input_ids", input_ids, 2)?;
        let length = input_ids.dims()[1];
        check.require((1..=self.positions).contains(&length), || {
            format!("texts have from 1 to {} tokens", self.positions)
        })?;
        let end = self.end_positions(input_ids)?;
        let (pooled, last_hidden_state, hidden_states) = t.scope("text_model", || {
            let ids = t.constant(input_ids.cast(DType::I32)?); // [n, l]
            let tokens = self.token_embedding.forward(t, &ids)?; // [n, l, c]
            let mut positions = self.position_embedding.table(t)?; // [positions, c]
            if length < self.positions {
                positions = split::narrow(t, &positions, 0, 0, length)?; // [l, c]
            }
            let x = binary::add(t, &tokens, &positions)?; // [n, l, c]
            let states = self.encoder.forward(t, &x, mask)?; // each [n, l, c]
            let last = self
                .final_layer_norm
                .forward(t, &states[states.len() - 1])?; // [n, l, c]
            let pooled = gather_rows::gather_rows(t, &last, &t.constant(end))?; // [n, c]
            Ok((pooled, last, states))
        })?;
        Ok(TextOutput {
            text_embeds: self.text_projection.forward(t, &pooled)?, // [n, projection_dim]
            last_hidden_state,
            pooled,
            hidden_states,
        })
    }

    /// The position that each text is pooled at: its first end token (the first of all where it has none); for files
    /// that name 2 as the end token, the first of the largest ids.
    fn end_positions(&self, input_ids: &Tensor) -> autograd::Result<Tensor> {
        let ids = input_ids.to_f64_vec()?;
        let length = input_ids.dims()[1];
        let ends: Vec<i32> = ids
            .chunks(length)
            .map(|row| {
                let wanted = if self.eos_token_id == 2 {
                    row.iter().copied().fold(f64::NEG_INFINITY, f64::max)
                } else {
                    f64::from(self.eos_token_id)
                };
                row.iter().position(|&id| id == wanted).unwrap_or(0) as i32
            })
            .collect();
        Ok(Tensor::from_slice(&ends, [ends.len()], input_ids.device()))
    }
}
