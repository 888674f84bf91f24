//! What a profiler would count: instructions, bytes, sectors, bank conflicts, floating-point operations.

use std::fmt;

use super::program::{Class, Program};

/// Bytes that global memory moves at once.
pub const SECTOR: u64 = 32;

/// Counts of one instruction of the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Times a warp issued it.
    pub warps: u64,
    /// Lanes that took part.
    pub lanes: u64,
    /// Warp-wide requests to memory.
    pub requests: u64,
    /// 32-byte sectors that the global requests touched.
    pub sectors: u64,
    /// Fewest sectors that the bytes of each request would fit in.
    pub least_sectors: u64,
    /// Bytes that lanes asked for.
    pub bytes: u64,
    /// Passes through the banks of shared memory.
    pub wavefronts: u64,
    /// Fewest passes that the width of each access allows.
    pub least_wavefronts: u64,
    /// Tensor-core operations, a multiply and an add counted as two.
    pub matrix_flops: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Counts) {
        self.warps += other.warps;
        self.lanes += other.lanes;
        self.requests += other.requests;
        self.sectors += other.sectors;
        self.least_sectors += other.least_sectors;
        self.bytes += other.bytes;
        self.wavefronts += other.wavefronts;
        self.least_wavefronts += other.least_wavefronts;
        self.matrix_flops += other.matrix_flops;
    }
}

/// Counts of one line of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineProfile {
    pub line: u32,
    pub class: Class,
    pub counts: Counts,
}

/// Bytes of one buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferProfile {
    /// `argument 2`, or the variable's name.
    pub name: String,
    pub bytes: u64,
    /// Bytes that were read at least once.
    pub read: u64,
    /// Bytes that were written at least once.
    pub written: u64,
}

/// What one launch did. The same kernel, launch and seed give the same profile, on any number of threads.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Profile {
    /// In the order of the text.
    pub lines: Vec<LineProfile>,
    /// Buffer arguments in order, then the module's variables.
    pub buffers: Vec<BufferProfile>,
    /// Shared memory of a CTA, static and dynamic, in bytes.
    pub shared_bytes: u32,
    pub ctas: u64,
}

impl Profile {
    pub(super) fn new(program: &Program, counts: &[Counts]) -> Profile {
        let lines = program.instructions.iter().zip(counts);
        let lines = lines
            .filter(|(_, counts)| counts.warps > 0)
            .map(|(instruction, counts)| LineProfile {
                line: instruction.line,
                class: instruction.class,
                counts: *counts,
            })
            .collect();
        Profile {
            lines,
            ..Profile::default()
        }
    }

    /// Everything together.
    pub fn total(&self) -> Counts {
        self.sum(|_| true)
    }

    /// One class of instructions.
    pub fn class(&self, class: Class) -> Counts {
        self.sum(|line| line.class == class)
    }

    fn sum(&self, keep: impl Fn(&LineProfile) -> bool) -> Counts {
        let mut total = Counts::default();
        for line in self.lines.iter().filter(|line| keep(line)) {
            total.add(&line.counts);
        }
        total
    }

    /// Bytes of global memory read at least once.
    pub fn unique_read(&self) -> u64 {
        self.buffers.iter().map(|b| b.read).sum()
    }

    /// Bytes of global memory written at least once.
    pub fn unique_written(&self) -> u64 {
        self.buffers.iter().map(|b| b.written).sum()
    }

    /// Bytes moved from or to global memory in whole sectors, as if nothing were cached.
    pub fn moved_bytes(&self) -> u64 {
        self.total().sectors * SECTOR
    }

    /// Passes through shared memory's banks beyond the fewest possible, by line; lines without any are left out.
    pub fn bank_conflicts(&self) -> Vec<(u32, u64)> {
        self.lines
            .iter()
            .map(|l| (l.line, l.counts.wavefronts - l.counts.least_wavefronts))
            .filter(|&(_, conflicts)| conflicts > 0)
            .collect()
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total();
        writeln!(
            f,
            "{} CTAs, {} B shared memory each, {} warp instructions, {} lane instructions",
            self.ctas, self.shared_bytes, total.warps, total.lanes
        )?;
        for class in Class::ALL {
            let counts = self.class(class);
            if counts.warps > 0 {
                let share = 100.0 * counts.warps as f64 / total.warps as f64;
                writeln!(
                    f,
                    "  {:<18} {:>12}  {share:5.1} %",
                    class.name(),
                    counts.warps
                )?;
            }
        }
        if total.matrix_flops > 0 {
            writeln!(f, "tensor cores: {} FLOP", total.matrix_flops)?;
        }
        writeln!(
            f,
            "global memory: {} B read and {} B written at least once, {} B moved in sectors",
            self.unique_read(),
            self.unique_written(),
            self.moved_bytes()
        )?;
        for buffer in &self.buffers {
            writeln!(
                f,
                "  {:<18} {:>12} B: {} read, {} written",
                buffer.name, buffer.bytes, buffer.read, buffer.written
            )?;
        }
        for line in &self.lines {
            let c = &line.counts;
            if c.sectors > 0 {
                writeln!(
                    f,
                    "  line {:>5} {:<14} {:>10} requests, {:.2} sectors each ({:.2} at least)",
                    line.line,
                    line.class.name(),
                    c.requests,
                    c.sectors as f64 / c.requests as f64,
                    c.least_sectors as f64 / c.requests as f64
                )?;
            }
        }
        let conflicts = self.bank_conflicts();
        if conflicts.is_empty() {
            return writeln!(f, "shared memory: no bank conflicts");
        }
        for (line, extra) in conflicts {
            writeln!(
                f,
                "  line {line:>5} {extra} extra passes through shared memory's banks"
            )?;
        }
        Ok(())
    }
}
