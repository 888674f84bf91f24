//! Random zeros whose mask is drawn twice and never stored.

mod cpu;

pub use cpu::apply;
