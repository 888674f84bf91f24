//! transformers' configurations of the CLIP classes, with their defaults.

use serde::{Deserialize, Serialize};

use autograd::ops::matmul::Activation;

use crate::Result;
use crate::config::{Checks, Extra};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenActivation {
    /// x·σ(1.702·x), of OpenAI's weights.
    QuickGelu,
    /// x·Φ(x), of later OpenCLIP weights.
    Gelu,
}

impl From<HiddenActivation> for Activation {
    fn from(activation: HiddenActivation) -> Activation {
        match activation {
            HiddenActivation::QuickGelu => Activation::QuickGelu,
            HiddenActivation::Gelu => Activation::Gelu,
        }
    }
}

/// `CLIPTextConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CLIPTextConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub projection_dim: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub max_position_embeddings: usize,
    pub hidden_act: HiddenActivation,
    pub layer_norm_eps: f64,
    pub attention_dropout: f64,
    pub initializer_range: f64,
    pub initializer_factor: f64,
    pub pad_token_id: Option<u32>,
    pub bos_token_id: Option<u32>,
    /// The token whose state stands for the text; 2 is a mistake in OpenAI's files, for which it is the largest id.
    pub eos_token_id: u32,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for CLIPTextConfig {
    fn default() -> CLIPTextConfig {
        CLIPTextConfig {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: HiddenActivation::QuickGelu,
            layer_norm_eps: 1e-5,
            attention_dropout: 0.0,
            initializer_range: 0.02,
            initializer_factor: 1.0,
            pad_token_id: Some(1),
            bos_token_id: Some(49406),
            eos_token_id: 49407,
            extra: Extra::new(),
        }
    }
}

/// `CLIPVisionConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CLIPVisionConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub projection_dim: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_channels: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub hidden_act: HiddenActivation,
    pub layer_norm_eps: f64,
    pub attention_dropout: f64,
    pub initializer_range: f64,
    pub initializer_factor: f64,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for CLIPVisionConfig {
    fn default() -> CLIPVisionConfig {
        CLIPVisionConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: HiddenActivation::QuickGelu,
            layer_norm_eps: 1e-5,
            attention_dropout: 0.0,
            initializer_range: 0.02,
            initializer_factor: 1.0,
            extra: Extra::new(),
        }
    }
}

/// `CLIPConfig`: both towers, and the space that they share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CLIPConfig {
    pub text_config: CLIPTextConfig,
    pub vision_config: CLIPVisionConfig,
    pub projection_dim: usize,
    pub logit_scale_init_value: f64,
    /// Where `logit_bias` begins in a model that is trained by SigLIP's loss; other models have none. transformers' class
    /// knows no such parameter; OpenCLIP's does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_bias_init_value: Option<f64>,
    pub initializer_factor: f64,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for CLIPConfig {
    fn default() -> CLIPConfig {
        CLIPConfig {
            text_config: CLIPTextConfig::default(),
            vision_config: CLIPVisionConfig::default(),
            projection_dim: 512,
            logit_scale_init_value: 2.6592,
            logit_bias_init_value: None,
            initializer_factor: 1.0,
            extra: Extra::new(),
        }
    }
}

impl CLIPConfig {
    /// The configuration of the text tower cut out of this model.
    pub fn text(&self) -> CLIPTextConfig {
        CLIPTextConfig {
            projection_dim: self.projection_dim,
            ..self.text_config.clone()
        }
    }

    /// The configuration of the image tower cut out of this model.
    pub fn vision(&self) -> CLIPVisionConfig {
        CLIPVisionConfig {
            projection_dim: self.projection_dim,
            ..self.vision_config.clone()
        }
    }
}

/// What both towers' transformers are built from.
pub(super) struct EncoderPlan {
    pub width: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub activation: Activation,
    pub eps: f64,
    pub init_factor: f64,
    pub causal: bool,
}

impl EncoderPlan {
    fn check(&self, checks: Checks) -> Result<()> {
        checks.sizes(&[
            ("hidden_size", self.width),
            ("intermediate_size", self.hidden),
        ])?;
        checks.require((1..=1024).contains(&self.layers), || {
            format!(
                "num_hidden_layers must be from 1 to 1024, it is {}",
                self.layers
            )
        })?;
        checks.divides(
            ("num_attention_heads", self.heads),
            ("hidden_size", self.width),
        )?;
        checks.epsilon("layer_norm_eps", self.eps)
    }
}

/// Attention weights are dropped out by no published CLIP.
fn check_dropout(checks: Checks, attention_dropout: f64) -> Result<()> {
    checks.require(attention_dropout == 0.0, || {
        format!("attention_dropout = {attention_dropout} is not supported (only 0)")
    })
}

impl CLIPTextConfig {
    pub(super) fn plan(&self, class: &'static str) -> Result<EncoderPlan> {
        let checks = Checks(class);
        checks.sizes(&[
            ("vocab_size", self.vocab_size),
            ("projection_dim", self.projection_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        check_dropout(checks, self.attention_dropout)?;
        let plan = EncoderPlan {
            width: self.hidden_size,
            hidden: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: self.hidden_act.into(),
            eps: self.layer_norm_eps,
            init_factor: self.initializer_factor,
            causal: true,
        };
        plan.check(checks)?;
        Ok(plan)
    }
}

impl CLIPVisionConfig {
    pub(super) fn plan(&self, class: &'static str) -> Result<EncoderPlan> {
        let checks = Checks(class);
        checks.sizes(&[
            ("num_channels", self.num_channels),
            ("projection_dim", self.projection_dim),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
        ])?;
        checks.require(
            (self.patch_size..=1 << 14).contains(&self.image_size),
            || {
                format!(
                    "image_size must be from patch_size to {}, it is {}",
                    1 << 14,
                    self.image_size
                )
            },
        )?;
        check_dropout(checks, self.attention_dropout)?;
        let plan = EncoderPlan {
            width: self.hidden_size,
            hidden: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: self.hidden_act.into(),
            eps: self.layer_norm_eps,
            init_factor: self.initializer_factor,
            causal: false,
        };
        plan.check(checks)?;
        Ok(plan)
    }
}
