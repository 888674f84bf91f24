//! `unclip eval`: how often a model's pictures show what their prompts say.

use std::path::PathBuf;

use models::pipeline::Pipeline;
use tensor::Device;

use crate::eval::{Questions, Start, evaluate};
use crate::interrupt::Interrupt;
use crate::model;
use crate::sampling::Sampling;
use crate::stages::DTYPE;
use crate::stages::frozen::FrozenClip;
use crate::{Error, Result};

/// Measure how often the pictures of a model show what their prompts say.
///
/// For models trained on the shapes: a program reads the pictures. The prompts and the noise are the same for every
/// model; the table is printed and written as JSON.
#[derive(clap::Args)]
pub struct Eval {
    /// A demo run or a model directory [default: the weights that the program carries].
    run: Option<PathBuf>,
    /// Prompts of each kind (seen or held out, one or two objects); twice as many for one object.
    #[arg(long, default_value_t = 100)]
    prompts: usize,
    /// Pictures of each prompt, with the seeds 0, 1, ….
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Where the chain starts: what comes before is replaced by the truth, which shows the stage that loses most.
    #[arg(long, value_enum, default_value_t)]
    from: Start,
    /// The JSON file [default: eval.json, in the run if one is named].
    #[arg(short, long)]
    output: Option<PathBuf>,
}

impl Eval {
    pub fn run(self, device: Device) -> Result<()> {
        if self.prompts == 0 || self.seeds == 0 {
            return Err(Error::usage("--prompts and --seeds must be at least 1"));
        }
        let model = model::open(self.run.as_deref())?;
        let interrupt = Interrupt::catch()?;
        let pipeline = Pipeline::load(model.clone(), DTYPE, device)?;
        let questions = Questions {
            prompts: self.prompts,
            seeds: self.seeds,
            start: self.from,
        };
        let clip = match self.from {
            Start::Embedding => Some(FrozenClip::of_model(&model, Device::Cpu)?),
            Start::Caption | Start::Small => None,
        };
        let table = evaluate(
            &pipeline,
            clip.as_ref(),
            &Sampling::of_model(&model)?,
            &questions,
            &interrupt,
        )?;
        println!("{table}");
        let path = self
            .output
            .unwrap_or_else(|| self.run.unwrap_or_default().join("eval.json"));
        table.save(&path)?;
        println!("written to {}", path.display());
        Ok(())
    }
}
