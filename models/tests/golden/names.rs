//! The names and shapes of Karlo's parameters.

use models::clip::{
    CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection,
};
use models::prior::{PriorConfig, PriorTransformer};
use models::text_proj::{UnCLIPTextProjConfig, UnCLIPTextProjModel};
use models::unet::{UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig, UNet2DModel};
use models::{Model, declare};

use crate::files::path;

#[track_caller]
fn same<M: Model>(config: &M::Config, list: &str) {
    let (_, layout) = declare::<M>(config).unwrap();
    let ours = layout
        .iter()
        .map(|(_, info)| format!("{} {}", info.name, info.file_shape()));
    let mut ours: Vec<String> = ours.collect();
    ours.sort();
    let theirs = std::fs::read_to_string(path(&format!("names/{list}.txt"))).unwrap();
    let theirs: Vec<&str> = theirs.lines().collect();
    let difference = ours.iter().zip(&theirs).find(|(a, b)| a != b);
    assert!(difference.is_none(), "{list}: {difference:?}");
    assert_eq!(ours.len(), theirs.len(), "{list}");
}

#[test]
fn names_and_shapes_are_those_of_diffusers_and_transformers() {
    same::<PriorTransformer>(&PriorConfig::default(), "prior");
    same::<UnCLIPTextProjModel>(&UnCLIPTextProjConfig::karlo(), "text_proj");
    same::<UNet2DConditionModel>(&UNet2DConditionConfig::karlo(), "decoder");
    same::<UNet2DModel>(&UNet2DConfig::karlo(), "super_res");
    // OpenAI's ViT-L/14, which Karlo was trained with.
    let text = CLIPTextConfig {
        hidden_size: 768,
        intermediate_size: 3072,
        projection_dim: 768,
        num_attention_heads: 12,
        ..CLIPTextConfig::default()
    };
    same::<CLIPTextModelWithProjection>(&text, "text_encoder");
    let vision = CLIPVisionConfig {
        hidden_size: 1024,
        intermediate_size: 4096,
        projection_dim: 768,
        num_attention_heads: 16,
        num_hidden_layers: 24,
        patch_size: 14,
        ..CLIPVisionConfig::default()
    };
    same::<CLIPVisionModelWithProjection>(&vision, "image_encoder");
}
