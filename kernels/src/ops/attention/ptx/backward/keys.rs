//! The gradients of keys and values: a CTA owns some of them and walks through the queries that see them.

use std::f32::consts::LOG2_E;

use super::{Block, Gradient, Inputs, Lane, by_head_dim, differentiate, through_softmax};
use crate::ops::attention::ptx::head::{Head, RowsAre, layout};
use crate::ops::attention::ptx::{HeadDim, STAGES, Tiling};
use crate::ops::matmul::ptx::operand::Element;
use crate::ptx::{Assembler, F32, Global, Layout, Pointer, Pred, S32, Storage, Tiles, U32, Value};

/// dk (+)= scale · dSᵀ·q and dv (+)= Pᵀ·dout, of own keys and of the context's.
///
/// Launch with four gradients, dk, dv, dcontext_k and dcontext_v, each of them `Write`, or `Update` under [`Accum::Add`], or
/// `Null` where nobody wants it, and then as [`QueryGradient`] from dout on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyGradients {
    pub storage: Storage,
    pub head_dim: HeadDim,
}

by_head_dim!(KeyGradients, "attention/key_gradients");

impl KeyGradients {
    pub(super) fn tiling(self) -> Tiling {
        let rows = match (self.storage, self.head_dim.padded) {
            // As for queries, where the sums of two gradients leave registers for that.
            (Storage::Bf16, ..=64) => 32,
            _ => 16,
        };
        Tiling {
            warps: 4,
            rows,
            columns: 32,
        }
    }

