//! Layer normalisation of rows (Ba et al., arXiv 1607.06450), and its gradients.

mod cpu;
pub mod ptx;
#[cfg(test)]
mod tests;

pub use cpu::{LayerNormGradients, backward, forward};

/// y = (x − mean) · rstd · γ + β over each row of `c` elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    pub rows: usize,
    pub c: usize,
    pub eps: f64,
}
