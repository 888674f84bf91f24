//! Time embeddings on the CPU.

use crate::Float;

/// The longest period, in steps over 2π.
pub const MAX_PERIOD: f64 = 10_000.0;

/// `y[i] = [sin(t·ω), cos(t·ω)]` (cosines first if `cos_first`) with ωⱼ = 10000^(−j / (dim/2 − shift)), j < dim/2.
///
/// An odd `dim` ends in a zero. Angles are f64 whatever `T`: at t = 1000 an f32 product is wrong by 6e-5.
///
/// # Panics
/// If the lengths do not match.
pub fn forward<T: Float>(y: &mut [T], steps: &[T], dim: usize, cos_first: bool, shift: f64) {
    assert_eq!(y.len(), steps.len() * dim);
    let half = dim / 2;
    let (sin_at, cos_at) = if cos_first { (half, 0) } else { (0, half) };
    for (y, &step) in y.chunks_exact_mut(dim).zip(steps) {
        for j in 0..half {
            let frequency = (-MAX_PERIOD.ln() * j as f64 / (half as f64 - shift)).exp();
            let (sin, cos) = (step.to_f64() * frequency).sin_cos();
            y[sin_at + j] = T::from_f64(sin);
            y[cos_at + j] = T::from_f64(cos);
        }
        y[2 * half..].fill(T::ZERO);
    }
}
