//! What holds ops to their specs: operands, runs, and how far a result may be from the truth.
//!
//! `tests/` has the checks of an op on the CPU, `benches/` its timing; [`device`] holds a GPU, simulated or not, to the CPU,
//! for tests and for `unclip kernels check` alike.

pub mod budget;
pub mod device;
pub mod profile;
pub mod run;
pub mod values;
