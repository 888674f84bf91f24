//! The networks of unCLIP, their files, and what turns text into their input.

#![forbid(unsafe_code)]

pub mod tokenizer;
