//! Patches of an image as the left operand of a product: row (image, i, j) holds
//! x[image, i·stride + u − padding_h, j·stride + v − padding_w, c] at column (u·kernel_w + v)·c_in + c, zero outside of the
//! image. They exist in shared memory only, a slice of the columns at a time.
//!
//! A spread image has `spread` − 1 zeros between its pixels, which exist nowhere either.

use crate::ops::matmul::ptx::Tiling;
use crate::ops::matmul::ptx::operand::{Element, Side, Slices};
use crate::ptx::{Assembler, B32, Global, IntoValue, Pointer, Pred, U32, Value, Variable};

/// The numbers of a convolution, as its kernel gets them.
#[derive(Clone, Copy)]
pub struct Sizes<'k> {
    pub n: Value<'k, U32>,
    pub h: Value<'k, U32>,
    pub w: Value<'k, U32>,
    pub c_in: Value<'k, U32>,
    pub c_out: Value<'k, U32>,
    pub kernel_h: Value<'k, U32>,
    pub kernel_w: Value<'k, U32>,
    pub stride: Value<'k, U32>,
    pub padding_h: Value<'k, U32>,
    pub padding_w: Value<'k, U32>,
    pub spread: Value<'k, U32>,
    pub out_h: Value<'k, U32>,
    pub out_w: Value<'k, U32>,
}

impl<'k> Sizes<'k> {
    /// Declares them among the parameters.
    pub fn new(k: &'k Assembler) -> Sizes<'k> {
        let size = |name| k.parameter::<U32>(name);
        Sizes {
            n: size("n"),
            h: size("h"),
            w: size("w"),
            c_in: size("c_in"),
            c_out: size("c_out"),
            kernel_h: size("kernel_h"),
            kernel_w: size("kernel_w"),
            stride: size("stride"),
            padding_h: size("padding_h"),
            padding_w: size("padding_w"),
            spread: size("spread"),
            out_h: size("out_h"),
            out_w: size("out_w"),
        }
    }

    /// Rows of the patches.
    pub fn pixels(&self) -> Value<'k, U32> {
        self.n * self.out_h * self.out_w
    }

    /// Their columns.
    pub fn depth(&self) -> Value<'k, U32> {
        self.kernel_h * self.kernel_w * self.c_in
    }
}

/// A column of the patches.
#[derive(Clone, Copy)]
struct Column<'k> {
    u: Value<'k, U32>,
    v: Value<'k, U32>,
    channel: Value<'k, U32>,
}

/// The same, as patches are read.
struct Reach<'k> {
    u: Value<'k, U32>,
    v: Value<'k, U32>,
    /// Elements from a patch's start; of a spread image, from a pixel's.
    offset: Value<'k, U32>,
    exists: Value<'k, Pred>,
}

/// Where a row's patch begins. Coordinates wrap below zero, so that one unsigned comparison finds what is outside.
#[derive(Clone, Copy)]
struct Pixel<'k> {
    h: Value<'k, U32>,
    w: Value<'k, U32>,
    /// The element of channel 0 there; of a spread image, the first row of the image.
    start: Value<'k, U32>,
}

/// The patches of a CTA's output pixels.
pub struct Patches<'k, E: Element> {
    pub slices: Slices<'k, E>,
    x: Pointer<'k, Global, E>,
    sizes: Sizes<'k>,
    aligned: bool,
    spread: bool,
    /// Of each of this thread's chunks.
    pixels: Vec<Pixel<'k>>,
    /// The first column of this thread's chunks in the next slice.
    u: Variable<'k, U32>,
    v: Variable<'k, U32>,
    channel: Variable<'k, U32>,
    /// Columns of a slice.
    width: u32,
}

