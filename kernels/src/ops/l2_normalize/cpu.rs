//! Normalisation to unit length on the CPU.

use crate::simd::dot;
use crate::{Accum, Float, multiversion, parallel};

const PART: usize = 8 * 1024;

/// `y = x / max(‖x‖₂, eps)` for each row of `c` elements.
///
/// # Panics
/// If the lengths do not match.
pub fn forward<T: Float>(y: &mut [T], x: &[T], c: usize, eps: f64) {
    assert_eq!(y.len(), x.len());
    let chunk = (PART / c.max(1)).max(1) * c;
    parallel::chunks_mut(y, chunk, |i, y| {
        forward_leaf(y, &x[i * chunk..][..y.len()], c, T::from_f64(eps))
    });
}

/// `dx (+)= (dy − x·(x·dy) / ‖x‖²) / ‖x‖` where ‖x‖ exceeds eps, else `dy / eps`.
///
/// # Panics
/// If the lengths do not match.
pub fn backward<T: Float>(dx: &mut [T], accum: Accum, dy: &[T], x: &[T], c: usize, eps: f64) {
    assert_eq!(dx.len(), x.len());
    assert_eq!(dx.len(), dy.len());
    let chunk = (PART / c.max(1)).max(1) * c;
    parallel::chunks_mut(dx, chunk, |i, dx| {
        let n = dx.len();
        let (dy, x) = (&dy[i * chunk..][..n], &x[i * chunk..][..n]);
        backward_leaf(dx, accum, dy, x, c, T::from_f64(eps))
    });
}

multiversion! {
    fn forward_leaf<T: Float>(y: &mut [T], x: &[T], c: usize, eps: T) {
        for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            // In this order a norm that is NaN stays NaN.
            let inverse = T::ONE / eps.max(dot(x, x).sqrt());
            for (y, &x) in y.iter_mut().zip(x) {
                *y = x * inverse;
            }
        }
    }
}

multiversion! {
    fn backward_leaf<T: Float>(dx: &mut [T], accum: Accum, dy: &[T], x: &[T], c: usize, eps: T) {
        let rows = dy.chunks_exact(c).zip(x.chunks_exact(c));
        for (dx, (dy, x)) in dx.chunks_exact_mut(c).zip(rows) {
            let norm = dot(x, x).sqrt();
            let inverse = T::ONE / eps.max(norm);
            let along = if norm > eps { dot(x, dy) * inverse * inverse } else { T::ZERO };
            for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
                accum.put(dx, x.mul_add(-along, dy) * inverse);
            }
        }
    }
}
