//! The kinds of files that come from outside, and how each is read.

use std::fs;
use std::path::Path;

use autograd::{DType, Device};
use models::clip::{CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection};
use models::pipeline::Pipeline;
use models::prior::PriorTransformer;
use models::text_proj::{UnCLIPTextProjConfig, UnCLIPTextProjModel};
use models::tokenizer::Tokenizer;
use models::unet::{UNet2DConditionModel, UNet2DModel};
use models::weights::{self, Precision};
use models::{Folder, Loaded, Model, declare, import};
use safetensors::tensor::{Dtype, TensorView, serialize};

type Outcome = Result<(), String>;

pub struct Target {
    /// The folder of its corpus.
    pub name: &'static str,
    /// Files that are made rather than kept.
    pub made: fn() -> Vec<(String, Vec<u8>)>,
    /// Reads such a file; the directory is empty or holds what an earlier call left.
    pub read: fn(&Path, &str, &[u8]) -> Outcome,
}

pub const TARGETS: &[Target] = &[
    Target {
        name: "weights",
        made: weight_files,
        read: read_weights,
    },
    Target {
        name: "config",
        made: Vec::new,
        read: read_config,
    },
    Target {
        name: "scheduler",
        made: Vec::new,
        read: read_scheduler,
    },
    Target {
        name: "index",
        made: Vec::new,
        read: read_index,
    },
    Target {
        name: "tokenizer",
        made: tokenizer_files,
        read: read_tokenizer,
    },
    Target {
        name: "open_clip",
        made: Vec::new,
        read: read_open_clip,
    },
];

fn text_proj() -> UnCLIPTextProjConfig {
    UnCLIPTextProjConfig {
        clip_extra_context_tokens: 1,
        clip_embeddings_dim: 2,
        time_embed_dim: 3,
        cross_attention_dim: 2,
        ..UnCLIPTextProjConfig::karlo()
    }
}

/// What this program itself writes.
fn weight_files() -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let made = Loaded::<UnCLIPTextProjModel>::init(&text_proj(), 1, DType::F32, Device::Cpu);
    let Loaded { model, params } = made.unwrap();
    [
        ("good-f32", Precision::Full),
        ("good-bf16", Precision::Bf16),
    ]
    .map(|(name, precision)| {
        weights::save(dir.path(), &model, &params, precision).unwrap();
        let file = dir.path().join("diffusion_pytorch_model.safetensors");
        (name.to_owned(), fs::read(file).unwrap())
    })
    .into()
}

/// Corpus files hold a header alone, after a line with the length that is written before it and that of the data behind
/// it; `=` is the header's true length.
fn with_header(description: &[u8]) -> Vec<u8> {
    let split = description.iter().position(|&b| b == b'\n');
    let (line, header) = description.split_at(split.unwrap_or(description.len()));
    let header = header.strip_prefix(b"\n").unwrap_or(header);
    let header = header.strip_suffix(b"\n").unwrap_or(header);
    let line = String::from_utf8_lossy(line);
    let mut numbers = line.split_whitespace();
    let length = match numbers.next() {
        Some("=") | None => header.len() as u64,
        Some(number) => number.parse().unwrap_or(u64::MAX),
    };
    let data = numbers
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0usize);
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data.min(1 << 16), 0);
    bytes
}

fn read_weights(dir: &Path, name: &str, bytes: &[u8]) -> Outcome {
    let config = serde_json::to_vec(&text_proj()).unwrap();
    fs::write(dir.join("config.json"), config).unwrap();
    let bytes = match name.ends_with(".header") {
        true => &with_header(bytes),
        false => bytes,
    };
    fs::write(dir.join("diffusion_pytorch_model.safetensors"), bytes).unwrap();
    let loaded = weights::load::<UnCLIPTextProjModel>(dir, DType::F32, Device::Cpu);
    loaded.map(|_| ()).map_err(|error| error.to_string())
}

fn read_config(dir: &Path, _: &str, bytes: &[u8]) -> Outcome {
    fn of_class<M: Model>(dir: &Folder) -> models::Result<()> {
        let config = weights::load_config::<M>(dir)?;
        declare::<M>(&config).map(|_| ())
    }
    fs::write(dir.join("config.json"), bytes).unwrap();
    let dir = &Folder::from(dir);
    let outcome = weights::class_of(dir).and_then(|class| match class.as_str() {
        "UNet2DConditionModel" => of_class::<UNet2DConditionModel>(dir),
        "UNet2DModel" => of_class::<UNet2DModel>(dir),
        "PriorTransformer" => of_class::<PriorTransformer>(dir),
        "CLIPModel" => of_class::<CLIPModel>(dir),
        "CLIPTextModelWithProjection" => of_class::<CLIPTextModelWithProjection>(dir),
        "CLIPVisionModelWithProjection" => of_class::<CLIPVisionModelWithProjection>(dir),
        _ => of_class::<UnCLIPTextProjModel>(dir),
    });
    outcome.map_err(|error| error.to_string())
}

