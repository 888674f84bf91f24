//! PTX text to a syntax tree. The text is hostile: no panic, memory bounded by the text's length and by the limits
//! named here, and every error carries a line.

mod grammar;
mod lexer;
pub mod types;

use std::collections::HashMap;

use types::Type;

pub use grammar::parse;

/// Registers of one entry, all scopes together. ptxas gives a thread 255; virtual ones are more, but not unbounded.
pub const MAX_REGISTERS: usize = 1 << 16;
/// Blocks inside of one another: more than anybody writes, and few enough to look names up in all of them.
pub const MAX_BLOCKS: usize = 256;
/// Bytes that all initialised or zeroed variables of a module may take.
pub const MAX_VARIABLE_BYTES: u64 = 64 << 20;

/// A whole text.
#[derive(Debug)]
pub struct Module<'t> {
    /// Major and minor number of `.version`.
    pub version: (u64, u64),
    /// Operands of `.target`.
    pub target: Vec<&'t str>,
    pub variables: Vec<Variable<'t>>,
    pub entries: Vec<Entry<'t>>,
}

/// State space of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Global,
    Const,
    Shared,
    Local,
}

#[derive(Debug)]
pub struct Variable<'t> {
    pub name: &'t str,
    pub space: Space,
    /// `.extern .shared x[]`: as long as the launch says.
    pub dynamic: bool,
    pub align: u32,
    pub bytes: u64,
    /// Contents; shorter than `bytes` where the rest is zero.
    pub contents: Vec<u8>,
    pub line: u32,
}

#[derive(Debug)]
pub struct Param<'t> {
    pub name: &'t str,
    pub kind: Type,
    pub align: u32,
    /// Elements, for `.b8 x[128]`.
    pub array: Option<u32>,
}

#[derive(Debug, Default)]
pub struct Entry<'t> {
    pub name: &'t str,
    pub line: u32,
    pub params: Vec<Param<'t>>,
    /// `.maxntid`: the block may not be larger.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`: the block must be this.
    pub required_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`.
    pub cluster: Option<[u32; 3]>,
    /// Whether a directive caps registers, without which `setmaxnreg` is ignored.
    pub register_cap: bool,
    /// Types of all registers.
    pub registers: Vec<Type>,
    pub variables: Vec<Variable<'t>>,
    /// Where in `body` each label stands.
    pub labels: HashMap<&'t str, usize>,
    pub body: Vec<Instruction<'t>>,
}

/// A register of the entry, by its index in [`Entry::registers`].
pub type Register = u32;

#[derive(Debug)]
pub struct Instruction<'t> {
    pub line: u32,
    /// `@p` (false) or `@!p` (true).
    pub guard: Option<(Register, bool)>,
    pub opcode: &'t str,
    pub modifiers: Vec<&'t str>,
    pub operands: Vec<Operand<'t>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Operand<'t> {
    Register(Register),
    /// `!p`.
    Not(Register),
    /// `_`.
    Sink,
    Int(u64),
    Float32(u32),
    Float64(u64),
    /// A special register (with its component), a variable, a parameter or a label: which, decoding finds out.
    Name(&'t str, Option<&'t str>),
    Vector(Vec<Operand<'t>>),
    /// `[base + offset]`, `[base, {coordinates}]`.
    Address {
        base: Box<Operand<'t>>,
        offset: i64,
        coordinates: Vec<Operand<'t>>,
    },
    /// `d|p`.
    Pair(Box<Operand<'t>>, Box<Operand<'t>>),
}
