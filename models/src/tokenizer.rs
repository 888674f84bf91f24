//! CLIP's tokenizer: lower-cased, byte-level pairs with `</w>` at word ends, between two marker tokens.
//!
//! Radford et al., "Learning transferable visual models from natural language supervision", 2021, section 2.4. The
//! vocabulary is 256 bytes, the same 256 at a word's end, one token per merge, then the start and end markers. The files
//! are those that transformers' `CLIPTokenizer` and `CLIPTokenizerFast` open.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde_json::{Value, json};
use tokenizers::tokenizer::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use crate::folder::Folder;

pub const START: &str = "<|startoftext|>";
pub const END: &str = "<|endoftext|>";
const WORD_END: &str = "</w>";
/// The files of a tokenizer's folder.
const WHOLE: &str = "tokenizer.json";
const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
const CONFIG: &str = "tokenizer_config.json";
/// A file longer than this is no tokenizer's.
const LONGEST_FILE: u64 = 256 << 20;
/// Tokens in a text when the files do not say otherwise.
const DEFAULT_CONTEXT: usize = 77;
/// A context longer than this in a file is a mark for "no limit", as transformers writes it.
const LONGEST_CONTEXT: u64 = 1 << 20;

/// One sentence: what is wrong, and what to do.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerError(String);

impl fmt::Display for TokenizerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TokenizerError {}

type Result<T> = std::result::Result<T, TokenizerError>;

fn error<T>(sentence: impl Into<String>) -> Result<T> {
    Err(TokenizerError(sentence.into()))
}

/// Text ↔ token ids of a fixed context length.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
    context_length: usize,
}

impl Tokenizer {
    /// The tokenizer that a list of merges defines, most frequent first; it pads with the end marker.
    ///
    /// # Errors
    /// If a merge joins symbols that do not exist yet, or the context cannot hold the two markers and a token.
    pub fn from_merges(merges: &[(String, String)], context_length: usize) -> Result<Self> {
        let mut vocab = HashMap::new();
        let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
        let markers = [START.to_string(), END.to_string()];
        for token in byte_tokens().into_iter().chain(merged).chain(markers) {
            // Two pairs can join to the same token, which then has one id.
            let next = vocab.len() as u32;
            vocab.entry(token).or_insert(next);
        }
        Self::from_vocab(&vocab, merges, END, context_length)
    }

    fn from_vocab(
        vocab: &HashMap<String, u32>,
        merges: &[(String, String)],
        pad: &str,
        context_length: usize,
    ) -> Result<Self> {
        let id = |token: &str| match vocab.get(token) {
            Some(id) => Ok(*id),
            None => error(format!("the vocabulary lacks {token}; it is not CLIP's")),
        };
        let file = tokenizer_json(vocab, merges, id(START)?, id(END)?);
        match tokenizers::Tokenizer::from_bytes(file.to_string()) {
            Ok(inner) => Self::wrap(inner, pad, context_length),
            Err(reason) => error(format!("vocabulary and merges do not fit: {reason}")),
        }
    }

    fn wrap(mut inner: tokenizers::Tokenizer, pad: &str, context_length: usize) -> Result<Self> {
        if context_length < 3 {
            return error(format!(
                "a context of {context_length} tokens is too short; it holds two markers and the text"
            ));
        }
        // Both happen here, where they can be refused or reported.
        inner.with_padding(None);
        if let Err(reason) = inner.with_truncation(None) {
            return error(format!("tokenizer: {reason}"));
        }
        let id = |token: &str| match inner.token_to_id(token) {
            Some(id) => Ok(id),
            None => error(format!("the tokenizer lacks {token}; it is not CLIP's")),
        };
        let (start, end, pad) = (id(START)?, id(END)?, id(pad)?);
        Ok(Tokenizer {
            inner,
            start,
            end,
            pad,
            context_length,
        })
    }

    /// The same tokenizer, filling texts with another token: Karlo takes "!".
    ///
    /// # Errors
    /// If the vocabulary lacks the token.
    pub fn padded_with(self, pad: &str) -> Result<Self> {
        Self::wrap(self.inner, pad, self.context_length)
    }

