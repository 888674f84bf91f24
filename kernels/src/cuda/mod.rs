//! GPUs through NVIDIA's driver, and nothing else of CUDA: libcuda is opened at run time, so that one binary runs with
//! and without it.
//!
//! A [`Context`] is one GPU: a stream on which everything happens in order, memory that is taken from a pool and given
//! back to it without waiting ([`Memory`]), modules that the driver compiled from the PTX text that the simulator runs
//! ([`Function`]), and steps recorded once and replayed as one launch ([`Graph`]).
//!
//! Nothing here knows of shapes or dtypes. A kernel that runs here has run in the simulator first: the driver checks
//! neither bounds nor races.

mod context;
mod driver;
mod error;
mod graph;
mod launch;
mod memory;
mod module;
mod pinned;
mod pool;

pub use context::{Context, Timer};
pub use driver::{Gpu, Version, gpus, release, version};
pub use error::Error;
pub use graph::{Graph, Replay};
pub use launch::{Argument, run};
pub use memory::{Memory, View};
pub use module::Function;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What another thread left when it panicked is whole: nothing behind a lock is written in steps that can panic.
fn locked<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
