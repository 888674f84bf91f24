//! Memory with shadows: who wrote and read each granule, when, and whether anybody has written it at all.

pub mod global;
pub mod shared;

use super::race::Thread;

/// An earlier access that the present one may not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub kind: ConflictKind,
    /// Its instruction.
    pub pc: u32,
    /// Its thread within its team.
    pub thread: Thread,
    /// Its CTA, by linear index, where it is another.
    pub cta: Option<u32>,
    pub was_write: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictKind {
    Race,
    /// It is a write that has not completed.
    InFlight,
    /// It is ordered, but the asynchronous proxy does not see it.
    Proxy,
}
