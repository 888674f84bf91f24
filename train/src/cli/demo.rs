//! `unclip demo`: the whole stack from nothing to pictures.

use std::path::PathBuf;

use crate::demo::{DEFAULT_DIR, Request, run};
use crate::interrupt::Interrupt;
use crate::{Error, Result};

/// Train the whole stack from nothing and make pictures with it.
///
/// Stopped or killed at any point, the same command goes on where it was.
#[derive(clap::Args)]
pub struct Demo {
    /// Minutes of training; data, sample pictures and the accuracy table come on top.
    #[arg(long)]
    minutes: Option<f64>,
    /// Your own captioned pictures, such as 'shards/{00000..00003}.tar', a folder, or a CSV or JSONL list.
    #[arg(long)]
    data: Option<String>,
    /// The run's directory.
    #[arg(short, long, default_value = DEFAULT_DIR)]
    output: PathBuf,
    /// Everything random is a function of it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Follow this plan.json in place of measuring the machine.
    #[arg(long, hide = true)]
    plan: Option<PathBuf>,
}

impl Demo {
    pub fn run(self) -> Result<()> {
        if self.minutes.is_some_and(|m| !(m > 0.0 && m.is_finite())) {
            return Err(Error::usage("--minutes must be above zero"));
        }
        let interrupt = Interrupt::catch()?;
        run(
            &Request {
                dir: self.output,
                minutes: self.minutes,
                data: self.data,
                plan: self.plan,
                seed: self.seed,
            },
            &interrupt,
        )
    }
}
