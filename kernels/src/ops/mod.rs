//! One folder per op: descriptor and contract in `mod.rs`, CPU code in `cpu.rs`.

pub mod attention;
pub mod conv2d;
pub mod copy;
pub mod group_norm;
pub mod layer_norm;
pub mod matmul;
pub mod unary;
