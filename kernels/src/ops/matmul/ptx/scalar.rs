//! f32 products with fused multiply-adds: every thread an outer product of some rows and some columns.

use super::epilogue::Slab;
use super::operand::Slices;
use super::{Sums as AnySums, Tiling};
use crate::ptx::{Assembler, F32, Position, Tile, U32, Value, Variable};

/// Lanes of a warp along rows and columns.
const LANES: [u32; 2] = [4, 8];

/// Steps along k for which a thread holds its rows and columns in registers: those of one chunk.
const STEP: u32 = 4;

/// A thread's sums.
pub struct Sums<'k> {
    k: &'k Assembler,
    tiling: Tiling,
    a: Fragments<'k>,
    b: Fragments<'k>,
    /// By rows, then columns.
    sums: Vec<Vec<Variable<'k, F32>>>,
}

/// A thread's rows of a, or columns of b.
///
/// Where k runs along the rows in shared memory, lanes own every 4th row or every 8th column, so that neighbours read
/// rows that a swizzle keeps in different banks; otherwise groups of four, which one load brings.
struct Fragments<'k> {
    slices: Slices<'k, F32>,
    lane: Value<'k, U32>,
    lanes: u32,
    count: u32,
    /// Where the first rows begin, for every chunk along k.
    at: Vec<Vec<Position<'k, F32>>>,
}

impl<'k> Fragments<'k> {
    fn new(
        slices: Slices<'k, F32>,
        first: Value<'k, U32>,
        lane: Value<'k, U32>,
        lanes: u32,
        count: u32,
        depth: u32,
    ) -> Fragments<'k> {
        let layout = slices.layout;
        let at = match slices.k_major {
            // A swizzle repeats every eight rows: what lies between needs addresses of its own.
            true => {
                let starts = (0..8 / lanes).map(|i| layout.chunk(first + lane + lanes * i, 0));
                let along_k = |start: Position<'k, F32>| {
                    (0..depth / STEP).map(|chunk| start.right(chunk)).collect()
                };
                starts.map(along_k).collect()
            }
            false => vec![vec![layout.chunk(0, first / 4 + lane)]],
        };
        Fragments {
            slices,
            lane,
            lanes,
            count,
            at,
        }
    }

    /// The values at four steps along k, by row (column), then step.
    fn load(&self, tile: Tile<'k, F32>, chunk: u32) -> Vec<[Value<'k, F32>; STEP as usize]> {
        if self.slices.k_major {
            let starts = self.at.len();
            let load = |i: usize| {
                let start = self.at[i % starts][chunk as usize];
                let row = start.down((i / starts * starts) as u32 * self.lanes);
                tile.at(row).load_vector::<4>()
            };
            return (0..self.count as usize).map(load).collect();
        }
        let start = self.at[0][0].down(STEP * chunk);
        let groups = (0..self.count / 4).flat_map(|group| {
            let steps = [0, 1, 2, 3].map(|step| {
                let place = start.down(step).right(self.lanes * group);
                tile.at(place).load_vector::<4>()
            });
            [0, 1, 2, 3].map(|i: usize| steps.map(|values| values[i]))
        });
        groups.collect()
    }

    /// Of the rows (columns) that this thread owns, the first one within each 16 (within the warp's part).
    fn first(&self) -> Value<'k, U32> {
        match self.slices.k_major {
            true => self.lane,
            false => self.lane * 4,
        }
    }

    /// How far number `i` is from it.
    fn apart(&self, i: u32) -> u32 {
        match self.slices.k_major {
            true => self.lanes * i,
            false => i % 4 + 4 * self.lanes * (i / 4),
        }
    }
}

impl<'k> AnySums<'k, F32> for Sums<'k> {
    fn new(k: &'k Assembler, tiling: Tiling, a: Slices<'k, F32>, b: Slices<'k, F32>) -> Self {
        let [rows, columns] = tiling.warp;
        let [warp_row, warp_column] = tiling.warp_place(k);
        let lane = k.lane();
        let counts = [rows / LANES[0], columns / LANES[1]];
        let depth = tiling.depth;
        k.comment("where this thread reads its rows and columns");
        let (a_lane, b_lane) = (lane / LANES[1], lane % LANES[1]);
        let a = Fragments::new(a, warp_row * rows, a_lane, LANES[0], counts[0], depth);
        let b = Fragments::new(b, warp_column * columns, b_lane, LANES[1], counts[1], depth);
        k.comment("the thread's sums");
        let row = |_| (0..counts[1]).map(|_| k.variable(0.0f32)).collect();
        Sums {
            k,
            tiling,
            a,
            b,
            sums: (0..counts[0]).map(row).collect(),
        }
    }

    fn multiply(&self, stage: Value<'k, U32>) {
        let k = self.k;
        let (a, b) = (self.a.slices.tile(stage), self.b.slices.tile(stage));
        for chunk in 0..self.tiling.depth / STEP {
            k.comment(format_args!(
                "steps {} to {} along k",
                STEP * chunk,
                STEP * chunk + 3
            ));
            let (a, b) = (self.a.load(a, chunk), self.b.load(b, chunk));
            for step in 0..STEP as usize {
                for (a, sums) in a.iter().zip(&self.sums) {
                    for (b, sum) in b.iter().zip(sums) {
                        sum.set(a[step].mul_add(b[step], *sum));
                    }
                }
            }
        }
    }

    fn store(&self, slab: u32, to: Slab<'k>) {
        let place = to.layout.element(self.a.first(), self.b.first());
        // Sixteen rows are four of each thread, whichever it owns.
        for i in 0..4 {
            let place = place.down(self.a.apart(i));
            let sums = &self.sums[(4 * slab + i) as usize];
            if self.b.slices.k_major {
                for (j, sum) in (0..).zip(sums) {
                    to.tile.at(place.across(self.b.apart(j))).store(*sum);
                }
                continue;
            }
            // Four neighbours at once: the eight threads beside each other fill all banks.
            for (j, four) in (0..).step_by(4).zip(sums.chunks_exact(4)) {
                let four = [0, 1, 2, 3].map(|e: usize| four[e].get());
                to.tile.at(place.across(self.b.apart(j))).store_vector(four);
            }
        }
    }
}
