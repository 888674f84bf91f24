//! Cross-entropy on the CPU.

use crate::ops::softmax::max_of;
use crate::simd::sum_map;
use crate::{Accum, Float, multiversion, parallel};

const PART: usize = 8 * 1024;

/// Writes ln Σ exp of every row of `logits` to `lse`, and returns the mean of `lse[i] − logits[i, target[i]]`.
///
/// # Panics
/// If a target is no class, or the lengths do not match.
pub fn forward<T: Float>(lse: &mut [T], logits: &[T], target: &[i32], c: usize) -> T {
    assert_eq!(logits.len(), lse.len() * c);
    assert_eq!(target.len(), lse.len());
    let rows = (PART / c).max(1);
    parallel::chunks_mut_of(lse, rows, logits.len(), |i, lse| {
        lse_leaf(lse, &logits[i * rows * c..][..lse.len() * c], c)
    });
    let total: f64 = lse
        .iter()
        .zip(logits.chunks_exact(c))
        .zip(target)
        .map(|((lse, logits), &target)| (*lse - logits[target as usize]).to_f64())
        .sum();
    T::from_f64(total / target.len() as f64)
}

/// `dlogits (+)= scale·(exp(logits − lse) − onehot(target))`.
///
/// # Panics
/// If a target is no class, or the lengths do not match.
pub fn backward<T: Float>(
    dlogits: &mut [T],
    accum: Accum,
    scale: f64,
    logits: &[T],
    lse: &[T],
    target: &[i32],
    c: usize,
) {
    assert_eq!(dlogits.len(), logits.len());
    assert_eq!(logits.len(), lse.len() * c);
    let rows = (PART / c).max(1);
    parallel::chunks_mut(dlogits, rows * c, |i, dlogits| {
        let logits = &logits[i * rows * c..][..dlogits.len()];
        let (lse, target) = (&lse[i * rows..], &target[i * rows..]);
        backward_leaf(dlogits, accum, T::from_f64(scale), logits, lse, target, c)
    });
}

multiversion! {
    fn lse_leaf<T: Float>(lse: &mut [T], logits: &[T], c: usize) {
        for (lse, x) in lse.iter_mut().zip(logits.chunks_exact(c)) {
            let max = max_of(x);
            *lse = max + sum_map(x, |x| (x - max).exp()).ln();
        }
    }
}

multiversion! {
    fn backward_leaf<T: Float>(dlogits: &mut [T], accum: Accum, scale: T, logits: &[T], lse: &[T], target: &[i32], c: usize) {
        let rows = logits.chunks_exact(c).zip(lse).zip(target);
        for (d, ((x, &lse), &target)) in dlogits.chunks_exact_mut(c).zip(rows) {
            for (d, &x) in d.iter_mut().zip(x) {
                accum.put(d, (x - lse).exp() * scale);
            }
            let right = &mut d[target as usize];
            *right = *right - scale;
        }
    }
}
