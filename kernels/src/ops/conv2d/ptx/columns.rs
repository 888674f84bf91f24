//! Patches of an image as the right operand of a product over pixels: row (image, i, j), along k, holds
//! x[image, i·stride + u − padding_h, j·stride + v − padding_w, c] at column (u·kernel_w + v)·c_in + c, zero outside of the
//! image. They exist in shared memory only, a slice of the pixels at a time.

use super::patches::Sizes;
use crate::ops::geometry::Division;
use crate::ops::matmul::ptx::Tiling;
use crate::ops::matmul::ptx::operand::{Element, Side, Slices};
use crate::ptx::{Assembler, B32, Global, Pointer, Pred, U32, Value, Variable};

/// Some columns of the patches of a CTA's part of the pixels.
pub struct Columns<'k, E: Element> {
    pub slices: Slices<'k, E>,
    x: Pointer<'k, Global, E>,
    sizes: Sizes<'k>,
    aligned: bool,
    /// By out_w and by out_h.
    divisions: [Division<'k>; 2],
    /// Where this thread's chunks begin: one tap of one channel, whatever the pixel. Of chunks that may belong to several
    /// taps, every element.
    taps: Vec<Tap<'k>>,
    /// The pixel of this thread's first chunk in the next slice, and where they end.
    pixel: Variable<'k, U32>,
    end: Value<'k, U32>,
    /// Pixels of a slice.
    depth: u32,
}

/// A column, as pixels need it. Coordinates wrap below zero, so that one unsigned comparison finds what is outside.
#[derive(Clone, Copy)]
struct Tap<'k> {
    /// From a pixel's coordinates times the stride.
    down: Value<'k, U32>,
    right: Value<'k, U32>,
    channel: Value<'k, U32>,
    exists: Value<'k, Pred>,
}

impl<'k, E: Element> Columns<'k, E> {
    /// From column `first` on. `aligned` promises that no chunk belongs to two taps.
    #[allow(clippy::too_many_arguments)] // what a kernel has declared
    pub fn new(
        k: &'k Assembler,
        aligned: bool,
        tiling: Tiling,
        x: Pointer<'k, Global, E>,
        sizes: Sizes<'k>,
        divisions: [Division<'k>; 2],
        first: Value<'k, U32>,
        [begin, end]: [Value<'k, U32>; 2],
    ) -> Columns<'k, E> {
        let slices = Slices::<E>::new(k, Side::B, false, tiling);
        k.comment("the taps of this thread's chunks");
        let tap = |i| {
            let column = first + slices.column + i;
            let (tap, channel) = (column / sizes.c_in, column % sizes.c_in);
            let (u, v) = (tap / sizes.kernel_w, tap % sizes.kernel_w);
            Tap {
                down: u - sizes.padding_h,
                right: v - sizes.padding_w,
                channel,
                exists: u.lt(sizes.kernel_h),
            }
        };
        let taps = match aligned {
            true => 1,
            false => slices.layout.chunk_elements(),
        };
        Columns {
            slices,
            x,
            sizes,
            aligned,
            divisions,
            taps: (0..taps).map(tap).collect(),
            pixel: k.variable(begin + slices.row),
            end,
            depth: tiling.depth,
        }
    }

    /// Starts to copy the next slice into stage `stage`.
    pub fn load(&self, stage: Value<'k, U32>) {
        let k = self.slices.k;
        k.comment("the next slice of the patches");
        let Sizes { h, w, c_in, .. } = self.sizes;
        for i in 0..self.slices.chunks {
            let pixel = self.pixel + i * self.slices.rows_apart;
            let [rest, j] = self.divisions[0].split(pixel);
            let [image, i_out] = self.divisions[1].split(rest);
            let (top, left) = (i_out * self.sizes.stride, j * self.sizes.stride);
            let first_row = image * h;
            let inside = pixel.lt(self.end);
            let find = |tap: &Tap<'k>| {
                let (row, column) = (top + tap.down, left + tap.right);
                let inside = inside & row.lt(h) & column.lt(w) & tap.exists;
                let element = ((first_row + row) * w + column) * c_in + tap.channel;
                (self.x.at(element), inside)
            };
            let to = self.slices.chunk(stage, i);
            if self.aligned {
                let (from, inside) = find(&self.taps[0]);
                k.cp_async_16(to, from, Some(inside.select(16, 0)));
                continue;
            }
            let elements: Vec<Value<'k, E>> = self
                .taps
                .iter()
                .map(|tap| {
                    let (from, inside) = find(tap);
                    let element = k.variable::<E>(Value::from_bits(0));
                    k.when(inside, || element.set(from.load()));
                    element.get()
                })
                .collect();
            let words = E::words(k, &elements);
            to.cast::<B32>()
                .store_vector([0, 1, 2, 3].map(|i: usize| words[i]));
        }
        self.pixel.set(self.pixel + self.depth);
    }
}
