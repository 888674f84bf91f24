//! Data, training, evaluation and the command line.

#![forbid(unsafe_code)]

pub mod data;
