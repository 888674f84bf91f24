//! Sums on the CPU.
//!
//! The order of additions is a function of the shape alone: what is summed is cut into blocks of fixed size, each
//! block is summed in order (along a contiguous run over the virtual lanes), and the blocks' sums are added in order.

use crate::parallel::{self, Disjoint};
use crate::{Accum, Buffer, Float, multiversion, simd};

/// Elements that one block sums.
const BLOCK: usize = 16 * 1024;
/// Rows that one block sums into its columns: the rounding error of a sum of many terms that share a mean grows with
/// their number, so that it is the block's and then the number of blocks', not all rows'.
const ROWS: usize = 64;
/// Columns that one part carries sums for: they stay in the first-level cache.
const COLUMNS: usize = 1024;

/// `out (+)= scale · Σ x` over the dimensions marked in `reduced`; out holds the others in their order.
///
/// # Panics
/// If `x` does not hold the elements of `dims`, or `out` those of the dimensions that stay.
pub fn sum<T: Float>(
    out: &mut [T],
    accum: Accum,
    scale: f64,
    x: &[T],
    dims: &[usize],
    reduced: &[bool],
) {
    assert_eq!(x.len(), dims.iter().product::<usize>());
    let mut loops = merge(dims, reduced);
    let inner = loops.pop().unwrap_or(Loop::ONE);
    let (mut summed, kept): (Vec<Loop>, Vec<Loop>) = loops.iter().partition(|l| l.reduced);
    let extent = |loops: &[Loop]| loops.iter().map(|l| l.extent).product::<usize>();
    // A step adds one run of the innermost dimension: to one sum where it is reduced, to as many sums where it stays.
    let most = if inner.reduced { BLOCK } else { COLUMNS };
    let run = inner.extent.clamp(1, most);
    let runs = inner.extent.div_ceil(run);
    // Steps of the last summed loop lie at equal distances.
    let (width, tiles, last) = if inner.reduced {
        let pieces = Loop {
            extent: runs,
            stride: run,
            reduced: true,
        };
        (1, 1, pieces)
    } else {
        (inner.extent, runs, summed.pop().unwrap_or(Loop::ONE))
    };
    let steps = extent(&summed) * last.extent;
    let block = if inner.reduced { BLOCK / run } else { ROWS };
    let blocks = steps.div_ceil(block).max(1);
    let rows = extent(&kept);
    assert_eq!(out.len(), rows * width);

    let mut partial = Buffer::uninit(rows * blocks * width * size_of::<T>());
    let sums = Disjoint::new(partial.as_mut_slice::<T>());
    parallel::for_each(rows * blocks * tiles, x.len(), |part| {
        let (row, blk, tile) = (part / tiles / blocks, part / tiles % blocks, part % tiles);
        let first = tile * run;
        let columns = if inner.reduced {
            1
        } else {
            run.min(inner.extent - first)
        };
        // SAFETY: every row, block and tile belongs to one part.
        let sums = unsafe { sums.range((row * blocks + blk) * width + first, columns) };
        sums.fill(T::ZERO);
        let (mut step, end) = (blk * block, steps.min((blk + 1) * block));
        while step < end {
            let (outer, i) = (step / last.extent, step % last.extent);
            let count = (last.extent - i).min(end - step);
            let at = place(row, &kept) + place(outer, &summed) + i * last.stride + first;
            if inner.reduced {
                let len = (count * run).min(inner.extent - i * run);
                for run in x[at..at + len].chunks(run) {
                    sums[0] = sums[0] + sum_run(run);
                }
            } else {
                add_runs(sums, &x[at..], last.stride, count);
            }
            step += count;
        }
    });

    let partial = partial.as_slice::<T>();
    let scale = T::from_f64(scale);
    let rows_per_part = (BLOCK / (width * blocks).max(1)).max(1);
    parallel::chunks_mut(out, rows_per_part * width, |part, out| {
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let row = part * rows_per_part + i;
            finish(
                out,
                accum,
                scale,
                &partial[row * blocks * width..][..blocks * width],
            );
        }
    });
}

/// One loop over the input.
#[derive(Clone, Copy)]
struct Loop {
    extent: usize,
    stride: usize,
    reduced: bool,
}

impl Loop {
    const ONE: Loop = Loop {
        extent: 1,
        stride: 1,
        reduced: false,
    };
}

/// The fewest loops, outermost first, that neighbouring dimensions of one kind make.
fn merge(dims: &[usize], reduced: &[bool]) -> Vec<Loop> {
    let mut loops: Vec<Loop> = Vec::with_capacity(dims.len());
    for (&extent, &reduced) in dims.iter().zip(reduced).filter(|(d, _)| **d != 1) {
        match loops.last_mut() {
            Some(outer) if outer.reduced == reduced => outer.extent *= extent,
            _ => loops.push(Loop {
                extent,
                stride: 1,
                reduced,
            }),
        }
    }
    let mut stride = 1;
    for l in loops.iter_mut().rev() {
        l.stride = stride;
        stride *= l.extent;
    }
    loops
}

/// Where the `index`-th combination of some loops lies.
fn place(mut index: usize, loops: &[Loop]) -> usize {
    let mut at = 0;
    for l in loops.iter().rev() {
        at += index % l.extent * l.stride;
        index /= l.extent;
    }
    at
}

multiversion! {
    fn sum_run<T: Float>(x: &[T]) -> T { simd::sum_map(x, |x| x) }
}

multiversion! {
    fn add_runs<T: Float>(sums: &mut [T], x: &[T], stride: usize, count: usize) {
        let width = sums.len();
        for i in 0..count {
            for (sum, &x) in sums.iter_mut().zip(&x[i * stride..][..width]) {
                *sum = *sum + x;
            }
        }
    }
}

multiversion! {
    /// Adds the blocks' sums in order; `blocks` holds as many elements for each as `out`.
    fn finish<T: Float>(out: &mut [T], accum: Accum, scale: T, blocks: &[T]) {
        let width = out.len();
        for (tile, out) in out.chunks_mut(simd::LANES).enumerate() {
            let mut sums = [T::ZERO; simd::LANES];
            for block in blocks.chunks_exact(width) {
                for (sum, &x) in sums.iter_mut().zip(&block[tile * simd::LANES..][..out.len()]) {
                    *sum = *sum + x;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                accum.put(out, scale * sum);
            }
        }
    }
}
