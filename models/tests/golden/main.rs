//! Every network, sampler and the whole pipeline against diffusers and transformers.
//!
//! `tools/golden` made the files of `data`, which hold outputs alone: weights, inputs and noise are one formula in both
//! languages. It runs the other libraries in f64 and rebuilds there what diffusers keeps in f32 whatever its dtype: the
//! sinusoids of time steps and the schedulers' tables.

mod components;
mod files;
mod foreign;
mod formula;
mod names;
mod pipeline;
mod schedulers;
mod tokenizer;
mod variation;
