//! Group normalisation on GPUs.
//!
//! Where groups fit on chip, a pass is one kernel, whose CTAs have slabs of an image ([`slab`]): the forward pass
//! ([`whole`]) reads x and writes y, the backward pass ([`whole_backward`]) reads dy and x and writes dx, each once.
//!
//! Elsewhere images are cut into blocks of pixels and tiles of channels ([`walk`]); every row of a tile is whole sectors of
//! memory, whatever a group's width. The forward pass reads x for its moments, merges the blocks' moments ([`merging`]) to
//! each group's (count, mean, sum of squared distances from the mean: never E[x²] − m²), and reads x again to write y: two
//! reads and one write. The backward pass has the same shape.
//!
//! What every pixel of a channel needs is read from memory by one thread of a CTA, and by the others on chip.

mod affine;
pub mod backward;
pub mod forward;
mod merging;
mod slab;
#[cfg(test)]
mod tests;
mod walk;
pub mod whole;
pub mod whole_backward;

use super::GroupNorm;
use crate::ops::variants::{Refused, count};
use crate::ptx::{Assembler, Storage, U32, Value};
use affine::{Affine, Coefficients, OfChannels, sigmoid};
use merging::Merging;
use slab::Slab;
use walk::Walk;

/// Chunks of channels beside each other that a CTA treats: 128 bytes of a row where chunks are whole.
const COLUMNS: u32 = 8;
/// Rows of threads of a CTA.
const ROWS: u32 = 32;
/// Pixels of a block. Its partial sums are less than 2 % of what it reads.
const PIXELS: u32 = 256;
/// Threads of a CTA.
const THREADS: u32 = COLUMNS * ROWS;
/// Warps of a CTA.
const WARPS: u32 = THREADS / 32;

/// How a tensor's channels lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    pub storage: Storage,
    /// Whether every row starts at a multiple of 16 bytes, so that threads can treat whole chunks.
    pub aligned: bool,
}

impl Channels {
    fn all() -> Vec<Channels> {
        let both = |storage| [true, false].map(|aligned| Channels { storage, aligned });
        Storage::ALL.into_iter().flat_map(both).collect()
    }

    fn label(self) -> String {
        let aligned = if self.aligned { "aligned" } else { "any" };
        format!("{}_{aligned}", self.storage.name())
    }

    /// Channels that a thread treats.
    fn width(self) -> u32 {
        if self.aligned {
            self.storage.chunk()
        } else {
            1
        }
    }

    /// Channels that a CTA treats.
    fn tile(self) -> u32 {
        self.width() * COLUMNS
    }
}

/// The numbers of a launch, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub channels: Channels,
    /// Grid of the kernels that walk through pixels: blocks, tiles of channels, images.
    pub pixels_grid: [u32; 3],
    /// Grid of the kernels that merge blocks: groups, images.
    pub groups_grid: [u32; 3],
    /// Groups that a CTA of these has.
    pub groups_beside: usize,
    /// Grid of the kernel that sums over images.
    pub channels_grid: [u32; 3],
    /// f32 of the blocks' partial sums: scratch memory between the kernels.
    pub partials: usize,
    /// f32 of the images' sums in the backward pass.
    pub totals: usize,
}

/// The sizes of a descriptor's launches.
///
/// # Errors
/// If the channels do not fall into groups, or there is more of anything than kernels count.
pub fn sizes(d: &GroupNorm, storage: Storage) -> Result<Sizes, Refused> {
    if d.groups == 0 || !d.c.is_multiple_of(d.groups) {
        return Err(Refused(format!(
            "{} channels do not fall into {} groups",
            d.c, d.groups
        )));
    }
    let elements = d.n.saturating_mul(d.pixels).saturating_mul(d.c);
    count(elements, "the number of elements")?;
    let channels = Channels {
        storage,
        aligned: d.c.is_multiple_of(storage.chunk() as usize),
    };
    let blocks = d.pixels.div_ceil(PIXELS as usize);
    let tiles = d.c.div_ceil(channels.tile() as usize);
    // What a grid counts along y and z.
    for (n, what) in [(tiles, "tiles of channels"), (d.n, "images")] {
        if n > 65_535 {
            return Err(Refused(format!(
                "{n} {what}, more than the 65535 of a grid"
            )));
        }
    }
    let partials = d.n * blocks * 2 * d.c;
    count(partials, "the number of partial sums")?;
    let beside = merging::beside(d.c / d.groups);
    Ok(Sizes {
        channels,
        pixels_grid: [blocks as u32, tiles as u32, d.n as u32],
        groups_grid: [d.groups.div_ceil(beside) as u32, d.n as u32, 1],
        groups_beside: beside,
        channels_grid: [d.c.div_ceil(THREADS as usize) as u32, 1, 1],
        partials,
        totals: d.n * 2 * d.c,
    })
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut greatest_divisor, mut rest) = (a, b);
    while rest > 0 {
        (greatest_divisor, rest) = (rest, greatest_divisor % rest);
    }
    a / greatest_divisor * b
}

/// The numbers that every kernel here is passed, in this order.
#[derive(Clone, Copy)]
struct Extents<'k> {
    pixels: Value<'k, U32>,
    c: Value<'k, U32>,
    groups: Value<'k, U32>,
}

impl<'k> Extents<'k> {
    fn parameters(k: &'k Assembler) -> Extents<'k> {
        let [pixels, c, groups] = ["pixels", "c", "groups"].map(|name| k.parameter::<U32>(name));
        Extents { pixels, c, groups }
    }

    /// Channels of a group.
    fn width(self) -> Value<'k, U32> {
        self.c / self.groups
    }

    fn blocks(self) -> Value<'k, U32> {
        (self.pixels + (PIXELS - 1)) / PIXELS
    }

    /// Where the first of a block's two sums for channel 0 lies among the partial sums.
    fn partial(self, image: Value<'k, U32>, block: Value<'k, U32>) -> Value<'k, U32> {
        (image * self.blocks() + block) * 2 * self.c
    }
}
