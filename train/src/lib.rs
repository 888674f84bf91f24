//! Data, training, evaluation and the command line.
#![forbid(unsafe_code)]

pub mod assemble;
pub mod checkpoint;
pub mod cli;
pub mod clip_eval;
pub mod config;
pub mod data;
pub mod demo;
mod error;
pub mod eval;
pub mod files;
pub mod image_encoder;
pub mod interrupt;
pub mod judge;
pub mod latents;
pub mod metrics;
pub mod model;
pub mod picture;
pub mod png_text;
pub mod probe;
pub mod progress;
pub mod record;
pub mod sampling;
pub mod schedule;
mod sharpness;
pub mod stages;
pub mod step;
pub mod trainer;

pub use error::{Error, Result};
