//! The variational bound on the CPU.
//!
//! Elements are computed in f64 whatever `T`: both terms are small differences of large numbers, and the loss is a few
//! numbers for each pixel of a picture, not of an activation.

use super::Coefficients;
use crate::ops::mse::mean_over_samples;
use crate::{Accum, Float, Real, parallel};

const PART: usize = 1024;

/// Below this probability a logarithm is cut off, and its gradient is zero.
const LEAST_PROBABILITY: f64 = 1e-12;

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
    let (x0, xt) = (x.x0[i].to_f64(), x.xt[i].to_f64());
    let span = k.log_variance_high - k.log_variance_low;
    let rise = (x.variance[i].to_f64() + 1.0) / 2.0 * span;
    let log_variance = k.log_variance_low + rise;
    let predicted = k.x0_from_xt * xt - k.x0_from_eps * x.eps[i].to_f64();
    let (nats, slope) = if k.first != 0.0 {
        let mean = k.mean_from_x0 * predicted + k.mean_from_xt * xt;
        likelihood(x0, mean, log_variance)
    } else {
        // KL of two normals whose log variances differ by `rise` and whose means by `apart`.
        let apart = k.mean_from_x0 * (x0 - predicted);
        let distance = apart * apart * (-log_variance).exp();
        let shrink = (-rise).exp_m1();
        (0.5 * (rise + shrink + distance), 0.5 * (-shrink - distance))
    };
    (
        nats / std::f64::consts::LN_2,
        slope * span / 2.0 / std::f64::consts::LN_2,
    )
}

/// −ln of the probability that a normal gives to the 8-bit level of `x0` (levels 2/255 apart, the outermost open), and
/// its derivative with respect to the log variance.
fn likelihood(x0: f64, mean: f64, log_variance: f64) -> (f64, f64) {
    let inverse_std = (-0.5 * log_variance).exp();
    // The normal is symmetric: below the mean nothing is lost in 1 − tiny.
    let side = if x0 > mean { -1.0 } else { 1.0 };
    let (x0, mean) = (side * x0, side * mean);
    let edge = |half: f64| {
        let z = inverse_std * (x0 - mean + half);
        let (cdf, density) = approximate_cdf(z);
        (cdf, density * z * -0.5)
    };
    let (above, above_slope) = edge(1.0 / 255.0);
    let (below, below_slope) = edge(-1.0 / 255.0);
    let (probability, slope) = if x0 < -0.999 {
        (above, above_slope)
    } else if x0 > 0.999 {
        (1.0 - below, -below_slope)
    } else {
        (above - below, above_slope - below_slope)
    };
    if probability < LEAST_PROBABILITY {
        (-LEAST_PROBABILITY.ln(), 0.0)
    } else {
        (-probability.ln(), -slope / probability)
    }
}

/// Φ(z) ≈ (1 + tanh(√(2/π)·(z + 0.044715·z³))) / 2, and its derivative: the approximation that the published weights
/// were trained with.
fn approximate_cdf(z: f64) -> (f64, f64) {
    let root = (2.0 / std::f64::consts::PI).sqrt();
    // (1 + tanh u) / 2 = σ(2u), which stays exact far below the mean.
    let cdf = (2.0 * root * (z + 0.044715 * z * z * z)).sigmoid();
    let inner = root * (1.0 + 3.0 * 0.044715 * z * z);
    (cdf, 2.0 * cdf * (1.0 - cdf) * inner)
}
