//! Pictures of which a part is known: what inpainting keeps.

use autograd::Tensor;
use tensor::Check;

use super::Options;
use crate::diffusion::{Prediction, Schedule};
use crate::{Error, Result};

/// A part of a picture that is to stay as it is.
#[derive(Clone, Debug)]
pub struct Known {
    /// At the size that the decoder draws.
    pub small: Region,
    /// At the size that the upsampler draws.
    pub large: Region,
    /// How often the decoder takes each step, going back to the noise it came from in between, so that what it paints
    /// fits what is known (Lugmayr et al., "RePaint", 2022, section 4.2). 1 takes every step once.
    pub resamples: usize,
}

/// A picture, and which of its pixels are known.
#[derive(Clone, Debug)]
pub struct Region {
    /// In −1 to 1. [h, w, 3]
    picture: Vec<f64>,
    /// h·w values.
    known: Vec<bool>,
}

impl Region {
    /// # Shapes
    /// picture [1, h, w, 3] in −1 to 1, known h·w
    ///
    /// # Errors
    /// If they do not fit each other.
    pub fn new(picture: &Tensor, known: Vec<bool>) -> Result<Region> {
        let check = Check::new("inpaint", &[("picture", picture)]);
        let fits = matches!(picture.dims(), &[1, h, w, 3] if h * w == known.len());
        check.require(fits, || {
            format!(
                "the picture must be [1, h, w, 3] with h·w = {} pixels",
                known.len()
            )
        })?;
        Ok(Region {
            picture: picture.to_f64_vec()?,
            known,
        })
    }

    /// Puts the known pixels of `original` into `picture`.
    ///
    /// # Shapes
    /// both [h, w, 3]
    pub fn keep(&self, original: &[u8], picture: &mut [u8]) {
        let pixels = picture.chunks_mut(3).zip(original.chunks(3));
        for ((to, from), _) in pixels.zip(&self.known).filter(|(_, known)| **known) {
            to.copy_from_slice(from);
        }
    }

    /// The network's output as it would be if it saw the known pixels as they are: their x₀ is replaced, and what stands
    /// for it in the output found from that. So every sampler keeps them (the projection of Wang, Yu and Zhang,
    /// "Zero-shot image restoration using denoising diffusion null-space model", 2023, equation 13, for a mask).
    ///
    /// # Shapes
    /// output [n, h, w, 3] or [n, h, w, 6], x [n, h, w, 3] → the output's
    pub(super) fn project(
        &self,
        prediction: Prediction,
        alpha_bar: f64,
        output: &Tensor,
        x: &Tensor,
    ) -> tensor::Result<Tensor> {
        let check = Check::new("inpaint", &[("output", output), ("x", x)]);
        let [pixels, channels] = [self.known.len(), 3];
        check.require(
            x.len().is_multiple_of(self.picture.len()) && x.shape().last_dim() == channels,
            || format!("pictures must have {pixels} pixels of {channels} colours"),
        )?;
        let width = output.shape().last_dim();
        let (a, b) = prediction.to_x0(alpha_bar);
        let mut values = output.to_f64_vec()?;
        let xt = x.to_f64_vec()?;
        let rows = values.chunks_mut(width).zip(xt.chunks(channels));
        for (i, (output, xt)) in rows.enumerate() {
            let pixel = i % pixels;
            if self.known[pixel] {
                let x0 = &self.picture[pixel * channels..][..channels];
                for ((out, xt), x0) in output.iter_mut().zip(xt).zip(x0) {
                    *out = (x0 - a * xt) / b;
                }
            }
        }
        Ok(Tensor::from_f64(
            &values,
            output.shape(),
            output.dtype(),
            output.device(),
        ))
    }
}

/// Adds the noise back that a step took out: from the noise level of `to` to that of `from`.
///
/// # Shapes
/// x and noise [n, ..] → [n, ..]
pub(super) fn renoised(
    schedule: &Schedule,
    (from, to): (usize, usize),
    x: &Tensor,
    noise: &Tensor,
) -> tensor::Result<Tensor> {
    let ratio = schedule.alpha_bar(from) / schedule.alpha_bar(to);
    let (keep, add) = (ratio.sqrt(), (1.0 - ratio).sqrt());
    let values = x.to_f64_vec()?.into_iter().zip(noise.to_f64_vec()?);
    let values: Vec<f64> = values.map(|(x, z)| keep * x + add * z).collect();
    Ok(Tensor::from_f64(&values, x.shape(), x.dtype(), x.device()))
}

impl Known {
    /// # Errors
    /// If there is no sample at all, or the sampler's steps cannot be taken again.
    pub fn check(&self, options: &Options) -> Result<()> {
        let steps = options.decoder_num_inference_steps;
        let reason = match self.resamples {
            0 => "resamples must be at least 1",
            2.. if options.decoder_sampler.evaluations(steps) != steps => {
                "heun cannot take a step again: use another sampler for the decoder, or 1 resample"
            }
            _ => return Ok(()),
        };
        Err(Error::Request(reason.into()))
    }
}
