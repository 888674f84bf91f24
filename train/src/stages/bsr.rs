//! Pairs for an upsampler that mends what pictures go through in the world ([`degrade`]): crops, and what came back of them.

use autograd::{Device, StepState, Tensor};
use rayon::prelude::*;

use crate::data::degrade::{Square, degrade};
use crate::{Error, Result};

/// Small pictures, worn, as numbers from −1 to 1. What happens to each is a function of the seed and of its position among
/// all samples.
///
/// # Shapes
/// large [n, side, side, 3] → [n, side / factor, side / factor, 3]
pub fn worn(large: &Tensor, factor: usize, at: StepState) -> Result<Tensor> {
    let &[n, side, _, 3] = large.dims() else {
        return Err(Error::failure("pictures to wear must be [n, h, w, 3]"));
    };
    let values = large.as_slice::<f32>()?;
    let first = u64::from(at.first_sample);
    let worn: Vec<Square> = values
        .par_chunks(side * side * 3)
        .enumerate()
        .map(|(i, picture)| {
            let picture = Square {
                side,
                rgb: picture.iter().map(|x| x * 0.5 + 0.5).collect(),
            };
            degrade(&picture, factor, at.seed, first + i as u64)
        })
        .collect::<Result<_>>()?;
    let values: Vec<f32> = worn
        .iter()
        .flat_map(|square| square.rgb.iter().map(|x| x * 2.0 - 1.0))
        .collect();
    let side = side / factor;
    Ok(Tensor::from_slice(&values, [n, side, side, 3], Device::Cpu))
}
