//! Copies between memory layouts.

mod cpu;
pub mod ptx;

pub use cpu::{accumulate, gather_strided};

/// The fewest loops that walk through the elements of a view: (extent, stride), outermost first.
fn merge(dims: &[usize], strides: &[usize]) -> Vec<(usize, usize)> {
    let mut loops: Vec<(usize, usize)> = Vec::with_capacity(dims.len());
    for (&extent, &stride) in dims.iter().zip(strides).filter(|(d, _)| **d != 1) {
        match loops.last_mut() {
            Some(outer) if outer.1 == stride * extent => *outer = (outer.0 * extent, stride),
            _ => loops.push((extent, stride)),
        }
    }
    loops
}
