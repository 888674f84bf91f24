//! An assembler for PTX: a kernel is a Rust function that writes its text.
//!
//! ```
//! use kernels::launch::Arch;
//! use kernels::ptx::{Assembler, F32, U32};
//!
//! let k = &Assembler::new("scale", Arch::Sm80, [256, 1, 1]);
//! k.contract("y = 2x, one thread an element.");
//! let y = k.buffer::<F32>("y");
//! let x = k.buffer::<F32>("x");
//! let n = k.parameter::<U32>("n");
//!
//! let i = k.cta_x() * 256 + k.thread_x();
//! k.if_(i.lt(n), || y.at(i).store(x.at(i).load() * 2.0));
//! println!("{}", k.finish().kernel.text);
//! ```
//!
//! Values have types ([`types`]), know what divides and bounds them ([`Facts`]), and belong to the block that computes
//! them; variables change ([`value`]). Loops of Rust unroll, loops of [`Assembler`] do not. Each method is one
//! instruction, or says what else it is; methods of sm_90a refuse to write for sm_80. What a kernel's author gets wrong
//! is found while the text is written, wherever types, blocks, alignment, bounds and arch show it.

mod arithmetic;
mod assembler;
mod control;
mod copy;
mod double;
mod float;
mod floats;
#[cfg(test)]
mod instructions;
mod matrix;
mod mbarrier;
mod memory;
mod real;
mod shared;
#[cfg(test)]
mod tests;
mod text;
pub mod types;
pub mod value;
mod warp;

pub use assembler::{Assembled, Assembler};
pub use floats::{Floats, Storage};
pub use mbarrier::{Mbarrier, Mbarriers};
pub use memory::{Cluster, Global, Pointer, Shared, Space, TensorMap};
pub use real::Fast;
pub use shared::{CHUNK_BYTES, Layout, Position, Tile, Tiles};
pub use types::{Arithmetic, B16, B32, B64, Bf16, Bf16x2, F32, F64, Pred, S32, Type, U8, U32, U64};
pub use value::{Condition, Facts, IntoValue, Value, Variable};
pub use warp::Scope;

use text::Operand;
