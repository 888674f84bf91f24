//! What every command that writes a model directory takes.

use std::path::{Path, PathBuf};

use models::weights::Precision;

use crate::{Result, files};

#[derive(clap::Args)]
pub struct Output {
    /// The model directory; what is there is replaced.
    #[arg(short = 'o', long = "output", value_name = "DIR")]
    pub dir: PathBuf,
    /// Round the weights to bf16, which halves them.
    #[arg(long)]
    bf16: bool,
    /// Round the weights to f16, which halves them too; values beyond 65,504 do not survive it.
    #[arg(long, conflicts_with = "bf16")]
    f16: bool,
}

impl Output {
    pub fn precision(&self) -> Precision {
        match (self.bf16, self.f16) {
            (true, _) => Precision::Bf16,
            (_, true) => Precision::F16,
            _ => Precision::Full,
        }
    }

    /// Replaces the directory by what `write` makes.
    pub fn write(&self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        files::replace_dir(&self.dir, write)?;
        self.written();
        Ok(())
    }

    /// Says where the model is.
    pub fn written(&self) {
        println!("the model is in {}", self.dir.display());
    }
}
