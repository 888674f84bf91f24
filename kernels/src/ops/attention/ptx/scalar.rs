//! Attention in f32 with fused multiply-adds: eight lanes share four rows, and weights of a warp's rows pass through
//! shared memory from the keys' lanes to those of the values' elements.

use super::backward::{Block as AnyBlock, Lane};
use super::head::{Head, layout};
use super::softmax::{Rows, Scores, Sight};
use super::{Queries as AnyQueries, Tiling};
use crate::ptx::{
    F32, Floats, Global, Layout, Pointer, Position, Tile, Tiles, Type, U32, Value, Variable,
};

/// Lanes along a row.
const LANES: u32 = 8;
/// Lanes down a column, and so rows from one of a lane's to the next.
const DOWN: u32 = 4;
/// Elements of 16 bytes.
const CHUNK: u32 = 4;

/// How a warp multiplies its rows of one tile with all of another one. A lane has every fourth row, of its products every
/// eighth, and of its outputs every eighth chunk.
pub struct Block<'k> {
    head: Head<'k>,
    tiling: Tiling,
    /// The warp's first row, and the lane's.
    warp_row: Value<'k, U32>,
    row: Value<'k, U32>,
    /// Where the lane's first row and first column begin.
    row_at: Position<'k, F32>,
    column_at: Position<'k, F32>,
    /// Elements of shared memory from one token to the next.
    pitch: u32,
    /// Where a token's chunks lie that the lane has.
    values_at: Vec<Position<'k, F32>>,
    /// Which ones these are; beyond the last one, the last one again.
    chunks: Vec<Value<'k, U32>>,
    weights: Tiles<'k, F32>,
    weights_layout: Layout<F32>,
}

/// By row, then element.
type Outputs<'k> = Vec<Vec<Variable<'k, F32>>>;

impl<'k> Block<'k> {
    /// With shared memory for `weights` tiles of weights.
    pub fn new(head: Head<'k>, tiling: Tiling, weights: u32) -> Self {
        let k = head.k;
        let row_layout = layout::<F32>(tiling.cta_rows(), head.head_dim);
        let column_layout = layout::<F32>(tiling.columns, head.head_dim);
        // Eight more floats: four rows of eight fill all banks once.
        let weights_layout = Layout::padded(tiling.cta_rows(), tiling.columns, 8);
        let weights = k.shared_tiles(weights_layout, weights);
        let (down, along) = (k.lane() / LANES, k.lane() % LANES);
        let warp_row = k.warp() * tiling.rows;
        let row = warp_row + down;
        let count = column_layout.chunks();
        let chunks: Vec<Value<'k, U32>> = (0..count.div_ceil(LANES))
            .map(|i| (along + LANES * i).min(count - 1))
            .collect();
        let values_at = chunks.iter().map(|&chunk| column_layout.chunk(0, chunk));
        Block {
            head,
            tiling,
            warp_row,
            row,
            row_at: row_layout.chunk(row, 0),
            column_at: column_layout.chunk(along, 0),
            pitch: column_layout.bytes() / F32::SIZE / tiling.columns,
            values_at: values_at.collect(),
            chunks,
            weights,
            weights_layout,
        }
    }

    /// Products of rows and columns.
    fn products(&self, left: Tile<'k, F32>, right: Tile<'k, F32>) -> Scores<'k> {
        let k = self.head.k;
        let columns = (0..self.tiling.columns).step_by(LANES as usize);
        let row = |_| {
            columns
                .clone()
                .map(|column| (column, k.variable(0.0f32)))
                .collect()
        };
        let products: Scores<'k> = (0..self.tiling.rows / DOWN).map(row).collect();
        k.comment("products, four elements at a time");
        let row = left.at(self.row_at);
        let column = right.at(self.column_at);
        k.for_(0, self.head.head_dim, CHUNK, |element| {
            let columns: Vec<[Value<'k, F32>; 4]> = columns
                .clone()
                .map(|i| column.at(element).at(i * self.pitch).load_vector())
                .collect();
            for (products, i) in products.iter().zip(0u32..) {
                let row = row.at(element).at(DOWN * i * self.pitch);
                let row = row.load_vector::<4>();
                for ((_, product), column) in products.iter().zip(&columns) {
                    for (row, column) in row.iter().zip(column) {
                        product.set(row.mul_add(*column, *product));
                    }
                }
            }
        });
        products
    }

