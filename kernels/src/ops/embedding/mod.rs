//! Rows of a table by their number.

mod cpu;

pub use cpu::{backward, forward};
