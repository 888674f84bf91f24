//! Attention in bf16 on tensor cores: `ldmatrix` and `mma.sync`, everything between two products in registers.

use super::head::{Head, layout};
use super::softmax::{Rows, Scores};
use super::{Queries as AnyQueries, Tiling};
use crate::ops::fragments::Fragments;
use crate::ops::matmul::ptx::operand::Side;
use crate::ptx::{
    Assembler, B32, Bf16, Bf16x2, F32, Global, IntoValue, Layout, Pointer, Shared, Tile, U32,
    Value, Variable,
};

/// Depth of one `mma`.
const STEP: u32 = 16;
/// Queries of one `mma`, and keys, or elements of an output.
const ROWS: u32 = 16;
const COLUMNS: u32 = 8;

/// Most registers of a lane in which the warp's queries stay; where they would take more, they are read anew.
const KEPT_REGISTERS: u32 = 24;

/// The queries of a warp.
pub struct Queries<'k> {
    head: Head<'k>,
    tiling: Tiling,
    layout: Layout<Bf16>,
    tile: Tile<'k, Bf16>,
    /// The warp's first row of the tile, and the query there.
    row: Value<'k, U32>,
    first: Value<'k, U32>,
    fragments: Fragments<'k>,
    /// By 16 elements, then 16 queries; empty where registers are short.
    kept: Vec<Vec<[Value<'k, Bf16x2>; 4]>>,
    keys: Fragments<'k>,
    values: Fragments<'k>,
    /// Two of each 16 queries.
    rows: Rows<'k>,
    outputs: Sums<'k>,
}

/// Sums of a warp's products: by 16 rows, then 8 columns.
pub struct Sums<'k>(Vec<Vec<[Variable<'k, F32>; 4]>>);

impl<'k> Sums<'k> {
    fn zeros(k: &'k Assembler, rows: u32, columns: u32) -> Self {
        let fragment = || [0.0f32; 4].map(|zero| k.variable(zero));
        let row = |_| (0..columns / COLUMNS).map(|_| fragment()).collect();
        Sums((0..rows / ROWS).map(row).collect())
    }

    /// A lane's sums by row, of which it has two in each 16, then by column.
    fn by_row(&self) -> Vec<Vec<Variable<'k, F32>>> {
        let row = |sums: &Vec<[Variable<'k, F32>; 4]>, half: usize| {
            let pairs = sums.iter().map(|sums| [sums[2 * half], sums[2 * half + 1]]);
            pairs.flatten().collect()
        };
        let rows = self.0.iter();
        rows.flat_map(|sums| [row(sums, 0), row(sums, 1)]).collect()
    }
}

