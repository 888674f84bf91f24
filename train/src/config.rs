//! Configuration: one flat TOML per stage.
//!
//! The files in `train/configs/` are the schema: they hold every key with the value that the demo uses and a comment
//! that says what it does. A user's file, and `key=value` on the command line, change some of them; a key that is not
//! there, or a value of another type, is an error that names the nearest.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use models::diffusion::{BetaSchedule, Prediction, Weighting};

use crate::schedule::{Decay, LearningRate};
use crate::{Error, Result};

/// Which of the paper's two priors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PriorKind {
    Diffusion,
    Autoregressive,
}

/// What can be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    Clip,
    Prior,
    Decoder,
    Upsampler,
}

impl StageKind {
    /// In the order in which they are trained.
    pub const ALL: [StageKind; 4] = [
        StageKind::Clip,
        StageKind::Prior,
        StageKind::Decoder,
        StageKind::Upsampler,
    ];

    pub fn name(self) -> &'static str {
        match self {
            StageKind::Clip => "clip",
            StageKind::Prior => "prior",
            StageKind::Decoder => "decoder",
            StageKind::Upsampler => "upsampler",
        }
    }

    /// The stage's schema: every key, its default and its comment.
    pub fn defaults(self) -> &'static str {
        match self {
            StageKind::Clip => include_str!("../configs/clip.toml"),
            StageKind::Prior => include_str!("../configs/prior.toml"),
            StageKind::Decoder => include_str!("../configs/decoder.toml"),
            StageKind::Upsampler => include_str!("../configs/upsampler.toml"),
        }
    }
}

impl std::fmt::Display for StageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What updates the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    Adamw,
    /// Muon for the matrices between hidden layers, AdamW for everything else.
    Muon,
}

/// The keys that every stage has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Common {
    pub stage: StageKind,
    pub data: String,
    pub resolution: usize,
    pub workers: usize,
    pub max_bad_share: f64,
    pub output_dir: String,
    pub seed: u64,
    pub max_train_steps: u64,
    pub train_batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub learning_rate: f64,
    pub lr_scheduler: Decay,
    pub lr_warmup_steps: u64,
    pub lr_floor: f64,
    pub optimizer: Optimizer,
    pub muon_learning_rate: f64,
    pub muon_momentum: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    pub adam_weight_decay: f64,
    pub max_grad_norm: f64,
    pub ema_decay: f64,
    pub checkpointing_steps: u64,
    pub checkpoints_total_limit: usize,
    pub logging_steps: u64,
    pub validation_steps: u64,
}

impl Common {
    pub fn learning_rate(&self) -> LearningRate {
        LearningRate {
            base: self.learning_rate,
            decay: self.lr_scheduler,
            warmup: self.lr_warmup_steps,
            steps: self.max_train_steps,
            floor: self.lr_floor,
        }
    }

    /// Samples that one step sees.
    pub fn samples_per_step(&self) -> u64 {
        (self.train_batch_size * self.gradient_accumulation_steps) as u64
    }

    fn check(&self) -> Result<()> {
        let positive: [(&str, f64); 12] = [
            ("resolution", self.resolution as f64),
            ("max_train_steps", self.max_train_steps as f64),
            ("train_batch_size", self.train_batch_size as f64),
            (
                "gradient_accumulation_steps",
                self.gradient_accumulation_steps as f64,
            ),
            ("learning_rate", self.learning_rate),
            ("muon_learning_rate", self.muon_learning_rate),
            ("adam_epsilon", self.adam_epsilon),
            ("max_grad_norm", self.max_grad_norm),
            ("checkpointing_steps", self.checkpointing_steps as f64),
            (
                "checkpoints_total_limit",
                self.checkpoints_total_limit as f64,
            ),
            ("logging_steps", self.logging_steps as f64),
            ("validation_steps", self.validation_steps as f64),
        ];
        for (key, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::usage(format!(
                    "{key} = {value} must be above zero: set it in the TOML file or as {key}=… on the command line"
                )));
            }
        }
        let shares = [
            ("max_bad_share", self.max_bad_share),
            ("lr_floor", self.lr_floor),
            ("muon_momentum", self.muon_momentum),
            ("adam_beta1", self.adam_beta1),
            ("adam_beta2", self.adam_beta2),
            ("ema_decay", self.ema_decay),
        ];
        for (key, value) in shares {
            check_share(key, value)?;
        }
        // The counters that randomness is a function of have 32 bits.
        if self
            .max_train_steps
            .checked_mul(self.samples_per_step())
            .is_none_or(|n| n > u64::from(u32::MAX))
        {
            return Err(Error::usage(format!(
                "max_train_steps = {} times {} samples a step is beyond 2^32 samples: lower one of them",
                self.max_train_steps,
                self.samples_per_step()
            )));
        }
        Ok(())
    }
}

