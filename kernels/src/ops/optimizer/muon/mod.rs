//! What Muon (Jordan et al., 2024) does element by element; between the two passes the caller orthogonalises.

pub mod ptx;

use std::ops::Range;

use crate::parallel::{self, Disjoint};
use crate::{Float, multiversion};

/// A matrix in the arenas, its rows one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    pub start: usize,
    pub rows: usize,
    pub columns: usize,
}

impl Matrix {
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.rows * self.columns
    }
}

/// Momentum with Nesterov's look-ahead, in place, for every matrix:
///
/// ```text
/// g ← gradient_scale·g    m ← m + (1 − momentum)·(g − m)    g ← g + momentum·(m − g)
/// ```
///
/// # Panics
/// If the lengths differ or matrices overlap, are out of order or leave the arenas.
pub fn momentum<T: Float>(
    gradient: &mut [T],
    m: &mut [T],
    momentum: f64,
    gradient_scale: f64,
    matrices: &[Matrix],
) {
    assert!(gradient.len() == m.len());
    let (gradient, m) = (Disjoint::new(gradient), Disjoint::new(m));
    let (beta, scale) = (T::from_f64(momentum), T::from_f64(gradient_scale));
    let keep = T::from_f64(1.0 - momentum);
    each(matrices, |matrix| {
        let (start, n) = (matrix.start, matrix.range().len());
        // SAFETY: matrices do not overlap, and the arenas outlive the call.
        let (g, m) = unsafe { (gradient.range(start, n), m.range(start, n)) };
        momentum_leaf(g, m, beta, keep, scale);
    });
}

/// `p ← p − learning_rate·(weight_decay·p + direction)`, then one step of the moving average, for every matrix.
///
/// # Panics
/// If the lengths differ or matrices overlap, are out of order or leave the arenas.
pub fn descend<T: Float>(
    parameters: &mut [T],
    direction: &[T],
    ema: &mut [T],
    rates: Rates,
    matrices: &[Matrix],
) {
    assert!(parameters.len() == direction.len() && ema.len() == direction.len());
    let (parameters, ema) = (Disjoint::new(parameters), Disjoint::new(ema));
    let rate = T::from_f64(rates.learning_rate);
    let keep = T::from_f64(1.0 - rates.learning_rate * rates.weight_decay);
    let new = T::from_f64(1.0 - rates.ema_decay);
    each(matrices, |matrix| {
        let (start, n) = (matrix.start, matrix.range().len());
        // SAFETY: matrices do not overlap, and the arenas outlive the call.
        let (p, ema) = unsafe { (parameters.range(start, n), ema.range(start, n)) };
        descend_leaf(p, &direction[matrix.range()], ema, rate, keep, new);
    });
}

/// The scalars of [`descend`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub learning_rate: f64,
    pub weight_decay: f64,
    /// Share of the moving average that stays.
    pub ema_decay: f64,
}

fn each(matrices: &[Matrix], f: impl Fn(&Matrix) + Sync + Send) {
    assert!(matrices.windows(2).all(|w| w[0].range().end <= w[1].start));
    let work = matrices.iter().map(|matrix| matrix.range().len()).sum();
    parallel::for_each(matrices.len(), work, |i| f(&matrices[i]));
}

multiversion! {
    fn momentum_leaf<T: Float>(g: &mut [T], m: &mut [T], beta: T, keep: T, scale: T) {
        for (g, m) in g.iter_mut().zip(m) {
            let scaled = *g * scale;
            *m = keep.mul_add(scaled - *m, *m);
            *g = beta.mul_add(*m - scaled, scaled);
        }
    }
}

multiversion! {
    fn descend_leaf<T: Float>(p: &mut [T], direction: &[T], ema: &mut [T], rate: T, keep: T, new: T) {
        for ((p, &d), ema) in p.iter_mut().zip(direction).zip(ema) {
            *p = *p * keep - rate * d;
            *ema = new.mul_add(*p - *ema, *ema);
        }
    }
}
