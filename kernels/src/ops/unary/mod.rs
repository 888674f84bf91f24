//! Elementwise functions of one operand.

mod cpu;
mod function;
pub mod ptx;
#[cfg(test)]
mod tests;

pub use cpu::{backward, forward};
pub use function::{derivative, value};

/// y = f(x).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// x·σ(x).
    Silu,
    /// x·Φ(x), exact (Hendrycks & Gimpel, arXiv 1606.08415).
    Gelu,
    /// x·σ(1.702·x), OpenAI CLIP's approximation of GELU.
    QuickGelu,
    Exp,
    Tanh,
    Square,
    /// ln σ(x), the loss of a pair in SigLIP (arXiv 2303.15343).
    LogSigmoid,
}

impl Unary {
    pub const ALL: [Unary; 7] = [
        Unary::Silu,
        Unary::Gelu,
        Unary::QuickGelu,
        Unary::Exp,
        Unary::Tanh,
        Unary::Square,
        Unary::LogSigmoid,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Unary::Silu => "silu",
            Unary::Gelu => "gelu",
            Unary::QuickGelu => "quick_gelu",
            Unary::Exp => "exp",
            Unary::Tanh => "tanh",
            Unary::Square => "square",
            Unary::LogSigmoid => "log_sigmoid",
        }
    }
}
