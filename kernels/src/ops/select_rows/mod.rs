//! Samples from one of two sources.

mod cpu;

pub use cpu::{backward, backward_shared, forward};
