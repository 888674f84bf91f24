//! bf16 products on tensor cores: `ldmatrix` and `mma.sync`, f32 sums.

use super::epilogue::Slab;
use super::operand::Slices;
use super::{Sums as AnySums, Tiling};
use crate::ops::fragments::Fragments;
use crate::ptx::{Assembler, Bf16, F32, U32, Value, Variable};

/// Depth of one `mma`.
const STEP: u32 = 16;

/// A warp's sums: for every 16 rows and 8 columns of its tile, four a lane.
pub struct Sums<'k> {
    k: &'k Assembler,
    tiling: Tiling,
    a: Slices<'k, Bf16>,
    b: Slices<'k, Bf16>,
    a_fragments: Fragments<'k>,
    b_fragments: Fragments<'k>,
    /// By rows, then columns.
    sums: Vec<Vec<[Variable<'k, F32>; 4]>>,
}

impl<'k> AnySums<'k, Bf16> for Sums<'k> {
    fn new(k: &'k Assembler, tiling: Tiling, a: Slices<'k, Bf16>, b: Slices<'k, Bf16>) -> Self {
        let [rows, columns] = tiling.warp;
        let [warp_row, warp_column] = tiling.warp_place(k);
        let steps = tiling.depth / STEP;
        k.comment("where this lane reads its rows of fragments");
        let fragments = |of: Slices<'k, Bf16>, first, count| {
            let right = if of.k_major { steps } else { count };
            Fragments::new(k, of.side, of.k_major, of.layout, first, right)
        };
        let a_fragments = fragments(a, warp_row * rows, rows / 16);
        let b_fragments = fragments(b, warp_column * columns, columns / 16);
        k.comment("the warp's sums");
        let zeros = || [0.0f32; 4].map(|zero| k.variable(zero));
        let row = |_| (0..columns / 8).map(|_| zeros()).collect();
        Sums {
            k,
            tiling,
            a,
            b,
            a_fragments,
            b_fragments,
            sums: (0..rows / 16).map(row).collect(),
        }
    }

    fn multiply(&self, stage: Value<'k, U32>) {
        let k = self.k;
        let (a, b) = (self.a.tile(stage), self.b.tile(stage));
        let [rows, columns] = self.tiling.warp.map(|extent| extent / 16);
        let steps = self.tiling.depth / STEP;
        let load = |step| {
            k.comment(format_args!("fragments at {} along k", STEP * step));
            let a = self.a_fragments.load_all(a, rows, step);
            (a, self.b_fragments.load_all(b, columns, step))
        };
        let mut next = load(0);
        for step in 0..steps {
            let (a, b) = next;
            // The next fragments are on their way while these are multiplied.
            next = if step + 1 < steps {
                load(step + 1)
            } else {
                (vec![], vec![])
            };
            k.comment(format_args!("products at {} along k", STEP * step));
            for (i, (a, sums)) in a.into_iter().zip(&self.sums).enumerate() {
                // There and back, so that each product shares an operand with the last.
                let columns = 0..sums.len();
                let columns: Vec<usize> = match i % 2 {
                    0 => columns.collect(),
                    _ => columns.rev().collect(),
                };
                for j in columns {
                    let half = j % 2 * 2;
                    let b = [b[j / 2][half], b[j / 2][half + 1]];
                    k.mma_m16n8k16(sums[j], a, b);
                }
            }
        }
    }

    fn store(&self, slab: u32, to: Slab<'k>) {
        let lane = self.k.lane();
        let place = to.layout.element(lane >> 2, (lane & 3) * 2);
        for (j, sums) in self.sums[slab as usize].iter().enumerate() {
            let place = place.across(8 * j as u32);
            let [a, b, c, d] = sums.map(|sum| sum.get());
            to.tile.at(place).store_vector([a, b]);
            to.tile.at(place.down(8)).store_vector([c, d]);
        }
    }
}
