//! Whole systems by name: the configuration of every network, from one that a CPU runs in seconds to the paper's.
//!
//! `docs/architectures.md` derives each count of parameters.

use std::path::Path;

use crate::clip::{
    CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection,
};
use crate::config::{Extent, PerLevel};
use crate::diffusion::{BetaSchedule, SchedulerConfig};
use crate::model::{Model, declare};
use crate::pipeline::save_frame;
use crate::prior::{PriorConfig, PriorTransformer};
use crate::text_proj::{UnCLIPTextProjConfig, UnCLIPTextProjModel};
use crate::tokenizer::Tokenizer;
use crate::unet::{
    TimeScaleShift, UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig, UNet2DModel,
};
use crate::weights::{self, Precision};
use crate::{Error, Result};

/// The networks of one text-to-image system, in the order in which a picture passes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    pub text_encoder: CLIPTextConfig,
    /// Reads pictures, for variations.
    pub image_encoder: CLIPVisionConfig,
    pub prior: PriorConfig,
    pub text_proj: UnCLIPTextProjConfig,
    pub decoder: UNet2DConditionConfig,
    /// Two networks of it: `super_res_last` takes the last step, `super_res_first` those before.
    pub super_res: UNet2DConfig,
    /// The second upsampler, where there is one.
    pub super_res_1024: Option<UNet2DConfig>,
}

/// What a network of an architecture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The folder that holds it.
    pub name: &'static str,
    pub class: &'static str,
    pub tensors: usize,
    pub parameters: usize,
}

/// Something done with every network.
trait Visit {
    fn network<M: Model>(&mut self, name: &'static str, config: &M::Config) -> Result<()>;
}

impl Architecture {
    /// Small enough for a CPU to make a picture in seconds: 16×16, then 64×64.
    pub fn tiny() -> Architecture {
        let (width, context) = (64, 32);
        let decoder = UNet2DConditionConfig {
            sample_size: Some(Extent::Square(16)),
            layers_per_block: PerLevel::All(1),
            cross_attention_dim: PerLevel::All(width),
            attention_head_dim: PerLevel::All(16),
            ..UNet2DConditionConfig::unclip(&[32, 64])
        };
        Architecture {
            text_encoder: CLIPTextConfig {
                vocab_size: 1024,
                hidden_size: width,
                intermediate_size: 4 * width,
                projection_dim: width,
                num_hidden_layers: 2,
                num_attention_heads: 4,
                max_position_embeddings: context,
                ..largest_id_ends()
            },
            image_encoder: CLIPVisionConfig {
                hidden_size: width,
                intermediate_size: 4 * width,
                projection_dim: width,
                num_hidden_layers: 2,
                num_attention_heads: 4,
                image_size: 64,
                patch_size: 8,
                ..CLIPVisionConfig::default()
            },
            prior: PriorConfig {
                num_attention_heads: 4,
                attention_head_dim: 16,
                num_layers: 2,
                embedding_dim: width,
                num_embeddings: context,
                ..PriorConfig::default()
            },
            text_proj: text_proj(width, &decoder, width),
            decoder,
            super_res: UNet2DConfig {
                sample_size: Some(Extent::Square(64)),
                layers_per_block: 1,
                ..UNet2DConfig::upsampler(&[32, 64])
            },
            super_res_1024: None,
        }
    }

    /// Karlo's shape at 192 channels with the prior of the same width, under OpenAI's ViT-L/14.
    pub fn small() -> Architecture {
        let channels = [192, 384, 576, 768];
        let decoder = UNet2DConditionConfig {
            sample_size: Some(Extent::Square(64)),
            layers_per_block: PerLevel::All(3),
            cross_attention_dim: PerLevel::All(768),
            attention_head_dim: PerLevel::All(64),
            ..UNet2DConditionConfig::unclip(&channels)
        };
        Architecture {
            prior: PriorConfig {
                num_attention_heads: 12,
                num_layers: 12,
                ..PriorConfig::default()
            },
            text_proj: text_proj(768, &decoder, 768),
            decoder,
            super_res: UNet2DConfig {
                sample_size: Some(Extent::Square(256)),
                ..UNet2DConfig::upsampler(&channels)
            },
            ..Architecture::karlo()
        }
    }

