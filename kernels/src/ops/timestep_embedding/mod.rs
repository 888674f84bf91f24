//! Sinusoidal embeddings of diffusion time.

mod cpu;

pub use cpu::{MAX_PERIOD, forward};
