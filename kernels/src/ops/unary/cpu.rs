//! Unary functions on the CPU.

use super::Unary;
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

/// `f(x)`, for kernels that fuse an activation.
#[inline(always)]
pub fn value<T: Float>(f: Unary, x: T) -> T {
    match f {
        Unary::Silu => x * x.sigmoid(),
        Unary::Gelu => {
            x * T::from_f64(0.5)
                * (T::ONE + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
        }
        Unary::QuickGelu => x * (x * T::from_f64(1.702)).sigmoid(),
        Unary::Exp => x.exp(),
        Unary::Tanh => x.tanh(),
        Unary::Square => x * x,
        Unary::LogSigmoid => {
            // min(x, 0) − ln(1 + e) with e = exp(−|x|). Kahan's correction keeps ln(1 + e) right where 1 + e rounds.
            let e = (-x.abs()).exp();
            let u = T::ONE + e;
            let ln = if u > T::ONE {
                u.ln() * (e / (u - T::ONE))
            } else {
                e
            };
            // In this order NaN stays NaN.
            T::ZERO.min(x) - ln
        }
    }
}

/// `f′(x)`.
#[inline(always)]
pub fn derivative<T: Float>(f: Unary, x: T) -> T {
    match f {
        Unary::Silu => {
            let s = x.sigmoid();
            s * (T::ONE + x * (T::ONE - s))
        }
        Unary::Gelu => {
            let cdf = T::from_f64(0.5)
                * (T::ONE + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf());
            // The density at x is φ(x) = e^(−x²/2) / √(2π).
            let density = (x * x * T::from_f64(-0.5)).exp() * T::from_f64(0.398_942_280_401_432_7);
            x.mul_add(density, cdf)
        }
        Unary::QuickGelu => {
            let scaled = x * T::from_f64(1.702);
            let s = scaled.sigmoid();
            s * (T::ONE + scaled * (T::ONE - s))
        }
        Unary::Exp => x.exp(),
        Unary::Tanh => {
            let y = x.tanh();
            T::ONE - y * y
        }
        Unary::Square => x + x,
        Unary::LogSigmoid => (-x).sigmoid(),
    }
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
