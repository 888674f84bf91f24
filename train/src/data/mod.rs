//! Captioned pictures, from files to batches.
//!
//! [`shapes`] makes a data set whose captions a program can check; [`dataset`] indexes shards, folders and lists in
//! place; [`loader`] turns them into shuffled batches whose order is a function of seed and position.

pub mod bpe;
pub mod dataset;
pub mod decode;
pub mod degrade;
pub mod error;
pub mod loader;
pub mod random;
pub mod shapes;
mod source;
pub mod tar;

pub use dataset::{BadSample, Dataset, DatasetOptions};
pub use error::{Error, Result};
pub use loader::{Batch, Loader, LoaderOptions};
