//! The softmax of rows of scores that arrive in tiles, spread over the lanes that share a row (Milakov & Gimelshein,
//! arXiv 1805.02867).

use std::f32::consts::{LN_2, LOG2_E};

use super::head::Head;
use crate::ptx::{F32, Global, Pointer, S32, U32, Value, Variable};

/// Scores of a tile that a lane has, and after [`Rows::soften`] their exponentials: by row, then by key, with the key's
/// distance from the lane's first one.
pub type Scores<'k> = Vec<Vec<(u32, Variable<'k, F32>)>>;

/// Which of a lane's scores belong to keys that queries see.
pub struct Sight<'k> {
    head: Head<'k>,
    /// Keys of a tile.
    keys: u32,
    /// The first key of a tile that this lane has.
    lane_key: Value<'k, U32>,
    /// The keys that the warp's first query sees: none sees fewer.
    least: Value<'k, U32>,
    queries: Vec<Value<'k, U32>>,
}

impl<'k> Sight<'k> {
    /// Of the queries `first + apart` for each `apart`; `warp` is the warp's first one.
    pub fn new(
        head: Head<'k>,
        keys: u32,
        lane_key: Value<'k, U32>,
        warp: Value<'k, U32>,
        first: Value<'k, U32>,
        apart: impl Iterator<Item = u32>,
    ) -> Self {
        head.k.comment("what this lane's queries see");
        Sight {
            head,
            keys,
            lane_key,
            least: head.visible(warp),
            queries: apart.map(|apart| first + apart).collect(),
        }
    }

    /// Makes -inf of the scores of keys that a query does not see, in the tile that begins with key `first`.
    pub fn hide(&self, scores: &Scores<'k>, first: Value<'k, U32>) {
        let k = self.head.k;
        k.if_((first + self.keys).gt(self.least), || {
            k.comment("keys beyond the end, or after a query");
            for (query, scores) in self.queries.iter().zip(scores) {
                let visible = self.head.visible(*query);
                let left = (visible - (first + self.lane_key)).cast::<S32>();
                for &(key, score) in scores {
                    let seen = left.gt(key as i32);
                    score.set(seen.select(score, f32::NEG_INFINITY));
                }
            }
        });
        self.head.under_mask(first, self.keys, |word, bits| {
            let bits = bits.shift_right_by(self.lane_key);
            for &(key, score) in scores.iter().flatten().filter(|(key, _)| key / 32 == word) {
                let seen = (bits & (1u32 << (key % 32))).ne(0);
                score.set(seen.select(score, f32::NEG_INFINITY));
            }
        });
    }
}

/// The queries of whose scores a lane has some.
pub struct Rows<'k> {
    head: Head<'k>,
    /// Neighbouring lanes that share a row.
    lanes: u32,
    rows: Vec<Row<'k>>,
}

struct Row<'k> {
    query: Value<'k, U32>,
    /// The largest score so far, of all lanes.
    largest: Variable<'k, F32>,
    /// The sum of exponentials relative to it, of this lane.
    sum: Variable<'k, F32>,
}

impl<'k> Rows<'k> {
    pub fn new(head: Head<'k>, lanes: u32, sight: &Sight<'k>) -> Self {
        let k = head.k;
        let row = |&query: &Value<'k, U32>| Row {
            query,
            largest: k.variable(f32::NEG_INFINITY),
            sum: k.variable(0.0),
        };
        Rows {
            head,
            lanes,
            rows: sight.queries.iter().map(row).collect(),
        }
    }

    /// Makes of scores their exponentials relative to the largest ones so far, to which `outputs` (by row) are brought
    /// too. Where all keys meet at `once`, there is nothing to bring.
    pub fn soften(
        &self,
        scores: &Scores<'k>,
        outputs: &[Vec<Variable<'k, F32>>],
        scale: Value<'k, F32>,
        once: bool,
    ) {
        let k = self.head.k;
        let scale = scale * LOG2_E;
        for (i, row) in self.rows.iter().enumerate() {
            k.comment(format_args!("softmax of this lane's row {i}"));
            let here = scores[i].iter().map(|(_, score)| score.get());
            let here = here.reduce(|a, b| a.max(b)).expect("a lane has scores");
            let here = self.over_lanes(here, |a, b| a.max(b));
            let largest = if once { here } else { here.max(row.largest) };
            // Where no key is seen, -inf minus -inf would not be a number.
            let offset = largest.eq(f32::NEG_INFINITY).select(0.0, largest * -scale);
            if !once {
                let decay = k.ex2_approx(row.largest.get().mul_add(scale, offset));
                row.sum.set(row.sum * decay);
                for output in &outputs[i] {
                    output.set(*output * decay);
                }
            }
            row.largest.set(largest);
            for (_, score) in &scores[i] {
                score.set(k.ex2_approx(score.get().mul_add(scale, offset)));
                row.sum.set(row.sum + *score);
            }
        }
    }

    /// Stores the log-sum-exp of every row, and gives what its outputs are to be multiplied by.
    pub fn finish(
        &self,
        scale: Value<'k, F32>,
        lse: Pointer<'k, Global, F32>,
    ) -> Vec<Value<'k, F32>> {
        let k = self.head.k;
        let scale = scale * LOG2_E;
        k.comment("sums of all lanes, and their logarithms");
        let owner = (k.lane() % self.lanes).eq(0);
        let factor = |row: &Row<'k>| {
            let sum = self.over_lanes(row.sum.get(), |a, b| a + b);
            let empty = sum.eq(0.0);
            let log_sum = (k.lg2_approx(sum) + row.largest * scale) * LN_2;
            let log_sum = empty.select(f32::INFINITY, log_sum);
            let to = lse.at(row.query);
            k.when(owner & row.query.lt(self.head.queries), || {
                to.store(log_sum)
            });
            empty.select(0.0, k.rcp_approx(sum))
        };
        self.rows.iter().map(factor).collect()
    }

    /// Combines a value of each of the lanes that share a row; all of them get the result.
    fn over_lanes(
        &self,
        x: Value<'k, F32>,
        combine: impl Fn(Value<'k, F32>, Value<'k, F32>) -> Value<'k, F32>,
    ) -> Value<'k, F32> {
        let k = self.head.k;
        let masks = (0..self.lanes.ilog2()).map(|bit| 1 << bit);
        masks.fold(x, |x, mask| combine(x, k.shuffle_xor(x, mask)))
    }
}
