//! Image variation from a picture's bytes on, every noise injected, and CLIP's image preprocessing by itself.

use autograd::{DType, Tape, Tensor};
use models::clip::{CLIPVisionModelWithProjection, ImageProcessorConfig};
use models::pipeline::{Given, Options, Pipeline, Stage};
use serde::Deserialize;
use serde_json::Value;

use crate::files::{Report, distance, json, largest, tensors};
use crate::formula::{filled, outward};
use crate::pipeline::{Formula, Golden};

/// The bytes of `picture` in `tools/golden/variation.py`.
fn picture([height, width]: [usize; 2]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(height * width * 3);
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                let smooth = (x * (3 + c) + y * 5 + x * y) % 256;
                let flat = (x / 4 + y / 3).is_multiple_of(3);
                rgb.push(if flat { 255 * (c % 2) } else { smooth } as u8);
            }
        }
    }
    rgb
}

#[derive(Deserialize)]
struct Preprocessing {
    processors: Vec<ImageProcessorConfig>,
    extents: Vec<[usize; 2]>,
}

#[test]
fn pictures_are_made_ready_to_the_last_bit_of_their_bytes() {
    let golden: Preprocessing = json("preprocessing.json");
    let theirs = tensors("preprocessing.safetensors");
    for (i, processor) in golden.processors.iter().enumerate() {
        for extent in &golden.extents {
            let ours = processor.pixels(*extent, &picture(*extent)).unwrap();
            let ours = outward(&ours).to_f64_vec().unwrap();
            let theirs = &theirs[&format!("{i}.{}.{}", extent[0], extent[1])];
            assert_eq!(distance(&ours, theirs), 0.0, "processor {i}, {extent:?}");
        }
    }
}

#[derive(Deserialize)]
struct Variation {
    extent: [usize; 2],
    processor: ImageProcessorConfig,
    #[serde(flatten)]
    pipeline: Value,
}

/// What the picture becomes, in PyTorch's layout: its embedding, and the last sample of the decoder and the upsampler.
fn make(golden: &Variation, dtype: DType) -> [Vec<f64>; 3] {
    let parts: Golden = serde_json::from_value(golden.pipeline.clone()).unwrap();
    let config = parts.part(&parts.components, "image_encoder");
    let encoder = filled::<CLIPVisionModelWithProjection>("pipeline.image_encoder", &config, dtype);
    let pixels = golden
        .processor
        .pixels(golden.extent, &picture(golden.extent));
    let t = Tape::inference(Some(&encoder.params));
    let pixels = t.constant(pixels.unwrap().cast(dtype).unwrap());
    let output = encoder.model.forward(&t, &pixels).unwrap();
    let embedding: Tensor = output.image_embeds.tensor().clone();
    let pipeline = Pipeline {
        prior: None,
        ..parts.pipeline(dtype)
    };
    let mut image = Vec::new();
    let options: Options = parts.options();
    let given = Given::ImageEmbeddings(&embedding);
    let made = pipeline
        .generate(&[""], given, &options, &Formula, &mut |step| {
            if step.stage == Stage::SuperRes {
                image = outward(step.sample).to_f64_vec().unwrap();
            }
            Ok(())
        })
        .unwrap();
    let small = outward(&made.small).to_f64_vec().unwrap();
    [embedding.to_f64_vec().unwrap(), small, image]
}

#[test]
fn a_picture_is_varied_as_diffusers_varies_it() {
    let golden: Variation = json("variation.json");
    let theirs = tensors("variation.safetensors");
    // As for text to image.
    for (dtype, tolerance) in [(DType::F64, 1e-8), (DType::F32, 1e-3)] {
        let mut report = Report::default();
        let names = ["image_embeds", "small", "image"];
        for (name, ours) in names.into_iter().zip(make(&golden, dtype)) {
            let theirs = &theirs[&format!("{dtype}.{name}")];
            let scale = largest(theirs).max(1.0);
            report.compare(name, name, (&ours, theirs), scale, tolerance);
        }
        report.finish(&format!("variation in {dtype}"));
    }
}
