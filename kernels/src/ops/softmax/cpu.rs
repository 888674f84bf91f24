//! Softmax on the CPU.

use crate::simd::{LANES, dot, sum_map};
use crate::{Accum, Float, multiversion, parallel};

const PART: usize = 8 * 1024;

/// `y = exp(x − max x) / Σ exp(x − max x)` for each row of `c` elements.
///
/// # Panics
/// If the lengths do not match.
pub fn forward<T: Float>(y: &mut [T], x: &[T], c: usize) {
    assert_eq!(y.len(), x.len());
    let chunk = (PART / c.max(1)).max(1) * c;
    parallel::chunks_mut(y, chunk, |i, y| {
        forward_leaf(y, &x[i * chunk..][..y.len()], c)
    });
}

/// `dx (+)= y·(dy − Σ y·dy)` for each row of `c` elements.
///
/// # Panics
/// If the lengths do not match.
pub fn backward<T: Float>(dx: &mut [T], accum: Accum, dy: &[T], y: &[T], c: usize) {
    assert_eq!(dx.len(), y.len());
    assert_eq!(dx.len(), dy.len());
    let chunk = (PART / c.max(1)).max(1) * c;
    parallel::chunks_mut(dx, chunk, |i, dx| {
        let n = dx.len();
        backward_leaf(dx, accum, &dy[i * chunk..][..n], &y[i * chunk..][..n], c)
    });
}

/// The largest element that is not NaN; −∞ of none. Inline it into a [`multiversion!`] body.
#[inline(always)]
pub(crate) fn max_of<T: Float>(x: &[T]) -> T {
    let mut lanes = [-T::INFINITY; LANES];
    let mut blocks = x.chunks_exact(LANES);
    for block in &mut blocks {
        for l in 0..LANES {
            lanes[l] = block[l].max(lanes[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(blocks.remainder()) {
        *lane = x.max(*lane);
    }
    lanes.into_iter().fold(-T::INFINITY, T::max)
}

multiversion! {
    fn forward_leaf<T: Float>(y: &mut [T], x: &[T], c: usize) {
        for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            let max = max_of(x);
            for (y, &x) in y.iter_mut().zip(x) {
                *y = (x - max).exp();
            }
            let inverse = T::ONE / sum_map(y, |y| y);
            for y in y {
                *y = *y * inverse;
            }
        }
    }
}

multiversion! {
    fn backward_leaf<T: Float>(dx: &mut [T], accum: Accum, dy: &[T], y: &[T], c: usize) {
        let rows = dy.chunks_exact(c).zip(y.chunks_exact(c));
        for (dx, (dy, y)) in dx.chunks_exact_mut(c).zip(rows) {
            let mean = dot(y, dy);
            for ((dx, &dy), &y) in dx.iter_mut().zip(dy).zip(y) {
                accum.put(dx, y * (dy - mean));
            }
        }
    }
}
