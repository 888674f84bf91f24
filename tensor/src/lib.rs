//! Tensors: shape, element type, device and storage; every op checks its operands here, allocates its outputs and
//! dispatches to a kernel.
//!
//! Nothing here knows of gradients (that is `autograd`) or computes (that is `kernels`).
#![forbid(unsafe_code)]

mod check;
mod device;
mod error;
pub mod gpu;
pub mod graph;
pub mod ops;
mod shape;
mod storage;
mod tensor;
mod transfer;

pub use check::Check;
pub use device::{Arch, Device};
pub use error::{Error, Operand, Result};
pub use kernels::{Accum, DType, Element, Float};
pub use shape::{MAX_RANK, Shape};
pub use tensor::Tensor;
