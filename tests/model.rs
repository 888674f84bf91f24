//! `unclip model` from outside: a new model draws, and what is in it is said.

mod command;

use std::fs;

use command::{refused, succeeded, unclip};

/// The words of a line of the table.
#[track_caller]
fn row<'a>(table: &'a str, name: &str) -> Vec<&'a str> {
    let rows = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.into_iter()
        .find(|row| row.first() == Some(&name))
        .unwrap_or_else(|| panic!("no {name} in {table}"))
}

#[test]
fn a_new_model_is_described_and_draws() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| unclip(dir.path(), arguments);
    succeeded(&run(&["model", "new", "tiny", "-o", "m", "--bf16"]));
    let said = succeeded(&run(&["model", "describe", "m"]));
    let decoder = row(&said, "decoder");
    let header = &decoder[..5];
    assert_eq!(
        header,
        ["decoder", "UNet2DConditionModel", "176", "861,638", "bf16"]
    );
    let file = dir
        .path()
        .join("m/decoder/diffusion_pytorch_model.safetensors");
    let size = fs::metadata(&file).unwrap().len();
    assert_eq!(decoder[5].replace(',', ""), size.to_string());
    assert_eq!(row(&said, "all")[1..3], ["554", "2,709,900"]);
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
        "--prior-candidates",
        "1",
    ];
    succeeded(&run(&draw));
    let picture = image::open(dir.path().join("unclip.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (64, 64));
    // The same seed writes the same files, another seed others.
    let written = fs::read(&file).unwrap();
    for (seed, same) in [("0", true), ("1", false)] {
        let arguments = ["model", "new", "tiny", "-o", "m", "--bf16", "--seed", seed];
        succeeded(&run(&arguments));
        assert_eq!(fs::read(&file).unwrap() == written, same, "seed {seed}");
    }
}

#[test]
fn architectures_are_described_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let said = succeeded(&unclip(dir.path(), &["model", "describe", "karlo"]));
    let counted = |name: &str| row(&said, name)[3].to_owned();
    assert_eq!(counted("prior"), "1,022,030,080");
    assert_eq!(counted("decoder"), "885,439,686");
    assert_eq!(counted("text_proj"), "7,878,400");
    assert_eq!(counted("super_res_first"), "691,579,523");
    assert_eq!(counted("super_res_last"), "691,579,523");
    let said = succeeded(&unclip(dir.path(), &["model", "describe", "paper"]));
    assert_eq!(row(&said, "super_res_1024")[3], "267,146,691");
}

#[test]
fn what_cannot_be_made_or_described_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| unclip(dir.path(), arguments);
    let said = refused(&run(&["model", "new", "huge", "-o", "m"]), 2);
    assert!(said.contains("tiny, small, karlo, paper"), "{said}");
    let said = refused(
        &run(&["model", "new", "tiny", "-o", "m", "--bf16", "--f16"]),
        2,
    );
    assert!(said.contains("cannot be used with"), "{said}");
    succeeded(&run(&["model", "new", "tiny", "-o", "m"]));
    // A tokenizer of another context; what was there stays.
    let tokenizer = [
        "model",
        "new",
        "karlo",
        "-o",
        "m",
        "--tokenizer",
        "m/tokenizer",
    ];
    let said = refused(&run(&tokenizer), 2);
    assert!(
        said.contains("32 tokens, this text encoder reads 77"),
        "{said}"
    );
    assert!(dir.path().join("m/model_index.json").exists());
    let said = refused(&run(&["model", "describe", "m/tokenizer"]), 2);
    assert!(said.contains("holds no networks"), "{said}");
    let said = refused(&run(&["model", "describe", "nothing"]), 1);
    assert!(said.contains("cannot read nothing"), "{said}");
}
