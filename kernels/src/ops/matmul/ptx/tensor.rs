//! bf16 products on tensor cores: `ldmatrix` and `mma.sync`, f32 sums.

use super::epilogue::Slab;
use super::operand::{Side, Slices};
use super::{Sums as AnySums, Tiling};
use crate::ptx::{Assembler, Bf16, Bf16x2, F32, Position, Tile, U32, Value, Variable};

/// Depth of one `mma`.
const STEP: u32 = 16;

/// A warp's sums: for every 16 rows and 8 columns of its tile, four a lane.
pub struct Sums<'k> {
    k: &'k Assembler,
    tiling: Tiling,
    a: Fragments<'k>,
    b: Fragments<'k>,
    /// By rows, then columns.
    sums: Vec<Vec<[Variable<'k, F32>; 4]>>,
}

/// How a warp reads an operand: 16 rows (of b: columns) by 16 of k at a time.
struct Fragments<'k> {
    k: &'k Assembler,
    slices: Slices<'k, Bf16>,
    /// Where a lane's row begins: under a swizzle, once for every chunk that it moves right.
    at: Vec<Position<'k, Bf16>>,
    count: u32,
}

impl<'k> Fragments<'k> {
    /// `first` is where the warp's part begins, `count` the fragments in it, `steps` those along k.
    fn new(
        k: &'k Assembler,
        slices: Slices<'k, Bf16>,
        first: Value<'k, U32>,
        count: u32,
        steps: u32,
    ) -> Fragments<'k> {
        let lane = k.lane();
        // `ldmatrix` takes the rows of four matrices from lanes 0-7, 8-15, 16-23 and 24-31. They are the quarters of the
        // fragment, in the order of its registers: a's run down first, b's along k first; and where k does not run along
        // the rows, the two directions change places.
        let (row, chunk) = match (slices.side, slices.k_major) {
            (Side::A, true) | (Side::B, false) => (lane & 15, lane >> 4),
            (Side::A, false) | (Side::B, true) => ((lane & 7) + (lane >> 4) * 8, (lane >> 3) & 1),
        };
        let (start, right) = match slices.k_major {
            true => (slices.layout.chunk(first + row, chunk), steps),
            false => (slices.layout.chunk(row, first / 8 + chunk), count),
        };
        Fragments {
            k,
            slices,
            at: (0..right).map(|i| start.right(2 * i)).collect(),
            count,
        }
    }

    /// All fragments of step `step` along k.
    fn load(&self, tile: Tile<'k, Bf16>, step: u32) -> Vec<[Value<'k, Bf16x2>; 4]> {
        let load = |i: u32| match self.slices.k_major {
            true => self
                .k
                .ldmatrix::<4>(tile.at(self.at[step as usize].down(16 * i))),
            false => {
                let row = self.at[i as usize].down(STEP * step);
                self.k.ldmatrix_transposed::<4>(tile.at(row))
            }
        };
        (0..self.count).map(load).collect()
    }
}

impl<'k> AnySums<'k, Bf16> for Sums<'k> {
    fn new(k: &'k Assembler, tiling: Tiling, a: Slices<'k, Bf16>, b: Slices<'k, Bf16>) -> Self {
        let [rows, columns] = tiling.warp;
        let [warp_row, warp_column] = tiling.warp_place(k);
        let steps = tiling.depth / STEP;
        k.comment("where this lane reads its rows of fragments");
        let a = Fragments::new(k, a, warp_row * rows, rows / 16, steps);
        let b = Fragments::new(k, b, warp_column * columns, columns / 16, steps);
        k.comment("the warp's sums");
        let zeros = || [0.0f32; 4].map(|zero| k.variable(zero));
        let row = |_| (0..columns / 8).map(|_| zeros()).collect();
        Sums {
            k,
            tiling,
            a,
            b,
            sums: (0..rows / 16).map(row).collect(),
        }
    }

    fn multiply(&self, stage: Value<'k, U32>) {
        let k = self.k;
        let (a, b) = (self.a.slices.tile(stage), self.b.slices.tile(stage));
        let steps = self.tiling.depth / STEP;
        let load = |step| {
            k.comment(format_args!("fragments at {} along k", STEP * step));
            (self.a.load(a, step), self.b.load(b, step))
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
