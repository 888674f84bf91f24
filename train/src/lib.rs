//! Data, training, evaluation and the command line.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
mod error;
pub mod files;
pub mod interrupt;
pub mod metrics;
pub mod picture;
pub mod progress;
pub mod schedule;

pub use error::{Error, Result};
