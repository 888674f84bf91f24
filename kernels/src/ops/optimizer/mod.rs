//! Gradient norm, and one fused pass of clipping, AdamW and the moving average over flat arenas.

mod cpu;
pub mod muon;
pub mod ptx;
mod step;
#[cfg(test)]
mod tests;

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

/// [`StepScalars`] as GPU kernels read them: written to device memory before every step, so that a captured step replays
/// with new values. The gradient's scale is not among them: a kernel computes it from the norm.
///
/// Each is computed in f64 and rounded once to f32, which is what the CPU's update of f32 arenas does: given the same
/// gradient scale, both update to the same bits. Against the CPU's update in f64, with u = 2⁻²⁴, d = g − m for the scaled
/// gradient g, and s = step size · (|m| + |d|) / (√v / √bias₂ + eps), one step's error is, to first order, at most
/// 5u·(|m| + |d|) for the first moment, 7u·v for the second, e = 3u·|p| + 16u·s for the parameter, and e + 3u·(|ema| + |p|)
/// for the average: half a unit for each scalar and each operation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct UpdateScalars {
    /// Gradients of a larger norm are scaled down to this one.
    pub max_norm: f64,
    /// What weight decay leaves of a parameter, where there is any.
    pub keep: f32,
    pub one_minus_beta1: f32,
    pub beta2: f32,
    pub one_minus_beta2: f32,
    /// 1 / √(1 − β₂ᵗ).
    pub inverse_root_bias2: f32,
    pub eps: f32,
    /// The learning rate over 1 − β₁ᵗ.
    pub step_size: f32,
    pub one_minus_ema: f32,
}

impl UpdateScalars {
    /// All but the gradient's scale, in place of which the kernels have the largest norm.
    pub fn new(scalars: &StepScalars, max_norm: f64) -> UpdateScalars {
        let step = step::Step::<f32>::new(scalars, Decay::Yes);
        UpdateScalars {
            max_norm,
            keep: step.keep,
            one_minus_beta1: step.one_minus_beta1,
            beta2: step.beta2,
            one_minus_beta2: step.one_minus_beta2,
            inverse_root_bias2: step.inverse_root_bias2,
            eps: step.eps,
            step_size: step.step_size,
            one_minus_ema: step.one_minus_ema,
        }
    }
}

/// What the GPU finds out about a step's gradient before it updates; in device memory, to be read back after the step.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Clip {
    pub norm: f64,
    /// [`clip_factor`]; NaN where the norm is not finite, which makes the update leave everything as it is.
    pub gradient_scale: f32,
    /// Nothing.
    pub padding: u32,
}
