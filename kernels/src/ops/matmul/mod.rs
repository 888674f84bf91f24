//! Batched matrix product with transposed operands and a fused epilogue, and the column sums that bias gradients need.

mod cpu;
mod epilogue;
pub mod ptx;
#[cfg(test)]
mod tests;

pub use cpu::{column_sums, forward};
pub(super) use epilogue::Epilogue;

use crate::real::Real;

/// What a matrix product's epilogue applies after the bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    None,
    /// x·Φ(x) with the exact normal distribution function (Hendrycks & Gimpel, arXiv 1606.08415).
    Gelu,
    /// x·σ(1.702·x), as OpenAI's CLIP has it.
    QuickGelu,
    /// x·σ(x).
    Silu,
}

impl Activation {
    pub const ALL: [Activation; 4] = [
        Activation::None,
        Activation::Gelu,
        Activation::QuickGelu,
        Activation::Silu,
    ];

    #[inline(always)]
    pub fn apply<T: Real>(self, x: T) -> T {
        match self {
            Activation::None => x,
            Activation::Gelu => {
                let half = T::from_f64(0.5);
                let root = T::from_f64(std::f64::consts::FRAC_1_SQRT_2);
                half * x * (T::from_f64(1.0) + (x * root).erf())
            }
            Activation::QuickGelu => x * (T::from_f64(1.702) * x).sigmoid(),
            Activation::Silu => x * x.sigmoid(),
        }
    }
}

/// c = act(a·b + bias) + residual, for `batch` pairs of matrices.
#[derive(Clone, Copy, Debug)]
pub struct Matmul {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// `a` is stored [k, m] instead of [m, k].
    pub transpose_a: bool,
    /// `b` is stored [n, k] instead of [k, n].
    pub transpose_b: bool,
    /// Elements between consecutive matrices of the batch; 0 shares one matrix.
    pub a_stride: usize,
    pub b_stride: usize,
    pub activation: Activation,
}
