//! What follows a product: the sums go through shared memory, 16 rows of a warp at a time, so that each thread gets some
//! that lie side by side in the output and in whatever is read for them; then [`Completion`] finishes them.

use super::Tiling;
use crate::Accum;
use crate::ops::matmul::Activation;
use crate::ptx::{
    Assembler, F32, Fast, Floats, Layout, Pred, Storage, Tile, U32, U64, Value, Variable,
};

/// Rows of sums that a warp exchanges at a time.
const ROWS: u32 = 16;

/// Where a warp puts its rows.
#[derive(Clone, Copy)]
pub struct Slab<'k> {
    pub tile: Tile<'k, F32>,
    pub layout: Layout<F32>,
}

pub struct Epilogue<'k> {
    pub tiling: Tiling,
    pub aligned: bool,
    pub operands: Operands<'k>,
    /// Where the CTA's tile begins.
    pub first_row: Value<'k, U32>,
    pub first_column: Value<'k, U32>,
    /// m and n.
    pub rows: Value<'k, U32>,
    pub columns: Value<'k, U32>,
    pub batch: Value<'k, U32>,
}

/// What sums are completed with, and where they go.
#[derive(Clone, Copy)]
pub struct Operands<'k> {
    pub k: &'k Assembler,
    pub accum: Accum,
    pub c: Floats<'k>,
    /// The rest, where the kernel has it.
    pub fused: Option<Fused<'k>>,
}

/// What a launch may have or not.
#[derive(Clone, Copy)]
pub struct Fused<'k> {
    /// An [`Activation`] as a number, where the kernel has them.
    pub activation: Option<Value<'k, U32>>,
    pub pre: Option<Floats<'k>>,
    pub bias: Floats<'k>,
    pub residual: Floats<'k>,
}

/// The operands of one matrix of the batch, and which of them are there.
pub struct Completion<'k> {
    k: &'k Assembler,
    accum: Accum,
    c: Floats<'k>,
    fused: Option<Present<'k>>,
}

struct Present<'k> {
    activation: Option<Value<'k, U32>>,
    /// With whether it is there.
    pre: Option<(Floats<'k>, Value<'k, Pred>)>,
    bias: Floats<'k>,
    has_bias: Value<'k, Pred>,
    residual: Floats<'k>,
    has_residual: Value<'k, Pred>,
}

impl<'k> Epilogue<'k> {
    /// Calls `store(slab, to)`, which puts the warp's rows `16·slab` and on into `to`, for each slab, and completes them.
    pub fn write(&self, store: impl Fn(u32, Slab<'k>)) {
        let k = self.operands.k;
        let [rows, columns] = self.tiling.warp;
        // Eight floats between rows: four rows of pairs fill all banks once.
        let layout = Layout::padded(ROWS, columns, 8);
        let [down, across] = self.tiling.warps();
        let slabs = k.shared_tiles_again(layout, down * across);
        let slab = Slab {
            // The kernel may have warps that hold no sums; they are not here.
            tile: slabs.tile(k.warp().assume_below((down * across).into())),
            layout,
        };
        let [warp_row, warp_column] = self.tiling.warp_place(k);
        let first_row = self.first_row + warp_row * rows;
        let first_column = self.first_column + warp_column * columns;

        let start = self.batch.mul_wide(self.rows * self.columns);
        let completion = self.operands.completion(start);
        let chunk = self.operands.c.storage().chunk();
        let chunks = columns / chunk;
        for index in 0..rows / ROWS {
            k.comment(format_args!(
                "rows {} and on of the warp's sums",
                ROWS * index
            ));
            if index > 0 {
                k.warp_barrier();
            }
            store(index, slab);
            k.warp_barrier();
            k.for_(0, ROWS * chunks / 32, 1, |step| {
                let place = step * 32 + k.lane();
                let (row_here, column_here) = (place / chunks, place % chunks * chunk);
                let row = first_row + (row_here + ROWS * index);
                let column = first_column + column_here;
                let sums = slab.tile.at(layout.element(row_here, column_here));
                let inside = row.lt(self.rows) & column.lt(self.columns);
                k.if_(inside, || {
                    let element = row * self.columns + column;
                    if self.aligned {
                        let sums = (0..chunk / 4).flat_map(|i| sums.at(4 * i).load_vector::<4>());
                        completion.complete(sums.collect(), element, column);
                    } else {
                        let end = (self.columns - column).min(chunk);
                        k.for_(0, end, 1, |i| {
                            completion.complete(vec![sums.at(i).load()], element + i, column + i);
                        });
                    }
                });
            });
        }
    }
}

impl<'k> Operands<'k> {
    /// Of the matrix that begins with element `start`.
    pub fn completion(&self, start: Value<'k, U64>) -> Completion<'k> {
        let present = |f: Fused<'k>| Present {
            activation: f.activation,
            pre: f.pre.map(|pre| (pre.at_wide(start), pre.is_present())),
            bias: f.bias,
            has_bias: f.bias.is_present(),
            residual: f.residual.at_wide(start),
            has_residual: f.residual.is_present(),
        };
        Completion {
            k: self.k,
            accum: self.accum,
            c: self.c.at_wide(start),
            fused: self.fused.map(present),
        }
    }
}

impl<'k> Completion<'k> {
    /// Completes sums: element `element` of the output and on, in column `column` and on.
    pub fn complete(
        &self,
        sums: Vec<Value<'k, F32>>,
        element: Value<'k, U32>,
        column: Value<'k, U32>,
    ) {
        let k = self.k;
        let to = self.c.at(element);
        let Some(fused) = self.fused.as_ref().filter(|_| self.accum == Accum::Replace) else {
            return to.put_span(self.accum, &sums);
        };
        let width = sums.len() as u32;
        let results: Vec<Variable<'k, F32>> = sums.into_iter().map(|s| k.variable(s)).collect();
        let values = || results.iter().map(|r| r.get()).collect::<Vec<_>>();
        let add = |others: Floats<'k>| {
            for (result, other) in results.iter().zip(others.load_span(width)) {
                result.set(*result + other);
            }
        };
        k.if_(fused.has_bias, || add(fused.bias.at(column)));
        if let Some((pre, is_present)) = fused.pre {
            k.if_(is_present, || pre.at(element).store_span(&values()));
        }
        let choices = fused.activation.into_iter().flat_map(|chosen| {
            let some = |a: &Activation| *a != Activation::None;
            let activations = Activation::ALL.into_iter().filter(some);
            activations.map(move |activation| (chosen, activation))
        });
        for (chosen, activation) in choices {
            k.if_(chosen.eq(activation as u32), || {
                for result in &results {
                    result.set(match self.c.storage() {
                        Storage::F32 => activation.apply(result.get()),
                        Storage::Bf16 => activation.apply(Fast(result.get())).0,
                    });
                }
            });
        }
        k.if_(fused.has_residual, || add(fused.residual.at(element)));
        to.store_span(&values());
    }
}
