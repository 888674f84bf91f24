//! What the program says when it stops early: one sentence that names the thing and what to do, and an exit code.

use std::fmt;
use std::path::Path;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug)]
pub enum Error {
    /// The request cannot be met as it was typed: a flag, a key, a prompt. Exit code 2.
    Usage(String),
    /// Something failed while it was carried out. Exit code 1.
    Failure(String),
    /// A signal asked for an end; everything is saved. Exit code 128 + signal, as shells expect.
    Interrupted { signal: i32, saved: String },
}

impl Error {
    pub fn usage(sentence: impl Into<String>) -> Error {
        Error::Usage(sentence.into())
    }

    pub fn failure(sentence: impl Into<String>) -> Error {
        Error::Failure(sentence.into())
    }

    /// For `map_err`: what was tried, in the infinitive, and on which file.
    pub fn io<'a>(action: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + 'a {
        move |source| {
            let advice = match source.kind() {
                std::io::ErrorKind::StorageFull
                | std::io::ErrorKind::QuotaExceeded
                | std::io::ErrorKind::FileTooLarge => {
                    "; make room or choose another directory, then run the same command again: \
                     finished checkpoints are intact"
                }
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    "; choose a directory that you may write to"
                }
                _ => "",
            };
            Error::Failure(format!(
                "cannot {action} {}: {source}{advice}",
                path.display()
            ))
        }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Failure(_) => 1,
            Error::Interrupted { signal, .. } => u8::try_from(128 + signal).unwrap_or(1),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(sentence) | Error::Failure(sentence) => f.write_str(sentence),
            Error::Interrupted { saved, .. } => f.write_str(saved),
        }
    }
}

impl std::error::Error for Error {}

impl From<tensor::Error> for Error {
    fn from(error: tensor::Error) -> Error {
        Error::Failure(error.to_string())
    }
}

impl From<crate::data::Error> for Error {
    fn from(error: crate::data::Error) -> Error {
        Error::Failure(error.to_string())
    }
}

impl From<models::Error> for Error {
    fn from(error: models::Error) -> Error {
        match error {
            // A prompt that is empty, a number of steps out of range.
            models::Error::Request(_) => Error::Usage(error.to_string()),
            _ => Error::Failure(error.to_string()),
        }
    }
}
