//! CLIP (Radford et al., "Learning transferable visual models from natural language supervision", 2021) as
//! transformers names it: a text and an image transformer whose embeddings of a pair agree.

mod config;
mod contrastive;
mod encoder;
mod preprocess;
mod resample;
mod text;
mod vision;

pub use config::{CLIPConfig, CLIPTextConfig, CLIPVisionConfig, HiddenActivation};
pub use contrastive::{
    CLIPModel, CLIPOutput, INITIAL_LOGIT_BIAS, LARGEST_LOGIT_SCALE, SIGMOID_LOGIT_SCALE,
    contrastive_loss, sigmoid_loss,
};
pub use preprocess::{FEATURE_EXTRACTOR, ImageProcessorConfig, PIXEL_MEAN, PIXEL_STD, PixelSize};
pub use text::{CLIPTextModelWithProjection, TextOutput};
pub use vision::{CLIPVisionModelWithProjection, VisionOutput};
