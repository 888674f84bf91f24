//! Selection between two sources on the CPU.

use crate::{Accum, Float, multiversion, parallel};

const PART: usize = 8 * 1024;

/// `y[i] = keep[i] ? a[i] : b[i]`, rows of `row` elements; a `b` of one row stands for all.
///
/// # Panics
/// If the lengths do not match.
pub fn forward<T: Float>(y: &mut [T], keep: &[u8], a: &[T], b: &[T], row: usize) {
    assert_eq!(y.len(), keep.len() * row);
    assert_eq!(y.len(), a.len());
    let shared = b.len() == row;
    parallel::chunks_mut(y, row, |i, y| {
        let (src, at) = match (keep[i] != 0, shared) {
            (true, _) => (a, i),
            (false, false) => (b, i),
            (false, true) => (b, 0),
        };
        y.copy_from_slice(&src[at * row..][..row]);
    });
}

/// `dst[i] (+)= keep[i] = side ? dy[i] : 0`: the gradient of a (`side` true), or of a full b (`side` false).
///
/// # Panics
/// If the lengths do not match.
pub fn backward<T: Float>(
    dst: &mut [T],
    accum: Accum,
    dy: &[T],
    keep: &[u8],
    side: bool,
    row: usize,
) {
    assert_eq!(dst.len(), keep.len() * row);
    assert_eq!(dst.len(), dy.len());
    parallel::chunks_mut(dst, row, |i, dst| {
        let dy = &dy[i * row..][..row];
        match ((keep[i] != 0) == side, accum) {
            (true, Accum::Replace) => dst.copy_from_slice(dy),
            (true, Accum::Add) => add_leaf(dst, dy),
            (false, Accum::Replace) => dst.fill(T::ZERO),
            (false, Accum::Add) => {}
        }
    });
}

/// `db (+)= Σ dy[i] over all i that were not kept`, in order of i: the gradient of a b of one row.
///
/// # Panics
/// If the lengths do not match.
pub fn backward_shared<T: Float>(db: &mut [T], accum: Accum, dy: &[T], keep: &[u8]) {
    let row = db.len();
    assert_eq!(dy.len(), keep.len() * row);
    parallel::chunks_mut(db, PART, |part, db| {
        if accum == Accum::Replace {
            db.fill(T::ZERO);
        }
        for (i, _) in keep.iter().enumerate().filter(|&(_, &keep)| keep == 0) {
            add_leaf(db, &dy[i * row + part * PART..][..db.len()]);
        }
    });
}

multiversion! {
    fn add_leaf<T: Float>(dst: &mut [T], src: &[T]) {
        for (d, &s) in dst.iter_mut().zip(src) {
            *d = *d + s;
        }
    }
}
