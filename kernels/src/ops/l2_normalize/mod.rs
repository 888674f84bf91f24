//! Rows scaled to unit length.

mod cpu;
pub mod ptx;

pub use cpu::{backward, forward};
