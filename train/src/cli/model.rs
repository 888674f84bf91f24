//! `unclip model …`: model directories.

use std::path::{Path, PathBuf};

use models::Folder;
use models::architecture::Architecture;
use models::tokenizer::Tokenizer;
use models::weights;

use super::output::Output;
use crate::progress::Progress;
use crate::{Error, Result};

/// Make model directories, and look into them.
#[derive(clap::Subcommand)]
pub enum Command {
    New(New),
    Describe(Describe),
}

/// Write a model that has not been trained, as training would begin with it.
///
/// The directory opens in `generate` and in diffusers. It is written one tensor at a time, so that a model of any size
/// needs little memory.
#[derive(clap::Args)]
pub struct New {
    /// Which networks.
    #[arg(value_enum)]
    architecture: Name,
    /// Every parameter is a function of it and of its own name.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A folder with the tokenizer: tokenizer.json, or vocab.json and merges.txt [default: one whose tokens are bytes].
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// Say what networks a model has: class, tensors, parameters and bytes of each.
#[derive(clap::Args)]
pub struct Describe {
    /// A model directory, or one of tiny, small, karlo and paper.
    model: PathBuf,
}

/// An architecture by the name that users give it.
#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Name {
    /// For a CPU, in seconds: 64×64.
    Tiny,
    /// Karlo's shape with fewer channels: 256×256.
    Small,
    /// Karlo: 256×256.
    Karlo,
    /// DALL·E 2: 256×256, and a network for 1024×1024.
    Paper,
}

impl Name {
    pub fn architecture(self) -> Architecture {
        match self {
            Name::Tiny => Architecture::tiny(),
            Name::Small => Architecture::small(),
            Name::Karlo => Architecture::karlo(),
            Name::Paper => Architecture::paper(),
        }
    }
}

impl Command {
    pub fn run(self) -> Result<()> {
        match self {
            Command::New(new) => new.run(),
            Command::Describe(describe) => describe.run(),
        }
    }
}

impl New {
    fn run(self) -> Result<()> {
        let architecture = self.architecture.architecture();
        let tokenizer = match &self.tokenizer {
            Some(dir) => Tokenizer::from_dir(dir),
            // Karlo fills texts with token 0, which is "!" in every CLIP vocabulary.
            None => Tokenizer::from_merges(&[], architecture.text_encoder.max_position_embeddings)
                .and_then(|bytes| bytes.padded_with("!")),
        };
        let tokenizer = tokenizer.map_err(|error| Error::usage(error.to_string()))?;
        let precision = self.output.precision();
        let parts = architecture.parts()?.len() as u64;
        let mut progress = Progress::new("writing", parts, 0);
        let mut written = 0;
        self.output.write(|dir| {
            let on_part = |name: &str| {
                progress.line(&format!("writing {name}"));
                progress.set(written, || name.to_owned());
                written += 1;
            };
            Ok(architecture.create(dir, &tokenizer, self.seed, precision, on_part)?)
        })
    }
}

impl Describe {
    fn run(self) -> Result<()> {
        let named = self
            .model
            .to_str()
            .and_then(|name| <Name as clap::ValueEnum>::from_str(name, false).ok());
        // A directory of that name is meant where there is one.
        let rows = match named.filter(|_| !self.model.is_dir()) {
            Some(name) => of_architecture(&name.architecture())?,
            None => of_directory(&self.model)?,
        };
        print(&rows);
        Ok(())
    }
}

/// A line of the table.
struct Row {
    name: String,
    class: String,
    tensors: usize,
    parameters: usize,
    dtype: String,
    bytes: u64,
}

fn of_architecture(architecture: &Architecture) -> Result<Vec<Row>> {
    let rows = architecture.parts()?.into_iter().map(|part| Row {
        name: part.name.to_owned(),
        class: part.class.to_owned(),
        tensors: part.tensors,
        parameters: part.parameters,
        dtype: "f32".to_owned(),
        bytes: 4 * part.parameters as u64,
    });
    Ok(rows.collect())
}

fn of_directory(dir: &Path) -> Result<Vec<Row>> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let mut rows = Vec::new();
    for name in names {
        let Some(found) = weights::describe(&Folder::from(dir).join(&name))? else {
            continue;
        };
        rows.push(Row {
            name,
            class: found.class,
            tensors: found.tensors,
            parameters: found.parameters,
            dtype: found.dtypes.join(" "),
            bytes: found.bytes,
        });
    }
    if rows.is_empty() {
        return Err(Error::usage(format!(
            "{} holds no networks: name a model directory, or one of tiny, small, karlo and paper",
            dir.display()
        )));
    }
    Ok(rows)
}

fn print(rows: &[Row]) {
    let line = |name: &str, class: &str, tensors, parameters, dtype: &str, bytes| {
        println!("{name:<18}{class:<31}{tensors:>9}{parameters:>16}{dtype:>8}{bytes:>18}")
    };
    let (mut tensors, mut parameters, mut bytes) = (0, 0, 0);
    line(
        "component",
        "class",
        "tensors".into(),
        "parameters".into(),
        "dtype",
        "bytes".into(),
    );
    for row in rows {
        line(
            &row.name,
            &row.class,
            grouped(row.tensors as u64),
            grouped(row.parameters as u64),
            &row.dtype,
            grouped(row.bytes),
        );
        tensors += row.tensors as u64;
        parameters += row.parameters as u64;
        bytes += row.bytes;
    }
    line(
        "all",
        "",
        grouped(tensors),
        grouped(parameters),
        "",
        grouped(bytes),
    );
}

/// Digits in threes.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn digits_stand_in_threes() {
        assert_eq!(
            [0, 999, 1000, 1_022_030_080].map(grouped),
            ["0", "999", "1,000", "1,022,030,080"]
        );
    }
}
