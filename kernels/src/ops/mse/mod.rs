//! Squared distance, with a weight for each sample.

mod cpu;
pub mod ptx;

pub(crate) use cpu::mean_over_samples;
pub use cpu::{backward, forward};