    fn outputs(&self) -> Outputs<'k> {
        let k = self.head.k;
        let elements = CHUNK * self.chunks.len() as u32;
        let row = |_| (0..elements).map(|_| k.variable(0.0f32)).collect();
        (0..self.tiling.rows / DOWN).map(row).collect()
    }

    /// Puts weights where the lanes of their rows find them, after a barrier.
    fn exchange(&self, index: u32, weights: &Scores<'k>) {
        let k = self.head.k;
        k.comment("the warp's weights");
        let start = self.weights_layout.element(self.row, k.lane() % LANES);
        for (row, i) in weights.iter().zip(0u32..) {
            let start = self.weights.tile(index).at(start.down(DOWN * i));
            for &(column, weight) in row {
                start.at(column).store(weight);
            }
        }
    }

    /// Adds the tokens of a tile to `outputs`, as weights number `index` weigh them for each row.
    fn add(&self, outputs: &Outputs<'k>, index: u32, values: Tile<'k, F32>) {
        let k = self.head.k;
        let start = self.weights_layout.chunk(self.row, 0);
        let tile = self.weights.tile(index);
        k.comment("weighed tokens, four at a time");
        k.for_(0, self.tiling.columns, CHUNK, |first| {
            let row = |i| tile.at(start.down(DOWN * i)).at(first);
            let rows = 0..outputs.len() as u32;
            let weights: Vec<[Value<'k, F32>; 4]> =
                rows.map(|i| row(i).load_vector::<4>()).collect();
            for (i, place) in self.values_at.iter().enumerate() {
                let values = values.at(*place).at(first * self.pitch);
                for token in 0..CHUNK {
                    let values = values.at(token * self.pitch).load_vector::<4>();
                    for (weights, outputs) in weights.iter().zip(outputs) {
                        let outputs = &outputs[CHUNK as usize * i..];
                        for (value, output) in values.iter().zip(outputs) {
                            output.set(weights[token as usize].mul_add(*value, *output));
                        }
                    }
                }
            }
        });
    }

    fn apart(&self) -> impl Iterator<Item = u32> {
        (0..self.tiling.rows / DOWN).map(|i| DOWN * i)
    }

    /// Calls `put` with the distance of each row from the lane's first one, the first element of each of the lane's chunks,
    /// and the values there.
    fn for_each_chunk(
        &self,
        outputs: &Outputs<'k>,
        put: impl Fn(u32, Value<'k, U32>, [Value<'k, F32>; 4]),
    ) {
        let k = self.head.k;
        let count = self.head.head_dim / CHUNK;
        for (row, apart) in outputs.iter().zip(self.apart()) {
            for (j, chunk) in self.chunks.iter().enumerate() {
                let values = || [0, 1, 2, 3].map(|e: usize| row[CHUNK as usize * j + e].get());
                if LANES * (j as u32 + 1) > count {
                    // Lanes beyond the last chunk have computed it a second time.
                    let own = k.lane() % LANES + LANES * j as u32;
                    k.if_(own.lt(count), || put(apart, *chunk * CHUNK, values()));
                } else {
                    put(apart, *chunk * CHUNK, values());
                }
            }
        }
    }
}

/// The queries of a warp.
pub struct Queries<'k> {
    head: Head<'k>,
    block: Block<'k>,
    tile: Tile<'k, F32>,
    /// The lane's first query.
    first: Value<'k, U32>,
    sight: Sight<'k>,
    rows: Rows<'k>,
    outputs: Outputs<'k>,
}

