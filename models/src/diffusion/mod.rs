//! Diffusion: noise schedules, training losses, samplers, guidance. Nothing here knows a network.
//!
//! Notation of Ho et al. (2020): x₀ is clean, x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε noisy, β_t the variance that step t adds.

mod guidance;
mod loss;
mod sampler;
mod schedule;
mod scheduler;

pub use guidance::{Guidance, guide, rescale};
pub use loss::{
    HybridLoss, Weighting, add_noise, denoising_loss, hybrid_loss, target, timesteps,
    uniform_timesteps,
};
pub use sampler::{
    AnalyticVariance, Ancestral, Ddim, Denoised, DpmSolver, Heun, Inversion, Sampler, SamplerKind,
    respaced,
};
pub use schedule::{BetaSchedule, Posterior, Prediction, Schedule};
pub use scheduler::{SchedulerConfig, VarianceType};
