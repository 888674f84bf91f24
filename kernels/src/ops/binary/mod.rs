//! Elementwise functions of two operands that broadcast.

mod cpu;

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
