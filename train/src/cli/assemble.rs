//! `unclip assemble`: one model directory from four trained stages.

use std::path::PathBuf;

use super::output::Output;
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
    #[command(flatten)]
    output: Output,
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
        let sampling = Settings::embedded()?.sampling;
        let output = &self.output;
        assemble(&runs, &sampling, output.precision(), &output.dir)?;
        output.written();
        Ok(())
    }
}
