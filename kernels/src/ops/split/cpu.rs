//! Row blocks on the CPU.

use crate::{Accum, Float, multiversion, parallel};

const PART: usize = 16 * 1024;

/// Row `i` of `dst` `(+)=` elements `start..start + width` of row `i` of `src`, whose rows hold `row` elements.
///
/// # Panics
/// If `src` holds fewer rows than `dst`.
pub fn narrow<T: Float>(
    dst: &mut [T],
    accum: Accum,
    src: &[T],
    row: usize,
    start: usize,
    width: usize,
) {
    assert!(start + width <= row);
    parallel::chunks_mut(dst, PART, |i, dst| {
        narrow_leaf(dst, accum, src, row, start, width, i * PART)
    });
}

multiversion! {
    /// Writes `dst`, which begins `at` elements into the whole.
    fn narrow_leaf<T: Float>(dst: &mut [T], accum: Accum, src: &[T], row: usize, start: usize, width: usize, at: usize) {
        let mut dst = dst;
        let (mut outer, mut column) = (at / width, at % width);
        while !dst.is_empty() {
            let run = (width - column).min(dst.len());
            let (head, tail) = std::mem::take(&mut dst).split_at_mut(run);
            let src = &src[outer * row + start + column..][..run];
            match accum {
                Accum::Replace => head.copy_from_slice(src),
                Accum::Add => {
                    for (d, &s) in head.iter_mut().zip(src) {
                        *d = *d + s;
                    }
                }
            }
            dst = tail;
            outer += 1;
            column = 0;
        }
    }
}
