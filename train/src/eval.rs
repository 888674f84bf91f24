//! Attribute accuracy: pictures of fixed prompts, read by the judge.
//!
//! The prompts of the four kinds (seen or held out, one object or two) and their noise are functions of seeds, so that
//! two models are asked the same.

use std::fmt;
use std::path::Path;

use models::config::Extent;
use models::pipeline::{Given, Pipeline, SeededNoise};
use serde::{Deserialize, Serialize};
use tensor::{Device, Tensor};

use crate::data::shapes::{self, Scene, Split, prompts};
use crate::interrupt::Interrupt;
use crate::judge::{Grade, grade, read};
use crate::progress::Progress;
use crate::sampling::{self, Sampling};
use crate::stages::frozen::FrozenClip;
use crate::stages::source;
use crate::{Error, Result};

/// What to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Questions {
    /// Prompts of each kind and seed; kinds with one object get twice as many.
    pub prompts: usize,
    /// Each prompt is drawn with the seeds 0 to this, not included.
    pub seeds: u64,
    /// What the model is given.
    pub start: Start,
}

/// Where the chain starts: what comes before is replaced by the truth, so that a loss can be laid to a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// The caption: the whole chain.
    #[default]
    Caption,
    /// The caption and the CLIP embedding of a true picture: decoder and upsampler.
    Embedding,
    /// The true small picture: the upsampler alone.
    Small,
}

/// The share of pictures in which each attribute is right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub kind: String,
    pub pictures: usize,
    pub background: f64,
    pub count: f64,
    pub color: f64,
    pub shape: f64,
    pub size: f64,
    /// For two objects: where they are.
    pub relation: Option<f64>,
    /// Everything.
    pub all: f64,
}

/// The accuracy of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub prompts_per_kind: usize,
    pub seeds: u64,
    #[serde(default)]
    pub start: Start,
    pub sampling: Sampling,
    pub rows: Vec<Row>,
}

/// Pictures that are made together.
const BATCH: usize = 32;

const KINDS: [(&str, Split, usize); 4] = [
    ("one object, seen", Split::Seen, 1),
    ("one object, held out", Split::HeldOut, 1),
    ("two objects, seen", Split::Seen, 2),
    ("two objects, held out", Split::HeldOut, 2),
];

/// The seed that chooses the prompts: the same for every model.
const PROMPT_SEED: u64 = 2024;

/// Asks a model and grades what it draws. `clip` makes the true embeddings of [`Start::Embedding`].
pub fn evaluate(
    pipeline: &Pipeline,
    clip: Option<&FrozenClip>,
    sampling: &Sampling,
    questions: &Questions,
    interrupt: &Interrupt,
) -> Result<Table> {
    let asked = |objects: usize| questions.prompts * if objects == 1 { 2 } else { 1 };
    let total: usize = KINDS.iter().map(|(_, _, objects)| asked(*objects)).sum();
    let mut progress = Progress::new("evaluate", (total * questions.seeds as usize) as u64, 0);
    let mut done = 0;
    let mut rows = Vec::new();
    for (kind, split, objects) in KINDS {
        let scenes = prompts(split, objects, asked(objects), PROMPT_SEED);
        let mut grades = Vec::new();
        for seed in 0..questions.seeds {
            for (i, batch) in scenes.chunks(BATCH).enumerate() {
                let first = i * BATCH;
                let known = known(pipeline, clip, questions.start, batch, seed, first)?;
                grades.extend(graded(
                    pipeline, &known, sampling, batch, seed, first, interrupt,
                )?);
                done += batch.len() as u64;
                progress.count(done);
            }
        }
        rows.push(Row::new(kind, objects, &grades));
    }
    Ok(Table {
        prompts_per_kind: questions.prompts,
        seeds: questions.seeds,
        start: questions.start,
        sampling: *sampling,
        rows,
    })
}

/// What the model is told beside the captions.
enum Known {
    Nothing,
    Embeddings(Tensor),
    Small(Tensor),
}

