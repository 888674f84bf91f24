//! What a picture says of how it was made: two PNG texts, one that other programs read, and one that makes it again.

use std::collections::BTreeMap;
use std::path::Path;

use models::diffusion::SchedulerConfig;
use models::{Folder, Library, weights};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::hex;
use crate::sampling::Sampling;
use crate::{Error, Result, png_text};

/// The keyword under which other programs look for the parameters.
const PARAMETERS: &str = "parameters";
/// The keyword of the record itself, as JSON.
const RECORD: &str = "unclip";
/// A longer file is not looked into.
const LONGEST: u64 = 1 << 28;

/// Everything that decides a picture's bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The command that made it.
    pub command: String,
    pub prompt: String,
    pub seed: u64,
    /// Its number among those of the same seed.
    pub image: u32,
    /// Of the weights; see [`model_hash`].
    pub model: String,
    pub device: String,
    pub sampling: Sampling,
    /// What else the command was given: numbers as they are, files with their hash.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub given: BTreeMap<String, String>,
    pub version: String,
}

impl Record {
    /// The PNG texts.
    pub fn texts(&self) -> Result<[(&'static str, String); 2]> {
        let json = serde_json::to_string(self).map_err(|e| {
            Error::failure(format!("cannot write down how a picture was made: {e}"))
        })?;
        Ok([(PARAMETERS, self.parameters()), (RECORD, json)])
    }

    /// Prompt, then `key: value` pairs.
    fn parameters(&self) -> String {
        let s = &self.sampling;
        let mut pairs = vec![
            ("Steps", s.decoder_num_inference_steps.to_string()),
            ("Sampler", s.decoder_sampler.title().to_owned()),
            ("CFG scale", s.decoder_guidance_scale.to_string()),
            ("Seed", self.seed.to_string()),
            ("Prior steps", s.prior_num_inference_steps.to_string()),
            ("Prior sampler", s.prior_sampler.title().to_owned()),
            ("Prior CFG scale", s.prior_guidance_scale.to_string()),
            ("Prior candidates", s.prior_candidates.to_string()),
            (
                "Upsampler steps",
                s.super_res_num_inference_steps.to_string(),
            ),
            ("Upsampler sampler", s.super_res_sampler.title().to_owned()),
            ("Model hash", self.model.clone()),
            ("Version", format!("unclip {}", self.version)),
        ];
        let given = self.given.iter();
        pairs.extend(given.map(|(key, value)| (key.as_str(), quoted(value))));
        pairs.push(("Image", self.image.to_string()));
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(key, value)| format!("{key}: {value}"))
            .collect();
        let prompt = self.prompt.replace(char::is_control, " ");
        format!("{prompt}\n{}", pairs.join(", "))
    }

    /// The record in a PNG file.
    ///
    /// # Errors
    /// If there is none, in words.
    pub fn read(path: &Path) -> Result<Record> {
        let unreadable = Error::io("read", path);
        let size = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(e) => return Err(unreadable(e)),
        };
        if size > LONGEST {
            return Err(Error::usage(format!(
                "{} is too large for a picture of this program ({size} bytes)",
                path.display()
            )));
        }
        let bytes = std::fs::read(path).map_err(unreadable)?;
        let refused = |reason: &str| {
            Error::usage(format!(
                "{} does not say how it was made ({reason}): give the PNG as unclip wrote it",
                path.display()
            ))
        };
        let text = png_text::find(&bytes, RECORD).map_err(refused)?;
        let text = text.ok_or_else(|| refused(&format!("it has no text called {RECORD}")))?;
        serde_json::from_str(&text).map_err(|e| refused(&format!("its text called {RECORD}: {e}")))
    }
}

/// A value as other programs read it: in quotes where it holds what separates values.
fn quoted(value: &str) -> String {
    match value.contains([',', ':', '\n']) {
        true => serde_json::Value::from(value).to_string(),
        false => value.to_owned(),
    }
}

/// The first digits of a hash over bytes.
pub fn short_hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hex(&hash.finalize()[..4])
}

/// What of a tensor goes into a model's hash: the whole of a small one, or its beginning, its middle and its end. Gigabytes
/// of weights would take minutes to read, and a model that was trained on differs in every tensor.
fn sampled(bytes: &[u8]) -> [&[u8]; 3] {
    const PART: usize = 4096;
    if bytes.len() <= 3 * PART {
        return [bytes, &[], &[]];
    }
    let middle = bytes.len() / 2;
    [
        &bytes[..PART],
        &bytes[middle..middle + PART],
        &bytes[bytes.len() - PART..],
    ]
}

/// The first eight digits of a hash over the weights that make a picture, as a model directory stores them, and the analytic
/// variance of its prior, where that is known.
pub fn model_hash(dir: &Folder, prior: &SchedulerConfig) -> Result<String> {
    use Library::{Diffusers, Transformers};
    let mut hash = Sha256::new();
    for (name, library) in [
        ("text_encoder", Transformers),
        ("prior", Diffusers),
        ("text_proj", Diffusers),
        ("decoder", Diffusers),
        ("super_res_first", Diffusers),
        ("super_res_last", Diffusers),
        ("super_res_1024", Diffusers),
    ] {
        let part = dir.join(name);
        // A model for image variation has no prior, and few have a second upsampler.
        if part.has(library.weights_file()) {
            weights::each_tensor(&part, library, |tensor, bytes| {
                hash.update(tensor.as_bytes());
                hash.update(bytes.len().to_le_bytes());
                sampled(bytes).iter().for_each(|part| hash.update(part));
            })?;
        }
    }
    if let Some(variance) = &prior.analytic_variance {
        hash.update(bytemuck::cast_slice(variance.x0_error()));
    }
    Ok(hex(&hash.finalize()[..4]))
}
