//! Both towers and the loss that they are trained with.

use autograd::ops::matmul::{self, Transpose};
use autograd::ops::{affine, binary, cross_entropy, l2_normalize, permute, reduce, unary};
use autograd::{Decay, Init, ParamId, Params, ParamsBuilder, Tape, Tensor, Var};

use super::config::CLIPConfig;
use super::text::{TextOutput, TextTower};
use super::vision::{VisionOutput, VisionTower};
use crate::Result;
use crate::model::{Class, Library, Model};

/// CLIP's temperature never falls below 1/100: `logit_scale` is kept at or below ln 100.
pub const LARGEST_LOGIT_SCALE: f64 = 4.605_170_185_988_092;

/// Where SigLIP's loss begins: few pairs of a batch belong together, and the first logits say so. ln 10 and −10.
pub const SIGMOID_LOGIT_SCALE: f64 = std::f64::consts::LN_10;
pub const INITIAL_LOGIT_BIAS: f64 = -10.0;

/// transformers' `CLIPModel`.
#[derive(Debug)]
pub struct CLIPModel {
    config: CLIPConfig,
    text: TextTower,
    vision: VisionTower,
    logit_scale: ParamId,
    logit_bias: Option<ParamId>,
}

impl Model for CLIPModel {
    type Config = CLIPConfig;
    const CLASS: Class = Class {
        name: "CLIPModel",
        library: Library::Transformers,
    };

    fn new(config: &CLIPConfig, p: &mut ParamsBuilder) -> Result<CLIPModel> {
        let (text, vision) = (config.text(), config.vision());
        let (text_plan, vision_plan) =
            (text.plan(Self::CLASS.name)?, vision.plan(Self::CLASS.name)?);
        let init = Init::Constant(config.logit_scale_init_value);
        Ok(CLIPModel {
            logit_scale: p.declare("logit_scale", [], init, Decay::No),
            logit_bias: config
                .logit_bias_init_value
                .map(|bias| p.declare("logit_bias", [], Init::Constant(bias), Decay::No)),
            text: TextTower::new(p, &text, &text_plan),
            vision: VisionTower::new(p, &vision, &vision_plan),
            config: config.clone(),
        })
    }

    fn config(&self) -> &CLIPConfig {
        &self.config
    }
}

/// What n texts and n images become, of which those with the same index belong together.
pub struct CLIPOutput {
    pub text: TextOutput,
    pub vision: VisionOutput,
    /// Of unit length. [n, projection_dim]
    pub text_embeds: Var,
    /// Of unit length. [n, projection_dim]
    pub image_embeds: Var,
    /// exp(logit_scale)·cosine (+ logit_bias) of every text (row) and image (column). [n, n]
    pub logits_per_text: Var,
    /// [`contrastive_loss`], or [`sigmoid_loss`] where there is a `logit_bias`. Scalar.
    pub loss: Var,
}

impl CLIPModel {
    /// # Shapes
    /// input_ids [n, l], attention_mask `Bool` [n, l], pixel_values [n, image_size, image_size, channels]
    pub fn forward(
        &self,
        t: &Tape,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
        pixel_values: &Var,
    ) -> autograd::Result<CLIPOutput> {
        let text = self.text(t, input_ids, attention_mask)?;
        let vision = self.vision(t, pixel_values)?;
        let text_embeds = l2_normalize::l2_normalize(t, &text.text_embeds, 0.0)?; // [n, d]
        let image_embeds = l2_normalize::l2_normalize(t, &vision.image_embeds, 0.0)?; // [n, d]
        let scale = t.param(self.logit_scale)?;
        let (logits_per_text, loss) = match self.logit_bias {
            None => contrastive_loss(t, &text_embeds, &image_embeds, &scale)?,
            Some(bias) => sigmoid_loss(t, &text_embeds, &image_embeds, &scale, &t.param(bias)?)?,
        };
        Ok(CLIPOutput {
            text,
            vision,
            text_embeds,
            image_embeds,
            logits_per_text,
            loss,
        })
    }

