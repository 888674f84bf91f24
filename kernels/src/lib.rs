//! Raw compute on raw memory: the CPU code of every op, aligned and pooled buffers, counter-based randomness.
//!
//! This is the only crate with `unsafe` code. It knows slices and descriptors; shapes, devices and errors with operand
//! names live one crate up, in `tensor`, which checks everything before it calls in here.

pub mod buffer;
pub mod cuda;
pub mod element;
mod gemm;
pub mod launch;
pub mod map;
pub mod math;
pub mod occupancy;
pub mod ops;
pub mod parallel;
pub mod peak;
pub mod philox;
pub mod ptx;
pub mod ptxas;
pub mod random;
pub mod real;
pub mod script;
pub mod sim;
pub mod simd;
#[cfg(test)]
mod testing;

pub use buffer::Buffer;
pub use element::{DType, Element, Float};
pub use real::Real;

/// What a kernel does with its destination.
///
/// Every backward kernel takes one, so that gradients need neither a zero-fill nor a separate addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accum {
    /// The destination's contents are undefined; overwrite every element.
    Replace,
    /// Add to what is there.
    Add,
}

impl Accum {
    pub const ALL: [Accum; 2] = [Accum::Replace, Accum::Add];

    /// A part of a kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Accum::Replace => "replace",
            Accum::Add => "add",
        }
    }

    /// As formulas have it.
    pub const fn symbol(self) -> &'static str {
        match self {
            Accum::Replace => "=",
            Accum::Add => "+=",
        }
    }

    /// `value` under [`Accum::Replace`], `old + value` under [`Accum::Add`].
    #[inline(always)]
    pub fn put<T: Float>(self, dst: &mut T, value: T) {
        match self {
            Accum::Replace => *dst = value,
            Accum::Add => *dst = *dst + value,
        }
    }
}
