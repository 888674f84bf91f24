//! Sums over any dimensions.

mod cpu;

pub use cpu::sum;
