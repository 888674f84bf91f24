//! Unary functions on the CPU.

use super::{Unary, derivative, value};
use crate::{Accum, Float, multiversion, parallel};

const PART: usize = 8 * 1024;

/// `y = f(x)`.
///
/// # Panics
/// If the lengths differ.
pub fn forward<T: Float>(f: Unary, y: &mut [T], x: &[T]) {
    assert_eq!(y.len(), x.len());
    parallel::chunks_mut(y, PART, |i, y| {
        forward_leaf(f, y, &x[i * PART..][..y.len()])
    });
}

/// `dx (+)= dy · f′(x)`.
///
/// # Panics
/// If the lengths differ.
pub fn backward<T: Float>(f: Unary, dx: &mut [T], accum: Accum, dy: &[T], x: &[T]) {
    assert_eq!(dx.len(), x.len());
    assert_eq!(dx.len(), dy.len());
    parallel::chunks_mut(dx, PART, |i, dx| {
        let n = dx.len();
        backward_leaf(f, dx, accum, &dy[i * PART..][..n], &x[i * PART..][..n])
    });
}

/// Chooses the function outside the loop, so that each loop vectorises.
macro_rules! each {
    ($f:expr, $g:ident => $body:expr) => {
        match $f {
            Unary::Silu => {
                const $g: Unary = Unary::Silu;
                $body
            }
            Unary::Gelu => {
                const $g: Unary = Unary::Gelu;
                $body
            }
            Unary::QuickGelu => {
                const $g: Unary = Unary::QuickGelu;
                $body
            }
            Unary::Exp => {
                const $g: Unary = Unary::Exp;
                $body
            }
            Unary::Tanh => {
                const $g: Unary = Unary::Tanh;
                $body
            }
            Unary::Square => {
                const $g: Unary = Unary::Square;
                $body
            }
            Unary::LogSigmoid => {
                const $g: Unary = Unary::LogSigmoid;
                $body
            }
        }
    };
}

multiversion! {
    fn forward_leaf<T: Float>(f: Unary, y: &mut [T], x: &[T]) {
        each!(f, F => for (y, &x) in y.iter_mut().zip(x) {
            *y = value(F, x);
        })
    }
}

multiversion! {
    fn backward_leaf<T: Float>(f: Unary, dx: &mut [T], accum: Accum, dy: &[T], x: &[T]) {
        each!(f, F => for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
            accum.put(dx, dy * derivative(F, x));
        })
    }
}