/// True pictures of the scenes, each laid out by the seed and its number, as the start of the chain needs them.
fn known(
    pipeline: &Pipeline,
    clip: Option<&FrozenClip>,
    start: Start,
    scenes: &[Scene],
    seed: u64,
    first: usize,
) -> Result<Known> {
    let side = |size: Option<Extent>| match size.map(Extent::height_width) {
        Some([height, width]) if height == width => Ok(height),
        _ => Err(Error::usage("only models of square pictures can be asked")),
    };
    let large = side(pipeline.super_res_first.config().sample_size)?;
    let pixels = || -> Vec<u8> {
        let pictures = (first as u64..)
            .zip(scenes)
            .map(|(i, &scene)| shapes::Picture::of(scene, PROMPT_SEED ^ seed, i).render(large));
        pictures.flatten().collect()
    };
    match start {
        Start::Caption => Ok(Known::Nothing),
        Start::Embedding => {
            let clip = clip.ok_or_else(|| {
                Error::usage(
                    "true embeddings need the whole CLIP: the model directory has no clip/",
                )
            })?;
            Ok(Known::Embeddings(clip.images(&pixels(), large)?))
        }
        Start::Small => {
            let small = side(pipeline.decoder.config().sample_size)?;
            Ok(Known::Small(source::shrunk(&pixels(), large, small)))
        }
    }
}

fn graded(
    pipeline: &Pipeline,
    known: &Known,
    sampling: &Sampling,
    scenes: &[Scene],
    seed: u64,
    first: usize,
    interrupt: &Interrupt,
) -> Result<Vec<Grade>> {
    let captions: Vec<String> = scenes.iter().map(|scene| scene.caption(0)).collect();
    let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
    let noise = SeededNoise {
        seed,
        first_image: first as u32,
        device: Device::Cpu,
    };
    let given = match known {
        Known::Nothing => Given::Text,
        Known::Embeddings(embeddings) => Given::ImageEmbeddings(embeddings),
        Known::Small(small) => Given::Small(small),
    };
    let made = sampling::generate(
        pipeline,
        &captions,
        given,
        sampling,
        &noise,
        interrupt,
        |_| Ok(()),
    )?;
    made.pictures
        .iter()
        .zip(scenes)
        .map(|(picture, scene)| {
            if picture.width != picture.height {
                return Err(Error::usage(format!(
                    "the judge reads square pictures, this model makes {} × {}",
                    picture.width, picture.height
                )));
            }
            Ok(grade(&read(&picture.rgb, picture.width), scene))
        })
        .collect()
}

impl Row {
    fn new(kind: &str, objects: usize, grades: &[Grade]) -> Row {
        let share = |right: fn(&Grade) -> bool| {
            grades.iter().filter(|&g| right(g)).count() as f64 / grades.len().max(1) as f64
        };
        Row {
            kind: kind.to_owned(),
            pictures: grades.len(),
            background: share(|g| g.background),
            count: share(|g| g.count),
            color: share(|g| g.color),
            shape: share(|g| g.shape),
            size: share(|g| g.size),
            relation: (objects > 1).then(|| share(|g| g.relation)),
            all: share(|g| g.all),
        }
    }

    /// The columns of the table after the kind.
    pub fn cells(&self) -> [String; 8] {
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        [
            self.pictures.to_string(),
            percent(self.background),
            percent(self.count),
            percent(self.color),
            percent(self.shape),
            percent(self.size),
            self.relation.map_or("–".to_owned(), percent),
            percent(self.all),
        ]
    }
}

/// The heads of [`Row::cells`].
pub const HEADS: [&str; 8] = [
    "pictures",
    "background",
    "count",
    "colour",
    "shape",
    "size",
    "relation",
    "all right",
];

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<22}", "accuracy")?;
        for head in HEADS {
            write!(f, "{head:>11}")?;
        }
        for row in &self.rows {
            write!(f, "\n{:<22}", row.kind)?;
            for cell in row.cells() {
                write!(f, "{cell:>11}")?;
            }
        }
        Ok(())
    }
}

impl Table {
    pub fn read(path: &Path) -> Result<Option<Table>> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", path)(e)),
        }
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::failure(format!("cannot write {}: {e}", path.display())))?;
        crate::files::replace(path, format!("{text}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_count_what_is_right() {
        let right = Grade {
            background: true,
            count: true,
            color: true,
            shape: true,
            size: true,
            relation: true,
            all: true,
        };
        let wrong = Grade {
            shape: false,
            all: false,
            ..right
        };
        let row = Row::new("one object, seen", 1, &[right, wrong, right, wrong]);
        assert_eq!((row.background, row.shape, row.all), (1.0, 0.5, 0.5));
        assert_eq!(row.relation, None);
        let table = Table {
            prompts_per_kind: 2,
            seeds: 1,
            start: Start::Caption,
            sampling: Sampling::default(),
            rows: vec![row],
        };
        let text = table.to_string();
        assert!(text.contains("one object, seen"), "{text}");
        assert!(text.contains("50.0 %"), "{text}");
    }
}
