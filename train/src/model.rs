//! Which model a command works with.

use std::path::Path;

use models::Folder;
use models::pipeline::INDEX;

use crate::demo::DEFAULT_DIR;
use crate::trainer::model_dir;
use crate::{Error, Result};

/// A demo run's model, or a model directory; where none is named, the model of the demo.
pub fn open(named: Option<&Path>) -> Result<Folder> {
    let place = named.unwrap_or(Path::new(DEFAULT_DIR));
    let found = [model_dir(place), place.to_owned()];
    let found = found.iter().map(Folder::from).find(|dir| dir.has(INDEX));
    found.ok_or_else(|| {
        Error::usage(match named {
            Some(_) => format!(
                "{} is neither a demo run with a finished model nor a model directory (with {INDEX})",
                place.display()
            ),
            None => format!(
                "there is no model at {}: run `unclip demo` first, or name one",
                place.display()
            ),
        })
    })
}
