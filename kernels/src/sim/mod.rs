//! The simulated GPU: executes PTX text on the CPU, stricter than hardware, and counts what a profiler would.
//!
//! What hardware leaves to luck is an error here: reading what nobody wrote, races by happens-before (between lanes,
//! warps and CTAs), touching what an asynchronous operation owns, missing proxy fences, divergence where the warp must
//! be together, accesses out of bounds or misaligned, deadlock. Asynchronous work completes as late as the program
//! allows, or as early; warps run in a seeded random order. Results are the same bits on any number of host threads.
//!
//! Not simulated: local memory, calls, textures, im2col tensor maps, cache policies, and time.

pub mod error;
mod exec;
mod main_part;
mod matrix;
mod memory;
mod parse;
mod profile;
mod program;
mod race;
mod run;
mod team;
pub mod truth;

pub use error::{Error, Rule, Threads};
pub use profile::{BufferProfile, Counts, LineProfile, Profile};
pub use program::Class;
pub use run::{parameters, run};

use crate::launch::Arch;

/// SMs of the simulated GPU: CTAs (or clusters) that are resident together, where CTAs wait for one another.
pub const SM_COUNT: u32 = 132;

/// When asynchronous copies and matrix instructions take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// At the wait: what a kernel may count on.
    Late,
    /// At once: what a fast machine may do.
    Early,
}

/// How to simulate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Chooses the order of warps.
    pub seed: u64,
    pub completion: Completion,
    /// Instructions that one warp may issue, so that a loop that never ends is an error.
    pub max_warp_instructions: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            seed: 0,
            completion: Completion::Late,
            max_warp_instructions: 1 << 28,
        }
    }
}

/// A launch's geometry, checked.
#[derive(Clone, Debug)]
struct Grid {
    arch: Arch,
    ctas: [u32; 3],
    block: [u32; 3],
    cluster: [u32; 3],
    /// Threads of a CTA, and the warps they fill.
    threads: u32,
    warps: u32,
    /// Shared memory of a CTA in bytes: all of it, and the dynamic part.
    shared_bytes: u32,
    dynamic_shared: u32,
}

impl Grid {
    fn cluster_ctas(&self) -> u32 {
        self.cluster.iter().product()
    }

    /// Clusters, or CTAs where there are no clusters.
    fn teams(&self) -> u32 {
        let all: u64 = self.ctas.iter().map(|&n| u64::from(n)).product();
        (all / u64::from(self.cluster_ctas())) as u32
    }

    fn team_warps(&self) -> usize {
        (self.warps * self.cluster_ctas()) as usize
    }

    /// Warps of a team, and the engines that clocks keep beside them.
    fn team_clock_warps(&self) -> usize {
        self.team_warps() + exec::ENGINE_WARPS
    }

    /// The CTA of `rank` in `team`.
    fn cta(&self, team: u32, rank: u32) -> [u32; 3] {
        let mut index = [0; 3];
        let (mut team, mut rank) = (team, rank);
        for (axis, index) in index.iter_mut().enumerate() {
            let clusters = self.ctas[axis] / self.cluster[axis];
            *index = team % clusters * self.cluster[axis] + rank % self.cluster[axis];
            team /= clusters;
            rank /= self.cluster[axis];
        }
        index
    }
}

#[cfg(test)]
mod tests;
