//! The bound of one element, in f64 on a CPU or in a kernel's registers.

use super::Coefficients;
use crate::Real;

/// Below this probability a logarithm is cut off, and its gradient is zero.
const LEAST_PROBABILITY: f64 = 1e-12;

/// The log variance's rise above its lower limit, and its own derivative with respect to v.
#[inline(always)]
fn rise<T: Real>(k: &Coefficients<T>, variance: T) -> (T, T) {
    let slope = (k.log_variance_high - k.log_variance_low) * T::from_f64(0.5);
    ((variance + T::from_f64(1.0)) * slope, slope)
}

#[inline(always)]
fn predicted<T: Real>(k: &Coefficients<T>, eps: T, xt: T) -> T {
    k.x0_from_xt * xt - k.x0_from_eps * eps
}

/// From nats and their derivative with respect to the log variance to bits, and theirs with respect to v.
#[inline(always)]
fn in_bits<T: Real>((nats, slope): (T, T), chain: T) -> (T, T) {
    let bits = T::from_f64(std::f64::consts::LOG2_E);
    (nats * bits, slope * chain * bits)
}

/// The Kullback-Leibler divergence of the model's step from the true posterior in bits, and its derivative with respect to
/// v; of an element (v, ε, x₀, xₜ).
#[inline(always)]
pub fn divergence<T: Real>(k: &Coefficients<T>, [variance, eps, x0, xt]: [T; 4]) -> (T, T) {
    let half = T::from_f64(0.5);
    let (rise, chain) = rise(k, variance);
    // Two normals whose log variances differ by `rise` and whose means by `apart`.
    let apart = k.mean_from_x0 * (x0 - predicted(k, eps, xt));
    let distance = apart * apart * (-(k.log_variance_low + rise)).exp();
    let shrink = (-rise).exp_m1();
    let nats = half * (rise + shrink + distance);
    in_bits((nats, -half * (shrink + distance)), chain)
}

/// −log₂ of the probability that the model's step gives to the 8-bit level of x₀ (levels 2/255 apart, the outermost open),
/// and its derivative with respect to v; of an element (v, ε, x₀, xₜ).
#[inline(always)]
pub fn likelihood<T: Real>(k: &Coefficients<T>, [variance, eps, x0, xt]: [T; 4]) -> (T, T) {
    let c = T::from_f64;
    let one = c(1.0);
    let (rise, chain) = rise(k, variance);
    let mean = k.mean_from_x0 * predicted(k, eps, xt) + k.mean_from_xt * xt;
    let inverse_std = (c(-0.5) * (k.log_variance_low + rise)).exp();
    // The normal is symmetric: below the mean nothing is lost in 1 − tiny.
    let side = T::select(mean.less(x0), c(-1.0), one);
    let (x0, mean) = (side * x0, side * mean);
    let edge = |half: f64| {
        let z = inverse_std * (x0 - mean + c(half));
        let (cdf, density) = approximate_cdf(z);
        (cdf, density * z * c(-0.5))
    };
    let (above, above_slope) = edge(1.0 / 255.0);
    let (below, below_slope) = edge(-1.0 / 255.0);
    let (lowest, highest) = (x0.less(c(-0.999)), c(0.999).less(x0));
    let inner = |inner, low, high| T::select(lowest, low, T::select(highest, high, inner));
    let probability = inner(above - below, above, one - below);
    let slope = inner(above_slope - below_slope, above_slope, -below_slope);
    let is_cut = probability.less(c(LEAST_PROBABILITY));
    let nats = T::select(is_cut, c(-LEAST_PROBABILITY.ln()), -probability.ln());
    let slope = T::select(is_cut, c(0.0), -slope / probability);
    in_bits((nats, slope), chain)
}

/// Φ(z) ≈ (1 + tanh(√(2/π)·(z + 0.044715·z³))) / 2, and its derivative: the approximation that the published weights
/// were trained with.
#[inline(always)]
fn approximate_cdf<T: Real>(z: T) -> (T, T) {
    let c = T::from_f64;
    let root = (2.0 / std::f64::consts::PI).sqrt();
    // (1 + tanh u) / 2 = σ(2u), which stays exact far below the mean.
    let cdf = (c(2.0 * root) * (z + c(0.044715) * z * z * z)).sigmoid();
    let inner = c(root) * (c(1.0) + c(3.0 * 0.044715) * z * z);
    (cdf, c(2.0) * cdf * (c(1.0) - cdf) * inner)
}