/// An error unless `value` lies in [0, 1].
pub fn check_share(key: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{key} = {value} must lie between 0 and 1"
    )))
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clip {
    #[serde(flatten)]
    pub common: Common,
    pub tokenizer: String,
    pub vocab_size: usize,
    pub context_length: usize,
    pub image_size: usize,
    pub patch_size: usize,
    pub projection_dim: usize,
    pub text_layers: usize,
    pub text_heads: usize,
    pub vision_hidden_size: usize,
    pub vision_layers: usize,
    pub vision_heads: usize,
    pub sam_rho: f64,
    pub loss: ContrastiveLoss,
}

/// What makes texts and pictures agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContrastiveLoss {
    /// InfoNCE: each text finds its picture among all of the batch, and the reverse.
    Softmax,
    /// SigLIP: each pair is judged by itself.
    Sigmoid,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prior {
    #[serde(flatten)]
    pub common: Common,
    pub clip: String,
    pub prior: PriorKind,
    pub num_layers: usize,
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    pub text_drop: f64,
    pub whitening_samples: usize,
    pub variance_samples: usize,
    pub num_components: usize,
    pub num_buckets: usize,
    pub evaluation_samples: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decoder {
    #[serde(flatten)]
    pub common: Common,
    pub clip: String,
    pub prediction_type: Prediction,
    pub loss_weighting: LossWeighting,
    pub snr_gamma: f64,
    pub sample_size: usize,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub attention_levels: usize,
    pub attention_head_dim: usize,
    pub cross_attention_dim: usize,
    pub extra_context_tokens: usize,
    pub norm_num_groups: usize,
    pub whitening_samples: usize,
    pub text_drop: f64,
    pub image_drop: f64,
}

/// How much the error of a time step counts; see [`Weighting`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossWeighting {
    Uniform,
    MinSnr,
    TruncatedSnr,
}

impl Decoder {
    pub fn weighting(&self) -> Weighting {
        match self.loss_weighting {
            LossWeighting::Uniform => Weighting::Uniform,
            LossWeighting::MinSnr => Weighting::MinSnr {
                gamma: self.snr_gamma,
            },
            LossWeighting::TruncatedSnr => Weighting::TruncatedSnr {
                ceiling: self.snr_gamma,
            },
        }
    }
}

/// What an upsampler's small pictures went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Degradation {
    /// Some blur and some noise, as pictures of the decoder have.
    Plain,
    /// Blur, shrinking, noise and compression in random order; see [`crate::data::degrade`].
    Bsr,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Upsampler {
    #[serde(flatten)]
    pub common: Common,
    pub sample_size: usize,
    pub prediction_type: Prediction,
    pub low_size: usize,
    pub num_inference_steps: usize,
    pub crop_size: usize,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    pub norm_num_groups: usize,
    pub blur_probability: f64,
    pub blur_kernel: usize,
    pub blur_sigma_min: f64,
    pub blur_sigma_max: f64,
    pub noise_sigma_max: f64,
    pub degradation: Degradation,
    pub beta_schedule: BetaSchedule,
}

