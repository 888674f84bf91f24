//! Binary functions on the CPU.

use super::{Binary, Loop, Strided, merge};
use crate::{Accum, Float, multiversion, parallel};

const PART: usize = 8 * 1024;

/// `y (+)= f(a, b)`, y row-major with extents `dims`.
///
/// Dimensions that both operands walk through alike are merged first: equal shapes run as one loop, a vector that
/// repeats over rows as two. What is left of the innermost dimension must have stride 0 or 1.
///
/// # Panics
/// If `y` does not hold exactly the elements of `dims`, an operand is shorter than its strides reach, or is neither
/// contiguous nor repeated along its innermost dimension.
pub fn forward<T: Float>(
    f: Binary,
    y: &mut [T],
    accum: Accum,
    dims: &[usize],
    a: Strided<T>,
    b: Strided<T>,
) {
    assert_eq!(y.len(), dims.iter().product::<usize>());
    let loops = merge(dims, a.strides, b.strides);
    let (&inner, outer) = loops.split_last().expect("merge leaves a loop");
    assert!(inner.a <= 1 && inner.b <= 1);
    // The rows that one leaf call can take, and what is outside of them.
    let (rows, outer) = outer
        .split_last()
        .map_or((Loop::ONE, outer), |(r, o)| (*r, o));
    parallel::chunks_mut(y, PART, |part, y| {
        let mut done = 0;
        while done < y.len() {
            let at = part * PART + done;
            let (row, column) = (at / inner.extent, at % inner.extent);
            let (mut rest, first) = (row / rows.extent, row % rows.extent);
            let left = y.len() - done;
            let (count, width) = if column > 0 || left < inner.extent {
                (1, left.min(inner.extent - column))
            } else {
                ((rows.extent - first).min(left / inner.extent), inner.extent)
            };
            let mut a_at = first * rows.a + column * inner.a;
            let mut b_at = first * rows.b + column * inner.b;
            for l in outer.iter().rev() {
                a_at += rest % l.extent * l.a;
                b_at += rest % l.extent * l.b;
                rest /= l.extent;
            }
            let steps = Steps {
                width,
                a_row: rows.a,
                b_row: rows.b,
                a_repeats: inner.a == 0,
                b_repeats: inner.b == 0,
            };
            let y = &mut y[done..done + count * width];
            leaf(f, y, accum, &a.data[a_at..], &b.data[b_at..], steps);
            done += count * width;
        }
    });
}

/// How a leaf walks through some rows.
#[derive(Clone, Copy)]
struct Steps {
    width: usize,
    a_row: usize,
    b_row: usize,
    /// Whether one element of the operand serves the whole row.
    a_repeats: bool,
    b_repeats: bool,
}

multiversion! {
    fn leaf<T: Float>(f: Binary, y: &mut [T], accum: Accum, a: &[T], b: &[T], steps: Steps) {
        match f {
            Binary::Add => each_row(y, accum, a, b, steps, |a, b| a + b),
            Binary::Sub => each_row(y, accum, a, b, steps, |a, b| a - b),
            Binary::Mul => each_row(y, accum, a, b, steps, |a, b| a * b),
        }
    }
}

#[inline(always)]
fn each_row<T: Float>(
    y: &mut [T],
    accum: Accum,
    a: &[T],
    b: &[T],
    steps: Steps,
    f: impl Fn(T, T) -> T,
) {
    for (row, y) in y.chunks_exact_mut(steps.width).enumerate() {
        let (a, b) = (&a[row * steps.a_row..], &b[row * steps.b_row..]);
        match (steps.a_repeats, steps.b_repeats) {
            (false, false) => {
                for ((y, &a), &b) in y.iter_mut().zip(&a[..steps.width]).zip(&b[..steps.width]) {
                    accum.put(y, f(a, b));
                }
            }
            (false, true) => {
                let b = b[0];
                for (y, &a) in y.iter_mut().zip(&a[..steps.width]) {
                    accum.put(y, f(a, b));
                }
            }
            (true, false) => {
                let a = a[0];
                for (y, &b) in y.iter_mut().zip(&b[..steps.width]) {
                    accum.put(y, f(a, b));
                }
            }
            (true, true) => {
                let value = f(a[0], b[0]);
                for y in y.iter_mut() {
                    accum.put(y, value);
                }
            }
        }
    }
}
