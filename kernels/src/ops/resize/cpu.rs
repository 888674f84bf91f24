//! Separable resampling on the CPU.

use super::Taps;
use crate::simd::LANES;
use crate::{Accum, Buffer, Float, multiversion, parallel};

const PART: usize = 8 * 1024;

/// `dst (+)= rows · src · columnsᵀ` for each channel: src [n, h, w, c], dst [n, rows, columns, c].
///
/// # Panics
/// If the lengths do not match.
pub fn resample<T: Float>(
    dst: &mut [T],
    accum: Accum,
    src: &[T],
    rows: &Taps,
    columns: &Taps,
    c: usize,
) {
    let sample = rows.inputs() * columns.inputs() * c;
    if dst.is_empty() || sample == 0 {
        return;
    }
    let n = src.len() / sample;
    assert_eq!(src.len(), n * sample);
    assert_eq!(dst.len(), n * rows.outputs() * columns.outputs() * c);
    let between = n * rows.outputs() * columns.inputs() * c;
    let mut scratch = Buffer::uninit(between * size_of::<T>());
    let between = &mut scratch.as_mut_slice::<T>()[..between];
    apply(between, Accum::Replace, src, rows, columns.inputs() * c);
    apply(dst, accum, between, columns, c);
}

/// Applies `taps` to the middle dimension of src [outer, inputs, inner].
fn apply<T: Float>(dst: &mut [T], accum: Accum, src: &[T], taps: &Taps, inner: usize) {
    let rows: Vec<(usize, Vec<T>)> = (0..taps.outputs())
        .map(|i| {
            let (start, weights) = taps.row(i);
            (start, weights.iter().map(|&w| T::from_f64(w)).collect())
        })
        .collect();
    let per_chunk = (PART / inner).max(1);
    parallel::chunks_mut(dst, per_chunk * inner, |i, dst| {
        apply_leaf(dst, accum, src, &rows, taps.inputs(), inner, i * per_chunk)
    });
}

multiversion! {
    /// Writes the rows of `inner` elements that begin with row `first` of [outer, outputs].
    fn apply_leaf<T: Float>(dst: &mut [T], accum: Accum, src: &[T], rows: &[(usize, Vec<T>)], inputs: usize, inner: usize, first: usize) {
        for (r, dst) in dst.chunks_exact_mut(inner).enumerate() {
            let (outer, i) = ((first + r) / rows.len(), (first + r) % rows.len());
            let (start, weights) = &rows[i];
            let src = &src[(outer * inputs + start) * inner..][..weights.len() * inner];
            let whole = inner / LANES * LANES;
            for at in (0..whole).step_by(LANES) {
                let mut sums = [T::ZERO; LANES];
                for (src, &weight) in src.chunks_exact(inner).zip(weights) {
                    let src = &src[at..at + LANES];
                    for l in 0..LANES {
                        sums[l] = weight.mul_add(src[l], sums[l]);
                    }
                }
                for (dst, sum) in dst[at..].iter_mut().zip(sums) {
                    accum.put(dst, sum);
                }
            }
            for at in whole..inner {
                let mut sum = T::ZERO;
                for (k, &weight) in weights.iter().enumerate() {
                    sum = weight.mul_add(src[k * inner + at], sum);
                }
                accum.put(&mut dst[at], sum);
            }
        }
    }
}
