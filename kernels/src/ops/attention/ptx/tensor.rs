//! Attention in bf16 on tensor cores: `ldmatrix` and `mma.sync`, everything between two products in registers.

use super::backward::{Block as AnyBlock, Lane};
use super::head::{Head, layout};
use super::softmax::{Rows, Scores, Sight};
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

/// How a warp multiplies its rows of one tile with all of another one.
pub struct Block<'k> {
    head: Head<'k>,
    tiling: Tiling,
    /// The warp's first row.
    row: Value<'k, U32>,
    rows: Fragments<'k>,
    /// Of the other tile, along elements and along tokens.
    columns: Fragments<'k>,
    values: Fragments<'k>,
}

impl<'k> Block<'k> {
    pub fn new(head: Head<'k>, tiling: Tiling) -> Self {
        let k = head.k;
        let row_layout = layout::<Bf16>(tiling.cta_rows(), head.head_dim);
        let column_layout = layout::<Bf16>(tiling.columns, head.head_dim);
        let row = k.warp() * tiling.rows;
        let (zero, steps) = (0u32.into_value(), head.head_dim / STEP);
        Block {
            head,
            tiling,
            row,
            rows: Fragments::new(k, Side::A, true, row_layout, row, steps),
            columns: Fragments::new(k, Side::B, true, column_layout, zero, steps),
            values: Fragments::new(k, Side::B, false, column_layout, zero, steps),
        }
    }

    /// The warp's rows of a tile, at step `step` along elements.
    fn load_rows(&self, tile: Tile<'k, Bf16>, step: u32) -> Vec<[Value<'k, Bf16x2>; 4]> {
        self.rows.load_all(tile, self.tiling.rows / ROWS, step)
    }

    /// Products with all tokens of a tile of the rows that `left` gives for each step along elements.
    fn products(
        &self,
        left: impl Fn(u32) -> Vec<[Value<'k, Bf16x2>; 4]>,
        right: Tile<'k, Bf16>,
    ) -> Sums<'k> {
        let k = self.head.k;
        let sums = Sums::zeros(k, self.tiling.rows, self.tiling.columns);
        for step in 0..self.head.head_dim / STEP {
            k.comment(format_args!("products of elements {} and on", STEP * step));
            let left = left(step);
            for i in 0..self.tiling.columns / STEP {
                sums.multiply(k, i, &left, self.columns.load(right, i, step));
            }
        }
        sums
    }

