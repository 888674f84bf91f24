//! Strided gather on the CPU.

use bytemuck::{Pod, cast_slice, cast_slice_mut};

use super::merge;
use crate::{Accum, Float, multiversion, parallel};

/// Writes the elements of a strided view to `dst` in row-major order.
///
/// `size` is the bytes of an element, 1, 2, 4 or 8; `strides` and `offset` count elements. A stride may be zero
/// (broadcast).
///
/// # Panics
/// If the view leaves `src`, `dst` does not hold exactly its elements, or either is not aligned to them.
pub fn gather_strided(
    dst: &mut [u8],
    src: &[u8],
    size: usize,
    dims: &[usize],
    strides: &[usize],
    offset: usize,
) {
    // What an element means does not matter, only where it lies.
    match size {
        1 => gather(dst, src, dims, strides, offset),
        2 => gather::<u16>(cast_slice_mut(dst), cast_slice(src), dims, strides, offset),
        4 => gather::<u32>(cast_slice_mut(dst), cast_slice(src), dims, strides, offset),
        8 => gather::<u64>(cast_slice_mut(dst), cast_slice(src), dims, strides, offset),
        _ => panic!("no element has {size} bytes"),
    }
}

fn gather<E: Pod + Send + Sync>(
    dst: &mut [E],
    src: &[E],
    dims: &[usize],
    strides: &[usize],
    offset: usize,
) {
    assert_eq!(dst.len(), dims.iter().product::<usize>());
    let mut loops = merge(dims, strides);
    let (width, step) = loops.pop().unwrap_or((1, 1));
    let (rows, row_step) = loops.pop().unwrap_or((1, 0));
    let rows_per_chunk = (4 * 1024 / width.max(1)).max(1);
    parallel::chunks_mut(dst, rows_per_chunk * width, |chunk, mut dst| {
        let mut row = chunk * rows_per_chunk;
        while !dst.is_empty() {
            let (mut rest, first) = (row / rows, row % rows);
            let mut at = offset + first * row_step;
            for &(extent, stride) in loops.iter().rev() {
                at += rest % extent * stride;
                rest /= extent;
            }
            let count = (rows - first).min(dst.len() / width);
            let (block, left) = dst.split_at_mut(count * width);
            for (i, out) in block.chunks_exact_mut(width).enumerate() {
                let src = &src[at + i * row_step..];
                if step == 1 {
                    out.copy_from_slice(&src[..width]);
                } else {
                    for (j, out) in out.iter_mut().enumerate() {
                        *out = src[j * step];
                    }
                }
            }
            (dst, row) = (left, row + count);
        }
    });
}

/// `dst (+)= src`.
///
/// # Panics
/// If the lengths differ.
pub fn accumulate<T: Float>(dst: &mut [T], accum: Accum, src: &[T]) {
    assert_eq!(dst.len(), src.len());
    const PART: usize = 32 * 1024;
    parallel::chunks_mut(dst, PART, |i, dst| {
        accumulate_leaf(dst, accum, &src[i * PART..][..dst.len()])
    });
}

multiversion! {
    fn accumulate_leaf<T: Float>(dst: &mut [T], accum: Accum, src: &[T]) {
        for (dst, &src) in dst.iter_mut().zip(src) {
            accum.put(dst, src);
        }
    }
}
