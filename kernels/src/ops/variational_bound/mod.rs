//! The variational bound of a diffusion step whose variance is learned.

mod cpu;
mod function;
pub mod ptx;

pub use cpu::{Operands, backward, forward};

/// The diffusion's constants at one sample's time step, in the notation of Nichol & Dhariwal (arXiv 2102.09672).
///
/// `T` is f64, or the registers of a kernel that read seven of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients<T = f64> {
    /// √(1/ᾱ): x₀ = this · xₜ − [`Coefficients::x0_from_eps`] · ε.
    pub x0_from_xt: T,
    /// √(1/ᾱ − 1).
    pub x0_from_eps: T,
    /// Weight of x₀ in the mean of q(xₜ₋₁ | xₜ, x₀).
    pub mean_from_x0: T,
    /// Weight of xₜ in that mean.
    pub mean_from_xt: T,
    /// ln β̃, at t = 0 that of t = 1: the true posterior's, and the model's at v = −1.
    pub log_variance_low: T,
    /// ln β: the model's at v = 1.
    pub log_variance_high: T,
    /// 1 at t = 0, where the term is the likelihood of the 8-bit picture itself; else 0.
    pub first: T,
}

// SAFETY: seven f64 and nothing between them.
unsafe impl bytemuck::Zeroable for Coefficients {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for Coefficients {}