/// A stage's resolved configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    Clip(Clip),
    Prior(Prior),
    Decoder(Decoder),
    Upsampler(Upsampler),
}

impl Config {
    /// The stage's defaults with `overrides` (`key=value`) applied.
    pub fn defaults(stage: StageKind, overrides: &[String]) -> Result<Config> {
        resolve(stage, Table::new(), "the defaults", overrides)
    }

    /// A user's file with `overrides` applied.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Config> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::usage(format!(
                "cannot read {}: {e}; `unclip train` wants a TOML file such as those in train/configs/",
                path.display()
            ))
        })?;
        let origin = path.display().to_string();
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            let line = e
                .span()
                .map_or(1, |s| text[..s.start].matches('\n').count() + 1);
            Error::usage(format!("{origin}, line {line}: {}", e.message()))
        })?;
        let stage = match table.get("stage") {
            Some(Value::String(name)) => StageKind::ALL
                .into_iter()
                .find(|s| s.name() == name)
                .ok_or_else(|| {
                    let names = StageKind::ALL.map(StageKind::name);
                    Error::usage(format!(
                        "{origin}: stage = \"{name}\" is none of {}; did you mean \"{}\"?",
                        names.join(", "),
                        nearest(name, names).unwrap_or("clip")
                    ))
                })?,
            _ => {
                return Err(Error::usage(format!(
                    "{origin}: the first key must be stage = \"clip\", \"prior\", \"decoder\" or \"upsampler\""
                )));
            }
        };
        resolve(stage, table, &origin, overrides)
    }

    pub fn common(&self) -> &Common {
        match self {
            Config::Clip(c) => &c.common,
            Config::Prior(c) => &c.common,
            Config::Decoder(c) => &c.common,
            Config::Upsampler(c) => &c.common,
        }
    }

    pub fn common_mut(&mut self) -> &mut Common {
        match self {
            Config::Clip(c) => &mut c.common,
            Config::Prior(c) => &mut c.common,
            Config::Decoder(c) => &mut c.common,
            Config::Upsampler(c) => &mut c.common,
        }
    }

    pub fn stage(&self) -> StageKind {
        self.common().stage
    }

    /// How far from the weights a step's gradient is taken; see [`crate::step::Step::with_sharpness`].
    pub fn sam_rho(&self) -> f64 {
        match self {
            Config::Clip(c) => c.sam_rho,
            _ => 0.0,
        }
    }

    fn table(&self) -> Result<Table> {
        match self {
            Config::Clip(c) => Table::try_from(c),
            Config::Prior(c) => Table::try_from(c),
            Config::Decoder(c) => Table::try_from(c),
            Config::Upsampler(c) => Table::try_from(c),
        }
        .map_err(|e| Error::failure(format!("cannot write the configuration as TOML: {e}")))
    }

    /// The resolved file: every key in the schema's order.
    pub fn to_toml(&self) -> Result<String> {
        let values = self.table()?;
        let mut out = String::new();
        for line in self.stage().defaults().lines() {
            if let Some((key, _)) = line.split_once(" = ")
                && let Some(value) = values.get(key)
            {
                out.push_str(&format!("{key} = {value}\n"));
            }
        }
        Ok(out)
    }

    /// The keys whose values differ, as `key: old → new`.
    pub fn differences(&self, other: &Config) -> Result<Vec<String>> {
        let (mine, theirs) = (self.table()?, other.table()?);
        Ok(mine
            .iter()
            .filter(|(key, value)| theirs.get(*key) != Some(value))
            .map(|(key, value)| {
                let new = theirs.get(key).map_or("nothing".into(), Value::to_string);
                format!("{key}: {value} → {new}")
            })
            .collect())
    }
}

