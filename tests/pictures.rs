//! The commands that make pictures, on an untrained model of a few pixels: their files carry what they were made with, the
//! same request gives the same bytes, and what cannot be drawn is refused in one sentence with nothing written.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use autograd::{DType, Device, Draw, Init};
use models::clip::{CLIPTextConfig, CLIPTextModelWithProjection};
use models::clip::{CLIPVisionConfig, CLIPVisionModelWithProjection};
use models::config::{Extent, PerLevel};
use models::diffusion::SchedulerConfig;
use models::pipeline::Pipeline;
use models::prior::{PriorConfig, PriorTransformer};
use models::text_proj::{UnCLIPTextProjConfig, UnCLIPTextProjModel};
use models::tokenizer::Tokenizer;
use models::unet::{UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig, UNet2DModel};
use models::weights::{self, Precision};
use models::{Loaded, Model};
use tensor::Tensor;

/// A model whose constant parameters are random too: untrained networks say nothing otherwise.
fn tiny<M: Model>(config: &M::Config) -> Loaded<M> {
    let mut loaded = Loaded::<M>::init(config, 7, DType::F32, Device::Cpu).unwrap();
    let layout = loaded.params.layout().clone();
    for (id, info) in layout.iter() {
        if matches!(info.init, Init::Zeros) {
            let mut value = Tensor::uninit(info.shape, DType::F32, Device::Cpu);
            let draw = Draw::named(7, &info.name, 0);
            tensor::ops::random::fill_normal(&mut value, &draw, 0.1).unwrap();
            loaded.params.set(id, &value).unwrap();
        }
    }
    loaded
}

const WIDTH: usize = 12;
/// Sides of the decoder's and the upsampler's pictures.
const SMALL: usize = 4;
const LARGE: usize = 8;

/// A model directory that draws 8 × 8 pixels, in `model`, with an image encoder.
fn workspace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let length = 9;
    let tokenizer = Tokenizer::from_merges(&[], length).unwrap();
    let text = CLIPTextConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: WIDTH,
        intermediate_size: 16,
        projection_dim: WIDTH,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: length,
        eos_token_id: tokenizer.end_id(),
        ..CLIPTextConfig::default()
    };
    let vision = CLIPVisionConfig {
        hidden_size: 8,
        intermediate_size: 11,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        image_size: LARGE,
        patch_size: 4,
        projection_dim: WIDTH,
        ..CLIPVisionConfig::default()
    };
    let prior = PriorConfig {
        num_attention_heads: 2,
        attention_head_dim: 6,
        num_layers: 1,
        embedding_dim: WIDTH,
        num_embeddings: length,
        ..PriorConfig::default()
    };
    let decoder = UNet2DConditionConfig {
        sample_size: Some(Extent::Square(SMALL)),
        layers_per_block: PerLevel::All(1),
        norm_num_groups: 4,
        cross_attention_dim: PerLevel::All(10),
        attention_head_dim: PerLevel::All(4),
        ..UNet2DConditionConfig::unclip(&[8, 16])
    };
    let text_proj = UnCLIPTextProjConfig {
        clip_embeddings_dim: WIDTH,
        time_embed_dim: decoder.time_embed_dim(),
        cross_attention_dim: 10,
        ..UnCLIPTextProjConfig::karlo()
    };
    let upsampler = UNet2DConfig {
        sample_size: Some(Extent::Square(LARGE)),
        layers_per_block: 1,
        norm_num_groups: 4,
        ..UNet2DConfig::upsampler(&[8, 8])
    };
    let pipeline = Pipeline {
        tokenizer,
        text_encoder: tiny::<CLIPTextModelWithProjection>(&text).into(),
        prior: Some(tiny::<PriorTransformer>(&prior).into()),
        prior_scheduler: SchedulerConfig::prior(),
        text_proj: tiny::<UnCLIPTextProjModel>(&text_proj).into(),
        decoder: tiny::<UNet2DConditionModel>(&decoder).into(),
        decoder_scheduler: SchedulerConfig::decoder(),
        super_res_first: tiny::<UNet2DModel>(&upsampler).into(),
        super_res_last: tiny::<UNet2DModel>(&upsampler).into(),
        super_res_scheduler: SchedulerConfig::upsampler(),
        super_res_1024: None,
    };
    let model = dir.path().join("model");
    pipeline.save(&model, Precision::Full).unwrap();
    let encoder = tiny::<CLIPVisionModelWithProjection>(&vision);
    let place = model.join("image_encoder");
    weights::save(&place, &encoder.model, &encoder.params, Precision::Full).unwrap();
    let steps = r#"{"prior_num_inference_steps": 3, "decoder_num_inference_steps": 4,
        "super_res_num_inference_steps": 2, "decoder_guidance_scale": 2.0}"#;
    fs::write(model.join("sampling.json"), steps).unwrap();
    for (name, phase) in [("a.png", 0), ("b.png", 3)] {
        picture(&dir.path().join(name), LARGE, |x, y| {
            [
                (x * 30) as u8,
                (y * 30 + phase) as u8,
                ((x + y) * 9 * phase) as u8,
            ]
        });
    }
    dir
}

