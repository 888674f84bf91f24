//! CLIP's image tower: a vision transformer (Dosovitskiy et al., 2021) with a normalisation before its first layer.

use autograd::ops::{binary, concat, gather_rows, reshape};
use autograd::{Decay, Init, ParamId, ParamsBuilder, Tape, Tensor, Var};
use tensor::Check;

use super::config::{CLIPVisionConfig, EncoderPlan};
use super::encoder::Encoder;
use crate::Result;
use crate::model::{Class, Library, Model};
use crate::nn::{Conv2d, Embedding, LayerNorm, Linear, repeat};

/// What an image becomes.
pub struct VisionOutput {
    /// The pooled state in the space that texts and images share, not normalised. [n, projection_dim]
    pub image_embeds: Var,
    /// The states of the class token and of all patches, not normalised. [n, 1 + patches, c]
    pub last_hidden_state: Var,
    /// The normalised state of the class token. [n, c]
    pub pooled: Var,
    /// The states before the first layer and after each. layers + 1 times [n, 1 + patches, c]
    pub hidden_states: Vec<Var>,
}

/// transformers' `CLIPVisionModelWithProjection`.
#[derive(Debug)]
pub struct CLIPVisionModelWithProjection {
    config: CLIPVisionConfig,
    tower: VisionTower,
}

impl Model for CLIPVisionModelWithProjection {
    type Config = CLIPVisionConfig;
    const CLASS: Class = Class {
        name: "CLIPVisionModelWithProjection",
        library: Library::Transformers,
    };

    fn new(
        config: &CLIPVisionConfig,
        p: &mut ParamsBuilder,
    ) -> Result<CLIPVisionModelWithProjection> {
        let plan = config.plan(Self::CLASS.name)?;
        Ok(CLIPVisionModelWithProjection {
            tower: VisionTower::new(p, config, &plan),
            config: config.clone(),
        })
    }

    fn config(&self) -> &CLIPVisionConfig {
        &self.config
    }
}

impl CLIPVisionModelWithProjection {
    /// # Shapes
    /// pixel_values [n, image_size, image_size, channels], normalised by CLIP's mean and deviation
    pub fn forward(&self, t: &Tape, pixel_values: &Var) -> autograd::Result<VisionOutput> {
        self.tower.forward(t, pixel_values)
    }
}

/// `vision_model` and `visual_projection`, also inside `CLIPModel`.
#[derive(Debug)]
pub(super) struct VisionTower {
    class_embedding: ParamId,
    patch_embedding: Conv2d,
    position_embedding: Embedding,
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
    visual_projection: Linear,
    image: usize,
    grid: usize,
    width: usize,
}

impl VisionTower {
    pub fn new(
        p: &mut ParamsBuilder,
        config: &CLIPVisionConfig,
        plan: &EncoderPlan,
    ) -> VisionTower {
        let width = config.hidden_size;
        let grid = config.image_size / config.patch_size;
        let factor = config.initializer_factor;
        let shared = Init::Normal {
            std: factor / (width as f64).sqrt(),
        };
        let std = config.initializer_range * factor;
        let m = &mut p.at("vision_model");
        let class_embedding =
            m.at("embeddings")
                .declare("class_embedding", [width], shared, Decay::No);
        let patch_embedding = Conv2d::patches(
            m,
            "embeddings.patch_embedding",
            [config.num_channels, width],
            config.patch_size,
            Init::Normal { std },
        );
        let name = "embeddings.position_embedding";
        let position_embedding = Embedding::new(m, name, [grid * grid + 1, width], std);
        let eps = config.layer_norm_eps;
        // "layrnorm" is how the files spell it.
        let pre_layrnorm = LayerNorm::new(m, "pre_layrnorm", width, eps);
        let encoder = Encoder::new(m, plan);
        let post_layernorm = LayerNorm::new(m, "post_layernorm", width, eps);
        VisionTower {
            class_embedding,
            patch_embedding,
            position_embedding,
            pre_layrnorm,
            encoder,
            post_layernorm,
            visual_projection: Linear::with(
                p,
                "visual_projection",
                [width, config.projection_dim],
                shared,
                None,
            ),
            image: config.image_size,
            grid,
            width,
        }
    }

    pub fn forward(&self, t: &Tape, pixel_values: &Var) -> autograd::Result<VisionOutput> {
        let check = Check::new("vision", &[("pixel_values", pixel_values.tensor())]);
        check.rank("pixel_values", pixel_values.tensor(), 4)?;
        let square = pixel_values.dims()[1] == self.image && pixel_values.dims()[2] == self.image;
        check.require(square, || {
            format!("images must be {0}×{0} pixels", self.image)
        })?;
        let n = pixel_values.dims()[0];
        let (pooled, last, states) = t.scope("vision_model", || {
            let patches = self.patch_embedding.forward(t, pixel_values)?; // [n, grid, grid, c]
            let patches = reshape::reshape(t, &patches, [n, self.grid * self.grid, self.width])?; // [n, patches, c]
            let class = t.param(self.class_embedding)?; // [c]
            let class = repeat(t, &reshape::reshape(t, &class, [1, 1, self.width])?, n)?; // [n, 1, c]
            let x = concat::concat(t, &[&class, &patches], 1)?; // [n, 1 + patches, c]
            let x = binary::add(t, &x, &self.position_embedding.table(t)?)?; // [n, 1 + patches, c]
            let x = self.pre_layrnorm.forward(t, &x)?; // [n, 1 + patches, c]
            let states = self.encoder.forward(t, &x, None)?; // each [n, 1 + patches, c]
            let last = states[states.len() - 1].clone();
            let first = t.constant(Tensor::from_slice(
                &vec![0i32; n],
                [n],
                pixel_values.device(),
            )); // [n]
            let class = gather_rows::gather_rows(t, &last, &first)?; // [n, c]
            Ok((self.post_layernorm.forward(t, &class)?, last, states))
        })?;
        Ok(VisionOutput {
            image_embeds: self.visual_projection.forward(t, &pooled)?, // [n, projection_dim]
            last_hidden_state: last,
            pooled,
            hidden_states: states,
        })
    }
}
