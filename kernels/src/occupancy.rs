//! How many CTAs of a kernel an SM holds at once, and what keeps it from holding more.

use std::fmt;

use crate::launch::Arch;

/// Warps that an SM has room for.
const WARPS: u32 = 64;
/// CTAs that an SM has room for.
const CTAS: u32 = 32;
/// Registers of an SM, and the unit in which a warp is given them.
const REGISTERS: u32 = 65_536;
const REGISTER_UNIT: u32 = 256;
/// Shared memory that every CTA takes for the system, and the unit in which it is given, in bytes.
const SYSTEM_SHARED: u32 = 1024;
const SHARED_UNIT: u32 = 128;

/// What an SM runs out of first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Warps,
    Ctas,
    Registers,
    SharedMemory,
}

/// The CTAs of one kernel on one SM, by the limits of compute capability 8.0 and 9.0 (CUDA C++ Programming Guide,
/// "Technical Specifications per Compute Capability").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    pub ctas: u32,
    /// Warps of all of them, of the 64 that an SM has room for.
    pub warps: u32,
    pub limit: Limit,
}

impl Occupancy {
    /// For CTAs of `threads` threads with so many registers each, and `shared_bytes` of shared memory.
    pub fn new(arch: Arch, threads: u32, registers: u32, shared_bytes: u32) -> Occupancy {
        let warps = threads.div_ceil(32).max(1);
        let of_warp = (registers.max(1) * 32).next_multiple_of(REGISTER_UNIT);
        let of_cta = (shared_bytes + SYSTEM_SHARED).next_multiple_of(SHARED_UNIT);
        // One CTA may have all of an SM's shared memory but the system's part.
        let shared = arch.max_shared_bytes() + SYSTEM_SHARED;
        let limits = [
            (WARPS / warps, Limit::Warps),
            (CTAS, Limit::Ctas),
            (REGISTERS / of_warp / warps, Limit::Registers),
            (shared / of_cta, Limit::SharedMemory),
        ];
        // The first one where several are equal.
        let (ctas, limit) = limits.into_iter().min_by_key(|l| l.0).unwrap_or(limits[0]);
        Occupancy {
            ctas,
            warps: ctas * warps,
            limit,
        }
    }
}

impl fmt::Display for Occupancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = match self.limit {
            Limit::Warps => "warps",
            Limit::Ctas => "CTAs",
            Limit::Registers => "registers",
            Limit::SharedMemory => "shared memory",
        };
        write!(
            f,
            "{} CTAs an SM, {} of {WARPS} warps, limited by {limit}",
            self.ctas, self.warps
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against NVIDIA's occupancy calculator.
    #[test]
    fn limits_are_those_of_the_hardware() {
        let of = |threads, registers, shared| {
            let o = Occupancy::new(Arch::Sm80, threads, registers, shared);
            (o.ctas, o.warps, o.limit)
        };
        assert_eq!(of(256, 32, 0), (8, 64, Limit::Warps));
        assert_eq!(of(32, 16, 0), (32, 32, Limit::Ctas));
        assert_eq!(of(256, 128, 0), (2, 16, Limit::Registers));
        assert_eq!(of(128, 32, 48 * 1024), (3, 12, Limit::SharedMemory));
        assert_eq!(of(1024, 255, 0).0, 0);
        let hopper = Occupancy::new(Arch::Sm90a, 128, 32, 48 * 1024);
        assert_eq!(hopper.ctas, 4);
    }
}
