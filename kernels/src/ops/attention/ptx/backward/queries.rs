//! The gradient of the queries: a CTA owns some of them and walks through the keys they see.

use std::f32::consts::LOG2_E;

use super::{Block, Gradient, Inputs, Lane, by_head_dim, differentiate, through_softmax};
use crate::ops::attention::ptx::head::{Head, RowsAre, Tokens, layout};
use crate::ops::attention::ptx::softmax::Sight;
use crate::ops::attention::ptx::{HeadDim, STAGES, Tiling};
use crate::ops::matmul::ptx::operand::Element;
use crate::ptx::{Assembler, F32, IntoValue, Storage, Tile, Tiles, U32, Value};

/// dq (+)= scale · dS·[context_k; k], with dS = P ∘ (dout·[context_v; v]ᵀ − delta).
///
/// Launch with `Write(dq)`, or `Update(dq)` under [`Accum::Add`], `Read(dout), Read(lse), Read(delta), Read(q), Read(k),
/// Read(v)`, `Read(context_k), Read(context_v)` or twice `Null`, `F32(scale)`, `Read(mask)` or `Null`, and the call's
/// numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryGradient {
    pub storage: Storage,
    pub head_dim: HeadDim,
}

by_head_dim!(QueryGradient, "attention/query_gradient");

impl QueryGradient {
    pub(super) fn tiling(self) -> Tiling {
        let rows = match self.storage {
            // Two fragments of queries a warp, for each of which a fragment of keys is loaded once.
            Storage::Bf16 => 32,
            // A thread's 4 x 4 scores and their gradients, and 4 x head_dim / 8 outputs.
            Storage::F32 => 16,
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
            "dq = scale * dS*k, dS = P * (dout*v^T - delta), P = exp(scale * q*k^T - lse), {}, {}.\n\
             Grid: n * heads * ceil(queries / {rows}) CTAs of {} threads, the last queries first.\n\
             {} queries a warp meet {columns} keys at a time, the next tile on its way meanwhile.\n\
             Shared memory: {rows} queries and gradients of outputs, and {STAGES} times {columns} keys and values.\n\
             Registers of a lane: {} scores, as many of their gradients, {} sums of dq.\n\
             Reads q and dout once, and keys, values and mask once for each {rows} queries; writes dq once.",
            self.head_dim,
            self.storage.name(),
            32 * tiling.warps,
            tiling.rows,
            tiling.rows * columns / 32,
            tiling.rows * self.head_dim.padded / 32,
        ));
        let dq = k.floats(self.storage, "dq");
        let inputs = Inputs::<E>::parameters(k);
        let (head, part, parts) = Head::of_cta::<E>(k, self.head_dim, RowsAre::Queries, rows);
        let add = k.parameter::<U32>("accumulate");
        // Sums take most of a thread's registers: without this, ptxas would spill to fit more CTAs.
        k.min_ctas(1);
        // Under causality the last queries have most to do: they begin first.
        let first = (parts - 1 - part) * rows;
        let last = (first + (rows - 1)).min(head.queries - 1);
        let end = head.visible(last);

        let (row_layout, column_layout) = (
            layout::<E>(rows, head.head_dim),
            layout::<E>(columns, head.head_dim),
        );
        let row_tiles = [(); 2].map(|()| k.shared_tile(row_layout));
        let column_tiles = [(); 2].map(|()| k.shared_tiles(column_layout, STAGES));
        k.comment("what this thread copies of queries, keys and values");
        let queries = inputs.queries(head, row_layout);
        let keys = inputs.keys(head, column_layout);
        k.comment("the queries and the first keys");
        let copy = |from: &[Tokens<'k, E>; 2], to: [Tile<'k, E>; 2], first: Value<'k, U32>| {
            for (from, to) in from.iter().zip(to) {
                from.copy(to, first);
            }
        };
        let stage =
            |i: Value<'k, U32>| column_tiles.map(|tiles: Tiles<'k, E>| tiles.tile(i % STAGES));
        let zero: Value<'k, U32> = 0u32.into_value();
        copy(&queries, row_tiles, first);
        copy(&keys, stage(zero), zero);
        let block = B::new(head, tiling, 1);
        let Lane {
            warp_row,
            row,
            column,
            apart,
            ..
        } = block.lane();
        let sight = Sight::new(
            head,
            columns,
            column,
            first + warp_row,
            first + row,
            apart.iter().copied(),
        );
        k.comment("statistics of this lane's queries");
        let statistics: Vec<[Value<'k, F32>; 2]> = apart
            .iter()
            .map(|&apart| {
                let query = first + row + apart;
                [inputs.lse, inputs.delta].map(|of| {
                    let of = head.first_query(of.read_only()).at(query);
                    let statistic = k.variable(0.0f32);
                    k.when(query.lt(head.queries), || statistic.set(of.load()));
                    statistic.get()
                })
            })
            .map(|[lse, delta]| [lse * -LOG2_E, delta])
            .collect();
        let sums = block.outputs();
        k.cp_async_wait_all();
        k.barrier();
        k.for_(0, (end + (columns - 1)) / columns, 1, |i| {
            let first = i * columns;
            k.comment("the next keys and values");
            let next = first + columns;
            k.if_(next.lt(end), || copy(&keys, stage(i + 1), next));
            let [keys, values] = stage(i);
            let products = block.products(row_tiles[0], keys);
            let probabilities = block.scores(&products);
            sight.hide(&probabilities, first);
            differentiate(k, inputs.scale, &probabilities, |i, _| statistics[i][0]);
            let products = block.products(row_tiles[1], values);
            let gradients = block.scores(&products);
            through_softmax(k, &probabilities, &gradients, |i, _| statistics[i][1]);
            block.add(&[(&sums, &products, keys)]);
            k.comment("the next tile has arrived, and everybody is done with this one");
            k.cp_async_wait_all();
            k.barrier();
        });
        let gradient = Gradient {
            head,
            own: dq,
            tokens: head.queries,
            context: None,
            add,
        };
        k.comment("the gradient");
        block.store(&[sums], |_, row, element, values| {
            let query = first + row;
            k.if_(query.lt(head.queries), || {
                let values: Vec<_> = values.iter().map(|x| *x * inputs.scale).collect();
                gradient.put(query, element, &values);
            });
        });
    }
}