impl<'k> AnyQueries<'k, F32> for Queries<'k> {
    type Weights = ();

    fn new(head: Head<'k>, tiling: Tiling, tile: Tile<'k, F32>, first: Value<'k, U32>) -> Self {
        let block = Block::new(head, tiling, 1);
        let (warp, lane) = (first + block.warp_row, first + block.row);
        let key = head.k.lane() % LANES;
        let sight = Sight::new(head, tiling.columns, key, warp, lane, block.apart());
        Queries {
            head,
            tile,
            first: lane,
            rows: Rows::new(head, LANES, &sight),
            sight,
            outputs: block.outputs(),
            block,
        }
    }

    fn meet(&self, scale: Value<'k, F32>, keys: Tile<'k, F32>, first: Value<'k, U32>, once: bool) {
        let scores = self.block.products(self.tile, keys);
        self.sight.hide(&scores, first);
        self.rows.soften(&scores, &self.outputs, scale, once);
        // Since a warp last read its weights, there was a barrier.
        self.block.exchange(0, &scores);
        self.head.k.warp_barrier();
    }

    fn add(&self, (): (), values: Tile<'k, F32>) {
        self.block.add(&self.outputs, 0, values);
    }

    fn finish(
        &self,
        scale: Value<'k, F32>,
        out: Pointer<'k, Global, F32>,
        lse: Pointer<'k, Global, F32>,
    ) {
        let k = self.head.k;
        let factors = self.rows.finish(scale, lse);
        k.comment("outputs");
        for (row, factor) in self.outputs.iter().zip(factors) {
            for output in row {
                output.set(*output * factor);
            }
        }
        self.block
            .for_each_chunk(&self.outputs, |apart, element, values| {
                let query = self.first + apart;
                let row = Floats::F32(out.at(query * self.head.pitch()));
                k.if_(query.lt(self.head.queries), || {
                    let store = |element, values: &[_]| row.at(element).store_span(values);
                    self.head.for_each_span(element, &values, store);
                });
            });
    }
}

impl<'k> AnyBlock<'k, F32> for Block<'k> {
    type Products = Scores<'k>;
    type Outputs = Outputs<'k>;

    fn new(head: Head<'k>, tiling: Tiling, weights: u32) -> Self {
        Block::new(head, tiling, weights)
    }

    fn lane(&self) -> Lane<'k> {
        Lane {
            warp_row: self.warp_row,
            row: self.row,
            column: self.head.k.lane() % LANES,
            apart: self.apart().collect(),
            lanes: LANES,
        }
    }

    fn products(&self, left: Tile<'k, F32>, right: Tile<'k, F32>) -> Scores<'k> {
        Block::products(self, left, right)
    }

    fn scores(&self, products: &Scores<'k>) -> Scores<'k> {
        products.clone()
    }

    fn outputs(&self) -> Outputs<'k> {
        Block::outputs(self)
    }

    fn add(&self, weighed: &[(&Outputs<'k>, &Scores<'k>, Tile<'k, F32>)]) {
        // Since a warp last read its weights, there was a barrier.
        for ((_, weights, _), index) in weighed.iter().zip(0u32..) {
            self.exchange(index, weights);
        }
        self.head.k.warp_barrier();
        for ((outputs, _, values), index) in weighed.iter().zip(0u32..) {
            Block::add(self, outputs, index, *values);
        }
    }

    fn store(
        &self,
        outputs: &[Outputs<'k>],
        put: impl Fn(usize, Value<'k, U32>, Value<'k, U32>, &[Value<'k, F32>]),
    ) {
        for (output, rows) in outputs.iter().enumerate() {
            self.for_each_chunk(rows, |apart, element, values| {
                put(output, self.row + apart, element, &values);
            });
        }
    }
}
