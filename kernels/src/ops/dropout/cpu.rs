//! Dropout on the CPU.

use crate::random::Draw;
use crate::{Accum, Float, multiversion, parallel};

/// Elements of a sample that one part treats: whole [`BLOCK`]s.
const PART: usize = 8 * 1024;
/// Elements whose random words are drawn together.
const BLOCK: usize = 64;

/// `dst (+)= src / (1 − p)` where the element's random word is at least p·2³², zero elsewhere; samples hold
/// `per_sample` elements.
///
/// Forward and backward are the same function of x and dy.
///
/// # Panics
/// If the lengths differ.
pub fn apply<T: Float>(
    dst: &mut [T],
    accum: Accum,
    src: &[T],
    draw: &Draw,
    per_sample: usize,
    p: f64,
) {
    assert_eq!(dst.len(), src.len());
    let threshold = (p * 4_294_967_296.0) as u32;
    let scale = T::from_f64(1.0 / (1.0 - p));
    parallel::row_parts(dst, per_sample, PART, |sample, start, dst| {
        let src = &src[sample * per_sample + start..][..dst.len()];
        let quad = (start / 4) as u32;
        apply_leaf(
            dst,
            accum,
            src,
            *draw,
            sample as u32,
            quad,
            threshold,
            scale,
        )
    });
}

multiversion! {
    fn apply_leaf<T: Float>(dst: &mut [T], accum: Accum, src: &[T], draw: Draw, sample: u32, first_quad: u32, threshold: u32, scale: T) {
        for (block, (dst, src)) in dst.chunks_mut(BLOCK).zip(src.chunks(BLOCK)).enumerate() {
            let mut words = [0; BLOCK];
            for quad in 0..BLOCK / 4 {
                let drawn = draw.words(sample, first_quad + (block * BLOCK / 4 + quad) as u32);
                words[4 * quad..][..4].copy_from_slice(&drawn);
            }
            for ((dst, &src), &word) in dst.iter_mut().zip(src).zip(&words) {
                accum.put(dst, if word < threshold { T::ZERO } else { src * scale });
            }
        }
    }
}
