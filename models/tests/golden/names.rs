//! The names and shapes of every architecture's parameters.

use models::architecture::Architecture;
use models::clip::{CLIPTextModelWithProjection, CLIPVisionModelWithProjection};
use models::prior::PriorTransformer;
use models::text_proj::UnCLIPTextProjModel;
use models::unet::{UNet2DConditionModel, UNet2DModel};
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

/// Compares all networks but CLIP's; Karlo's lists have no prefix.
fn generative(architecture: &Architecture, prefix: &str) {
    let list = |name: &str| format!("{prefix}{name}");
    same::<PriorTransformer>(&architecture.prior, &list("prior"));
    same::<UnCLIPTextProjModel>(&architecture.text_proj, &list("text_proj"));
    same::<UNet2DConditionModel>(&architecture.decoder, &list("decoder"));
    same::<UNet2DModel>(&architecture.super_res, &list("super_res"));
    if let Some(config) = &architecture.super_res_1024 {
        same::<UNet2DModel>(config, &list("super_res_1024"));
    }
}

fn clip(architecture: &Architecture, prefix: &str) {
    let list = |name: &str| format!("{prefix}{name}");
    same::<CLIPTextModelWithProjection>(&architecture.text_encoder, &list("text_encoder"));
    same::<CLIPVisionModelWithProjection>(&architecture.image_encoder, &list("image_encoder"));
}

#[test]
fn names_and_shapes_are_those_of_diffusers_and_transformers() {
    let karlo = Architecture::karlo();
    generative(&karlo, "");
    clip(&karlo, "");
    for (architecture, prefix) in [
        (Architecture::tiny(), "tiny-"),
        (Architecture::paper(), "paper-"),
    ] {
        generative(&architecture, prefix);
        clip(&architecture, prefix);
    }
    // Under Karlo's CLIP.
    generative(&Architecture::small(), "small-");
}
