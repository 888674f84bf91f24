//! Squared distance, with a weight for each sample.

mod cpu;

pub use cpu::{backward, forward};
