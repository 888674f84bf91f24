//! `unclip train`: one stage from a TOML file.

use std::path::PathBuf;

use super::device::Choice;
use crate::Result;
use crate::config::Config;
use crate::interrupt::Interrupt;
use crate::trainer::{self, Resume};

/// Train one stage (CLIP, prior, decoder or upsampler) from a TOML file.
///
/// The file needs stage = "clip" (or prior, decoder, upsampler) and what differs from the defaults; the resolved file
/// is printed and kept in the run. Ctrl-C, SIGTERM and SIGUSR1 save and exit.
#[derive(clap::Args)]
pub struct Train {
    /// The configuration.
    config: PathBuf,
    /// Keys to change, such as max_train_steps=1000.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Go on from the newest complete checkpoint ("latest") or from a checkpoint's directory.
    #[arg(long, value_name = "latest|DIR")]
    resume: Option<String>,
}

impl Train {
    pub fn run(self, device: Choice) -> Result<()> {
        let config = Config::load(&self.config, &self.overrides)?;
        let resume = match self.resume.as_deref() {
            None => Resume::No,
            Some("latest") => Resume::Latest,
            Some(dir) => Resume::From(PathBuf::from(dir)),
        };
        let device = device.device()?;
        println!("{}", config.to_toml()?);
        let interrupt = Interrupt::catch()?;
        let model = trainer::train(&config, &resume, device, &interrupt)?;
        println!("the trained model is in {}", model.display());
        Ok(())
    }
}
