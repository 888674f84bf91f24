//! Gradient norm, and one fused pass of clipping, AdamW and the moving average over flat arenas.

mod cpu;
pub mod muon;

pub use cpu::{Arenas, gradient_norm, update};

/// Whether AdamW decays a parameter towards zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    Yes,
    /// Biases, gains of normalisations, embeddings.
    No,
    /// Not trained at all: buffers such as whitening statistics, which files hold beside the weights.
    Frozen,
}

/// Consecutive elements of the arenas that are treated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub start: usize,
    pub end: usize,
    pub decay: Decay,
}

/// The hyper-parameters of AdamW (Loshchilov & Hutter, arXiv 1711.05101).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

impl AdamW {
    /// The scalars of update number `step`, counted from 1.
    pub fn at(
        &self,
        step: u64,
        learning_rate: f64,
        gradient_scale: f64,
        ema_decay: f64,
    ) -> StepScalars {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        StepScalars {
            learning_rate,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay,
            bias_correction1: correction(self.beta1),
            bias_correction2: correction(self.beta2),
            gradient_scale,
            ema_decay,
        }
    }
}

/// Everything about an update that changes from step to step. Plain data: on a GPU it lives in device memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct StepScalars {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// 1 − β₁ᵗ.
    pub bias_correction1: f64,
    /// 1 − β₂ᵗ.
    pub bias_correction2: f64,
    /// Multiplies every gradient first: the clip factor, and whatever averages accumulated gradients.
    pub gradient_scale: f64,
    /// Share of the moving average that stays.
    pub ema_decay: f64,
}

/// What scales gradients of this norm down to `max_norm`: PyTorch's `clip_grad_norm_`. NaN for a norm that is NaN.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    let factor = max_norm / (norm + 1e-6);
    if factor > 1.0 { 1.0 } else { factor }
}