    fn write_as<'k, E: Element, B: Block<'k, E>>(self, k: &'k Assembler) {
        let tiling = self.tiling();
        let (rows, columns) = (tiling.cta_rows(), tiling.columns);
        k.contract(&format!(
            "dk = scale * dS^T*q, dv = P^T*dout, dS = P * (dout*v^T - delta), P = exp(scale * q*k^T - lse), {}, {}.\n\
             Grid: n * heads * ceil((context + keys) / {rows}) CTAs of {} threads, the first keys first.\n\
             {} keys a warp meet {columns} queries at a time, the next tile on its way meanwhile.\n\
             Shared memory: {rows} keys and values, and {STAGES} times {columns} queries, gradients of outputs, and statistics.\n\
             Registers of a lane: {} scores, as many of their gradients, {} sums of dk and dv.\n\
             Reads keys and values once, and q, dout and statistics once for each {rows} keys; writes the gradients once.",
            self.head_dim,
            self.storage.name(),
            32 * tiling.warps,
            tiling.rows,
            tiling.rows * columns / 32,
            2 * tiling.rows * self.head_dim.padded / 32,
        ));
        let [dk, dv, dcontext_k, dcontext_v] =
            ["dk", "dv", "dcontext_k", "dcontext_v"].map(|name| k.floats(self.storage, name));
        let inputs = Inputs::<E>::parameters(k);
        let (head, part, _) = Head::of_cta::<E>(k, self.head_dim, RowsAre::Keys, rows);
        let add = k.parameter::<U32>("accumulate");
        // Sums take most of a thread's registers: without this, ptxas would spill to fit more CTAs.
        k.min_ctas(1);
        let first = part * rows;
        k.comment("the first query that sees a key, if there are some that see none");
        let before = first.max(head.context) - head.context;
        let start = head.causal.select(before, 0u32) / columns;

        let (row_layout, column_layout) = (
            layout::<E>(rows, head.head_dim),
            layout::<E>(columns, head.head_dim),
        );
        let statistics_layout = Layout::<F32>::padded(2, columns, 0);
        let row_tiles = [(); 2].map(|()| k.shared_tile(row_layout));
        let column_tiles = [(); 2].map(|()| k.shared_tiles(column_layout, STAGES));
        let statistics = k.shared_tiles(statistics_layout, STAGES);
        k.comment("what this thread copies of keys, values and queries");
        let keys = inputs.keys(head, row_layout);
        let queries = inputs.queries(head, column_layout);
        k.comment("and of the statistics, one float: lse, then delta");
        let thread = k.thread_x();
        let is_delta = thread.ge(columns);
        let statistic = is_delta.select(
            head.first_query(inputs.delta).address(),
            head.first_query(inputs.lse).address(),
        );
        let to = statistics_layout.element((thread / columns).min(1), thread % columns);
        let copy_queries = |stage: Value<'k, U32>, first: Value<'k, U32>| {
            for (from, tiles) in queries.iter().zip(column_tiles) {
                from.copy(tiles.tile(stage), first);
            }
            k.when(thread.lt(2 * columns), || {
                let query = first + thread % columns;
                let from = Pointer::<Global, F32>::new(statistic).at(query);
                // Queries that do not exist have zeros: what they would add is zero with their dout.
                let valid = query.lt(head.queries).select::<U32>(4, 0);
                k.cp_async_4(statistics.tile(stage).at(to), from, Some(valid));
            });
        };
        k.comment("the keys and the first queries");
        for (from, to) in keys.iter().zip(row_tiles) {
            from.copy(to, first);
        }
        copy_queries(start % STAGES, start * columns);
        let block = B::new(head, tiling, 2);
        let Lane {
            warp_row,
            row,
            column,
            apart,
            lanes,
        } = block.lane();
        let (key, last_key) = (first + row, first + warp_row + (tiling.rows - 1));
        let sums = [(); 2].map(|()| block.outputs());
        k.cp_async_wait_all();
        k.barrier();
        k.for_(start, (head.queries + (columns - 1)) / columns, 1, |i| {
            let first = i * columns;
            k.comment("the next queries");
            let next = first + columns;
            k.if_(next.lt(head.queries), || {
                copy_queries((i + 1) % STAGES, next)
            });
            let [queries, douts] = column_tiles.map(|tiles: Tiles<'k, E>| tiles.tile(i % STAGES));
            let statistic = |of: u32, apart: u32| {
                let start = statistics_layout.element(of, column).across(apart);
                statistics.tile(i % STAGES).at(start)
            };
            let products = block.products(row_tiles[0], queries);
            let probabilities = block.scores(&products);
            let columns_apart: Vec<u32> =
                probabilities[0].iter().map(|(apart, _)| *apart).collect();
            let of_columns = |of: u32| -> Vec<Value<'k, F32>> {
                // Lanes that have pairs of columns load them together.
                match lanes {
                    4 => {
                        let pairs = columns_apart.chunks_exact(2);
                        pairs
                            .flat_map(|pair| statistic(of, pair[0]).load_vector::<2>())
                            .collect()
                    }
                    _ => {
                        let apart = columns_apart.iter();
                        apart.map(|&apart| statistic(of, apart).load()).collect()
                    }
                }
            };
            let lse: Vec<_> = of_columns(0).into_iter().map(|x| x * -LOG2_E).collect();
            differentiate(k, inputs.scale, &probabilities, |_, j| lse[j]);
            let last_seen = first + head.context;
            k.if_(head.causal & last_key.gt(last_seen), || {
                k.comment("keys after a query");
                for (row, apart) in probabilities.iter().zip(&apart) {
                    let left = (last_seen + column - (key + *apart)).cast::<S32>();
                    for &(column, probability) in row {
                        let seen = left.ge(-(column as i32));
                        probability.set(seen.select(probability, 0.0));
                    }
                }
            });
            let weights = block.products(row_tiles[1], douts);
            let gradients = block.scores(&weights);
            let delta = of_columns(1);
            through_softmax(k, &probabilities, &gradients, |_, j| delta[j]);
            block.add(&[(&sums[1], &products, douts), (&sums[0], &weights, queries)]);
            k.comment("the next tile has arrived, and everybody is done with this one");
            k.cp_async_wait_all();
            k.barrier();
        });
        let gradient = |own, context, bit: u32| Gradient {
            head,
            own,
            tokens: head.keys,
            context: Some((context, head.context)),
            add: add >> bit,
        };
        let gradients = [gradient(dk, dcontext_k, 0), gradient(dv, dcontext_v, 1)];
        k.comment("the gradients");
        let [dk, dv] = sums;
        block.store(&[dk, dv], |number, row, element, values| {
            let key = first + row;
            k.if_(key.lt(head.total), || {
                // Of keys that nobody attends to, the sums are of nothing that means something.
                let allowed: Value<'k, Pred> = head.allows(key);
                let scaled = values.iter().map(|x| match number {
                    0 => *x * inputs.scale,
                    _ => *x,
                });
                let values: Vec<_> = scaled.map(|x| allowed.select(x, 0.0f32)).collect();
                gradients[number].put(key, element, &values);
            });
        });
    }
}