    /// Opens `tokenizer.json`, or else `vocab.json` with `merges.txt`; context length and padding token come from
    /// `tokenizer_config.json` where it is.
    ///
    /// # Errors
    /// If the files are missing, unreadable or not CLIP's.
    pub fn from_dir(dir: impl Into<Folder>) -> Result<Self> {
        let dir = dir.into();
        let config = if dir.has(CONFIG) {
            read_json(&dir, CONFIG)?
        } else {
            Value::Null
        };
        let context_length = config["model_max_length"]
            .as_u64()
            .filter(|&n| n <= LONGEST_CONTEXT)
            .map_or(DEFAULT_CONTEXT, |n| n as usize);
        // A token is a string, or an object that holds one.
        let pad = &config["pad_token"];
        let pad = pad.as_str().or(pad["content"].as_str()).unwrap_or(END);
        if dir.has(WHOLE) {
            // The library cuts the merges by it without a look at them.
            let prefix = &read_json(&dir, WHOLE)?["model"]["continuing_subword_prefix"];
            if prefix.as_str().is_some_and(|prefix| !prefix.is_empty()) {
                return error(format!(
                    "{} marks the insides of words; it is not CLIP's",
                    dir.path(WHOLE).display()
                ));
            }
            return match tokenizers::Tokenizer::from_bytes(read(&dir, WHOLE)?) {
                Ok(inner) => Self::wrap(inner, pad, context_length),
                Err(reason) => error(format!(
                    "{} is not a tokenizer: {reason}",
                    dir.path(WHOLE).display()
                )),
            };
        }
        let Ok(vocab) = serde_json::from_value(read_json(&dir, VOCAB)?) else {
            return error(format!(
                "{} does not map tokens to ids",
                dir.path(VOCAB).display()
            ));
        };
        let text = String::from_utf8_lossy(&read(&dir, MERGES)?).into_owned();
        let merges = parse_merges(&text, &dir.path(MERGES))?;
        Self::from_vocab(&vocab, &merges, pad, context_length)
    }

    /// Writes `tokenizer.json`, `vocab.json`, `merges.txt`, `tokenizer_config.json` and `special_tokens_map.json` into
    /// an existing folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let Ok(Ok(mut whole)) = self
            .inner
            .to_string(false)
            .map(|text| serde_json::from_str::<Value>(&text))
        else {
            return error("the tokenizer cannot be written as JSON");
        };
        let pad = self.inner.id_to_token(self.pad);
        let special =
            json!({ "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad });
        let mut config = json!({
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.context_length,
            "do_lower_case": true,
            "add_prefix_space": false,
            "errors": "replace",
        });
        merge(&mut config, &special);
        let merges: Vec<String> = whole["model"]["merges"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|pair| match pair {
                Value::Array(pair) => {
                    let side = |i: usize| pair.get(i).and_then(Value::as_str).unwrap_or_default();
                    format!("{} {}", side(0), side(1))
                }
                other => other.as_str().unwrap_or_default().to_string(),
            })
            .collect();
        let vocab = whole["model"]["vocab"].clone();
        // The form that every release of the reader takes.
        whole["model"]["merges"] = json!(merges);
        for (name, text) in [
            (WHOLE, format!("{whole:#}\n")),
            (VOCAB, format!("{vocab}\n")),
            (MERGES, format!("#version: 0.2\n{}\n", merges.join("\n"))),
            (CONFIG, format!("{config:#}\n")),
            ("special_tokens_map.json", format!("{special:#}\n")),
        ] {
            let path = dir.join(name);
            if let Err(reason) = std::fs::write(&path, text) {
                return error(format!("cannot write {}: {reason}", path.display()));
            }
        }
        Ok(())
    }

    /// Token ids `[context_length]`: start marker, text, end marker, padding.
    ///
    /// # Errors
    /// If the text is empty or does not fit, which for a prompt is worth a question rather than a guess.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokens(text)?;
        let room = self.context_length - 2;
        if ids.is_empty() {
            return error(
                "the prompt is empty; describe a picture, for example \"a large red circle on a white background\"",
            );
        }
        if ids.len() > room {
            return error(format!(
                "the prompt is {} tokens long and the model reads {room}; shorten it",
                ids.len()
            ));
        }
        Ok(self.frame(ids))
    }

