//! One row of each sample.

mod cpu;

pub use cpu::{backward, forward};
