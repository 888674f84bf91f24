//! One row of each sample.

mod cpu;
pub mod ptx;

pub use cpu::{backward, forward};