    /// As [`Tokenizer::encode`], but a text that does not fit loses its end, and an empty one is the unconditional
    /// text of classifier-free guidance.
    pub fn encode_truncated(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokens(text)?;
        ids.truncate(self.context_length - 2);
        Ok(self.frame(ids))
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        match self.inner.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(reason) => error(format!("cannot read the text \"{text}\": {reason}")),
        }
    }

    fn frame(&self, mut ids: Vec<u32>) -> Vec<u32> {
        ids.insert(0, self.start);
        ids.push(self.end);
        ids.resize(self.context_length, self.pad);
        ids
    }

    /// The text of token ids, markers and padding left out.
    ///
    /// # Errors
    /// If an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match self.inner.decode(ids, true) {
            // The byte decoder leaves the word ends for the caller to turn into spaces.
            Ok(text) => Ok(text.replace(WORD_END, " ").trim_end().to_string()),
            Err(reason) => error(format!("cannot decode token ids: {reason}")),
        }
    }

    /// The words of a text as the merges see them: one character per byte, no word-end mark.
    pub fn words(&self, text: &str) -> Result<Vec<String>> {
        let mut normalized = NormalizedString::from(text);
        let mut split = || -> tokenizers::Result<Vec<String>> {
            if let Some(normalizer) = self.inner.get_normalizer() {
                normalizer.normalize(&mut normalized)?;
            }
            let mut pieces = PreTokenizedString::from(normalized.get());
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
            Ok(splits.iter().map(|(word, ..)| word.to_string()).collect())
        };
        split().or_else(|reason| error(format!("cannot read the text \"{text}\": {reason}")))
    }

    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    pub fn context_length(&self) -> usize {
        self.context_length
    }

    pub fn start_id(&self) -> u32 {
        self.start
    }

    /// Also the position at which CLIP's text encoder reads its pooled output (the first, if it pads with it).
    pub fn end_id(&self) -> u32 {
        self.end
    }

    pub fn pad_id(&self) -> u32 {
        self.pad
    }
}

/// The 512 tokens that every CLIP vocabulary begins with: each byte, then each byte at a word's end.
pub fn byte_tokens() -> Vec<String> {
    // Printable bytes stand for themselves; the others take the characters from 256 on, in order of the byte.
    let printable = |b: &u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let shifted = (0..256u32).filter(|b| !printable(b)).count() as u32;
    let bytes = (0..256u32)
        .filter(printable)
        .chain(256..256 + shifted)
        .filter_map(char::from_u32);
    let inner = bytes.clone().map(String::from);
    inner
        .chain(bytes.map(|c| format!("{c}{WORD_END}")))
        .collect()
}

/// The file that the `tokenizers` library reads, with the steps that transformers gives CLIP.
fn tokenizer_json(
    vocab: &HashMap<String, u32>,
    merges: &[(String, String)],
    start: u32,
    end: u32,
) -> Value {
    // Looked for in the lower-cased text, as OpenAI's tokenizer and transformers before its release 5 do.
    let marker = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": true, "special": true,
        })
    };
    let words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [marker(start, START), marker(end, END)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ]},
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": words }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ]},
        "post_processor": {
            "type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
            "trim_offsets": false, "add_prefix_space": false,
        },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
            "end_of_word_suffix": WORD_END, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    })
}

fn parse_merges(text: &str, path: &Path) -> Result<Vec<(String, String)>> {
    text.lines()
        .filter(|line| !line.starts_with("#version") && !line.trim().is_empty())
        .map(|line| match line.split_once(' ') {
            Some((left, right)) => Ok((left.to_string(), right.to_string())),
            None => error(format!(
                "{}: \"{line}\" is not a pair of tokens",
                path.display()
            )),
        })
        .collect()
}

