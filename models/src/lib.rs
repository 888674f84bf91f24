//! The models of DALL·E 2 as diffusers and transformers name them, their diffusion, and the files that hold them.
//!
//! Images are [n, h, w, c] in memory. A model is its configuration and parameter ids; values are
//! [`Params`](autograd::Params), so that a model can be declared and counted without allocating it. Nothing here knows
//! of devices, streams or training loops.
#![forbid(unsafe_code)]

pub mod architecture;
pub mod clip;
pub mod config;
pub mod diffusion;
pub mod embeddings;
mod error;
mod folder;
pub mod import;
mod model;
pub mod nn;
pub mod pipeline;
pub mod prior;
pub mod text_proj;
pub mod tokenizer;
pub mod unet;
pub mod weights;

pub use error::{Error, Result};
pub use folder::Folder;
pub use model::{Class, Library, Loaded, Model, declare};
