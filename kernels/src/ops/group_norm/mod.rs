//! Group normalisation of NHWC images with the scale-shift and SiLU that follow it in a U-Net, and its gradients.

mod cpu;
pub mod ptx;
#[cfg(test)]
mod tests;

pub use cpu::{GroupNormGradients, backward, forward};

/// y = act((x̂·γ + β)·(1 + scale) + shift), x̂ normalised over the pixels and channels of one group of one image
/// (Wu & He, arXiv 1803.08494; scale and shift from the time embedding: Dhariwal & Nichol, arXiv 2105.05233).
///
/// x and y are [n, pixels, c], γ and β [c], mean and rstd [n, groups], scale_shift [n, 2·c] (scales, then shifts).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    pub n: usize,
    /// h·w.
    pub pixels: usize,
    pub c: usize,
    pub groups: usize,
    pub eps: f64,
    /// Whether SiLU, x·σ(x), follows.
    pub silu: bool,
}
