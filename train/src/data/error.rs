//! What can go wrong between a path and a batch. Every message is one sentence that names the file and says what to do.

use std::fmt;
use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug)]
pub enum Error {
    /// The operating system refused.
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// A shard ends before its members do.
    Truncated { shard: PathBuf, detail: String },
    /// A file is not what its name says.
    Malformed { path: PathBuf, detail: String },
    /// More samples were unusable than the run allows.
    TooManyBad {
        bad: u64,
        of: u64,
        limit: f64,
        example: String,
    },
    /// The request itself cannot be met.
    Invalid(String),
}

impl Error {
    /// For `map_err`: the operation, in the infinitive, and the file it was tried on.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io {
                action,
                path,
                source,
            } => write!(f, "cannot {action} {}: {source}", path.display()),
            Error::Truncated { shard, detail } => write!(
                f,
                "{} is truncated: {detail}; fetch or write the shard again, or leave it out",
                shard.display()
            ),
            Error::Malformed { path, detail } => write!(f, "{}: {detail}", path.display()),
            Error::TooManyBad {
                bad,
                of,
                limit,
                example,
            } => write!(
                f,
                "{bad} of {of} samples are unusable, more than the allowed {:.1} % (for example {example}); repair the \
                 data or raise max_bad_share",
                limit * 100.0
            ),
            Error::Invalid(sentence) => f.write_str(sentence),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
