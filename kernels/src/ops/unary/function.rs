//! The functions themselves, on a CPU's numbers or a kernel's registers.

use super::Unary;
use crate::real::Real;

/// `f(x)`.
#[inline(always)]
pub fn value<T: Real>(f: Unary, x: T) -> T {
    let c = T::from_f64;
    match f {
        Unary::Silu => x * x.sigmoid(),
        Unary::Gelu => x * c(0.5) * (c(1.0) + (x * c(std::f64::consts::FRAC_1_SQRT_2)).erf()),
        Unary::QuickGelu => x * (x * c(1.702)).sigmoid(),
        Unary::Exp => x.exp(),
        Unary::Tanh => x.tanh(),
        Unary::Square => x * x,
        Unary::LogSigmoid => {
            // min(x, 0) − ln(1 + e) with e = exp(−|x|). Kahan's correction keeps ln(1 + e) right where 1 + e rounds.
            let e = (-x.abs()).exp();
            let u = c(1.0) + e;
            let corrected = u.ln() * (e / (u - c(1.0)));
            let ln = T::select(c(1.0).less(u), corrected, e);
            // In this order NaN stays NaN.
            T::select(c(0.0).less(x), c(0.0), x) - ln
        }
    }
}

/// `f′(x)`.
#[inline(always)]
pub fn derivative<T: Real>(f: Unary, x: T) -> T {
    let c = T::from_f64;
    match f {
        Unary::Silu => {
            let s = x.sigmoid();
            s * (c(1.0) + x * (c(1.0) - s))
        }
        Unary::Gelu => {
            let cdf = c(0.5) * (c(1.0) + (x * c(std::f64::consts::FRAC_1_SQRT_2)).erf());
            // The density at x is φ(x) = e^(−x²/2) / √(2π).
            let density = (x * x * c(-0.5)).exp() * c(0.398_942_280_401_432_7);
            x.mul_add(density, cdf)
        }
        Unary::QuickGelu => {
            let scaled = x * c(1.702);
            let s = scaled.sigmoid();
            s * (c(1.0) + scaled * (c(1.0) - s))
        }
        Unary::Exp => x.exp(),
        Unary::Tanh => {
            let y = x.tanh();
            c(1.0) - y * y
        }
        Unary::Square => x + x,
        Unary::LogSigmoid => (-x).sigmoid(),
    }
}
