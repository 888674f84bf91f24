//! Checks, allocation and dispatch of every op, one file an op.

pub mod copy;
pub mod fill;
pub mod random;
pub mod unary;
