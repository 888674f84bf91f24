//! Checks, allocation and dispatch of every op, one file an op.

pub mod attention;
pub mod conv2d;
pub mod copy;
pub mod fill;
pub mod group_norm;
pub mod layer_norm;
pub mod matmul;
pub mod random;
pub mod unary;
