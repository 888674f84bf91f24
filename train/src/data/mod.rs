//! Captioned pictures, from files to batches.
//!
//! [`shapes`] makes a data set whose captions a program can check; [`dataset`] indexes shards, folders and lists in
//! place; [`loader`] turns them into shuffled batches whose order is a function of seed and position.

pub mod error;
pub mod random;
pub mod shapes;

pub use error::{Error, Result};
