//! Everything that can go wrong with a model that is not an op refusing its operands.

use std::fmt;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a model could not be built, read, written or run. Every variant prints as one clear sentence.
#[derive(Debug)]
pub enum Error {
    /// An op refused its operands.
    Engine(tensor::Error),
    /// A file could not be read or written.
    File {
        path: PathBuf,
        doing: &'static str,
        source: std::io::Error,
    },
    /// A JSON file that does not say what it should.
    Json { path: PathBuf, reason: String },
    /// A configuration that no model can be built from, or that this program does not support.
    Config { class: &'static str, reason: String },
    /// A weight file that is not a well-formed safetensors file.
    Format { path: PathBuf, reason: String },
    /// Weights that do not fit the model: every difference, at once.
    Mismatch {
        path: PathBuf,
        class: &'static str,
        differences: Vec<String>,
    },
    /// A request that makes no sense, such as an empty list of prompts.
    Request(String),
}

impl Error {
    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        Error::file(path, "read")
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
        Error::file(path, "write")
    }

    fn file<'a>(
        path: &'a Path,
        doing: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Error + use<'a> {
        move |source| Error::File {
            path: path.to_owned(),
            doing,
            source,
        }
    }

    pub(crate) fn config(class: &'static str, reason: impl Into<String>) -> Error {
        Error::Config {
            class,
            reason: reason.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Engine(error) => error.fmt(f),
            Error::File {
                path,
                doing,
                source,
            } => write!(f, "cannot {doing} {}: {source}", path.display()),
            Error::Json { path, reason } => write!(f, "{}: {reason}", path.display()),
            Error::Config { class, reason } => write!(f, "{class}: {reason}"),
            Error::Format { path, reason } => {
                write!(
                    f,
                    "{} is not a valid safetensors file: {reason}",
                    path.display()
                )
            }
            Error::Mismatch {
                path,
                class,
                differences,
            } => {
                write!(
                    f,
                    "{} does not hold the weights of this {class} ({} differences)",
                    path.display(),
                    differences.len()
                )?;
                for difference in differences {
                    write!(f, "\n    {difference}")?;
                }
                Ok(())
            }
            Error::Request(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Engine(error) => Some(error),
            Error::File { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<tensor::Error> for Error {
    fn from(error: tensor::Error) -> Error {
        Error::Engine(error)
    }
}
