//! How the kernels that read images more than once walk through their pixels.

use super::*;
use crate::ptx::{F32, Pred};

/// What a thread of a CTA that walks through pixels treats: some channels of every 32nd pixel of a block.
#[derive(Clone, Copy)]
pub(super) struct Walk<'k> {
    pub k: &'k Assembler,
    pub extents: Extents<'k>,
    pub image: Value<'k, U32>,
    pub block: Value<'k, U32>,
    /// The thread's column and row of the CTA.
    pub column: Value<'k, U32>,
    row: Value<'k, U32>,
    /// The first of its channels, and how many it has.
    channel: Value<'k, U32>,
    pub width: u32,
}

impl<'k> Walk<'k> {
    pub fn new(k: &'k Assembler, channels: Channels, extents: Extents<'k>) -> Walk<'k> {
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

    /// Channels that the CTA treats.
    fn tile(self) -> u32 {
        COLUMNS * self.width
    }

    /// Whether the thread's channels exist: all of them, or none.
    pub fn exists(self) -> Value<'k, Pred> {
        self.channel.lt(self.extents.c)
    }

    /// Calls `body` in one thread for each of the CTA's channels, with the channel's number in the tile and in the image.
    pub fn for_each_channel(self, body: impl FnOnce(Value<'k, U32>, Value<'k, U32>)) {
        let (here, tile) = (self.k.thread_x(), self.tile());
        let channel = self.k.cta_y() * tile + here;
        self.k.if_(here.lt(tile) & channel.lt(self.extents.c), || {
            body(here, channel);
        });
    }

    /// What `make` makes of each of the CTA's channels, which one thread calls it with. A barrier is among it.
    pub fn of_channels<const N: usize>(
        self,
        make: impl FnOnce(Value<'k, U32>) -> [Value<'k, F32>; N],
    ) -> OfChannels<'k, N> {
        let arrays = [(); N].map(|()| self.k.shared_array::<F32>(self.tile()));
        let numbers = OfChannels::new(arrays, Value::from_bits(COLUMNS.into()), self.width);
        self.for_each_channel(|here, channel| numbers.put(here, make(channel)));
        self.k.barrier();
        numbers
    }

    /// The first of this thread's elements in a pixel of its image.
    fn element(self, pixel: Value<'k, U32>) -> Value<'k, U32> {
        let pixel = self.image * self.extents.pixels + pixel;
        pixel * self.extents.c + self.channel
    }

    /// Calls `body` with the first of this thread's elements in each of its pixels, unless its channels do not exist.
    pub fn for_each_pixel(self, body: impl Fn(Value<'k, U32>)) {
        let k = self.k;
        k.if_(self.exists(), || {
            let first = self.block * PIXELS;
            let end = (first + PIXELS).min(self.extents.pixels);
            k.for_(first + self.row, end, ROWS, |pixel| {
                body(self.element(pixel))
            });
        });
    }
}
