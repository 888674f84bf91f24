//! Rows scaled to unit length.

mod cpu;

pub use cpu::{backward, forward};