    /// The text tower alone.
    pub fn text(
        &self,
        t: &Tape,
        input_ids: &Tensor,
        attention_mask: Option<&Tensor>,
    ) -> autograd::Result<TextOutput> {
        self.text.forward(t, input_ids, attention_mask)
    }

    /// The image tower alone.
    pub fn vision(&self, t: &Tape, pixel_values: &Var) -> autograd::Result<VisionOutput> {
        self.vision.forward(t, pixel_values)
    }

    /// Brings `logit_scale` back to [0, ln 100]; to be called after every optimiser step.
    pub fn clamp_logit_scale(&self, params: &mut Params) -> autograd::Result<()> {
        let value = params.get(self.logit_scale)?.item()?;
        let clamped = value.clamp(0.0, LARGEST_LOGIT_SCALE);
        if clamped == value || value.is_nan() {
            return Ok(());
        }
        let (dtype, device) = (params.dtype(), params.device());
        params.set(self.logit_scale, &Tensor::full([], clamped, dtype, device))
    }
}

/// Softmax InfoNCE over all pairs (van den Oord et al., 2018; CLIP, figure 3): the logits per text, and the mean of
/// both directions' cross-entropies.
///
/// # Shapes
/// text and image [n, d] of unit length, logit_scale scalar → [n, n] and scalar
pub fn contrastive_loss(
    t: &Tape,
    text: &Var,
    image: &Var,
    logit_scale: &Var,
) -> autograd::Result<(Var, Var)> {
    let n = text.dims()[0];
    let per_text = scaled_cosines(t, text, image, logit_scale)?; // [n, n]
    let per_image = permute::permute(t, &per_text, &[1, 0])?; // [n, n]
    let own: Vec<i32> = (0..n as i32).collect();
    let own = t.constant(Tensor::from_slice(&own, [n], text.device())); // [n]
    let of_texts = cross_entropy::cross_entropy(t, &per_text, &own)?;
    let of_images = cross_entropy::cross_entropy(t, &per_image, &own)?;
    let loss = affine::affine(t, &binary::add(t, &of_texts, &of_images)?, 0.5, 0.0)?;
    Ok((per_text, loss))
}

/// SigLIP (Zhai et al., 2023, algorithm 1): every pair of the batch is judged by itself, −Σ log σ(z·logit)/n with z = 1
/// where text and image belong together and −1 elsewhere. The logits per text, and the loss.
///
/// # Shapes
/// text and image [n, d] of unit length, logit_scale and logit_bias scalars → [n, n] and scalar
pub fn sigmoid_loss(
    t: &Tape,
    text: &Var,
    image: &Var,
    logit_scale: &Var,
    logit_bias: &Var,
) -> autograd::Result<(Var, Var)> {
    let n = text.dims()[0];
    let scaled = scaled_cosines(t, text, image, logit_scale)?; // [n, n]
    let per_text = binary::add(t, &scaled, logit_bias)?; // [n, n]
    let signs = (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { -1.0 });
    let signs: Vec<f64> = signs.collect();
    let signs = t.constant(Tensor::from_f64(
        &signs,
        [n, n],
        per_text.dtype(),
        per_text.device(),
    ));
    let likelihoods = unary::log_sigmoid(t, &binary::mul(t, &per_text, &signs)?)?; // [n, n]
    let loss = affine::affine(t, &reduce::sum(t, &likelihoods)?, -1.0 / n as f64, 0.0)?;
    Ok((per_text, loss))
}

/// exp(logit_scale)·cosine.
///
/// # Shapes
/// text and image [n, d] of unit length → [n, n]
fn scaled_cosines(t: &Tape, text: &Var, image: &Var, logit_scale: &Var) -> autograd::Result<Var> {
    let transpose = Transpose { a: false, b: true };
    let cosine = matmul::matmul(t, text, image, transpose)?; // [n, n]
    binary::mul(t, &cosine, &unary::exp(t, logit_scale)?)
}
