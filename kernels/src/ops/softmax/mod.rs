//! Softmax over rows.

mod cpu;

pub(crate) use cpu::max_of;
pub use cpu::{backward, forward};