impl<'k> AnyQueries<'k, Bf16> for Queries<'k> {
    type Weights = Sums<'k>;

    fn new(head: Head<'k>, tiling: Tiling, tile: Tile<'k, Bf16>, first: Value<'k, U32>) -> Self {
        let k = head.k;
        let q_layout = layout::<Bf16>(tiling.queries(), head.head_dim);
        let key_layout = layout::<Bf16>(tiling.keys, head.head_dim);
        let row = k.warp() * tiling.rows;
        let (zero, steps) = (0u32.into_value(), head.head_dim / STEP);
        let fragments = Fragments::new(k, Side::A, true, q_layout, row, steps);
        let mut kept = vec![];
        if tiling.rows * head.head_dim / (2 * 32) <= KEPT_REGISTERS {
            k.comment("the warp's queries");
            kept.extend((0..steps).map(|step| fragments.load_all(tile, tiling.rows / ROWS, step)));
        }
        let (first, lane) = (first + row, k.lane());
        let (lane_query, lane_key) = (first + (lane >> 2), (lane & 3) * 2);
        let apart = (0..2 * tiling.rows / ROWS).map(|i| ROWS / 2 * i);
        Queries {
            head,
            tiling,
            layout: q_layout,
            tile,
            row,
            first,
            fragments,
            kept,
            keys: Fragments::new(k, Side::B, true, key_layout, zero, steps),
            values: Fragments::new(k, Side::B, false, key_layout, zero, steps),
            rows: Rows::new(head, tiling.keys, 4, lane_key, first, lane_query, apart),
            outputs: Sums::zeros(k, tiling.rows, head.head_dim),
        }
    }

    fn meet(
        &self,
        scale: Value<'k, F32>,
        keys: Tile<'k, Bf16>,
        first: Value<'k, U32>,
        once: bool,
    ) -> Sums<'k> {
        let sums = self.scores(keys);
        let columns = || (0..self.tiling.keys).filter(|key| key % COLUMNS < 2);
        let rows = sums.by_row().into_iter();
        let scores: Scores<'k> = rows.map(|row| columns().zip(row).collect()).collect();
        self.rows.hide(&scores, first);
        self.rows
            .soften(&scores, &self.outputs.by_row(), scale, once);
        sums
    }

    fn add(&self, weights: Sums<'k>, values: Tile<'k, Bf16>) {
        let k = self.head.k;
        for step in 0..self.tiling.keys / STEP {
            k.comment(format_args!("values of keys {} and on", STEP * step));
            // The lane that has the sums of one product has the left operand of the next one.
            let left = weights.0.iter().map(|columns| {
                let [a, b] = [0, 1].map(|i| columns[(STEP / COLUMNS * step) as usize + i]);
                let pack = |of: [Variable<'k, F32>; 4], i: usize| k.pack_bf16(of[i], of[i + 1]);
                [pack(a, 0), pack(a, 2), pack(b, 0), pack(b, 2)]
            });
            let left: Vec<[Value<'k, Bf16x2>; 4]> = left.collect();
            for i in 0..self.head.head_dim / STEP {
                let right = self.values.load(values, i, step);
                self.multiply(&self.outputs, i, &left, right);
            }
        }
    }

    fn finish(
        &self,
        scale: Value<'k, F32>,
        out: Pointer<'k, Global, Bf16>,
        lse: Pointer<'k, Global, F32>,
    ) {
        let k = self.head.k;
        let factors = self.rows.finish(scale, lse);
        // Since a warp last read its queries, there was a barrier.
        k.comment("outputs take the place of the warp's queries, so that whole rows are written");
        let start = self.layout.chunk(self.row + (k.lane() >> 2), 0);
        let rows = self.outputs.by_row();
        for ((row, factor), i) in rows.iter().zip(factors).zip(0u32..) {
            for (pair, chunk) in row.chunks_exact(2).zip(0u32..) {
                let pair = k.pack_bf16(pair[0] * factor, pair[1] * factor);
                let place = start.down(ROWS / 2 * i).right(chunk);
                let to = self.tile.at(place).cast::<Bf16x2>();
                to.at(k.lane() & 3).store(pair);
            }
        }
        k.warp_barrier();
        self.store_rows(out);
    }
}

impl<'k> Queries<'k> {
    /// Products of queries and keys.
    fn scores(&self, keys: Tile<'k, Bf16>) -> Sums<'k> {
        let k = self.head.k;
        let scores = Sums::zeros(k, self.tiling.rows, self.tiling.keys);
        for step in 0..self.head.head_dim / STEP {
            k.comment(format_args!("scores by elements {} and on", STEP * step));
            let queries = match self.kept.get(step as usize) {
                Some(queries) => queries.clone(),
                None => self
                    .fragments
                    .load_all(self.tile, self.tiling.rows / ROWS, step),
            };
            for i in 0..self.tiling.keys / STEP {
                let right = self.keys.load(keys, i, step);
                self.multiply(&scores, i, &queries, right);
            }
        }
        scores
    }

    /// Adds products to the columns 16·`i` to 16·`i` + 15 of `sums`.
    fn multiply(
        &self,
        sums: &Sums<'k>,
        i: u32,
        left: &[[Value<'k, Bf16x2>; 4]],
        right: [Value<'k, Bf16x2>; 4],
    ) {
        let k = self.head.k;
        let [a, b, c, d] = right;
        for (left, sums) in left.iter().zip(&sums.0) {
            let column = (STEP / COLUMNS * i) as usize;
            k.mma_m16n8k16(sums[column], *left, [a, b]);
            k.mma_m16n8k16(sums[column + 1], *left, [c, d]);
        }
    }

    /// Copies the warp's rows of the tile out, 16 bytes a lane.
    fn store_rows(&self, out: Pointer<'k, Global, Bf16>) {
        let k = self.head.k;
        k.comment("rows of outputs");
        let chunks = self.layout.chunks();
        k.for_(0, self.tiling.rows * chunks / 32, 1, |i| {
            let place = i * 32 + k.lane();
            let row = (place / chunks).assume_below(self.tiling.rows.into());
            let chunk = place % chunks;
            let from = self.layout.chunk(self.row + row, chunk);
            let from: Pointer<'k, Shared, B32> = self.tile.at(from).cast();
            let query = self.first + row;
            let to = out.at(query * self.head.pitch() + chunk * 8);
            k.if_(query.lt(self.head.queries), || {
                to.cast::<B32>().store_vector(from.load_vector::<4>());
            });
        });
    }
}
