//! Trains the tokenizer on a data set's captions.

use models::tokenizer::{Tokenizer, byte_tokens};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{AddedToken, Trainer};

use super::{Error, Result};

/// Learns at most `vocab_size` − 514 merges from the captions and returns the tokenizer that they define.
///
/// The result depends on the captions' words and their counts alone: the byte tokens are numbered before the first word
/// is seen, and equally frequent pairs are taken in order of their numbers.
///
/// # Errors
/// If the vocabulary cannot hold the 512 byte tokens and two markers, or there are no words in the captions.
pub fn train_tokenizer<'a>(
    captions: impl IntoIterator<Item = &'a str>,
    vocab_size: usize,
    context_length: usize,
) -> Result<Tokenizer> {
    let bytes = byte_tokens();
    let markers = 2;
    if vocab_size < bytes.len() + markers {
        return Err(Error::Invalid(format!(
            "vocab_size is {vocab_size}; the bytes and markers alone take {}",
            bytes.len() + markers
        )));
    }
    let invalid = |reason: &dyn std::fmt::Display| Error::Invalid(format!("tokenizer: {reason}"));
    let splitter = Tokenizer::from_merges(&[], context_length).map_err(|e| invalid(&e))?;
    let mut counted = std::collections::BTreeMap::<String, u64>::new();
    for caption in captions {
        for word in splitter.words(caption).map_err(|e| invalid(&e))? {
            *counted.entry(word).or_default() += 1;
        }
    }
    let words: u64 = counted.values().sum();
    if words == 0 {
        return Err(Error::Invalid(
            "the captions hold no words; a tokenizer cannot be trained on them".into(),
        ));
    }
    // The trainer counts pairs in 32 bits.
    let scale = words.div_ceil(1 << 27).max(1);
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size - markers)
        .show_progress(false)
        .special_tokens(
            bytes
                .iter()
                .map(|t| AddedToken::from(t.as_str(), true))
                .collect(),
        )
        .end_of_word_suffix("</w>".into())
        .build();
    let repeated = counted.iter().flat_map(|(word, &count)| {
        std::iter::repeat_n(word.as_str(), count.div_ceil(scale) as usize)
    });
    trainer
        .feed(repeated, |word| Ok(vec![word.to_string()]))
        .map_err(|e| invalid(&e))?;
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(|e| invalid(&e))?;
    // The model does not give its merges away; its file does.
    let file = serde_json::to_value(&model).map_err(|e| invalid(&e))?;
    let merges: Vec<(String, String)> =
        serde_json::from_value(file["merges"].clone()).map_err(|e| invalid(&e))?;
    Tokenizer::from_merges(&merges, context_length).map_err(|e| invalid(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shapes::Picture;

    #[test]
    fn every_word_of_the_shapes_becomes_one_token_and_training_is_deterministic() {
        let captions: Vec<String> = (0..3000).map(|i| Picture::sample(1, i).caption()).collect();
        let train = || train_tokenizer(captions.iter().map(String::as_str), 1024, 32).unwrap();
        let tokenizer = train();
        for caption in &captions[..50] {
            let words = tokenizer.words(caption).unwrap().len();
            let ids = tokenizer.encode(caption).unwrap();
            let used = ids.iter().position(|&id| id == tokenizer.end_id()).unwrap();
            assert_eq!(used - 1, words, "{caption}");
            let spaced = caption.replace(',', " ,");
            assert_eq!(tokenizer.decode(&ids).unwrap(), spaced);
        }
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        tokenizer.save(a.path()).unwrap();
        train().save(b.path()).unwrap();
        for name in ["merges.txt", "tokenizer_config.json"] {
            let bytes = |d: &tempfile::TempDir| std::fs::read(d.path().join(name)).unwrap();
            assert_eq!(bytes(&a), bytes(&b));
        }
        // A word that was never seen still has tokens of its own.
        let unseen = tokenizer.encode("hexagon").unwrap();
        assert_eq!(tokenizer.decode(&unseen).unwrap(), "hexagon");
    }

    #[test]
    fn senseless_requests_are_refused() {
        for (captions, vocab_size, says) in [
            (vec!["a red ring"], 513, "vocab_size is 513"),
            (vec![], 600, "no words"),
            (vec!["  "], 600, "no words"),
        ] {
            let error = train_tokenizer(captions, vocab_size, 16).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