    /// Karlo: 64×64, then 256×256, under OpenAI's ViT-L/14.
    pub fn karlo() -> Architecture {
        Architecture {
            text_encoder: CLIPTextConfig {
                hidden_size: 768,
                intermediate_size: 3072,
                projection_dim: 768,
                num_attention_heads: 12,
                ..largest_id_ends()
            },
            image_encoder: CLIPVisionConfig {
                hidden_size: 1024,
                intermediate_size: 4096,
                projection_dim: 768,
                num_hidden_layers: 24,
                num_attention_heads: 16,
                patch_size: 14,
                ..CLIPVisionConfig::default()
            },
            prior: PriorConfig::default(),
            text_proj: UnCLIPTextProjConfig::karlo(),
            decoder: UNet2DConditionConfig::karlo(),
            super_res: UNet2DConfig::karlo(),
            super_res_1024: None,
        }
    }

    /// DALL·E 2: 64×64, then 256×256, then 1024×1024, after Table 3 of Ramesh et al. (2022) and appendix C's CLIP, a
    /// ViT-H/16.
    ///
    /// The decoder's and the prior's own text transformers are not among these classes: text comes from CLIP's tower,
    /// whose context is therefore as long as theirs.
    pub fn paper() -> Architecture {
        let (embedding, context, text_width) = (1024, 256, 2048);
        let decoder = UNet2DConditionConfig {
            sample_size: Some(Extent::Square(64)),
            layers_per_block: PerLevel::All(3),
            cross_attention_dim: PerLevel::All(text_width),
            attention_head_dim: PerLevel::All(64),
            dropout: 0.1,
            ..UNet2DConditionConfig::unclip(&[512, 1024, 1536, 2048])
        };
        Architecture {
            text_encoder: CLIPTextConfig {
                hidden_size: 1024,
                intermediate_size: 4096,
                projection_dim: embedding,
                num_hidden_layers: 24,
                num_attention_heads: 16,
                max_position_embeddings: context,
                ..largest_id_ends()
            },
            image_encoder: CLIPVisionConfig {
                hidden_size: 1280,
                intermediate_size: 5120,
                projection_dim: embedding,
                num_hidden_layers: 32,
                num_attention_heads: 16,
                image_size: 256,
                patch_size: 16,
                ..CLIPVisionConfig::default()
            },
            prior: PriorConfig {
                num_layers: 24,
                embedding_dim: embedding,
                num_embeddings: context,
                ..PriorConfig::default()
            },
            text_proj: text_proj(embedding, &decoder, text_width),
            decoder,
            super_res: UNet2DConfig {
                dropout: 0.1,
                ..UNet2DConfig::karlo()
            },
            super_res_1024: Some(UNet2DConfig {
                sample_size: Some(Extent::Square(1024)),
                layers_per_block: 2,
                resnet_time_scale_shift: TimeScaleShift::Default,
                ..UNet2DConfig::upsampler(&[192, 192, 384, 384, 768, 768])
            }),
        }
    }

    /// Every network, counted without allocating any.
    pub fn parts(&self) -> Result<Vec<Part>> {
        struct Count(Vec<Part>);
        impl Visit for Count {
            fn network<M: Model>(&mut self, name: &'static str, config: &M::Config) -> Result<()> {
                let (_, layout) = declare::<M>(config)?;
                self.0.push(Part {
                    name,
                    class: M::CLASS.name,
                    tensors: layout.len(),
                    parameters: layout.parameters(),
                });
                Ok(())
            }
        }
        let mut count = Count(Vec::new());
        self.visit(&mut count)?;
        Ok(count.0)
    }

