//! Samples from one of two sources.

mod cpu;
pub mod ptx;

pub use cpu::{backward, backward_shared, forward};
