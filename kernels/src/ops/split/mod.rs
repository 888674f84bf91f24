//! A block of every row: a part of a split, and the backward pass of concatenation.

mod cpu;
pub mod ptx;

pub use cpu::narrow;
