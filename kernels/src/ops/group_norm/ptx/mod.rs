//! Group normalisation on GPUs.
//!
//! Images are cut into blocks of pixels and tiles of channels; every row of a tile is whole sectors of memory, whatever a
//! group's width. Where groups fit on chip, the forward pass is one kernel ([`whole`]): one read and one write. Else it reads
//! x for its moments, merges the blocks' moments to each group's (count, mean, sum of squared distances from the mean: never
//! E[x²] − m²), and reads x again to write y: two reads and one write. The backward pass has the latter shape.

pub mod backward;
pub mod forward;
#[cfg(test)]
mod tests;
pub mod whole;

use super::GroupNorm;
use crate::ops::variants::{Refused, count};
use crate::ptx::{Assembler, F32, Fast, Floats, Global, Pointer, Storage, U32, Value};
use crate::real::Real;

/// Chunks of channels beside each other that a CTA treats: 128 bytes of a row where chunks are whole.
const COLUMNS: u32 = 8;
/// Rows of threads of a CTA.
const ROWS: u32 = 32;
/// Pixels of a block. Its partial sums are less than 2 % of what it reads.
const PIXELS: u32 = 256;
/// Threads of a CTA.
const THREADS: u32 = COLUMNS * ROWS;
/// Groups that a CTA of the merging kernels treats: one a warp.
const WARPS: u32 = 4;

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
    /// Grid of the kernels that merge blocks.
    pub groups_grid: [u32; 3],
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
    Ok(Sizes {
        channels,
        pixels_grid: [blocks as u32, tiles as u32, d.n as u32],
        groups_grid: [(d.n * d.groups).div_ceil(WARPS as usize) as u32, 1, 1],
        channels_grid: [d.c.div_ceil(THREADS as usize) as u32, 1, 1],
        partials,
        totals: d.n * 2 * d.c,
    })
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

/// What a thread of a CTA that walks through pixels treats: some channels of every 32nd pixel of a block.
#[derive(Clone, Copy)]
struct Walk<'k> {
    k: &'k Assembler,
    extents: Extents<'k>,
    image: Value<'k, U32>,
    block: Value<'k, U32>,
    /// The thread's column and row of the CTA.
    column: Value<'k, U32>,
    row: Value<'k, U32>,
    /// The first of its channels, and how many it has.
    channel: Value<'k, U32>,
    width: u32,
}

impl<'k> Walk<'k> {
    fn new(k: &'k Assembler, channels: Channels, extents: Extents<'k>) -> Walk<'k> {
        k.comment("the CTA's block and channels, and this thread's among them");
        // Registers for a chunk's coefficients: ptxas would rather spill some to fit more CTAs.
        k.min_ctas(2);
        let width = channels.width();
        extents.c.assume_multiple_of(width.into());
        let (column, row) = (k.thread_x() % COLUMNS, k.thread_x() / COLUMNS);
        Walk {
            k,
            extents,
            image: k.cta_z(),
            block: k.cta_x(),
            column,
            row,
            channel: (k.cta_y() * COLUMNS + column) * width,
            width,
        }
    }

    /// The first of this thread's elements in a pixel of its image.
    fn element(self, pixel: Value<'k, U32>) -> Value<'k, U32> {
        let pixel = self.image * self.extents.pixels + pixel;
        pixel * self.extents.c + self.channel
    }

    /// Calls `body` with the first of this thread's elements in each of its pixels, unless its channels do not exist.
    fn for_each_pixel(self, body: impl Fn(Value<'k, U32>)) {
        let k = self.k;
        k.if_(self.channel.lt(self.extents.c), || {
            let first = self.block * PIXELS;
            let end = (first + PIXELS).min(self.extents.pixels);
            k.for_(first + self.row, end, ROWS, |pixel| {
                body(self.element(pixel))
            });
        });
    }
}

/// The operands that say how an image's channels are normalised.
#[derive(Clone, Copy)]
struct Affine<'k> {
    mean: Pointer<'k, Global, F32>,
    rstd: Pointer<'k, Global, F32>,
    gamma: Floats<'k>,
    beta: Floats<'k>,
    /// [n, 2·c], or absent.
    scale_shift: Floats<'k>,
}

