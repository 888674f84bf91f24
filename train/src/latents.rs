//! Noise in files: every tensor that pictures are made of, in PyTorch's layout.

use std::collections::BTreeMap;
use std::path::Path;

use models::pipeline::{Latent, Noise};
use safetensors::SafeTensors;
use tensor::Tensor;

use crate::probe::{from_view, inward, outward, serialize};
use crate::record::short_hash;
use crate::stages::DTYPE;
use crate::{Error, Result, files};

/// Given noise, and a hash of the file that it is from.
pub struct Latents {
    /// Pictures are [images, h, w, c].
    pub tensors: BTreeMap<String, Tensor>,
    pub hash: String,
}

/// Reads a safetensors file that holds exactly the `wanted` tensors.
///
/// # Errors
/// All that is missing, unexpected or of another shape, at once.
pub fn load(path: &Path, wanted: &[Latent]) -> Result<Latents> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let refused = |reason: String| Error::usage(format!("{}: {reason}", path.display()));
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| refused(format!("it is no safetensors file: {e}")))?;
    let mut given: BTreeMap<String, _> = file.tensors().into_iter().collect();
    let mut tensors = BTreeMap::new();
    let mut differences = Vec::new();
    for latent in wanted {
        let (name, shape) = (latent.name(), in_files(&latent.shape));
        match given.remove(&name) {
            None => differences.push(format!("{name} {shape:?} is missing")),
            Some(view) if view.shape() != shape => differences.push(format!(
                "{name} is {:?}, it must be {shape:?}",
                view.shape()
            )),
            Some(view) => {
                let x = from_view(&name, &view)?;
                match x.dtype().is_float() {
                    true => {
                        tensors.insert(name, inward(&x.cast(DTYPE)?)?);
                    }
                    false => differences.push(format!(
                        "{name} holds {}, it must hold floating-point numbers",
                        x.dtype()
                    )),
                }
            }
        }
    }
    let unexpected = given.keys().map(|name| format!("{name} is unexpected"));
    differences.extend(unexpected);
    if !differences.is_empty() {
        return Err(refused(format!(
            "it does not hold the noise of these settings ({} differences; --save-latents writes a file that fits)\n    {}",
            differences.len(),
            differences.join("\n    ")
        )));
    }
    Ok(Latents {
        tensors,
        hash: short_hash([&*bytes]),
    })
}

/// Writes the noise that pictures will be made of.
pub fn save(path: &Path, wanted: &[Latent], noise: &dyn Noise) -> Result<()> {
    let drawn = wanted.iter().map(|latent| {
        let x = noise.normal(latent.stage, latent.occurrence, &latent.shape, DTYPE)?;
        Ok((latent.name(), outward(&x)?))
    });
    let drawn = drawn.collect::<Result<Vec<_>>>()?;
    files::create_dir(files::parent(path))?;
    files::replace(path, &serialize(&drawn)?)
}

/// The shape as files have it: pictures are [images, c, h, w].
fn in_files(shape: &[usize]) -> Vec<usize> {
    match *shape {
        [n, h, w, c] => vec![n, c, h, w],
        _ => shape.to_vec(),
    }
}
