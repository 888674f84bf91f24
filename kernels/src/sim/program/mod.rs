//! A syntax tree to a program: opcodes understood, operands typed and placed, labels resolved, once per kernel.
//!
//! Decoding refuses what the kernel's arch does not have and what ptxas would: an executor that meets an [`Op`] knows
//! that it is well formed.

mod arithmetic;
mod control;
mod convert;
mod data;
mod decode;
mod matrix;
mod modifiers;
pub mod op;

use op::{Op, PredSource, Slot};

use super::parse::types::Type;

pub use decode::decode;

/// Registers that a warp's file holds at most, constants included, in 32-bit places.
pub const MAX_SLOTS: usize = 1 << 15;
/// Flag of a slot in [`Program::touched`].
pub const WRITTEN: Slot = 1 << 31;
/// Where shared memory begins in a CTA's shared window: the driver keeps the first KiB on Hopper.
pub const SHARED_BASE: u32 = 1024;
/// Generic addresses of shared memory; a shared address is 32 bits.
pub const SHARED_WINDOW: u64 = 1 << 36;
/// Generic addresses of the parameters.
pub const PARAM_WINDOW: u64 = 2 << 36;
/// Global memory: object `i` begins [`super::BUFFER_ALIGNMENT`] bytes after `(i + 1) << GLOBAL_SHIFT`.
pub const GLOBAL_SHIFT: u32 = 40;

/// What kind of work an instruction is, for the profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    Move,
    Integer,
    Float32,
    Float64,
    Half,
    /// `ex2`, `rcp`, `rsqrt`, … : the special-function unit.
    Special,
    Convert,
    Predicate,
    GlobalLoad,
    GlobalStore,
    SharedLoad,
    SharedStore,
    ParamLoad,
    Atomic,
    AsyncCopy,
    Matrix,
    MatrixMove,
    Shuffle,
    Barrier,
    Control,
}

impl Class {
    pub const ALL: [Class; 20] = [
        Class::Move,
        Class::Integer,
        Class::Float32,
        Class::Float64,
        Class::Half,
        Class::Special,
        Class::Convert,
        Class::Predicate,
        Class::GlobalLoad,
        Class::GlobalStore,
        Class::SharedLoad,
        Class::SharedStore,
        Class::ParamLoad,
        Class::Atomic,
        Class::AsyncCopy,
        Class::Matrix,
        Class::MatrixMove,
        Class::Shuffle,
        Class::Barrier,
        Class::Control,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Class::Move => "move",
            Class::Integer => "integer",
            Class::Float32 => "f32",
            Class::Float64 => "f64",
            Class::Half => "f16/bf16",
            Class::Special => "special function",
            Class::Convert => "convert",
            Class::Predicate => "predicate",
            Class::GlobalLoad => "global load",
            Class::GlobalStore => "global store",
            Class::SharedLoad => "shared load",
            Class::SharedStore => "shared store",
            Class::ParamLoad => "parameter load",
            Class::Atomic => "atomic",
            Class::AsyncCopy => "async copy",
            Class::Matrix => "matrix",
            Class::MatrixMove => "matrix move",
            Class::Shuffle => "shuffle/vote",
            Class::Barrier => "barrier/fence",
            Class::Control => "control",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Instruction {
    pub op: Op,
    pub guard: Option<PredSource>,
    pub class: Class,
    pub line: u32,
    /// First of the registers it touches, in [`Program::touched`], and how many.
    pub touched: (u32, u32),
}

/// Values that a register has before the first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// The same in every thread; 64 bits where `wide`.
    Constant {
        value: u64,
        wide: bool,
    },
    Special(Special),
    /// Bytes of the parameter block, extended to the register's width.
    Param {
        offset: u32,
        kind: Type,
        wide: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    WarpCount,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    ClusterId(u8),
    ClusterCount(u8),
    ClusterCtaId(u8),
    ClusterCtaCount(u8),
    ClusterCtaRank,
    ClusterCtas,
    /// An SM's number: which one a CTA gets, no kernel may rely on.
    SmId,
    SmCount,
    DynamicSharedBytes,
    TotalSharedBytes,
}

/// A module variable in global or constant memory.
#[derive(Clone, Debug)]
pub struct GlobalVariable {
    pub bytes: u64,
    pub contents: Vec<u8>,
    pub writable: bool,
}

/// Where a parameter lies in the parameter block.
#[derive(Clone, Debug)]
pub struct ParamPlace {
    pub name: String,
    pub kind: Type,
    pub array: bool,
    pub offset: u32,
    pub bytes: u32,
}

#[derive(Clone, Debug)]
pub struct Program {
    pub instructions: Vec<Instruction>,
    /// Slots that instructions touch, with [`WRITTEN`] set in those that they write.
    pub touched: Vec<Slot>,
    /// 32-bit places of a warp's register file.
    pub slots: usize,
    pub preds: usize,
    pub presets: Vec<(Slot, Preset)>,
    pub params: Vec<ParamPlace>,
    pub param_bytes: u32,
    pub globals: Vec<GlobalVariable>,
    /// End of the static shared variables: where dynamic shared memory begins, aligned to what it asks.
    pub shared_end: u32,
    pub max_threads: Option<[u32; 3]>,
    pub required_threads: Option<[u32; 3]>,
    pub cluster: Option<[u32; 3]>,
    /// Smallest access to shared memory as a power of two: bytes that one shadow cell stands for.
    pub shared_granule: u32,
    pub global_granule: u32,
    /// Whether threads of different CTAs can wait for one another through global memory.
    pub cross_cta: bool,
    /// Whether anything goes through the asynchronous proxy.
    pub async_proxy: bool,
}