impl<'k> Affine<'k> {
    fn parameters(k: &'k Assembler, storage: Storage) -> Affine<'k> {
        Affine {
            mean: k.buffer("mean").read_only(),
            rstd: k.buffer("rstd").read_only(),
            gamma: k.floats(storage, "gamma").read_only(),
            beta: k.floats(storage, "beta").read_only(),
            scale_shift: k.floats(storage, "scale_shift").read_only(),
        }
    }

    /// 1 + scale and shift of the channels from `channel` on; 1 and 0 without them.
    fn scale_shift(
        self,
        k: &'k Assembler,
        c: Value<'k, U32>,
        image: Value<'k, U32>,
        channel: Value<'k, U32>,
        width: u32,
    ) -> Vec<[Value<'k, F32>; 2]> {
        let pairs: Vec<_> = (0..width)
            .map(|_| [k.variable(1.0f32), k.variable(0.0f32)])
            .collect();
        k.if_(self.scale_shift.is_present(), || {
            let scales = self.scale_shift.at(image * 2 * c + channel);
            let shifts = scales.at(c).load_span(width);
            for (([one_plus, shift_by], scale), shift) in
                pairs.iter().zip(scales.load_span(width)).zip(shifts)
            {
                one_plus.set(scale + 1.0);
                shift_by.set(shift);
            }
        });
        pairs.iter().map(|pair| pair.map(|v| v.get())).collect()
    }
}

/// What one channel needs: z = (x − mean)·a + b.
#[derive(Clone, Copy)]
struct Coefficients<'k> {
    mean: Value<'k, F32>,
    a: Value<'k, F32>,
    b: Value<'k, F32>,
    /// The number of its group among all images' groups.
    group: Value<'k, U32>,
}

impl<'k> Coefficients<'k> {
    /// Of the thread's channels; only where they exist.
    fn load(walk: Walk<'k>, affine: Affine<'k>) -> Vec<Coefficients<'k>> {
        let first = walk.image * walk.extents.groups;
        Coefficients::with(walk, affine, |group| {
            [affine.mean, affine.rstd].map(|of| of.at(first + group).load())
        })
    }

    /// With the mean and rstd of each of the image's groups from elsewhere.
    fn with(
        walk: Walk<'k>,
        affine: Affine<'k>,
        statistics: impl Fn(Value<'k, U32>) -> [Value<'k, F32>; 2],
    ) -> Vec<Coefficients<'k>> {
        let Walk {
            k,
            extents,
            image,
            channel,
            width,
            ..
        } = walk;
        k.comment("z = (x - mean) * a + b");
        let gamma = affine.gamma.at(channel).load_span(width);
        let beta = affine.beta.at(channel).load_span(width);
        let scale_shift = affine.scale_shift(k, extents.c, image, channel, width);
        let group_width = extents.width();
        let channels = (0..width).zip(gamma).zip(beta).zip(scale_shift);
        channels
            .map(|(((i, gamma), beta), [scale, shift])| {
                let group = (channel + i) / group_width;
                let [mean, rstd] = statistics(group);
                Coefficients {
                    mean,
                    a: rstd * gamma * scale,
                    b: beta.mul_add(scale, shift),
                    group: image * extents.groups + group,
                }
            })
            .collect()
    }
}

/// z·σ(z) and its like: as exact as the storage deserves.
fn sigmoid<'k>(storage: Storage, z: Value<'k, F32>) -> Value<'k, F32> {
    match storage {
        Storage::F32 => z.sigmoid(),
        Storage::Bf16 => Fast(z).sigmoid().0,
    }
}