    /// Adds the tokens of a tile to `outputs`, as `weights` weighs them for each row.
    fn add(&self, outputs: &Sums<'k>, weights: &Sums<'k>, values: Tile<'k, Bf16>) {
        let k = self.head.k;
        for step in 0..self.tiling.columns / STEP {
            k.comment(format_args!("weighed tokens {} and on", STEP * step));
            // The lane that has the sums of one product has the left operand of the next one.
            let left = weights.0.iter().map(|columns| {
                let [a, b] = [0, 1].map(|i| columns[(STEP / COLUMNS * step) as usize + i]);
                let pack = |of: [Variable<'k, F32>; 4], i: usize| k.pack_bf16(of[i], of[i + 1]);
                [pack(a, 0), pack(a, 2), pack(b, 0), pack(b, 2)]
            });
            let left: Vec<[Value<'k, Bf16x2>; 4]> = left.collect();
            for i in 0..self.head.head_dim / STEP {
                outputs.multiply(k, i, &left, self.values.load(values, i, step));
            }
        }
    }

    /// The lane's first row and first column of a tile, and how far its other rows are from there.
    fn lane(&self) -> ([Value<'k, U32>; 2], Vec<u32>) {
        let lane = self.head.k.lane();
        let apart = (0..2 * self.tiling.rows / ROWS).map(|i| ROWS / 2 * i);
        ([self.row + (lane >> 2), (lane & 3) * 2], apart.collect())
    }

    /// Products by row, with the distances of their columns from the lane's first one.
    fn scores(&self, sums: &Sums<'k>) -> Scores<'k> {
        let columns = || (0..self.tiling.columns).filter(|column| column % COLUMNS < 2);
        let rows = sums.by_row().into_iter();
        rows.map(|row| columns().zip(row).collect()).collect()
    }
}

/// The queries of a warp.
pub struct Queries<'k> {
    head: Head<'k>,
    tiling: Tiling,
    block: Block<'k>,
    layout: Layout<Bf16>,
    tile: Tile<'k, Bf16>,
    /// The warp's first query.
    first: Value<'k, U32>,
    /// By 16 elements, then 16 queries; empty where registers are short.
    kept: Vec<Vec<[Value<'k, Bf16x2>; 4]>>,
    sight: Sight<'k>,
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

    /// Adds products to the columns 16·`i` to 16·`i` + 15.
    fn multiply(
        &self,
        k: &'k Assembler,
        i: u32,
        left: &[[Value<'k, Bf16x2>; 4]],
        right: [Value<'k, Bf16x2>; 4],
    ) {
        let [a, b, c, d] = right;
        for (left, sums) in left.iter().zip(&self.0) {
            let column = (STEP / COLUMNS * i) as usize;
            k.mma_m16n8k16(sums[column], *left, [a, b]);
            k.mma_m16n8k16(sums[column + 1], *left, [c, d]);
        }
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
        let block = Block::new(head, tiling);
        let mut kept = vec![];
        if tiling.rows * head.head_dim / (2 * 32) <= KEPT_REGISTERS {
            k.comment("the warp's queries");
            kept.extend((0..head.head_dim / STEP).map(|step| block.load_rows(tile, step)));
        }
        let ([row, lane_key], apart) = block.lane();
        let (warp_query, lane_query) = (first + block.row, first + row);
        let apart = apart.into_iter();
        let sight = Sight::new(
            head,
            tiling.columns,
            lane_key,
            warp_query,
            lane_query,
            apart,
        );
        Queries {
            head,
            tiling,
            layout: layout(tiling.cta_rows(), head.head_dim),
            tile,
            first: warp_query,
            kept,
            rows: Rows::new(head, 4, &sight),
            sight,
            outputs: Sums::zeros(k, tiling.rows, head.head_dim),
            block,
        }
    }

    fn meet(
        &self,
        scale: Value<'k, F32>,
        keys: Tile<'k, Bf16>,
        first: Value<'k, U32>,
        once: bool,
    ) -> Sums<'k> {
        let queries = |step: u32| match self.kept.get(step as usize) {
            Some(queries) => queries.clone(),
            None => self.block.load_rows(self.tile, step),
        };
        let sums = self.block.products(queries, keys);
        let scores = self.block.scores(&sums);
        self.sight.hide(&scores, first);
        self.rows
            .soften(&scores, &self.outputs.by_row(), scale, once);
        sums
    }

    fn add(&self, weights: Sums<'k>, values: Tile<'k, Bf16>) {
        self.block.add(&self.outputs, &weights, values);
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
        let start = self.layout.chunk(self.block.row + (k.lane() >> 2), 0);
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
    /// Copies the warp's rows of the tile out, 16 bytes a lane.
    fn store_rows(&self, out: Pointer<'k, Global, Bf16>) {
        let k = self.head.k;
        k.comment("rows of outputs");
        let chunks = self.layout.chunks();
        k.for_(0, self.tiling.rows * chunks / 32, 1, |i| {
            let place = i * 32 + k.lane();
            let row = (place / chunks).assume_below(self.tiling.rows.into());
            let chunk = place % chunks;
            let from = self.layout.chunk(self.block.row + row, chunk);
            let from: Pointer<'k, Shared, B32> = self.tile.at(from).cast();
            let query = self.first + row;
            let to = out.at(query * self.head.pitch() + chunk * 8);
            let elements = self.head.elements_from(chunk * 8, 8);
            k.if_(query.lt(self.head.queries) & elements.gt(0), || {
                if self.head.is_aligned() {
                    to.cast::<B32>().store_vector(from.load_vector::<4>());
                } else {
                    let from = from.cast::<Bf16>();
                    k.for_(0, elements, 1, |i| to.at(i).store(from.at(i).load()));
                }
            });
        });
    }
}

impl<'k> AnyBlock<'k, Bf16> for Block<'k> {
    type Products = Sums<'k>;
    type Outputs = Sums<'k>;

    fn new(head: Head<'k>, tiling: Tiling, _: u32) -> Self {
        Block::new(head, tiling)
    }

    fn lane(&self) -> Lane<'k> {
        let ([row, column], apart) = Block::lane(self);
        Lane {
            warp_row: self.row,
            row,
            column,
            apart,
            lanes: 4,
        }
    }

    fn products(&self, left: Tile<'k, Bf16>, right: Tile<'k, Bf16>) -> Sums<'k> {
        Block::products(self, |step| self.load_rows(left, step), right)
    }

    fn scores(&self, products: &Sums<'k>) -> Scores<'k> {
        Block::scores(self, products)
    }

    fn outputs(&self) -> Sums<'k> {
        Sums::zeros(self.head.k, self.tiling.rows, self.head.head_dim)
    }

    fn add(&self, weighed: &[(&Sums<'k>, &Sums<'k>, Tile<'k, Bf16>)]) {
        for (outputs, weights, values) in weighed {
            Block::add(self, outputs, weights, *values);
        }
    }

    fn store(
        &self,
        outputs: &[Sums<'k>],
        put: impl Fn(usize, Value<'k, U32>, Value<'k, U32>, &[Value<'k, F32>]),
    ) {
        let k = self.head.k;
        // Eight floats between rows: four rows of pairs fill all banks once.
        let layout = Layout::<F32>::padded(ROWS, self.head.head_dim, 8);
        let slab = k
            .shared_tiles_again(layout, self.tiling.warps)
            .tile(k.warp());
        let start = layout.element(k.lane() >> 2, (k.lane() & 3) * 2);
        let chunks = self.head.head_dim / 8;
        let slabs = outputs.iter().enumerate();
        let slabs = slabs.flat_map(|(output, sums)| sums.0.iter().map(move |sums| (output, sums)));
        for ((output, sums), index) in slabs.zip(0u32..) {
            let index_here = index % (self.tiling.rows / ROWS);
            if index > 0 {
                k.warp_barrier();
            }
            for (sums, column) in sums.iter().zip((0u32..).step_by(COLUMNS as usize)) {
                let [a, b, c, d] = sums.map(|sum| sum.get());
                let place = start.across(column);
                slab.at(place).store_vector([a, b]);
                slab.at(place.down(8)).store_vector([c, d]);
            }
            k.warp_barrier();
            k.comment("rows of outputs");
            k.for_(0, ROWS * chunks / 32, 1, |step| {
                let place = step * 32 + k.lane();
                let row = (place / chunks).assume_below(ROWS.into());
                let element = place % chunks * 8;
                let from = slab.at(layout.element(row, element));
                let values = [0, 4].map(|i: u32| from.at(i).load_vector::<4>());
                let row = self.row + row + ROWS * index_here;
                put(output, row, element, values.as_flattened());
            });
        }
    }
}