fn read_scheduler(dir: &Path, _: &str, bytes: &[u8]) -> Outcome {
    fs::write(dir.join("scheduler_config.json"), bytes).unwrap();
    let config = weights::load_scheduler(&Folder::from(dir)).map_err(|error| error.to_string())?;
    // Its tables are what the file asks for.
    assert_eq!(config.schedule().steps(), config.num_train_timesteps);
    Ok(())
}

/// There is nothing behind the index: an error is the good outcome, and nothing that it names may be opened.
fn read_index(dir: &Path, _: &str, bytes: &[u8]) -> Outcome {
    fs::write(dir.join("model_index.json"), bytes).unwrap();
    match Pipeline::load(dir, DType::F32, Device::Cpu) {
        Ok(_) => Ok(()),
        Err(error) => {
            let said = error.to_string();
            assert!(
                !said.contains("passwd") || said.contains("describes"),
                "{said}"
            );
            Err(said)
        }
    }
}

fn tokenizer_files() -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let merges = [("r", "e"), ("re", "d</w>")].map(|(a, b)| (a.into(), b.into()));
    let made = Tokenizer::from_merges(&merges, 8).unwrap();
    made.save(dir.path()).unwrap();
    ["tokenizer.json", "vocab.json", "merges.txt"]
        .map(|name| {
            (
                format!("good-{name}"),
                fs::read(dir.path().join(name)).unwrap(),
            )
        })
        .into()
}

fn read_tokenizer(dir: &Path, name: &str, bytes: &[u8]) -> Outcome {
    for (good, whole) in tokenizer_files() {
        fs::write(dir.join(good.trim_start_matches("good-")), whole).unwrap();
    }
    let kind = [
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
    ];
    let kind = kind.iter().find(|kind| name.ends_with(**kind)).unwrap();
    let _ = fs::remove_file(dir.join("tokenizer_config.json"));
    if *kind != "tokenizer.json" {
        fs::remove_file(dir.join("tokenizer.json")).unwrap();
    }
    fs::write(dir.join(kind), bytes).unwrap();
    let tokenizer = Tokenizer::from_dir(dir).map_err(|error| error.to_string())?;
    for text in ["red", "", "an ÄÖ\u{0}\u{200D}🦀 <|endoftext|> 12"] {
        match tokenizer.encode_truncated(text) {
            Ok(ids) => assert_eq!(ids.len(), tokenizer.context_length()),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

fn read_open_clip(dir: &Path, _: &str, bytes: &[u8]) -> Outcome {
    let config = dir.join("open_clip_config.json");
    fs::write(&config, bytes).unwrap();
    let weights = dir.join("weights.safetensors");
    if !weights.exists() {
        fs::write(&weights, smallest_clip()).unwrap();
    }
    let made = import::clip(&weights, Some(&config), DType::F32, Device::Cpu);
    made.map(|_| ()).map_err(|error| error.to_string())
}

/// OpenCLIP's names, and no size above 6.
fn smallest_clip() -> Vec<u8> {
    let mut shapes: Vec<(String, Vec<usize>)> = [
        ("logit_scale", &[][..]),
        ("positional_embedding", &[3, 4]),
        ("text_projection", &[4, 2]),
        ("token_embedding.weight", &[6, 4]),
        ("ln_final.weight", &[4]),
        ("ln_final.bias", &[4]),
        ("visual.class_embedding", &[4]),
        ("visual.positional_embedding", &[2, 4]),
        ("visual.proj", &[4, 2]),
        ("visual.conv1.weight", &[4, 3, 2, 2]),
        ("visual.ln_pre.weight", &[4]),
        ("visual.ln_pre.bias", &[4]),
        ("visual.ln_post.weight", &[4]),
        ("visual.ln_post.bias", &[4]),
    ]
    .map(|(name, shape)| (name.to_owned(), shape.to_vec()))
    .into();
    for tower in ["", "visual."] {
        let block = [
            ("ln_1.weight", &[4][..]),
            ("ln_1.bias", &[4]),
            ("attn.in_proj_weight", &[12, 4]),
            ("attn.in_proj_bias", &[12]),
            ("attn.out_proj.weight", &[4, 4]),
            ("attn.out_proj.bias", &[4]),
            ("ln_2.weight", &[4]),
            ("ln_2.bias", &[4]),
            ("mlp.c_fc.weight", &[5, 4]),
            ("mlp.c_fc.bias", &[5]),
            ("mlp.c_proj.weight", &[4, 5]),
            ("mlp.c_proj.bias", &[4]),
        ];
        let named = |(name, shape): (&str, &[usize])| {
            let name = format!("{tower}transformer.resblocks.0.{name}");
            (name, shape.to_vec())
        };
        shapes.extend(block.map(named));
    }
    let zeros = [0u8; 4 * 64];
    let views = shapes.iter().map(|(name, shape)| {
        let bytes = &zeros[..4 * shape.iter().product::<usize>()];
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    serialize(views, None).unwrap()
}
