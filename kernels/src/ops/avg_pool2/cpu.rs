//! 2×2 block sums on the CPU.

use crate::{Accum, Float, multiversion, parallel};

/// Elements of the destination that one part writes, rounded up to a row.
const PART: usize = 8 * 1024;

/// `dst (+)= scale · sums of src's 2×2 blocks`, for src [n, 2h, 2w, c] and dst [n, h, w, c].
///
/// # Panics
/// If the lengths do not match.
pub fn sum_blocks<T: Float>(
    dst: &mut [T],
    accum: Accum,
    src: &[T],
    w: usize,
    c: usize,
    scale: f64,
) {
    assert_eq!(src.len(), 4 * dst.len());
    let row = w * c;
    if row == 0 {
        return;
    }
    assert_eq!(dst.len() % row, 0);
    let chunk = (PART / row).max(1) * row;
    let scale = T::from_f64(scale);
    parallel::chunks_mut(dst, chunk, |i, dst| {
        // Rows of all images follow each other: row r of dst lies over rows 2r and 2r + 1 of src.
        sum_blocks_leaf(
            dst,
            accum,
            &src[4 * i * chunk..][..4 * dst.len()],
            row,
            c,
            scale,
        )
    });
}

multiversion! {
    fn sum_blocks_leaf<T: Float>(dst: &mut [T], accum: Accum, src: &[T], row: usize, c: usize, scale: T) {
        for (dst, src) in dst.chunks_exact_mut(row).zip(src.chunks_exact(4 * row)) {
            let (top, bottom) = src.split_at(2 * row);
            let blocks = top.chunks_exact(2 * c).zip(bottom.chunks_exact(2 * c));
            for (dst, (top, bottom)) in dst.chunks_exact_mut(c).zip(blocks) {
                let (a, b) = top.split_at(c);
                let (d, e) = bottom.split_at(c);
                for i in 0..c {
                    accum.put(&mut dst[i], ((a[i] + b[i]) + (d[i] + e[i])) * scale);
                }
            }
        }
    }
}
