//! A line through every element.

mod cpu;
pub mod ptx;

pub use cpu::forward;
