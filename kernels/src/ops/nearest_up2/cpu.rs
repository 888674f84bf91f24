//! 2×2 repetition on the CPU.

use crate::{Accum, Float, multiversion, parallel};

/// Elements of the destination that one part writes, rounded up to two rows.
const PART: usize = 16 * 1024;

/// `dst (+)= scale · src`, each pixel repeated over a 2×2 block, for src [n, h, w, c] and dst [n, 2h, 2w, c].
///
/// # Panics
/// If the lengths do not match.
pub fn repeat_blocks<T: Float>(
    dst: &mut [T],
    accum: Accum,
    src: &[T],
    w: usize,
    c: usize,
    scale: f64,
) {
    assert_eq!(dst.len(), 4 * src.len());
    let row = w * c;
    if row == 0 {
        return;
    }
    assert_eq!(src.len() % row, 0);
    let rows = (PART / (4 * row)).max(1);
    let scale = T::from_f64(scale);
    parallel::chunks_mut(dst, 4 * rows * row, |i, dst| {
        let src = &src[i * rows * row..][..dst.len() / 4];
        repeat_blocks_leaf(dst, accum, src, row, c, scale)
    });
}

multiversion! {
    fn repeat_blocks_leaf<T: Float>(dst: &mut [T], accum: Accum, src: &[T], row: usize, c: usize, scale: T) {
        for (dst, src) in dst.chunks_exact_mut(4 * row).zip(src.chunks_exact(row)) {
            let (top, bottom) = dst.split_at_mut(2 * row);
            for dst in [top, bottom] {
                for (dst, src) in dst.chunks_exact_mut(2 * c).zip(src.chunks_exact(c)) {
                    let (left, right) = dst.split_at_mut(c);
                    for i in 0..c {
                        let value = src[i] * scale;
                        accum.put(&mut left[i], value);
                        accum.put(&mut right[i], value);
                    }
                }
            }
        }
    }
}
