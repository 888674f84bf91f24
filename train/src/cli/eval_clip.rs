//! `unclip eval-clip`: retrieval and zero-shot classification.

use std::path::PathBuf;

use models::Folder;
use tensor::Device;

use crate::clip_eval::{Classes, Judge, RANKS, Report, retrieval};
use crate::data::{Dataset, DatasetOptions};
use crate::interrupt::Interrupt;
use crate::stages::frozen::FrozenClip;
use crate::trainer::model_dir;
use crate::{Error, Result};

/// Measure how well a CLIP knows which texts and pictures belong together.
///
/// Retrieval: how often what belongs to a text, or to a picture, is among the nearest 1, 5 and 10 of all pairs. Pictures with
/// the same caption belong together. Zero-shot: how often the nearest class is a picture's own, which is the class that its
/// caption names. Pictures are made ready as CLIP's image processor does it, to the last bit.
#[derive(clap::Args)]
pub struct EvalClip {
    /// A finished clip run, or a directory with clip/ and tokenizer/.
    model: PathBuf,
    /// Captioned pictures: shards such as 'data/{00000..00003}.tar', a folder, or a CSV or JSONL list.
    #[arg(long)]
    data: String,
    /// A JSON file of classes and the prompts that describe each: {"cat": ["a photo of a cat", …], …}.
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Pairs that are used, from the beginning.
    #[arg(long, default_value_t = 5000)]
    pairs: u64,
    /// Also write the numbers to this JSON file.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl EvalClip {
    pub fn run(self, device: Device) -> Result<()> {
        if self.pairs == 0 {
            return Err(Error::usage("--pairs must be at least 1"));
        }
        let classes = self.classes.as_deref().map(Classes::read).transpose()?;
        let interrupt = Interrupt::catch()?;
        let named = self.model.to_string_lossy();
        let clip = FrozenClip::open(&named, device)?;
        let dir = match model_dir(&self.model).is_dir() {
            true => model_dir(&self.model),
            false => self.model.clone(),
        };
        let judge = Judge::of_model(&Folder::from(&dir), clip)?;
        let dataset = Dataset::open(&self.data, DatasetOptions::new(1))?;
        let pairs = judge.pairs(&dataset, self.pairs, &interrupt)?;
        if pairs.captions.is_empty() {
            return Err(Error::usage("none of these pictures can be used"));
        }
        let report = Report {
            retrieval: retrieval(&pairs),
            zero_shot: match &classes {
                Some(classes) => Some(judge.zero_shot(&pairs, classes)?),
                None => None,
            },
        };
        let found = &report.retrieval;
        let ranks = RANKS.map(|rank| format!("recall@{rank}"));
        println!(
            "{:<24}{:>11}{:>11}{:>11}",
            format!("{} pairs", found.pairs),
            ranks[0],
            ranks[1],
            ranks[2]
        );
        for (way, recall) in [
            ("text to picture", found.text_to_image),
            ("picture to text", found.image_to_text),
        ] {
            let [one, five, ten] = recall.map(|share| format!("{:.1} %", 100.0 * share));
            println!("{way:<24}{one:>11}{five:>11}{ten:>11}");
        }
        if let Some(found) = &report.zero_shot {
            println!(
                "zero-shot: {:.1} % of {} pictures in {} classes ({} name none, or several)",
                100.0 * found.accuracy,
                found.pictures,
                found.classes,
                found.without_class
            );
        }
        if let Some(path) = &self.output {
            report.save(path)?;
            println!("written to {}", path.display());
        }
        Ok(())
    }
}
