//! Draws on GPUs, bit for bit those of [`crate::random`]: the functions that make them are the same.

pub mod ptx;
#[cfg(test)]
mod tests;