    /// Writes a directory that diffusers opens, of networks that have not been trained: each parameter is a function
    /// of the seed and its name alone. `on_part` is told of every network before it is written. No more than one
    /// parameter is in memory.
    ///
    /// # Errors
    /// If the tokenizer's texts do not fit the text encoder.
    pub fn create(
        &self,
        dir: &Path,
        tokenizer: &Tokenizer,
        seed: u64,
        precision: Precision,
        on_part: impl FnMut(&'static str),
    ) -> Result<()> {
        struct Create<'a, F> {
            dir: &'a Path,
            seed: u64,
            precision: Precision,
            on_part: F,
        }
        impl<F: FnMut(&'static str)> Visit for Create<'_, F> {
            fn network<M: Model>(&mut self, name: &'static str, config: &M::Config) -> Result<()> {
                (self.on_part)(name);
                let dir = self.dir.join(name);
                weights::save_initial::<M>(&dir, config, self.seed, self.precision)
            }
        }
        self.check(tokenizer)?;
        self.visit(&mut Create {
            dir,
            seed,
            precision,
            on_part,
        })?;
        if self.super_res_1024.is_some() {
            // The paper's, in a straight line.
            let scheduler = SchedulerConfig {
                beta_schedule: BetaSchedule::Linear,
                ..SchedulerConfig::upsampler()
            };
            weights::save_scheduler(&dir.join("super_res_1024_scheduler"), &scheduler)?;
        }
        let schedulers = [
            &SchedulerConfig::prior(),
            &SchedulerConfig::decoder(),
            &SchedulerConfig::upsampler(),
        ];
        save_frame(dir, tokenizer, PriorTransformer::CLASS, schedulers)
    }

    fn check(&self, tokenizer: &Tokenizer) -> Result<()> {
        let text = &self.text_encoder;
        let (tokens, length) = (tokenizer.vocab_size(), tokenizer.context_length());
        if tokens > text.vocab_size {
            return Err(Error::Request(format!(
                "the tokenizer has {tokens} tokens, this text encoder knows {}: take a smaller tokenizer, or a larger model",
                text.vocab_size
            )));
        }
        if length != text.max_position_embeddings {
            return Err(Error::Request(format!(
                "the tokenizer makes texts of {length} tokens, this text encoder reads {}: set model_max_length in the tokenizer's tokenizer_config.json",
                text.max_position_embeddings
            )));
        }
        Ok(())
    }

    fn visit(&self, visit: &mut impl Visit) -> Result<()> {
        visit.network::<CLIPTextModelWithProjection>("text_encoder", &self.text_encoder)?;
        visit.network::<CLIPVisionModelWithProjection>("image_encoder", &self.image_encoder)?;
        visit.network::<PriorTransformer>("prior", &self.prior)?;
        visit.network::<UnCLIPTextProjModel>("text_proj", &self.text_proj)?;
        visit.network::<UNet2DConditionModel>("decoder", &self.decoder)?;
        visit.network::<UNet2DModel>("super_res_first", &self.super_res)?;
        visit.network::<UNet2DModel>("super_res_last", &self.super_res)?;
        match &self.super_res_1024 {
            Some(config) => visit.network::<UNet2DModel>("super_res_1024", config),
            None => Ok(()),
        }
    }
}

/// A text tower that reads its embedding off the largest id, which is the end marker's in every CLIP vocabulary: so
/// OpenAI's published configuration has it.
fn largest_id_ends() -> CLIPTextConfig {
    CLIPTextConfig {
        eos_token_id: 2,
        ..CLIPTextConfig::default()
    }
}

/// The projection from CLIP embeddings to a decoder with context of this width.
fn text_proj(
    clip_embeddings_dim: usize,
    decoder: &UNet2DConditionConfig,
    cross_attention_dim: usize,
) -> UnCLIPTextProjConfig {
    UnCLIPTextProjConfig {
        clip_embeddings_dim,
        time_embed_dim: decoder.time_embed_dim(),
        cross_attention_dim,
        ..UnCLIPTextProjConfig::karlo()
    }
}