fn picture(path: &Path, side: usize, color: impl Fn(usize, usize) -> [u8; 3]) {
    let pixels = image::RgbImage::from_fn(side as u32, side as u32, |x, y| {
        image::Rgb(color(x as usize, y as usize))
    });
    pixels.save(path).unwrap();
}

fn pixels(path: &Path) -> Vec<u8> {
    image::open(path).unwrap().into_rgb8().into_raw()
}

fn unclip(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_unclip"))
        .args(arguments)
        .args(["--model", "model"])
        .current_dir(dir)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap()
}

#[track_caller]
fn succeeded(dir: &Path, arguments: &[&str]) -> String {
    let output = unclip(dir, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

/// The one sentence that a command fails with; nothing is written.
#[track_caller]
fn refused(dir: &Path, arguments: &[&str], code: i32) -> String {
    let output = unclip(dir, &[arguments, &["-o", "never.png"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(!dir.join("never.png").exists());
    said
}

#[test]
fn a_picture_is_made_again_byte_for_byte_from_itself() {
    let dir = workspace();
    let (dir, read) = (dir.path(), |name: &str| {
        fs::read(dir.path().join(name)).unwrap()
    });
    let settings = [
        "generate",
        "-p",
        "ß, 星",
        "-n",
        "3",
        "--seed",
        "18446744073709551615",
        "-o",
        "x.png",
        "--prior-sampler",
        "ddim",
        "--prior-eta",
        "0.3",
        "--decoder-sampler",
        "heun",
        "--decoder-guidance-scale",
        "3.3",
        "--decoder-guidance-interval",
        "0.1,0.9",
        "--decoder-guidance-rescale",
        "0.7",
        "--decoder-dynamic-thresholding-ratio",
        "0.95",
        "--super-res-sampler",
        "dpm",
        "--prior-candidates",
        "1",
        "--prior-guidance-interval",
        "0.3,1",
    ];
    succeeded(dir, &settings);
    for name in ["x-1.png", "x-2.png", "x-3.png"] {
        succeeded(dir, &["generate", "--from", name, "-o", "again.png"]);
        assert!(read("again.png") == read(name), "{name}");
    }
    assert_ne!(read("x-1.png"), read("x-2.png"));
    // What is given changes that alone.
    succeeded(
        dir,
        &[
            "generate",
            "--from",
            "x-2.png",
            "--seed",
            "1",
            "-o",
            "other.png",
        ],
    );
    succeeded(dir, &["generate", "--from", "other.png", "-o", "again.png"]);
    assert!(read("again.png") == read("other.png") && read("other.png") != read("x-2.png"));

    // Cut, changed, or not ours: one sentence each.
    fs::write(dir.join("cut.png"), &read("x-1.png")[..90]).unwrap();
    assert!(refused(dir, &["generate", "--from", "cut.png"], 2).contains("it breaks off"));
    let foreign = refused(dir, &["generate", "--from", "a.png"], 2);
    assert!(
        foreign.contains("a.png does not say how it was made"),
        "{foreign}"
    );
    fs::write(dir.join("text.png"), "no picture").unwrap();
    assert!(refused(dir, &["generate", "--from", "text.png"], 2).contains("it is no PNG file"));
    assert!(refused(dir, &["generate", "--from", "none.png"], 1).contains("cannot read none.png"));
    assert!(refused(dir, &["generate"], 2).contains("--prompt"));
    assert!(
        refused(dir, &["generate", "--from", "x-1.png", "-n", "2"], 2).contains("--num-images")
    );
    // Another model.
    let weights = dir.join("model/decoder/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last - 1] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let said = refused(dir, &["generate", "--from", "x-1.png"], 2);
    assert!(said.contains("by a model of the hash"), "{said}");
}

#[test]
fn settings_that_make_no_sense_are_refused_in_a_sentence_with_nothing_written() {
    let dir = workspace();
    let say = |more: &[&str]| refused(dir.path(), &[&["generate", "-p", "red"], more].concat(), 2);
    for (arguments, sentence) in [
        (
            &["--decoder-eta", "0.5"][..],
            "decoder_eta = 0.5 is for the sampler ddim",
        ),
        (
            &["--decoder-eta=-1", "--decoder-sampler", "ddim"],
            "decoder: eta must be from 0 to 1",
        ),
        (
            &["--prior-num-inference-steps", "0"],
            "prior: the number of sampling steps must be from 1 to 1000",
        ),
        (
            &["--decoder-num-inference-steps", "1001"],
            "decoder: the number of sampling steps",
        ),
        (
            &["--decoder-guidance-scale", "nan"],
            "decoder: the guidance scale must be a number",
        ),
        (
            &["--decoder-guidance-interval", "0.9,0.1"],
            "decoder: the guidance interval must rise",
        ),
        (&["--decoder-guidance-interval", "0.9"], "two numbers"),
        (
            &["--decoder-guidance-rescale", "2"],
            "decoder: guidance rescale must be from 0 to 1",
        ),
        (
            &["--decoder-dynamic-thresholding-ratio", "7"],
            "decoder: the dynamic thresholding ratio must be above 0",
        ),
        (&["--decoder-sampler", "euler"], "euler"),
        (&["--prior-candidates", "0"], "at least 1 candidate"),
        (&["-n", "0"], "--num-images must be at least 1"),
    ] {
        let said = say(arguments);
        assert!(said.contains(sentence), "{arguments:?}: {said}");
    }
    let settings = dir.path().join("model/sampling.json");
    fs::write(&settings, r#"{"decoder_steps": 3}"#).unwrap();
    let said = refused(dir.path(), &["generate", "-p", "red"], 1);
    assert!(
        said.contains("sampling.json") && said.contains("decoder_steps"),
        "{said}"
    );
    fs::write(&settings, r#"{"prior_eta": 0.5}"#).unwrap();
    assert!(say(&[]).contains("prior_eta = 0.5 is for the sampler ddim"));
}

#[test]
fn all_noise_goes_out_to_a_file_and_comes_back() {
    let dir = workspace();
    let (dir, read) = (dir.path(), |name: &str| {
        fs::read(dir.path().join(name)).unwrap()
    });
    let red = [
        "generate",
        "-p",
        "red",
        "-n",
        "2",
        "--decoder-sampler",
        "ddim",
        "--decoder-eta",
        "0.5",
    ];
    let with = |more: &[&'static str]| [&red[..], more].concat();
    succeeded(
        dir,
        &with(&["-o", "x.png", "--save-latents", "noise.safetensors"]),
    );
    let bytes = read("noise.safetensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<(String, Vec<usize>)> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.shape().to_vec()))
        .collect();
    names.sort();
    let (small, large) = (vec![2, 3, SMALL, SMALL], vec![2, 3, LARGE, LARGE]);
    let mut want = Vec::new();
    for i in 0..4 {
        want.push((format!("decoder.{i}"), small.clone()));
    }
    for candidate in 0..2 {
        want.extend((0..3).map(|i| (format!("prior.{candidate}.{i}"), vec![2, WIDTH])));
    }
    want.extend((0..2).map(|i| (format!("super_res.{i}"), large.clone())));
    assert_eq!(names, want);

    // Another seed, the same noise: the same pictures, and a record that says where it came from.
    let given = [
        "--seed",
        "9",
        "--latents",
        "noise.safetensors",
        "-o",
        "y.png",
    ];
    succeeded(dir, &with(&given));
    for i in 1..=2 {
        let [x, y] = ["x", "y"].map(|name| dir.join(format!("{name}-{i}.png")));
        assert_eq!(pixels(&x), pixels(&y));
    }
    let alone = refused(dir, &["generate", "--from", "y-2.png"], 2);
    assert!(alone.contains("give it with --latents"), "{alone}");
    let again = [
        "generate",
        "--from",
        "y-2.png",
        "--latents",
        "noise.safetensors",
        "-o",
        "again.png",
    ];
    succeeded(dir, &again);
    assert!(read("again.png") == read("y-2.png"));

    let other = [
        "generate",
        "-p",
        "red",
        "-n",
        "2",
        "--latents",
        "noise.safetensors",
    ];
    let said = refused(
        dir,
        &[&other[..], &["--decoder-num-inference-steps", "5"]].concat(),
        2,
    );
    assert!(
        said.contains("1 differences") && said.contains("decoder.4 [2, 3, 4, 4] is missing"),
        "{said}"
    );
    let said = refused(
        dir,
        &[&other[..], &["--decoder-sampler", "dpm"]].concat(),
        2,
    );
    assert!(said.contains("decoder.1 is unexpected"), "{said}");
    let said = refused(
        dir,
        &["generate", "-p", "red", "--latents", "noise.safetensors"],
        2,
    );
    assert!(
        said.contains("super_res.0 is [2, 3, 8, 8], it must be [1, 3, 8, 8]"),
        "{said}"
    );
    let said = refused(dir, &["generate", "-p", "red", "--latents", "a.png"], 2);
    assert!(said.contains("it is no safetensors file"), "{said}");
}

#[test]
fn variations_and_the_way_back() {
    let dir = workspace();
    let (dir, read) = (dir.path(), |name: &str| {
        fs::read(dir.path().join(name)).unwrap()
    });
    succeeded(
        dir,
        &["vary", "a.png", "-n", "2", "-o", "v.png", "--trajectory"],
    );
    succeeded(dir, &["vary", "a.png", "-n", "2", "-o", "w.png"]);
    assert!(read("v-1.png") == read("w-1.png") && read("v-1.png") != read("v-2.png"));
    assert!(dir.join("v.trajectory.png").exists());
    let carries = |name: &str, needle: &[u8]| read(name).windows(needle.len()).any(|w| w == needle);
    assert!(carries("v-1.png", b"\"command\":\"vary\"") && carries("v-1.png", b"Picture: a.png "));
    let said = refused(dir, &["generate", "--from", "v-1.png"], 2);
    assert!(said.contains("was made by `unclip vary`"), "{said}");

    // From its own noise eta alone makes a difference between two variations.
    let inverted = |more: &[&'static str]| {
        let back = [
            "vary",
            "a.png",
            "--invert",
            "--decoder-guidance-scale",
            "1",
            "-n",
            "2",
            "-o",
            "i.png",
        ];
        // An upsampler that draws no noise of its own.
        let quiet = [
            "--super-res-sampler",
            "ddim",
            "--super-res-num-inference-steps",
            "1",
        ];
        succeeded(dir, &[&back[..], &quiet, more].concat());
        [pixels(&dir.join("i-1.png")), pixels(&dir.join("i-2.png"))]
    };
    assert_ne!(
        inverted(&["--decoder-eta", "0.7"])[0],
        inverted(&["--decoder-eta", "0.7"])[1]
    );
    assert_eq!(
        inverted(&["--iterations", "3"]),
        inverted(&["--iterations", "3"])
    );
    let solver = ["vary", "a.png", "--invert", "--decoder-sampler", "dpm"];
    assert!(refused(dir, &solver, 2).contains("only ddim can be inverted"));
    let never = ["vary", "a.png", "--invert", "--iterations", "0"];
    assert!(refused(dir, &never, 2).contains("at least 1 iteration"));

    fs::write(dir.join("text.png"), "no picture").unwrap();
    let said = refused(dir, &["vary", "text.png"], 2);
    assert!(
        said.contains("text.png cannot be used: it is not a PNG"),
        "{said}"
    );
    assert!(refused(dir, &["vary", "none.png"], 1).contains("cannot read none.png"));
    fs::remove_dir_all(dir.join("model/image_encoder")).unwrap();
    assert!(refused(dir, &["vary", "a.png"], 2).contains("has no image encoder"));
}

#[test]
fn blends_and_edits_are_strips() {
    let dir = workspace();
    let (dir, read) = (dir.path(), |name: &str| {
        fs::read(dir.path().join(name)).unwrap()
    });
    let blend = [
        "blend",
        "a.png",
        "b.png",
        "-n",
        "3",
        "--each",
        "-o",
        "strip.png",
    ];
    succeeded(dir, &blend);
    let strip = image::open(dir.join("strip.png")).unwrap().into_rgb8();
    assert!(strip.width() > 3 * 128 && strip.height() < 3 * 128);
    // The ends are the variations of the pictures from the same noise.
    for (name, frame) in [("a.png", "strip-1.png"), ("b.png", "strip-3.png")] {
        succeeded(dir, &["vary", name, "-o", "end.png"]);
        assert_eq!(pixels(&dir.join("end.png")), pixels(&dir.join(frame)));
    }
    assert_ne!(
        pixels(&dir.join("strip-2.png")),
        pixels(&dir.join("strip-1.png"))
    );
    let first = read("strip.png");
    succeeded(dir, &blend);
    assert!(read("strip.png") == first);
    succeeded(
        dir,
        &[
            "blend",
            "a.png",
            "b.png",
            "-n",
            "2",
            "--invert",
            "-o",
            "inverted.png",
        ],
    );

    let edit = [
        "edit", "a.png", "--from", "red", "--to", "blue", "-n", "3", "--each",
    ];
    succeeded(dir, &[&edit[..], &["-o", "edit.png"]].concat());
    assert!(dir.join("edit.png").exists());
    succeeded(dir, &["vary", "a.png", "--invert", "-o", "end.png"]);
    assert_eq!(
        pixels(&dir.join("end.png")),
        pixels(&dir.join("edit-1.png"))
    );
    assert_ne!(
        pixels(&dir.join("edit-3.png")),
        pixels(&dir.join("edit-1.png"))
    );

    assert!(refused(dir, &["blend", "a.png", "b.png", "-n", "1"], 2).contains("at least 2"));
    let same = ["edit", "a.png", "--from", "red", "--to", "red"];
    assert!(refused(dir, &same, 2).contains("mean the same"));
    let far = ["edit", "a.png", "--to", "red", "--theta", "1.5"];
    assert!(refused(dir, &far, 2).contains("--theta must be from 0 to 1"));
}

#[test]
fn outside_the_mask_a_picture_stays_byte_for_byte() {
    let dir = workspace();
    let (dir, read) = (dir.path(), |name: &str| {
        fs::read(dir.path().join(name)).unwrap()
    });
    let white = |x: usize, y: usize| x >= 4 && y >= 2;
    picture(&dir.join("mask.png"), LARGE, |x, y| {
        [if white(x, y) { 255 } else { 0 }; 3]
    });
    let inpaint = ["inpaint", "a.png", "--mask", "mask.png", "-p", "red", "-o"];
    let with = |more: &[&'static str]| [&inpaint[..], more].concat();
    succeeded(dir, &with(&["x.png"]));
    let (old, new) = (pixels(&dir.join("a.png")), pixels(&dir.join("x.png")));
    let mut changed = 0;
    for (i, (old, new)) in old.chunks(3).zip(new.chunks(3)).enumerate() {
        match white(i % LARGE, i / LARGE) {
            true => changed += usize::from(old != new),
            false => assert_eq!(old, new, "pixel {i}"),
        }
    }
    assert!(changed > 12, "{changed} of 24");
    succeeded(dir, &with(&["y.png", "--resamples", "3"]));
    assert_ne!(read("x.png"), read("y.png"));
    succeeded(dir, &with(&["z.png", "--resamples", "3"]));
    assert!(read("z.png") == read("y.png"));

    let again = ["inpaint", "a.png", "--mask", "mask.png", "-p", "red"];
    let heun = [
        &again[..],
        &["--resamples", "2", "--decoder-sampler", "heun"],
    ]
    .concat();
    assert!(refused(dir, &heun, 2).contains("heun cannot take a step again"));
    assert!(refused(dir, &[&again[..], &["--resamples", "0"]].concat(), 2).contains("at least 1"));
    picture(&dir.join("mask.png"), LARGE, |_, _| [0; 3]);
    assert!(refused(dir, &again, 2).contains("mask.png is black everywhere"));
    picture(&dir.join("mask.png"), 5, |_, _| [255; 3]);
    let said = refused(dir, &again, 2);
    assert!(
        said.contains("mask.png is 5 × 5 pixels and a.png 8 × 8"),
        "{said}"
    );
}

/// A directory of diffusers' image variation pipeline: no prior, and how pictures are made ready for the image encoder.
#[test]
fn a_directory_for_image_variation_varies_and_draws_no_text() {
    let dir = workspace();
    let dir = dir.path();
    let vary = |out: &str| {
        succeeded(dir, &["vary", "a.png", "-o", out]);
        pixels(&dir.join(out))
    };
    let whole = vary("whole.png");
    let model = dir.join("model");
    for part in ["prior", "prior_scheduler"] {
        fs::remove_dir_all(model.join(part)).unwrap();
    }
    let index = fs::read_to_string(model.join("model_index.json")).unwrap();
    let index = index.replace("UnCLIPPipeline", "UnCLIPImageVariationPipeline");
    fs::write(model.join("model_index.json"), index).unwrap();
    fs::create_dir(model.join("feature_extractor")).unwrap();
    let processor = |resample: usize| {
        let config = format!(
            r#"{{"size": {{"shortest_edge": {LARGE}}}, "crop_size": {LARGE}, "resample": {resample},
            "image_processor_type": "CLIPImageProcessor"}}"#
        );
        let place = model.join("feature_extractor/preprocessor_config.json");
        fs::write(place, config).unwrap();
    };
    processor(3);
    assert_eq!(vary("alone.png"), whole);
    let said = refused(dir, &["generate", "-p", "red"], 2);
    assert!(said.contains("this model has no prior"), "{said}");
    processor(2);
    let said = refused(dir, &["vary", "a.png"], 1);
    assert!(said.contains("resample = 2 is not supported"), "{said}");
}
