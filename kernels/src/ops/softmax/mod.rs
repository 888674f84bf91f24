//! Softmax over rows.

mod cpu;
pub mod ptx;

pub(crate) use cpu::max_of;
pub use cpu::{backward, forward};