fn resolve(stage: StageKind, file: Table, origin: &str, overrides: &[String]) -> Result<Config> {
    let mut resolved: Table = stage
        .defaults()
        .parse()
        .map_err(|e| Error::failure(format!("the embedded {stage}.toml is broken: {e}")))?;
    for (key, value) in file {
        let expected = expected(&resolved, stage, &key, origin)?;
        let value = fitted(value, expected).map_err(|e| mistyped(origin, &key, &e))?;
        resolved.insert(key, value);
    }
    for text in overrides {
        let origin = "on the command line";
        let Some((key, text)) = text.split_once('=') else {
            return Err(Error::usage(format!(
                "{text:?} {origin} is not of the form key=value, such as max_train_steps=1000"
            )));
        };
        let key = key.trim().trim_start_matches("--");
        let expected = expected(&resolved, stage, key, origin)?;
        let value = parsed(text.trim(), expected).map_err(|e| mistyped(origin, key, &e))?;
        if key == "stage" && value != Value::String(stage.name().into()) {
            return Err(Error::usage(format!(
                "the stage is \"{stage}\" and cannot be changed {origin}: use another TOML file"
            )));
        }
        resolved.insert(key.to_owned(), value);
    }
    fn typed<T: DeserializeOwned>(table: Table, origin: &str) -> Result<T> {
        table.try_into().map_err(|e: toml::de::Error| {
            Error::usage(format!("{origin}: {}", e.message().replace('\n', " ")))
        })
    }
    let config = match stage {
        StageKind::Clip => Config::Clip(typed(resolved, origin)?),
        StageKind::Prior => Config::Prior(typed(resolved, origin)?),
        StageKind::Decoder => Config::Decoder(typed(resolved, origin)?),
        StageKind::Upsampler => Config::Upsampler(typed(resolved, origin)?),
    };
    config.common().check()?;
    let rho = config.sam_rho();
    if !(rho >= 0.0 && rho.is_finite()) {
        return Err(Error::usage(format!(
            "sam_rho = {rho} must be a number from 0 (off) on"
        )));
    }
    Ok(config)
}

/// The default of a key, which shows its type.
fn expected<'a>(schema: &'a Table, stage: StageKind, key: &str, origin: &str) -> Result<&'a Value> {
    schema.get(key).ok_or_else(|| {
        let keys = schema.keys().map(String::as_str);
        let suggestion = nearest(key, keys).map_or(String::new(), |k| format!("did you mean {k}?"));
        Error::usage(format!(
            "{origin}: the {stage} stage has no key {key}; {suggestion}"
        ))
    })
}

fn mistyped(origin: &str, key: &str, reason: &str) -> Error {
    Error::usage(format!("{origin}: {key} {reason}"))
}

/// `value` if it has the type of `expected`; whole numbers pass for real ones.
fn fitted(value: Value, expected: &Value) -> Result<Value, String> {
    match (&value, expected) {
        (Value::Integer(n), Value::Float(_)) => Ok(Value::Float(*n as f64)),
        (Value::Integer(n), Value::Integer(_)) if *n < 0 => {
            Err(format!("must not be negative, it is {n}"))
        }
        (Value::Array(items), Value::Array(examples)) => {
            if let Some(example) = examples.first() {
                for item in items {
                    fitted(item.clone(), example)?;
                }
            }
            Ok(value)
        }
        _ if value.same_type(expected) => Ok(value),
        _ => Err(format!(
            "wants {}, such as {expected}, not {}: {value}",
            type_name(expected),
            type_name(&value)
        )),
    }
}

/// The value that `text` on the command line means where `expected` is the default.
fn parsed(text: &str, expected: &Value) -> Result<Value, String> {
    let unquoted = text
        .strip_prefix('"')
        .and_then(|t| t.strip_suffix('"'))
        .unwrap_or(text);
    if expected.is_str() {
        return Ok(Value::String(unquoted.to_owned()));
    }
    let value = match format!("value = {text}").parse::<Table>() {
        Ok(mut table) => table.remove("value"),
        Err(_) => None,
    };
    fitted(
        value.unwrap_or_else(|| Value::String(text.to_owned())),
        expected,
    )
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section (the file is flat: it has none)",
    }
}

