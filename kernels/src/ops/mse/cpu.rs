//! Mean squared error on the CPU.

use crate::simd::LANES;
use crate::{Accum, Float, multiversion, parallel};

const PART: usize = 8 * 1024;

/// Mean over samples of weight · mean over the sample of (x − target)².
///
/// # Panics
/// If the lengths do not match.
pub fn forward<T: Float>(x: &[T], target: &[T], weight: Option<&[T]>, samples: usize) -> T {
    let m = x.len() / samples;
    T::from_f64(mean_over_samples(
        weight,
        samples,
        m,
        PART,
        |sample, start, len| {
            let range = sample * m + start..sample * m + start + len;
            sum_squares_leaf(&x[range.clone()], &target[range]).to_f64()
        },
    ))
}

/// `dx (+)= scale · weight / (samples · sample's elements) · 2·(x − target)`.
///
/// # Panics
/// If the lengths do not match.
pub fn backward<T: Float>(
    dx: &mut [T],
    accum: Accum,
    scale: f64,
    x: &[T],
    target: &[T],
    weight: Option<&[T]>,
    samples: usize,
) {
    assert_eq!(dx.len(), x.len());
    let m = x.len() / samples;
    let scale = 2.0 * scale / x.len() as f64;
    parallel::row_parts(dx, m, PART, |sample, start, dx| {
        let range = sample * m + start..sample * m + start + dx.len();
        let weight = weight.map_or(1.0, |w| w[sample].to_f64());
        difference_leaf(
            dx,
            accum,
            T::from_f64(scale * weight),
            &x[range.clone()],
            &target[range],
        )
    });
}

/// Mean over samples of weight · mean over the sample's `m` elements, where `sum(sample, start, len)` adds up the
/// elements `start..start + len` of a sample, at most `part` of them.
///
/// Partial sums are added in f64, in order.
pub(crate) fn mean_over_samples<T: Float>(
    weight: Option<&[T]>,
    samples: usize,
    m: usize,
    part: usize,
    sum: impl Fn(usize, usize, usize) -> f64 + Sync + Send,
) -> f64 {
    let parts = m.div_ceil(part).max(1);
    let sums = parallel::map(samples * parts, samples * m, |i| {
        let (sample, start) = (i / parts, i % parts * part);
        sum(sample, start, part.min(m - start))
    });
    let total: f64 = sums
        .chunks_exact(parts)
        .enumerate()
        .map(|(sample, sums)| weight.map_or(1.0, |w| w[sample].to_f64()) * sums.iter().sum::<f64>())
        .sum();
    total / (samples * m) as f64
}

multiversion! {
    fn sum_squares_leaf<T: Float>(x: &[T], target: &[T]) -> T {
        let mut lanes = [T::ZERO; LANES];
        let mut xs = x.chunks_exact(LANES);
        let mut targets = target.chunks_exact(LANES);
        for (x, target) in (&mut xs).zip(&mut targets) {
            for l in 0..LANES {
                let d = x[l] - target[l];
                lanes[l] = d.mul_add(d, lanes[l]);
            }
        }
        for ((lane, &x), &target) in lanes.iter_mut().zip(xs.remainder()).zip(targets.remainder()) {
            let d = x - target;
            *lane = d.mul_add(d, *lane);
        }
        crate::simd::fold_lanes(lanes)
    }
}

multiversion! {
    fn difference_leaf<T: Float>(dx: &mut [T], accum: Accum, scale: T, x: &[T], target: &[T]) {
        for ((dx, &x), &target) in dx.iter_mut().zip(x).zip(target) {
            accum.put(dx, (x - target) * scale);
        }
    }
}
