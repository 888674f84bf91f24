//! The variational bound on the CPU.
//!
//! Elements are computed in f64 whatever `T`: both terms are small differences of large numbers, and the loss is a few
//! numbers for each pixel of a picture, not of an activation.

use super::Coefficients;
use super::function::{divergence, likelihood};
use crate::ops::mse::mean_over_samples;
use crate::{Accum, Float, parallel};

const PART: usize = 1024;

/// Everything that the bound reads; pictures [n, ..] of one shape.
pub struct Operands<'a, T> {
    /// v: the variance's place between its limits, −1 low, 1 high.
    pub variance: &'a [T],
    pub eps: &'a [T],
    pub x0: &'a [T],
    pub xt: &'a [T],
    /// One for each sample.
    pub coefficients: &'a [Coefficients],
    pub weight: Option<&'a [T]>,
}

/// The mean over samples of weight · mean over the sample of the bound, in bits.
///
/// # Panics
/// If the lengths do not match.
pub fn forward<T: Float>(x: &Operands<T>) -> T {
    let samples = x.coefficients.len();
    let m = x.variance.len() / samples;
    T::from_f64(mean_over_samples(
        x.weight,
        samples,
        m,
        PART,
        |sample, start, len| {
            let range = sample * m + start..sample * m + start + len;
            range.map(|i| term(x, sample, i).0).sum()
        },
    ))
}

/// `dvariance (+)= scale · ∂ forward / ∂ variance`.
///
/// # Panics
/// If the lengths do not match.
pub fn backward<T: Float>(dvariance: &mut [T], accum: Accum, scale: f64, x: &Operands<T>) {
    assert_eq!(dvariance.len(), x.variance.len());
    let m = x.variance.len() / x.coefficients.len();
    let scale = scale / x.variance.len() as f64;
    parallel::row_parts(dvariance, m, PART, |sample, start, dvariance| {
        let scale = scale * x.weight.map_or(1.0, |w| w[sample].to_f64());
        for (i, d) in dvariance.iter_mut().enumerate() {
            let (_, slope) = term(x, sample, sample * m + start + i);
            accum.put(d, T::from_f64(scale * slope));
        }
    });
}

/// Element i's bits, and their derivative with respect to v.
fn term<T: Float>(x: &Operands<T>, sample: usize, i: usize) -> (f64, f64) {
    let k = &x.coefficients[sample];
    let element = [x.variance, x.eps, x.x0, x.xt].map(|x| x[i].to_f64());
    if k.first != 0.0 {
        likelihood(k, element)
    } else {
        divergence(k, element)
    }
}