/// The candidate that `name` is a part of (`batch_size` of `train_batch_size`), else the fewest edits away.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .min_by_key(|candidate| (!candidate.contains(name), edit_distance(name, candidate)))
}

/// Levenshtein's distance: insertions, deletions and substitutions.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
        Config::defaults(StageKind::Decoder, &overrides)
            .expect_err("must be refused")
            .to_string()
    }

    #[test]
    fn the_schemas_and_the_structs_have_the_same_keys_and_defaults() {
        for stage in StageKind::ALL {
            let schema: Table = stage.defaults().parse().unwrap();
            let config = Config::defaults(stage, &[]).unwrap();
            assert_eq!(config.stage(), stage);
            assert_eq!(config.table().unwrap(), schema, "{stage}");
            // The printed file is the schema without its comments, and reads back as the same.
            let printed: Table = config.to_toml().unwrap().parse().unwrap();
            assert_eq!(printed, schema, "{stage}");
        }
    }

    #[test]
    fn every_key_has_a_comment() {
        for stage in StageKind::ALL {
            let lines: Vec<&str> = stage.defaults().lines().collect();
            for (i, line) in lines.iter().enumerate() {
                let explained = line.contains(" # ") || (i > 0 && lines[i - 1].starts_with("# "));
                assert!(!line.contains(" = ") || explained, "{stage}: {line}");
            }
        }
    }

    #[test]
    fn an_unknown_key_suggests_the_nearest() {
        assert_eq!(
            message(&["learning_rat=1e-3"]),
            "on the command line: the decoder stage has no key learning_rat; did you mean learning_rate?"
        );
        assert!(message(&["batch_size=3"]).contains("did you mean train_batch_size?"));
    }

    #[test]
    fn a_mistyped_value_says_what_is_wanted() {
        let said = message(&["train_batch_size=many"]);
        assert!(
            said.contains("train_batch_size wants a whole number"),
            "{said}"
        );
        let said = message(&["train_batch_size=1.5"]);
        assert!(said.contains("not a number: 1.5"), "{said}");
        let said = message(&["block_out_channels=[32, \"x\"]"]);
        assert!(said.contains("wants a whole number"), "{said}");
        assert!(message(&["train_batch_size=-1"]).contains("must not be negative"));
        assert!(message(&["train_batch_size"]).contains("not of the form key=value"));
        assert!(message(&["train_batch_size=0"]).contains("must be above zero"));
        assert!(message(&["ema_decay=1.5"]).contains("between 0 and 1"));
        assert!(message(&["lr_scheduler=cosin"]).contains("cosin"));
    }

    #[test]
    fn files_and_overrides_resolve_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prior.toml");
        std::fs::write(&path, "stage = \"prior\"\nseed = 7\nlearning_rate = 1\n").unwrap();
        let overrides = ["seed=9".to_owned(), "data=x/{00000..00003}.tar".to_owned()];
        let config = Config::load(&path, &overrides).unwrap();
        assert_eq!(config.common().seed, 9);
        assert_eq!(config.common().learning_rate, 1.0);
        assert_eq!(config.common().data, "x/{00000..00003}.tar");
        let defaults = Config::defaults(StageKind::Prior, &[]).unwrap();
        assert_eq!(defaults.differences(&config).unwrap().len(), 3);
        std::fs::write(&path, "stage = \"priro\"").unwrap();
        let said = Config::load(&path, &[]).unwrap_err().to_string();
        assert!(said.contains("did you mean \"prior\"?"), "{said}");
        std::fs::write(&path, "stage = \"prior\"\nseed = = 3").unwrap();
        let said = Config::load(&path, &[]).unwrap_err().to_string();
        assert!(said.contains("line 2"), "{said}");
    }

    #[test]
    fn edit_distance_counts_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }
}