impl<'k, E: Element> Patches<'k, E> {
    /// From output pixel `first` on. `aligned` promises that no chunk belongs to two taps; where not `spread`, the image
    /// is not.
    pub fn new(
        k: &'k Assembler,
        [aligned, spread]: [bool; 2],
        tiling: Tiling,
        x: Pointer<'k, Global, E>,
        sizes: Sizes<'k>,
        first: Value<'k, U32>,
    ) -> Patches<'k, E> {
        let slices = Slices::<E>::new(k, Side::A, true, tiling);
        k.comment("the pixels of this thread's chunks");
        let pixels = (0..slices.chunks)
            .map(|i| {
                let pixel = first + slices.row + i * slices.rows_apart;
                let (row, j) = (pixel / sizes.out_w, pixel % sizes.out_w);
                let (image, i) = (row / sizes.out_h, row % sizes.out_h);
                let h = i * sizes.stride - sizes.padding_h;
                let w = j * sizes.stride - sizes.padding_w;
                let start = match spread {
                    true => image * sizes.h,
                    false => ((image * sizes.h + h) * sizes.w + w) * sizes.c_in,
                };
                // Beyond the last pixel, a row that no tap can bring back into the image.
                let h = pixel.lt(sizes.pixels()).select(h, 1 << 31);
                Pixel { h, w, start }
            })
            .collect();
        let chunk = slices.layout.chunk_elements();
        let patches = Patches {
            slices,
            x,
            sizes,
            aligned,
            spread,
            pixels,
            u: k.variable(0),
            v: k.variable(0),
            channel: k.variable_multiple_of(slices.column, if aligned { chunk.into() } else { 1 }),
            width: tiling.depth,
        };
        k.comment("the tap of its first column");
        patches.carry();
        patches
    }

    /// Brings the channel back below c_in, tap by tap.
    fn carry(&self) {
        let k = self.slices.k;
        k.while_(
            || self.channel.ge(self.sizes.c_in),
            || {
                self.channel.set(self.channel - self.sizes.c_in);
                let [u, v] = self.next_tap(self.u.get(), self.v.get(), 1);
                self.u.set(u);
                self.v.set(v);
            },
        );
    }

    /// The tap `by` (0 or 1) further on.
    fn next_tap(
        &self,
        u: Value<'k, U32>,
        v: Value<'k, U32>,
        by: impl IntoValue<'k, U32>,
    ) -> [Value<'k, U32>; 2] {
        let next = v + by;
        let wraps = next.ge(self.sizes.kernel_w);
        [u + wraps.select(1, 0), wraps.select(0, next)]
    }

    /// Starts to copy the next slice into stage `stage`.
    pub fn load(&self, stage: Value<'k, U32>) {
        let k = self.slices.k;
        k.comment("the next slice of the patches");
        let first = Column {
            u: self.u.get(),
            v: self.v.get(),
            channel: self.channel.get(),
        };
        if self.aligned {
            let reach = self.reach(first);
            for (pixel, i) in self.pixels.iter().zip(0u32..) {
                let (element, inside) = self.find(pixel, &reach);
                let to = self.slices.chunk(stage, i);
                k.cp_async_16(to, self.x.at(element), Some(inside.select(16, 0)));
            }
        } else {
            self.load_elements(stage, first);
        }
        self.channel.set(self.channel + self.width);
        self.carry();
    }

    /// What all pixels need of a column.
    fn reach(&self, column: Column<'k>) -> Reach<'k> {
        let Column { u, v, channel } = column;
        let offset = match self.spread {
            true => channel,
            false => (u * self.sizes.w + v) * self.sizes.c_in + channel,
        };
        Reach {
            u,
            v,
            offset,
            exists: u.lt(self.sizes.kernel_h),
        }
    }

    /// The element of x that a pixel's patch has in a column, and whether there is one.
    fn find(&self, pixel: &Pixel<'k>, reach: &Reach<'k>) -> (Value<'k, U32>, Value<'k, Pred>) {
        let Sizes {
            h, w, c_in, spread, ..
        } = self.sizes;
        let (row, column) = (pixel.h + reach.u, pixel.w + reach.v);
        if !self.spread {
            let inside = row.lt(h) & column.lt(w) & reach.exists;
            return (pixel.start + reach.offset, inside);
        }
        let (i, j) = (row / spread, column / spread);
        let between = (row - i * spread) | (column - j * spread);
        let inside = i.lt(h) & j.lt(w) & between.eq(0) & reach.exists;
        let element = ((pixel.start + i) * w + j) * c_in + reach.offset;
        (element, inside)
    }

    /// Loads a slice element by element: chunks of few channels belong to several taps.
    fn load_elements(&self, stage: Value<'k, U32>, first: Column<'k>) {
        let k = self.slices.k;
        let mut column = first;
        let mut chunks: Vec<Vec<Value<'k, E>>> = vec![vec![]; self.pixels.len()];
        for _ in 0..self.slices.layout.chunk_elements() {
            let reach = self.reach(column);
            for (pixel, chunk) in self.pixels.iter().zip(&mut chunks) {
                let (element, inside) = self.find(pixel, &reach);
                let from = self.x.at(element);
                let element = k.variable::<E>(Value::from_bits(0));
                k.when(inside, || element.set(from.load()));
                chunk.push(element.get());
            }
            let channel = column.channel + 1;
            let wraps = channel.ge(self.sizes.c_in);
            let [u, v] = self.next_tap(column.u, column.v, wraps.select(1, 0));
            column = Column {
                u,
                v,
                channel: wraps.select(0, channel),
            };
        }
        for (chunk, i) in chunks.iter().zip(0u32..) {
            let words = E::words(k, chunk);
            let to = self.slices.chunk(stage, i).cast::<B32>();
            to.store_vector([0, 1, 2, 3].map(|i: usize| words[i]));
        }
    }
}
