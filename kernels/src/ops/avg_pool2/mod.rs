//! Sums over 2×2 blocks: the forward pass of average pooling, and the backward pass of nearest upsampling.

mod cpu;
pub mod ptx;

pub use cpu::sum_blocks;
