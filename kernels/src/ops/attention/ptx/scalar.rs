//! Attention in f32 with fused multiply-adds: eight lanes share four rows, and weights of a warp's rows pass through
//! shared memory from the keys' lanes to those of the values' elements.

use super::head::{Head, layout};
use super::softmax::{Rows, Scores};
use super::{Queries as AnyQueries, Tiling};
use crate::ptx::{F32, Global, Layout, Pointer, Position, Tile, Type, U32, Value, Variable};

/// Lanes along a row.
const LANES: u32 = 8;
/// Lanes down a column, and so rows from one of a lane's to the next.
const DOWN: u32 = 4;
/// Elements of 16 bytes.
const CHUNK: u32 = 4;

/// The queries of a warp. A lane has every fourth one, of its scores every eighth, and of its outputs every eighth chunk.
pub struct Queries<'k> {
    head: Head<'k>,
    tiling: Tiling,
    tile: Tile<'k, F32>,
    /// The lane's first row of the tile, and the query there.
    row: Value<'k, U32>,
    first: Value<'k, U32>,
    /// Where the lane's first query and first key begin.
    query_at: Position<'k, F32>,
    key_at: Position<'k, F32>,
    /// Elements of shared memory from one query, or key, to the next.
    pitch: u32,
    /// Where a key's chunks of values lie that the lane has.
    values_at: Vec<Position<'k, F32>>,
    /// Which ones these are; beyond the last one, the last one again.
    chunks: Vec<Value<'k, U32>>,
    weights: Tile<'k, F32>,
    weights_layout: Layout<F32>,
    rows: Rows<'k>,
    /// By row, then element.
    outputs: Vec<Vec<Variable<'k, F32>>>,
}

impl<'k> AnyQueries<'k, F32> for Queries<'k> {
    type Weights = ();

    fn new(head: Head<'k>, tiling: Tiling, tile: Tile<'k, F32>, first: Value<'k, U32>) -> Self {
        let k = head.k;
        let q_layout = layout::<F32>(tiling.queries(), head.head_dim);
        let key_layout = layout::<F32>(tiling.keys, head.head_dim);
        // Eight more floats: four rows of eight fill all banks once.
        let weights_layout = Layout::padded(tiling.queries(), tiling.keys, 8);
        let weights = k.shared_tile(weights_layout);
        let (down, along) = (k.lane() / LANES, k.lane() % LANES);
        let warp_row = k.warp() * tiling.rows;
        let row = warp_row + down;
        let count = key_layout.chunks();
        let chunks: Vec<Value<'k, U32>> = (0..count.div_ceil(LANES))
            .map(|i| (along + LANES * i).min(count - 1))
            .collect();
        let apart = (0..tiling.rows / DOWN).map(|i| DOWN * i);
        let warp_first = first + warp_row;
        let first = first + row;
        let elements = CHUNK * chunks.len() as u32;
        let row_of_outputs = |_| (0..elements).map(|_| k.variable(0.0f32)).collect();
        Queries {
            head,
            tiling,
            tile,
            row,
            first,
            query_at: q_layout.chunk(row, 0),
            key_at: key_layout.chunk(along, 0),
            pitch: key_layout.bytes() / F32::SIZE / tiling.keys,
            values_at: chunks.iter().map(|&c| key_layout.chunk(0, c)).collect(),
            chunks,
            weights,
            weights_layout,
            rows: Rows::new(head, tiling.keys, LANES, along, warp_first, first, apart),
            outputs: (0..tiling.rows / DOWN).map(row_of_outputs).collect(),
        }
    }

    fn meet(&self, scale: Value<'k, F32>, keys: Tile<'k, F32>, first: Value<'k, U32>, once: bool) {
        let k = self.head.k;
        let scores = self.scores(keys);
        self.rows.hide(&scores, first);
        self.rows.soften(&scores, &self.outputs, scale, once);
        // Since a warp last read its weights, there was a barrier.
        k.comment("the warp's weights");
        let start = self.weights_layout.element(self.row, k.lane() % LANES);
        for (row, i) in scores.iter().zip(0u32..) {
            let start = self.weights.at(start.down(DOWN * i));
            for &(key, weight) in row {
                start.at(key).store(weight);
            }
        }
        k.warp_barrier();
    }

    fn add(&self, (): (), values: Tile<'k, F32>) {
        let k = self.head.k;
        let start = self.weights_layout.chunk(self.row, 0);
        k.comment("values, four keys at a time");
        k.for_(0, self.tiling.keys, CHUNK, |first| {
            let row = |i| self.weights.at(start.down(DOWN * i)).at(first);
            let rows = 0..self.outputs.len() as u32;
            let weights: Vec<[Value<'k, F32>; 4]> =
                rows.map(|i| row(i).load_vector::<4>()).collect();
            for (i, place) in self.values_at.iter().enumerate() {
                let values = values.at(*place).at(first * self.pitch);
                for key in 0..CHUNK {
                    let values = values.at(key * self.pitch).load_vector::<4>();
                    for (weights, outputs) in weights.iter().zip(&self.outputs) {
                        let outputs = &outputs[CHUNK as usize * i..];
                        for (value, output) in values.iter().zip(outputs) {
                            output.set(weights[key as usize].mul_add(*value, *output));
                        }
                    }
                }
            }
        });
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
        let count = self.head.head_dim / CHUNK;
        for ((row, factor), i) in self.outputs.iter().zip(factors).zip(0u32..) {
            let query = self.first + DOWN * i;
            let results: Vec<_> = row.iter().map(|output| *output * factor).collect();
            for (j, chunk) in self.chunks.iter().enumerate() {
                let to = out.at(query * self.head.pitch() + *chunk * CHUNK);
                let mut stored = query.lt(self.head.queries);
                if LANES * (j as u32 + 1) > count {
                    // Lanes beyond the last chunk have computed it a second time.
                    let own = k.lane() % LANES + LANES * j as u32;
                    stored = stored & own.lt(count);
                }
                k.when(stored, || {
                    to.store_vector([0, 1, 2, 3].map(|e: usize| results[CHUNK as usize * j + e]));
                });
            }
        }
    }
}

impl<'k> Queries<'k> {
    /// Products of queries and keys.
    fn scores(&self, keys: Tile<'k, F32>) -> Scores<'k> {
        let k = self.head.k;
        let columns = (0..self.tiling.keys).step_by(LANES as usize);
        let row = |_| {
            columns
                .clone()
                .map(|key| (key, k.variable(0.0f32)))
                .collect()
        };
        let scores: Scores<'k> = (0..self.tiling.rows / DOWN).map(row).collect();
        k.comment("scores, four elements at a time");
        let query = self.tile.at(self.query_at);
        let key = keys.at(self.key_at);
        k.for_(0, self.head.head_dim, CHUNK, |element| {
            let keys: Vec<[Value<'k, F32>; 4]> = columns
                .clone()
                .map(|i| key.at(element).at(i * self.pitch).load_vector())
                .collect();
            for (row, i) in scores.iter().zip(0u32..) {
                let query = query.at(element).at(DOWN * i * self.pitch);
                let query = query.load_vector::<4>();
                for ((_, score), keys) in row.iter().zip(&keys) {
                    for (query, key) in query.iter().zip(keys) {
                        score.set(query.mul_add(*key, *score));
                    }
                }
            }
        });
        scores
    }
}
