//! Thousands of lines in many scripts, with what breaks tokenizers between them.

use std::path::Path;

use models::tokenizer::Tokenizer;
use serde_json::json;

use crate::files::{self, integers, path};
use crate::formula::{FNV, hash_of, hashed, words};

/// A fragment, and what Python makes of it in upper case.
type Fragment = (String, String);

/// A character of a random word: often of the blocks that text is made of.
fn code_point(word: u64) -> char {
    let limit = [0x80, 0x300, 0x3000, 0x1_0000, 0x11_0000][(word % 5) as usize];
    match ((word >> 8) % limit) as u32 {
        // Letters since Unicode 17 alone: whether they have a lower case depends on the age of a program's tables.
        0x1_6EA0..0x1_6EE0 => '\u{FFFD}',
        value => char::from_u32(value).unwrap_or('\u{FFFD}'),
    }
}

/// Line `index` of those that `tools/golden/tokenizer.py` makes.
fn line(index: usize, fragments: &[Fragment]) -> String {
    let words: Vec<u64> = words(&format!("line/{index}")).take(40).collect();
    let count = 1 + (words[0] % 19) as usize;
    let chosen = &words[1..1 + count];
    if index % 8 == 7 {
        return chosen.iter().map(|&word| code_point(word)).collect();
    }
    let mut text = String::new();
    for (first, second) in chosen.iter().zip(&words[20..]) {
        let (as_is, upper) = &fragments[(first % fragments.len() as u64) as usize];
        text += if second % 7 == 0 { upper } else { as_is };
        text += if second >> 8 & 3 == 0 { "" } else { " " };
    }
    text
}

/// FNV-1a of the ids, two bytes each.
fn hash_of_ids(ids: &[u32]) -> u64 {
    let bytes = ids.iter().flat_map(|&id| (id as u16).to_le_bytes());
    bytes.fold(FNV, hashed)
}

/// A folder with some of the golden files, and a `tokenizer_config.json` of its own.
fn folder(names: &[&str], context: usize, pad: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source =
        std::env::var("UNCLIP_CLIP_VOCABULARY").map_or(path("tokenizer"), |dir| dir.into());
    for name in names {
        std::fs::copy(source.join(name), dir.path().join(name)).unwrap();
    }
    let config = json!({ "model_max_length": context, "pad_token": pad });
    let file = dir.path().join("tokenizer_config.json");
    std::fs::write(file, config.to_string()).unwrap();
    dir
}

/// A hash of the line's ids as networks get them, and of all its ids.
fn encode(framed: &Tokenizer, whole: &Tokenizer, line: &str) -> [u64; 2] {
    // Only padding ends with the id of "!" inside a word.
    let all = whole.encode_truncated(line).unwrap();
    let end = all.iter().rposition(|&id| id != whole.pad_id()).unwrap();
    [
        hash_of_ids(&framed.encode_truncated(line).unwrap()),
        hash_of_ids(&all[1..end]),
    ]
}

/// `UNCLIP_CLIP_VOCABULARY` names a folder made by `python -m tools.golden --bpe … --vocabulary …`: the same test with
/// OpenAI's vocabulary.
#[test]
fn lines_become_the_ids_that_transformers_has() {
    const END: &str = "<|endoftext|>";
    let lines_file = std::env::var("UNCLIP_CLIP_VOCABULARY")
        .map_or(path("lines.safetensors"), |dir| {
            Path::new(&dir).join("lines.safetensors")
        });
    let lines_file = lines_file.to_str().unwrap();
    let fragments: Vec<Fragment> = files::json("fragments.json");
    let texts = integers(lines_file, "texts");
    let want: Vec<[u64; 2]> = integers(lines_file, "ids")
        .into_iter()
        .zip(integers(lines_file, "whole"))
        .map(|(ids, whole)| [ids, whole])
        .collect();
    assert!(texts.len() >= 5000 && texts.len() == want.len());
    for names in [&["tokenizer.json"][..], &["vocab.json", "merges.txt"]] {
        let open = |context, pad| Tokenizer::from_dir(folder(names, context, pad).path()).unwrap();
        let (framed, whole) = (open(77, END), open(4096, "!"));
        let mut wrong = Vec::new();
        for (i, (&text, want)) in texts.iter().zip(&want).enumerate() {
            let line = line(i, &fragments);
            assert_eq!(
                hash_of(&line),
                text,
                "line {i} is not the one that was encoded"
            );
            if encode(&framed, &whole, &line) != *want {
                wrong.push(line);
            }
        }
        let first: Vec<_> = wrong.iter().take(5).collect();
        assert!(
            wrong.is_empty(),
            "{names:?}: {} lines differ, such as {first:#?}",
            wrong.len()
        );
    }
}
