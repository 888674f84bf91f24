//! What a kernel launch is, for the simulated GPU and for a driver alike: PTX text, a grid, and arguments.
//!
//! A kernel may touch only the buffers that were passed to it, and only as it was allowed to; the simulator
//! ([`crate::sim`]) enforces that, and a driver turns the same list into device addresses. Nothing here runs anything.

use std::fmt;

/// Alignment that every buffer argument's address has on a device, simulated or not, in bytes.
///
/// Kernels may derive the alignment of vector accesses from it.
pub const BUFFER_ALIGNMENT: u64 = 256;

/// The instruction set that a kernel was written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// Ampere, and by the driver's compiler every GPU since: `mma.sync`, `ldmatrix`, `cp.async`.
    Sm80,
    /// Hopper only: `wgmma`, TMA, `mbarrier` transactions, `setmaxnreg`, clusters.
    Sm90a,
}

impl Arch {
    /// The operand of `.target`.
    pub fn target(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm90a => "sm_90a",
        }
    }

    /// The operand of `.version`: the oldest PTX ISA that has the arch's instructions, for the oldest drivers.
    pub fn ptx_version(self) -> &'static str {
        match self {
            Arch::Sm80 => "7.8",
            Arch::Sm90a => "8.0",
        }
    }

    /// Shared memory that one CTA may ask for, static and dynamic together, in bytes.
    pub fn max_shared_bytes(self) -> u32 {
        match self {
            Arch::Sm80 => 163 * 1024,
            Arch::Sm90a => 227 * 1024,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.target())
    }
}

/// One kernel as it would be given to a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The `.entry` to run.
    pub name: String,
    pub arch: Arch,
    /// A whole PTX module that holds the entry.
    pub text: String,
}

/// How often a kernel runs, and with how much memory: in CTAs, threads and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// CTAs along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a CTA along x, y, z.
    pub block: [u32; 3],
    /// CTAs of a cluster along x, y, z; `[1; 3]` without clusters.
    pub cluster: [u32; 3],
    /// Dynamic shared memory (`.extern .shared`) of a CTA, in bytes.
    pub shared_bytes: u32,
}

impl Launch {
    /// `grid` CTAs of `block` threads along x, no clusters, no dynamic shared memory.
    pub fn linear(grid: u32, block: u32) -> Launch {
        Launch {
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            cluster: [1; 3],
            shared_bytes: 0,
        }
    }

    /// Threads of a CTA.
    pub fn threads(&self) -> u64 {
        self.block.iter().map(|&n| u64::from(n)).product()
    }

    /// CTAs of the grid; saturates, so that an absurd grid can still be refused by size.
    pub fn ctas(&self) -> u64 {
        self.grid
            .iter()
            .fold(1u64, |n, &d| n.saturating_mul(u64::from(d)))
    }
}

/// What one `.param` of the entry is given, in the entry's order.
///
/// A buffer becomes a `u64` address aligned to [`BUFFER_ALIGNMENT`]. Buffers of one launch do not overlap.
#[derive(Debug)]
pub enum Argument<'a> {
    /// A buffer that the kernel only reads.
    Read(&'a [u8]),
    /// A buffer whose contents are undefined before the kernel writes them. What it wrote it may read back.
    Write(&'a mut [u8]),
    /// A buffer that the kernel reads and writes.
    Update(&'a mut [u8]),
    /// A null address, where an optional operand is absent. Touching it is an error.
    Null,
    U32(u32),
    I32(i32),
    F32(f32),
    U64(u64),
    /// A parameter of its own type, passed by value: `.param .align N .b8 name[bytes]`.
    Bytes(&'a [u8]),
    /// A tensor map for `cp.async.bulk.tensor`, passed by value: `.param .align 64 .b8 name[128]`.
    TensorMap(TensorMap),
}

/// A tile-mode tensor map: what `cuTensorMapEncodeTiled` encodes, with unit element strides, no interleave, and zero
/// fill outside the tensor. Every list starts with the innermost dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Index, in the launch's argument list, of the buffer that holds the tensor.
    pub buffer: usize,
    /// Where in the buffer the tensor starts, in bytes; a multiple of 16.
    pub offset: u64,
    pub element: MapElement,
    /// Elements along each dimension: 1 to 5 of them, each at least 1.
    pub dims: Vec<u64>,
    /// Bytes from one index to the next along each dimension but the innermost: multiples of 16.
    pub strides: Vec<u64>,
    /// Elements of the box along each dimension: 1 to 256.
    pub tile: Vec<u32>,
    pub swizzle: Swizzle,
}

/// Element type of a [`TensorMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapElement {
    U8,
    U16,
    U32,
    F16,
    Bf16,
    F32,
}

impl MapElement {
    pub fn bytes(self) -> u64 {
        match self {
            MapElement::U8 => 1,
            MapElement::U16 | MapElement::F16 | MapElement::Bf16 => 2,
            MapElement::U32 | MapElement::F32 => 4,
        }
    }
}

/// How a box's 16-byte chunks are permuted in shared memory: bits of the chunk's index within the span are XORed with
/// address bits 7 and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    None,
    /// One bit: `a ^ ((a >> 3) & 0x10)`.
    B32,
    /// Two bits: `a ^ ((a >> 3) & 0x30)`.
    B64,
    /// Three bits: `a ^ ((a >> 3) & 0x70)`.
    B128,
}

impl Swizzle {
    /// Where a byte that would lie at `address` without swizzling lies.
    #[inline]
    pub fn apply(self, address: u32) -> u32 {
        let mask = match self {
            Swizzle::None => 0,
            Swizzle::B32 => 0x10,
            Swizzle::B64 => 0x30,
            Swizzle::B128 => 0x70,
        };
        address ^ ((address >> 3) & mask)
    }

    /// Bytes along a box's innermost dimension that one permutation covers: the dimension's largest extent.
    pub fn span(self) -> Option<u32> {
        match self {
            Swizzle::None => None,
            Swizzle::B32 => Some(32),
            Swizzle::B64 => Some(64),
            Swizzle::B128 => Some(128),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swizzles_permute_the_chunks_of_eight_rows() {
        for (swizzle, rows) in [(Swizzle::B32, 2), (Swizzle::B64, 4), (Swizzle::B128, 8)] {
            let mut seen: Vec<u32> = (0..1024 / 16).map(|i| swizzle.apply(i * 16) / 16).collect();
            // Along a column of chunks, `rows` rows of 128 bytes lie in different chunks.
            let column: Vec<u32> = (0..8).map(|r| swizzle.apply(r * 128) % 128).collect();
            let mut distinct = column.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), rows);
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..64));
        }
    }

    #[test]
    fn absurd_grids_saturate() {
        let launch = Launch {
            grid: [u32::MAX; 3],
            ..Launch::linear(1, 32)
        };
        assert_eq!(launch.ctas(), u64::MAX);
        assert_eq!(launch.threads(), 32);
    }
}
