//! Repetition over 2×2 blocks: the forward pass of nearest upsampling, and the backward pass of average pooling.

mod cpu;
pub mod ptx;

pub use cpu::repeat_blocks;
