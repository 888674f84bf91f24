//! The tape: records what a step computes, then consumes it in reverse into gradients.
//!
//! A [`Var`] is a tensor plus the slot that its gradient goes to. It comes only from a leaf, a parameter, a constant or
//! [`Tape::record`], so there is no op that silently records nothing. Each op of [`ops`] lives in one file: its forward
//! on `Var`s, its [`Backward`], and its [`spec::OpSpec`], from which tests and benches are made.
#![forbid(unsafe_code)]

mod checkpoint;
mod grads;
pub mod harness;
pub mod ops;
mod params;
pub mod spec;
mod tape;

pub use grads::{Grads, Upstream};
pub use params::{
    Decay, FileLayout, Init, ParamGrads, ParamId, ParamInfo, ParamLayout, Params, ParamsBuilder,
};
pub use tape::{Backward, Draw, Mode, StepState, Tape, Var, VarId};
pub use tensor::{Accum, DType, Device, Error, Result, Shape, Tensor};