fn merge(into: &mut Value, from: &Value) {
    if let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) {
        into.extend(from.clone());
    }
}

fn read(dir: &Folder, name: &str) -> Result<Vec<u8>> {
    dir.read(name, LONGEST_FILE).or_else(|reason| {
        error(format!(
            "cannot read {}: {reason}; a tokenizer folder holds tokenizer.json, or vocab.json and merges.txt",
            dir.path(name).display()
        ))
    })
}

fn read_json(dir: &Folder, name: &str) -> Result<Value> {
    serde_json::from_slice(&read(dir, name)?).or_else(|reason| {
        error(format!(
            "{} is not JSON: {reason}",
            dir.path(name).display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(context_length: usize) -> Tokenizer {
        let merges = [("r", "e"), ("re", "d</w>"), ("a", "n"), ("an", "d</w>")];
        let merges = merges.map(|(l, r)| (l.to_string(), r.to_string()));
        Tokenizer::from_merges(&merges, context_length).unwrap()
    }

    #[test]
    fn layout_is_clip_s() {
        let tokens = byte_tokens();
        assert_eq!(
            (tokens.len(), &*tokens[0], &*tokens[256]),
            (512, "!", "!</w>")
        );
        // Facts of the published vocabulary: "a" is 64, "a</w>" 320, the space byte's symbol 220.
        assert_eq!(
            (&*tokens[64], &*tokens[320], &*tokens[220]),
            ("a", "a</w>", "Ġ")
        );
        let tokenizer = tiny(8);
        assert_eq!(tokenizer.vocab_size(), 518);
        assert_eq!((tokenizer.start_id(), tokenizer.end_id()), (516, 517));
        assert_eq!(tokenizer.pad_id(), 517);
    }

    #[test]
    fn encodes_lower_case_words_between_markers() {
        let tokenizer = tiny(8);
        let ids = tokenizer.encode("  Red AND\n red ").unwrap();
        assert_eq!(ids, [516, 513, 515, 513, 517, 517, 517, 517]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "red and red");
        assert_eq!(tokenizer.words("Red, and").unwrap(), ["red", ",", "and"]);
    }

    #[test]
    fn anything_encodes_and_decodes_back() {
        let tokenizer = tiny(200);
        for text in ["żółw 你好 🦀🦀", "a-b_c\u{0}d", "ﬁ №7 12"] {
            let ids = tokenizer.encode(text).unwrap();
            let letters = |s: &str| s.split_whitespace().collect::<String>();
            assert_eq!(letters(&tokenizer.decode(&ids).unwrap()), letters(text));
        }
    }

    #[test]
    fn empty_and_long_prompts_are_refused_but_captions_are_cut() {
        let tokenizer = tiny(5);
        for text in ["", " \n\t"] {
            let error = tokenizer.encode(text).unwrap_err().to_string();
            assert!(error.contains("prompt is empty"), "{error}");
        }
        let error = tokenizer.encode("red red red red").unwrap_err().to_string();
        assert!(
            error.contains("4 tokens long and the model reads 3"),
            "{error}"
        );
        let cut = tokenizer.encode_truncated("red and red and").unwrap();
        assert_eq!(cut, [516, 513, 515, 513, 517]);
        assert_eq!(
            tokenizer.encode_truncated("").unwrap(),
            [516, 517, 517, 517, 517]
        );
        assert!(Tokenizer::from_merges(&[], 2).is_err());
    }

    #[test]
    fn both_file_forms_open_as_the_same_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = tiny(12);
        tokenizer.save(dir.path()).unwrap();
        let whole = Tokenizer::from_dir(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        let parts = Tokenizer::from_dir(dir.path()).unwrap();
        for text in ["red", "and & red ä", "spread 10"] {
            let want = tokenizer.encode(text).unwrap();
            assert_eq!(whole.encode(text).unwrap(), want);
            assert_eq!(parts.encode(text).unwrap(), want);
        }
        std::fs::remove_file(dir.path().join("merges.txt")).unwrap();
        let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("cannot read") && error.contains("merges.txt"),
            "{error}"
        );
    }
}
