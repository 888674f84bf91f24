//! A line through every element.

mod cpu;

pub use cpu::forward;
