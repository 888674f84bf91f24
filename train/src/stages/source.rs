//! The data set as stages read it: pixels as numbers, captions as token ids.

use std::sync::Arc;

use autograd::{DType, Device, Tensor};
use models::tokenizer::Tokenizer;
use rayon::prelude::*;

use crate::config::{Common, StageKind};
use crate::data::{Batch, Dataset, DatasetOptions, Loader, LoaderOptions};
use crate::{Error, Result};

/// Opens the data set that a configuration names, and says which samples it cannot use.
pub fn open(common: &Common) -> Result<Arc<Dataset>> {
    let options = DatasetOptions {
        max_bad_share: common.max_bad_share,
        ..DatasetOptions::new(common.resolution)
    };
    let dataset = Dataset::open(&common.data, options)?;
    let bad = dataset.bad();
    if bad.count > 0 {
        println!("{} samples cannot be used and are skipped:", bad.count);
        for sample in bad.named.iter().take(5) {
            println!("  {sample}");
        }
    }
    Ok(Arc::new(dataset))
}

/// The shuffled stream of a stage, from sample `position` on. Each stage has an order of its own.
pub fn loader(
    common: &Common,
    dataset: &Arc<Dataset>,
    tokenizer: Option<&Arc<Tokenizer>>,
    position: u64,
) -> Result<Loader> {
    let stream = StageKind::ALL.iter().position(|&s| s == common.stage);
    let options = LoaderOptions {
        position,
        workers: common.workers,
        // A seed of its own, so that no stage sees the pictures in the order of another.
        ..LoaderOptions::new(
            common.train_batch_size,
            common.seed ^ ((stream.unwrap_or(0) as u64 + 1) << 48),
        )
    };
    Ok(Loader::new(dataset.clone(), tokenizer.cloned(), &options)?)
}

/// An error unless pictures of side `resolution` shrink to `side` by a whole factor.
pub fn check_divides(resolution: usize, key: &str, side: usize) -> Result<()> {
    if side > 0 && resolution.is_multiple_of(side) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{key} = {side} must divide resolution = {resolution}"
    )))
}

/// Pictures as networks take them, each pixel the mean of the square that it covers.
///
/// # Shapes
/// images [n, resolution, resolution, 3] in 0..=255 → [n, side, side, 3] in −1 to 1
pub fn shrunk(images: &[u8], resolution: usize, side: usize) -> Tensor {
    let factor = resolution / side;
    let per_picture = resolution * resolution * 3;
    let n = images.len() / per_picture;
    let mut out = vec![0f32; n * side * side * 3];
    let scale = 2.0 / (255.0 * (factor * factor) as f32);
    out.par_chunks_mut(side * side * 3)
        .zip(images.par_chunks(per_picture))
        .for_each(|(out, picture)| {
            for (y, row) in out.chunks_mut(side * 3).enumerate() {
                for (x, pixel) in row.chunks_mut(3).enumerate() {
                    for (c, value) in pixel.iter_mut().enumerate() {
                        // Whole numbers below 2^24: the sum is exact.
                        let mut sum = 0u32;
                        for dy in 0..factor {
                            let line = (y * factor + dy) * resolution + x * factor;
                            for dx in 0..factor {
                                sum += u32::from(picture[(line + dx) * 3 + c]);
                            }
                        }
                        *value = sum as f32 * scale - 1.0;
                    }
                }
            }
        });
    Tensor::from_slice(&out, [n, side, side, 3], Device::Cpu)
}

/// Token ids as the text tower takes them, and which are not padding: everything up to the first end token.
///
/// # Shapes
/// ids [n, l] → i32 [n, l], `Bool` [n, l]
pub fn tokens(ids: &[u32], tokenizer: &Tokenizer) -> (Tensor, Tensor) {
    let length = tokenizer.context_length();
    let n = ids.len() / length;
    let values: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let mut mask = vec![false; ids.len()];
    for (row, mask) in ids.chunks(length).zip(mask.chunks_mut(length)) {
        let end = row.iter().position(|&id| id == tokenizer.end_id());
        mask[..=end.unwrap_or(length - 1)].fill(true);
    }
    (
        Tensor::from_slice(&values, [n, length], Device::Cpu),
        Tensor::from_bools(&mask, [n, length], Device::Cpu),
    )
}

/// Replaces the texts that are not `kept` by the empty one.
pub fn drop_texts(ids: &mut [u32], kept: &[bool], empty: &[u32]) {
    for (row, _) in ids
        .chunks_mut(empty.len())
        .zip(kept)
        .filter(|(_, kept)| !**kept)
    {
        row.copy_from_slice(empty);
    }
}

/// The first `n` samples of the stage's stream: what sample pictures are made for.
pub fn preview(
    common: &Common,
    dataset: &Arc<Dataset>,
    tokenizer: Option<&Arc<Tokenizer>>,
    n: usize,
) -> Result<Batch> {
    let common = Common {
        train_batch_size: n,
        workers: 0,
        ..common.clone()
    };
    Ok(loader(&common, dataset, tokenizer, 0)?.next_batch()?)
}

/// Numbers as a column of the network's dtype.
pub fn column(values: &[f64]) -> Tensor {
    Tensor::from_f64(values, [values.len()], DType::F32, Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shrinking_averages_squares() {
        let mut picture = vec![0u8; 4 * 4 * 3];
        for (i, value) in picture.iter_mut().enumerate() {
            *value = i as u8;
        }
        let small = shrunk(&picture, 4, 2).to_f64_vec().unwrap();
        // The red of the first square: 0, 3, 12 and 15.
        assert!((small[0] - (7.5 / 127.5 - 1.0)).abs() < 1e-6);
        let same = shrunk(&picture, 4, 4).to_f64_vec().unwrap();
        assert!((same[47] - (47.0 / 127.5 - 1.0)).abs() < 1e-6);
    }
}
