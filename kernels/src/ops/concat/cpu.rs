//! Concatenation on the CPU.

use crate::{Accum, Float, multiversion, parallel};

const PART: usize = 16 * 1024;

/// Row `i` of `dst` `(+)=` row `i` of every part, one after the other.
///
/// A part is its width and its rows; `None` stands for zeros.
///
/// # Panics
/// If a part holds fewer rows than `dst`.
pub fn join<T: Float>(dst: &mut [T], accum: Accum, parts: &[(usize, Option<&[T]>)]) {
    let row: usize = parts.iter().map(|&(width, _)| width).sum();
    parallel::chunks_mut(dst, PART, |i, dst| {
        join_leaf(dst, accum, parts, row, i * PART)
    });
}

multiversion! {
    /// Writes `dst`, which begins `at` elements into the whole.
    fn join_leaf<T: Float>(dst: &mut [T], accum: Accum, parts: &[(usize, Option<&[T]>)], row: usize, at: usize) {
        let mut dst = dst;
        let (mut outer, mut column) = (at / row, at % row);
        loop {
            let mut start = 0;
            for &(width, src) in parts {
                if dst.is_empty() {
                    break; // the part of the work ends inside this row
                }
                if column < start + width {
                    let inside = column - start;
                    let run = (width - inside).min(dst.len());
                    let (head, tail) = std::mem::take(&mut dst).split_at_mut(run);
                    match (src, accum) {
                        (Some(src), Accum::Replace) => {
                            head.copy_from_slice(&src[outer * width + inside..][..run])
                        }
                        (Some(src), Accum::Add) => {
                            for (d, &s) in head.iter_mut().zip(&src[outer * width + inside..][..run]) {
                                *d = *d + s;
                            }
                        }
                        (None, Accum::Replace) => head.fill(T::ZERO),
                        (None, Accum::Add) => {}
                    }
                    column += run;
                    dst = tail;
                    if dst.is_empty() {
                        return;
                    }
                }
                start += width;
            }
            outer += 1;
            column = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_may_be_wider_than_a_part_of_the_work() {
        let (a, b) = (vec![1.0f32; PART + 7], vec![2.0f32; PART + 9]);
        let mut y = vec![0.0f32; a.len() + b.len()];
        let parts = [(a.len(), Some(&a[..])), (b.len(), Some(&b[..]))];
        join(&mut y, Accum::Replace, &parts);
        assert!(y[..a.len()] == a && y[a.len()..] == b);
    }
}
