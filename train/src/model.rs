//! Which model a command works with: a directory that the user names, or the one that is built into the program.

use std::path::Path;

use models::Folder;
use models::pipeline::INDEX;

use crate::trainer::model_dir;
use crate::{Error, Result};

macro_rules! embedded {
    ($($path:literal)*) => {
        &[$(($path, include_bytes!(concat!("../../assets/shapes/", $path)))),*]
    };
}

/// `assets/shapes`: trained on the shapes, with the commands that its README lists.
static SHAPES: &[(&str, &[u8])] = embedded! {
    "clip/config.json"
    "clip/model.safetensors"
    "decoder/config.json"
    "decoder/diffusion_pytorch_model.safetensors"
    "decoder_scheduler/scheduler_config.json"
    "model_index.json"
    "prior/config.json"
    "prior/diffusion_pytorch_model.safetensors"
    "prior_scheduler/scheduler_config.json"
    "sampling.json"
    "super_res_first/config.json"
    "super_res_first/diffusion_pytorch_model.safetensors"
    "super_res_last/config.json"
    "super_res_last/diffusion_pytorch_model.safetensors"
    "super_res_scheduler/scheduler_config.json"
    "text_encoder/config.json"
    "text_encoder/model.safetensors"
    "text_proj/config.json"
    "text_proj/diffusion_pytorch_model.safetensors"
    "tokenizer/merges.txt"
    "tokenizer/special_tokens_map.json"
    "tokenizer/tokenizer.json"
    "tokenizer/tokenizer_config.json"
    "tokenizer/vocab.json"
};

/// The weights that the program carries.
pub fn built_in() -> Folder {
    Folder::embedded("built-in weights", SHAPES)
}

/// A demo run's model, a model directory, or, where none is named, the built-in weights.
pub fn open(named: Option<&Path>) -> Result<Folder> {
    let Some(named) = named else {
        return Ok(built_in());
    };
    [model_dir(named), named.to_owned()]
        .iter()
        .map(Folder::from)
        .find(|dir| dir.has(INDEX))
        .ok_or_else(|| {
            Error::usage(format!(
                "{} is neither a demo run with a finished model nor a model directory (with {INDEX})",
                named.display()
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that was added to the folder and not to the list would be missing in the program.
    #[test]
    fn every_file_is_built_in() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/shapes");
        let files = crate::files::walk(&root).unwrap();
        let found: Vec<String> = files
            .iter()
            .map(|path| path.to_string_lossy().replace('\\', "/"))
            .filter(|path| !path.contains("README") && !path.starts_with("eval"))
            .collect();
        let listed: Vec<&str> = SHAPES.iter().map(|(path, _)| *path).collect();
        assert_eq!(found, listed);
        let bytes: usize = SHAPES.iter().map(|(_, contents)| contents.len()).sum();
        assert!(bytes <= 12_000_000, "{bytes} bytes");
    }
}
