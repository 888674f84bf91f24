//! `unclip assemble`: one model directory from four trained stages.

use std::path::PathBuf;

use models::weights::Precision;

use crate::Result;
use crate::assemble::{Runs, assemble};
use crate::demo::plan::Settings;

/// Put four finished runs together to a directory that `generate` and `eval` open, in diffusers' layout.
#[derive(clap::Args)]
pub struct Assemble {
    /// A finished run of the clip stage.
    #[arg(long, value_name = "RUN")]
    clip: PathBuf,
    /// A finished run of the prior stage, trained on that CLIP.
    #[arg(long, value_name = "RUN")]
    prior: PathBuf,
    /// A finished run of the decoder stage, trained on that CLIP.
    #[arg(long, value_name = "RUN")]
    decoder: PathBuf,
    /// A finished run of the upsampler stage.
    #[arg(long, value_name = "RUN")]
    upsampler: PathBuf,
    /// A finished run of the upsampler stage that begins where that one ends.
    #[arg(long, value_name = "RUN")]
    second_upsampler: Option<PathBuf>,
    /// The model directory; what is there is replaced.
    #[arg(short, long)]
    output: PathBuf,
    /// Round the weights to bf16, which halves them.
    #[arg(long)]
    bf16: bool,
}

impl Assemble {
    pub fn run(self) -> Result<()> {
        let runs = Runs {
            clip: &self.clip,
            prior: &self.prior,
            decoder: &self.decoder,
            upsampler: &self.upsampler,
            second_upsampler: self.second_upsampler.as_deref(),
        };
        let precision = match self.bf16 {
            true => Precision::Bf16,
            false => Precision::Full,
        };
        assemble(
            &runs,
            &Settings::embedded()?.sampling,
            precision,
            &self.output,
        )?;
        println!("the model is in {}", self.output.display());
        Ok(())
    }
}
