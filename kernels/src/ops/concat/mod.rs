//! Interleaving of row blocks: the forward pass of concatenation, and the backward pass of a split.

mod cpu;
pub mod ptx;

pub use cpu::join;
