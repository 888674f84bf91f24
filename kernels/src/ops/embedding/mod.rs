//! Rows of a table by their number.

mod cpu;
pub mod ptx;

pub use cpu::{backward, forward};
