//! Affine maps on the CPU.

use crate::{Accum, Float, multiversion, parallel};

const PART: usize = 8 * 1024;

/// `y (+)= scale·x + shift`, rounded once before it is accumulated. With shift 0 also its own gradient.
///
/// # Panics
/// If the lengths differ.
pub fn forward<T: Float>(y: &mut [T], accum: Accum, x: &[T], scale: f64, shift: f64) {
    assert_eq!(y.len(), x.len());
    let (scale, shift) = (T::from_f64(scale), T::from_f64(shift));
    parallel::chunks_mut(y, PART, |i, y| {
        leaf(y, accum, &x[i * PART..][..y.len()], scale, shift)
    });
}

multiversion! {
    fn leaf<T: Float>(y: &mut [T], accum: Accum, x: &[T], scale: T, shift: T) {
        for (y, &x) in y.iter_mut().zip(x) {
            accum.put(y, scale.mul_add(x, shift));
        }
    }
}
