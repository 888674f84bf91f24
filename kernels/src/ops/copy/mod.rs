//! Copies between memory layouts.

mod cpu;

pub use cpu::{accumulate, gather_strided};
