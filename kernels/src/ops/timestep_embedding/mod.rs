//! Sinusoidal embeddings of diffusion time.

mod cpu;
pub mod ptx;

pub use cpu::{MAX_PERIOD, forward};
