//! Elementwise functions of two operands that broadcast.

mod cpu;
pub mod ptx;

pub use cpu::forward;

/// y = f(a, b).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    Add,
    Sub,
    Mul,
}

impl Binary {
    pub const ALL: [Binary; 3] = [Binary::Add, Binary::Sub, Binary::Mul];

    pub const fn name(self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Sub => "sub",
            Binary::Mul => "mul",
        }
    }
}

/// An operand as the output's dimensions see it: one stride a dimension, 0 where it repeats.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a, T> {
    pub data: &'a [T],
    pub strides: &'a [usize],
}

/// One loop of the output, and how far each operand moves in it.
#[derive(Clone, Copy)]
struct Loop {
    extent: usize,
    a: usize,
    b: usize,
}

impl Loop {
    const ONE: Loop = Loop {
        extent: 1,
        a: 0,
        b: 0,
    };
}

/// The fewest loops, outermost first, that walk through the same elements in the same order; at least one.
fn merge(dims: &[usize], a: &[usize], b: &[usize]) -> Vec<Loop> {
    let mut loops: Vec<Loop> = Vec::with_capacity(dims.len().max(1));
    for ((&extent, &a), &b) in dims.iter().zip(a).zip(b).filter(|((d, _), _)| **d != 1) {
        match loops.last_mut() {
            Some(outer) if outer.a == a * extent && outer.b == b * extent => {
                *outer = Loop {
                    extent: outer.extent * extent,
                    a,
                    b,
                };
            }
            _ => loops.push(Loop { extent, a, b }),
        }
    }
    if loops.is_empty() {
        loops.push(Loop::ONE);
    }
    loops
}
