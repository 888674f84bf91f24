//! `unclip import` from outside: other projects' files become a directory that draws, and what does not fit is said all at
//! once.

mod command;

use std::fs;
use std::path::Path;

use models::clip::CLIPModel;
use models::{Loaded, weights};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use tensor::{DType, Device};

use command::{refused, succeeded, unclip};

/// The numbers of a tensor: different everywhere, and small.
fn numbers(shape: &[usize]) -> Vec<f32> {
    let count = shape.iter().product::<usize>();
    let number = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5;
    (0..count).map(|i| 0.2 * number(i)).collect()
}

fn write(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let made = tensors.iter().map(|(name, shape)| {
        let bytes: Vec<u8> = numbers(shape)
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        (name, shape, bytes)
    });
    let made: Vec<_> = made.collect();
    let views = made.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
        (name.as_str(), view)
    });
    serialize_to_file(views, None, path).unwrap();
}

const WIDTH: usize = 64;
const WORDS: usize = 600;
const CONTEXT: usize = 32;

/// A CLIP of one layer a tower under OpenAI's names: heads of 64, squares of 64 pixels.
fn openai() -> Vec<(String, Vec<usize>)> {
    let mut tensors = vec![
        ("logit_scale".to_owned(), vec![]),
        ("token_embedding.weight".to_owned(), vec![WORDS, WIDTH]),
        ("positional_embedding".to_owned(), vec![CONTEXT, WIDTH]),
        ("text_projection".to_owned(), vec![WIDTH, WIDTH]),
        ("visual.class_embedding".to_owned(), vec![WIDTH]),
        ("visual.conv1.weight".to_owned(), vec![WIDTH, 3, 8, 8]),
        ("visual.positional_embedding".to_owned(), vec![65, WIDTH]),
        ("visual.proj".to_owned(), vec![WIDTH, WIDTH]),
    ];
    for norm in ["ln_final", "visual.ln_pre", "visual.ln_post"] {
        let parts = ["weight", "bias"];
        tensors.extend(parts.map(|part| (format!("{norm}.{part}"), vec![WIDTH])));
    }
    for tower in ["", "visual."] {
        let layers = [
            ("attn.in_proj_", [3 * WIDTH, WIDTH]),
            ("attn.out_proj.", [WIDTH, WIDTH]),
            ("mlp.c_fc.", [4 * WIDTH, WIDTH]),
            ("mlp.c_proj.", [WIDTH, 4 * WIDTH]),
        ];
        let block = format!("{tower}transformer.resblocks.0");
        for (layer, [rows, columns]) in layers {
            tensors.push((format!("{block}.{layer}weight"), vec![rows, columns]));
            tensors.push((format!("{block}.{layer}bias"), vec![rows]));
        }
        for norm in ["ln_1", "ln_2"] {
            let parts = ["weight", "bias"];
            tensors.extend(parts.map(|part| (format!("{block}.{norm}.{part}"), vec![WIDTH])));
        }
    }
    tensors
}

/// A folder with that CLIP in clip.safetensors, and a tokenizer.
fn workspace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("clip.safetensors"), &openai());
    let tokenizer = models::tokenizer::Tokenizer::from_merges(&[], CONTEXT).unwrap();
    let place = dir.path().join("tokenizer");
    fs::create_dir(&place).unwrap();
    tokenizer.save(&place).unwrap();
    dir
}

const CLIP: [&str; 7] = [
    "import",
    "clip",
    "clip.safetensors",
    "--tokenizer",
    "tokenizer",
    "-o",
    "clip",
];

#[test]
fn openais_names_become_transformers() {
    let dir = workspace();
    succeeded(&unclip(dir.path(), &CLIP));
    let clip: Loaded<CLIPModel> =
        weights::load(&dir.path().join("clip/clip"), DType::F32, Device::Cpu).unwrap();
    let get = |name: &str| {
        let id = clip.params.layout().find(name).unwrap();
        let value = clip.params.get(id).unwrap();
        value
            .contiguous()
            .unwrap()
            .as_slice::<f32>()
            .unwrap()
            .to_vec()
    };
    let fused = numbers(&[3 * WIDTH, WIDTH]);
    for (part, which) in fused.chunks(WIDTH * WIDTH).zip(["q", "k", "v"]) {
        let name = format!("text_model.encoder.layers.0.self_attn.{which}_proj.weight");
        assert_eq!(get(&name), part, "{name}");
    }
    let projection = numbers(&[WIDTH, WIDTH]);
    let found = get("visual_projection.weight");
    for i in 0..WIDTH {
        for j in 0..WIDTH {
            assert_eq!(found[i * WIDTH + j], projection[j * WIDTH + i]);
        }
    }
    let said = succeeded(&unclip(dir.path(), &["model", "describe", "clip"]));
    assert!(said.contains("CLIPModel"), "{said}");
}

