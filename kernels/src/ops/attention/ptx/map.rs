//! Attention maps, which a forward pass never holds: for people who want to look at them.

use std::f32::consts::LOG2_E;

use super::backward::{Block, Lane, by_head_dim, differentiate};
use super::head::{Head, HeadDim, RowsAre, Tokens, layout};
use super::softmax::Sight;
use super::{STAGES, Tiling, check, sizes};
use crate::launch::Arch;
use crate::ops::attention::Attention;
use crate::ops::geometry::{Call, linear_grid};
use crate::ops::matmul::ptx::operand::Element;
use crate::ops::variants::{Refused, count};
use crate::ptx::{Assembler, F32, IntoValue, Storage, U32, Value};

/// map = exp(scale · q·[context_k; k]ᵀ − lse), [n, heads, queries, context + keys].
///
/// Launch with `Write(map), Read(lse), Read(q), Read(k)`, `Read(context_k)` or `Null`, `F32(scale)`, `Read(mask)` or `Null`,
/// and the call's numbers; lse is what [`Forward`](super::Forward) wrote for the same operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    pub storage: Storage,
    pub head_dim: HeadDim,
}

by_head_dim!(Map, "attention/map");

/// The launch for a descriptor.
///
/// # Errors
/// As [`super::config`], and if the map has more elements than kernels count.
pub fn config(d: &Attention, storage: Storage, _arch: Arch) -> Result<Call<Map>, Refused> {
    let head_dim = check(d, storage)?;
    let rows = d.n * d.heads * d.queries;
    count(
        rows.saturating_mul(d.context + d.keys),
        "the size of the map",
    )?;
    let map = Map { storage, head_dim };
    let parts = d.queries.div_ceil(map.tiling().cta_rows() as usize);
    let grid = linear_grid(parts * d.n * d.heads)?;
    Ok(Call::new(map, grid, sizes(d).to_vec()))
}

impl Map {
    fn tiling(self) -> Tiling {
        Tiling {
            warps: 4,
            rows: 16,
            columns: 32,
        }
    }

    fn write_as<'k, E: Element, B: Block<'k, E>>(self, k: &'k Assembler) {
        let tiling = self.tiling();
        let (rows, columns) = (tiling.cta_rows(), tiling.columns);
        k.contract(&format!(
            "map = exp(scale * q*k^T - lse), {}, {}.\n\
             Grid: n * heads * ceil(queries / {rows}) CTAs of {} threads.\n\
             {} queries a warp meet {columns} keys at a time, the next tile on its way meanwhile.\n\
             Shared memory: {rows} queries, and {STAGES} times {columns} keys.\n\
             Reads q once, and keys and mask once for each {rows} queries; writes the map once.",
            self.head_dim,
            self.storage.name(),
            32 * tiling.warps,
            tiling.rows,
        ));
        let map = k.floats(self.storage, "map");
        let lse = k.buffer::<F32>("lse").read_only();
        let [q, keys, context_keys] = ["q", "k", "context_k"].map(|name| k.buffer::<E>(name));
        let scale = k.parameter::<F32>("scale");
        let (head, part, _) = Head::of_cta::<E>(k, self.head_dim, RowsAre::Queries, rows);
        // Without this, ptxas would spill to fit more CTAs.
        k.min_ctas(1);
        let first = part * rows;

        let row_layout = layout::<E>(rows, head.head_dim);
        let column_layout = layout::<E>(columns, head.head_dim);
        let q_tile = k.shared_tile(row_layout);
        let key_tiles = k.shared_tiles(column_layout, STAGES);
        k.comment("what this thread copies of queries and keys");
        let q = Tokens::new(head, row_layout, q, head.queries, None);
        let keys = Tokens::new(head, column_layout, keys, head.keys, Some(context_keys));
        k.comment("the queries and the first keys");
        let zero: Value<'k, U32> = 0u32.into_value();
        q.copy(q_tile, first);
        keys.copy(key_tiles.tile(0), zero);
        let block = B::new(head, tiling, 1);
        let Lane {
            warp_row,
            row,
            column,
            apart,
            ..
        } = block.lane();
        let queries = apart.iter().copied();
        let sight = Sight::new(
            head,
            columns,
            column,
            first + warp_row,
            first + row,
            queries,
        );
        k.comment("statistics of this lane's queries");
        let lse = head.first_query(lse);
        let of_query = |apart: &u32| {
            let query = first + row + *apart;
            let statistic = k.variable(0.0f32);
            k.when(query.lt(head.queries), || {
                statistic.set(lse.at(query).load());
            });
            statistic.get() * -LOG2_E
        };
        let statistics: Vec<Value<'k, F32>> = apart.iter().map(of_query).collect();
        k.cp_async_wait_all();
        k.barrier();
        // Keys that no query of the CTA sees have zeros.
        k.for_(0, (head.total + (columns - 1)) / columns, 1, |i| {
            let first_key = i * columns;
            k.comment("the next keys");
            let next = first_key + columns;
            k.if_(next.lt(head.total), || {
                keys.copy(key_tiles.tile((i + 1) % STAGES), next);
            });
            let products = block.products(q_tile, key_tiles.tile(i % STAGES));
            let probabilities = block.scores(&products);
            sight.hide(&probabilities, first_key);
            differentiate(k, scale, &probabilities, |i, _| statistics[i]);
            k.comment("a tile of the map");
            for (apart, probabilities) in apart.iter().zip(&probabilities) {
                let query = first + row + *apart;
                let line = map.at((head.first_row() + query) * head.total);
                for (apart, probability) in probabilities {
                    let key = first_key + column + *apart;
                    k.when(query.lt(head.queries) & key.lt(head.total), || {
                        line.at(key).store(*probability);
                    });
                }
            }
            k.comment("the next tile has arrived, and everybody is done with this one");
            k.cp_async_wait_all();
            k.barrier();
        });
    }
}
