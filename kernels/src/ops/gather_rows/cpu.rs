//! Row selection on the CPU.

use crate::{Accum, Float, parallel};

/// `y[i] = x[i, index[i]]` for x [n, l, c] and y [n, c].
///
/// # Panics
/// If an index leaves its sample, or the lengths do not match.
pub fn forward<T: Float>(y: &mut [T], x: &[T], index: &[i32], l: usize, c: usize) {
    assert_eq!(y.len(), index.len() * c);
    parallel::chunks_mut(y, c, |i, y| {
        y.copy_from_slice(&x[i * l * c..][..l * c][index[i] as usize * c..][..c])
    });
}

/// `dx[i, index[i]] (+)= dy[i]`; every other row gets zeros on [`Accum::Replace`].
///
/// # Panics
/// If an index leaves its sample, or the lengths do not match.
pub fn backward<T: Float>(dx: &mut [T], accum: Accum, dy: &[T], index: &[i32], l: usize, c: usize) {
    assert_eq!(dx.len(), index.len() * l * c);
    parallel::chunks_mut(dx, l * c, |i, dx| {
        if accum == Accum::Replace {
            dx.fill(T::ZERO);
        }
        let row = &mut dx[index[i] as usize * c..][..c];
        for (dx, &dy) in row.iter_mut().zip(&dy[i * c..][..c]) {
            *dx = *dx + dy;
        }
    });
}
