//! Strided gather on the CPU.

use crate::{Accum, Float, multiversion, parallel};

/// Writes the elements of a strided view to `dst` in row-major order.
///
/// `size` is the bytes of an element; `strides` and `offset` count elements. A stride may be zero (broadcast).
///
/// # Panics
/// If the view leaves `src`, or `dst` does not hold exactly its elements.
pub fn gather_strided(
    dst: &mut [u8],
    src: &[u8],
    size: usize,
    dims: &[usize],
    strides: &[usize],
    offset: usize,
) {
    let elements: usize = dims.iter().product();
    assert_eq!(dst.len(), elements * size);
    if elements == 0 {
        return;
    }
    // The longest tail that is contiguous in the source moves as one run.
    let mut run = 1;
    let mut outer = dims.len();
    while outer > 0 && (strides[outer - 1] == run || dims[outer - 1] == 1) {
        run *= dims[outer - 1];
        outer -= 1;
    }
    let rows_per_chunk = (16 * 1024 / (run * size)).max(1);
    parallel::chunks_mut(dst, rows_per_chunk * run * size, |chunk, out| {
        for (r, out) in out.chunks_exact_mut(run * size).enumerate() {
            let mut rest = chunk * rows_per_chunk + r;
            let mut at = offset;
            for d in (0..outer).rev() {
                at += (rest % dims[d]) * strides[d];
                rest /= dims[d];
            }
            out.copy_from_slice(&src[at * size..(at + run) * size]);
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
