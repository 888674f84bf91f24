//! One element's update, on a CPU or in a kernel's registers.

use super::{Decay, StepScalars};
use crate::Real;

/// The scalars as an element needs them.
#[derive(Clone, Copy)]
pub struct Step<T> {
    pub gradient_scale: T,
    /// What weight decay leaves of a parameter.
    pub keep: T,
    pub one_minus_beta1: T,
    pub beta2: T,
    pub one_minus_beta2: T,
    pub inverse_root_bias2: T,
    pub eps: T,
    pub step_size: T,
    pub one_minus_ema: T,
}

impl<T: Real> Step<T> {
    /// Each computed in f64 and rounded once.
    pub fn new(s: &StepScalars, decay: Decay) -> Step<T> {
        let weight_decay = match decay {
            Decay::Yes => s.weight_decay,
            Decay::No | Decay::Frozen => 0.0,
        };
        Step {
            gradient_scale: T::from_f64(s.gradient_scale),
            keep: T::from_f64(1.0 - s.learning_rate * weight_decay),
            one_minus_beta1: T::from_f64(1.0 - s.beta1),
            beta2: T::from_f64(s.beta2),
            one_minus_beta2: T::from_f64(1.0 - s.beta2),
            inverse_root_bias2: T::from_f64(1.0 / s.bias_correction2.sqrt()),
            eps: T::from_f64(s.eps),
            step_size: T::from_f64(s.learning_rate / s.bias_correction1),
            one_minus_ema: T::from_f64(1.0 - s.ema_decay),
        }
    }

    /// The parameter, and its first and second moment, after an update by gradient `g`.
    #[inline(always)]
    pub fn element(&self, p: T, g: T, m: T, v: T) -> [T; 3] {
        let g = g * self.gradient_scale;
        let m = self.one_minus_beta1.mul_add(g - m, m);
        let v = (self.one_minus_beta2 * g).mul_add(g, self.beta2 * v);
        let denominator = v.sqrt().mul_add(self.inverse_root_bias2, self.eps);
        [p * self.keep - self.step_size * (m / denominator), m, v]
    }

    /// The moving average after the parameter became `p`.
    #[inline(always)]
    pub fn average(&self, ema: T, p: T) -> T {
        self.one_minus_ema.mul_add(p - ema, ema)
    }
}