#[test]
fn everything_that_does_not_fit_is_named_and_nothing_is_lost() {
    let dir = workspace();
    succeeded(&unclip(dir.path(), &CLIP));
    let mut tensors = openai();
    tensors.retain(|(name, _)| name != "ln_final.bias" && name != "visual.ln_pre.weight");
    tensors.push(("extra".to_owned(), vec![2]));
    write(&dir.path().join("clip.safetensors"), &tensors);
    let said = refused(&unclip(dir.path(), &CLIP), 1);
    for part in [
        "3 differences",
        "ln_final.bias [64] is missing",
        "visual.ln_pre.weight [64] is missing",
        "extra [2] is unexpected",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    fs::write(dir.path().join("clip.safetensors"), b"PK\x03\x04 and so on").unwrap();
    let said = refused(&unclip(dir.path(), &CLIP), 1);
    assert!(said.contains("it is a pickle"), "{said}");
    assert!(said.contains("weights_only=True"), "{said}");
    // What was there before is there still.
    assert!(dir.path().join("clip/clip/model.safetensors").exists());
}

/// Karlo's names for networks of other sizes are not written down here: the refusal of an empty file says them. That they
/// are Karlo's is what the golden tests of the importers show.
#[test]
fn karlos_checkpoints_become_a_directory_that_draws() {
    let dir = workspace();
    succeeded(&unclip(dir.path(), &CLIP));
    let statistics = ["mean", "std"].map(|name| (name.to_owned(), vec![WIDTH]));
    write(&dir.path().join("statistics.safetensors"), &statistics);
    let files = ["prior.safetensors", "decoder.safetensors", "sr.safetensors"];
    for file in files {
        write(&dir.path().join(file), &[]);
    }
    let import = [
        "import",
        "karlo",
        "--architecture",
        "tiny",
        "--prior",
        files[0],
        "--statistics",
        "statistics.safetensors",
        "--decoder",
        files[1],
        "--super-res",
        files[2],
        "--clip",
        "clip",
        "-o",
        "m",
        "--bf16",
    ];
    for (file, count) in files.into_iter().zip([30, 100, 200]) {
        let said = refused(&unclip(dir.path(), &import), 1);
        assert!(said.contains(file), "{said}");
        let missing = said.lines().filter_map(|line| {
            let (name, rest) = line.trim().split_once(" [")?;
            let (shape, _) = rest.split_once("] is missing")?;
            let extents = shape.split(", ").filter(|extent| !extent.is_empty());
            let shape = extents.map(|extent| extent.parse().unwrap()).collect();
            Some((name.to_owned(), shape))
        });
        let missing: Vec<(String, Vec<usize>)> = missing.collect();
        assert!(missing.len() > count, "{file}: {}", missing.len());
        write(&dir.path().join(file), &missing);
        assert!(!dir.path().join("m").exists());
    }
    succeeded(&unclip(dir.path(), &import));
    let said = succeeded(&unclip(dir.path(), &["model", "describe", "m"]));
    for (name, parameters) in [
        ("prior", "127,552"),
        ("decoder", "861,638"),
        ("super_res_last", "695,235"),
    ] {
        let row = said.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(row.contains(parameters) && row.contains("bf16"), "{row}");
    }
    let draw = [
        "generate",
        "-m",
        "m",
        "-p",
        "red",
        "--prior-steps",
        "2",
        "--decoder-steps",
        "2",
        "--sr-steps",
        "2",
    ];
    succeeded(&unclip(dir.path(), &draw));
    // With the image tower that came along it varies pictures too.
    let vary = [
        "vary",
        "unclip.png",
        "-m",
        "m",
        "--decoder-steps",
        "2",
        "--sr-steps",
        "2",
        "-o",
        "v.png",
    ];
    succeeded(&unclip(dir.path(), &vary));
    let picture = image::open(dir.path().join("v.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (64, 64));
}
