//! Gradients of attention (Dao, arXiv 2307.08691, algorithm 2): probabilities are computed anew from the saved
//! log-sum-exp, and no score leaves the registers.
//!
//! One kernel owns queries and walks through keys, for dq; another one owns keys and walks through queries, for dk and dv.
//! Each output has one owner that adds in one order, so that nothing is added by atomics and the bits are always the same;
//! the price is that scores are computed twice.

use std::f32::consts::LOG2_E;

use super::head::{Head, RowsAre, Tokens, layout};
use super::softmax::{Scores, Sight};
use super::{HEAD_DIMS, STAGES, Tiling, check, scalar, tensor};
use crate::Accum;
use crate::launch::Arch;
use crate::ops::attention::Attention;
use crate::ops::geometry::{Call, linear_grid};
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{
    Assembler, Bf16, F32, Floats, Global, IntoValue, Layout, Pointer, Pred, S32, Storage, Tile,
    Tiles, Type, U32, Value,
};

/// Threads of a CTA of [`Delta`], and lanes that share one of its rows.
const DELTA_THREADS: u32 = 256;
const DELTA_LANES: u32 = 8;

/// delta = Σ dout · out over the elements of each query and head, [n, heads, queries] in f32.
///
/// Launch with `Write(delta), Read(dout), Read(out)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta {
    pub storage: Storage,
}

/// dq (+)= scale · dS·[context_k; k], with dS = P ∘ (dout·[context_v; v]ᵀ − delta).
///
/// Launch with `Write(dq)`, or `Update(dq)` under [`Accum::Add`], `Read(dout), Read(lse), Read(delta), Read(q), Read(k),
/// Read(v)`, `Read(context_k), Read(context_v)` or twice `Null`, `F32(scale)`, `Read(mask)` or `Null`, and the call's
/// numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryGradient {
    pub storage: Storage,
    pub head_dim: u32,
}

/// dk (+)= scale · dSᵀ·q and dv (+)= Pᵀ·dout, of own keys and of the context's.
///
/// Launch with four gradients, dk, dv, dcontext_k and dcontext_v, each of them `Write`, or `Update` under [`Accum::Add`], or
/// `Null` where nobody wants it, and then as [`QueryGradient`] from dout on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyGradients {
    pub storage: Storage,
    pub head_dim: u32,
}

/// What happens to each gradient's destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accums {
    pub dq: Accum,
    pub dk: Accum,
    pub dv: Accum,
    pub dcontext_k: Accum,
    pub dcontext_v: Accum,
}

/// The launches for a descriptor: delta, and then the gradients that are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launches {
    pub delta: Call<Delta>,
    pub queries: Call<QueryGradient>,
    pub keys: Call<KeyGradients>,
    /// f32 of delta: scratch memory between the launches.
    pub deltas: usize,
}

/// The launches of the backward pass.
///
/// # Errors
/// As [`super::config`].
pub fn config(
    d: &Attention,
    storage: Storage,
    accums: Accums,
    _arch: Arch,
) -> Result<Launches, Refused> {
    let head_dim = check(d)?;
    let deltas = d.n * d.heads * d.queries;
    count(deltas, "the number of queries")?;
    let sizes = [d.heads, d.queries, d.keys, d.context, d.causal.into()].map(|size| size as u32);
    let numbers = |accums: &[Accum]| {
        let bits = accums.iter().zip(0..);
        let bits = bits.map(|(accum, i)| u32::from(*accum == Accum::Add) << i);
        sizes.into_iter().chain([bits.sum()]).collect::<Vec<u32>>()
    };
    let grid = |rows: usize, tiling: Tiling| {
        linear_grid(rows.div_ceil(tiling.cta_rows() as usize) * d.n * d.heads)
    };
    let (query, key) = (
        QueryGradient { storage, head_dim },
        KeyGradients { storage, head_dim },
    );
    let Accums {
        dq,
        dk,
        dv,
        dcontext_k,
        dcontext_v,
    } = accums;
    let rows = (DELTA_THREADS / DELTA_LANES) as usize;
    Ok(Launches {
        delta: Call::new(
            Delta { storage },
            linear_grid(deltas.div_ceil(rows))?,
            vec![deltas as u32, d.heads as u32, d.queries as u32, head_dim],
        ),
        queries: Call::new(query, grid(d.queries, query.tiling())?, numbers(&[dq])),
        keys: Call::new(
            key,
            grid(d.keys + d.context, key.tiling())?,
            numbers(&[dk, dv, dcontext_k, dcontext_v]),
        ),
        deltas,
    })
}

/// How the warps of a CTA multiply tiles of tokens with each other, and where a lane's sums are.
pub(super) trait Block<'k, E: Type>: Sized {
    /// Of a warp's rows and all columns.
    type Products;
    /// Of a warp's rows and all elements.
    type Outputs;

    /// At most `weights` products are weights at once.
    fn new(head: Head<'k>, tiling: Tiling, weights: u32) -> Self;

    fn lane(&self) -> Lane<'k>;

    /// left·rightᵀ.
    fn products(&self, left: Tile<'k, E>, right: Tile<'k, E>) -> Self::Products;

    /// The lane's products, which may be set: by row, then column.
    fn scores(&self, products: &Self::Products) -> Scores<'k>;

    /// Zeros.
    fn outputs(&self) -> Self::Outputs;

    /// Adds weights · values to each of some outputs. There must be a barrier between two of these.
    fn add(&self, weighed: &[(&Self::Outputs, &Self::Products, Tile<'k, E>)]);

    /// Calls `put` with chunks of all outputs: the number of the output, the row and first element of the chunk, and its
    /// values. Takes the place of all tiles.
    fn store(
        &self,
        outputs: &[Self::Outputs],
        put: impl Fn(usize, Value<'k, U32>, Value<'k, U32>, &[Value<'k, F32>]),
    );
}

/// Which products a lane has.
pub(super) struct Lane<'k> {
    /// The warp's first row.
    pub warp_row: Value<'k, U32>,
    /// The lane's first row and first column.
    pub row: Value<'k, U32>,
    pub column: Value<'k, U32>,
    /// How far its rows are from the first one.
    pub apart: Vec<u32>,
    /// Neighbouring lanes that share a row.
    pub lanes: u32,
}

/// What the kernels read besides their gradients' former contents.
struct Inputs<'k, E: Type> {
    dout: Pointer<'k, Global, E>,
    lse: Pointer<'k, Global, F32>,
    delta: Pointer<'k, Global, F32>,
    q: Pointer<'k, Global, E>,
    keys: Pointer<'k, Global, E>,
    values: Pointer<'k, Global, E>,
    context_keys: Pointer<'k, Global, E>,
    context_values: Pointer<'k, Global, E>,
    scale: Value<'k, F32>,
}

impl<'k, E: Type> Inputs<'k, E> {
    fn parameters(k: &'k Assembler) -> Self {
        Inputs {
            dout: k.buffer("dout"),
            lse: k.buffer("lse"),
            delta: k.buffer("delta"),
            q: k.buffer("q"),
            keys: k.buffer("k"),
            values: k.buffer("v"),
            context_keys: k.buffer("context_k"),
            context_values: k.buffer("context_v"),
            scale: k.parameter("scale"),
        }
    }

    /// Queries, and the gradients of their outputs.
    fn queries(&self, head: Head<'k>, layout: Layout<E>) -> [Tokens<'k, E>; 2] {
        [self.q, self.dout].map(|own| Tokens::new(head, layout, own, head.queries, None))
    }

    /// All keys, and their values.
    fn keys(&self, head: Head<'k>, layout: Layout<E>) -> [Tokens<'k, E>; 2] {
        let keys = (self.keys, self.context_keys);
        let values = (self.values, self.context_values);
        [keys, values]
            .map(|(own, context)| Tokens::new(head, layout, own, head.keys, Some(context)))
    }
}

/// Makes probabilities of scores. `statistics` gives −lse·log₂e for a row and a column of a lane's.
fn differentiate<'k>(
    k: &'k Assembler,
    scale: Value<'k, F32>,
    scores: &Scores<'k>,
    statistics: impl Fn(usize, usize) -> Value<'k, F32>,
) {
    k.comment("probabilities");
    let scale = scale * LOG2_E;
    for (i, row) in scores.iter().enumerate() {
        for (j, (_, score)) in row.iter().enumerate() {
            score.set(k.ex2_approx(score.get().mul_add(scale, statistics(i, j))));
        }
    }
}

/// Makes gradients of scores, but for the scale, of those of the probabilities.
fn through_softmax<'k>(
    k: &'k Assembler,
    probabilities: &Scores<'k>,
    gradients: &Scores<'k>,
    delta: impl Fn(usize, usize) -> Value<'k, F32>,
) {
    k.comment("gradients of scores");
    for (i, (row, gradients)) in probabilities.iter().zip(gradients).enumerate() {
        for (j, ((_, probability), (_, gradient))) in row.iter().zip(gradients).enumerate() {
            gradient.set((*gradient - delta(i, j)) * *probability);
        }
    }
}

/// Where the gradient of some tokens goes.
struct Gradient<'k> {
    head: Head<'k>,
    own: Floats<'k>,
    tokens: Value<'k, U32>,
    /// The context's, whose tokens come first, and how many there are.
    context: Option<(Floats<'k>, Value<'k, U32>)>,
    /// Whether to add: bit 0 for own tokens, bit 2 for the context's.
    add: Value<'k, U32>,
}

impl<'k> Gradient<'k> {
    /// Puts a chunk of a token's gradient, of which it must be known that it exists, where somebody wants it.
    fn put(&self, token: Value<'k, U32>, element: Value<'k, U32>, values: &[Value<'k, F32>]) {
        let Head {
            k,
            image,
            head,
            heads,
            head_dim,
            ..
        } = self.head;
        let address = |floats: Floats<'k>| match floats {
            Floats::F32(p) => p.address(),
            Floats::Bf16(p) => p.address(),
        };
        let (base, row, add) = match self.context {
            None => (address(self.own), image * self.tokens + token, self.add & 1),
            Some((context, count)) => {
                let of_context = token.lt(count);
                let base = of_context.select(address(context), address(self.own));
                let own_row = image * self.tokens + (token - count);
                let row = of_context.select(image * count + token, own_row);
                (base, row, of_context.select(self.add & 4, self.add & 1))
            }
        };
        k.if_(base.ne(0u64), || {
            let index = (row * heads + head) * head_dim + element;
            let to = match self.own.storage() {
                Storage::F32 => Floats::F32(Pointer::new(base)),
                Storage::Bf16 => Floats::Bf16(Pointer::new(base)),
            };
            let to = to.at(index);
            k.if_else(
                add.ne(0),
                || to.put_span(Accum::Add, values),
                || to.put_span(Accum::Replace, values),
            );
        });
    }
}

impl QueryGradient {
    fn tiling(self) -> Tiling {
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

    fn write_as<'k, E: Type, B: Block<'k, E>>(self, k: &'k Assembler) {
        let tiling = self.tiling();
        let (rows, columns) = (tiling.cta_rows(), tiling.columns);
        k.contract(&format!(
            "dq = scale * dS*k, dS = P * (dout*v^T - delta), P = exp(scale * q*k^T - lse), head_dim {}, {}.\n\
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
            tiling.rows * self.head_dim / 32,
        ));
        let dq = k.floats(self.storage, "dq");
        let inputs = Inputs::<E>::parameters(k);
        let (head, part, parts) = Head::of_cta(k, self.head_dim, RowsAre::Queries, rows);
        let add = k.parameter::<U32>("accumulate");
        // Sums take most of a thread's registers: without this, ptxas would spill to fit more CTAs.
        k.min_ctas(1);
        // Under causality the last queries have most to do: they begin first.
        let first = (parts - 1 - part) * rows;
        let last = (first + (rows - 1)).min(head.queries - 1);
        let end = head.visible(last);

        let (row_layout, column_layout) = (
            layout::<E>(rows, self.head_dim),
            layout::<E>(columns, self.head_dim),
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

impl KeyGradients {
    fn tiling(self) -> Tiling {
        let rows = match (self.storage, self.head_dim) {
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

    fn write_as<'k, E: Type, B: Block<'k, E>>(self, k: &'k Assembler) {
        let tiling = self.tiling();
        let (rows, columns) = (tiling.cta_rows(), tiling.columns);
        k.contract(&format!(
            "dk = scale * dS^T*q, dv = P^T*dout, dS = P * (dout*v^T - delta), P = exp(scale * q*k^T - lse), head_dim {}, {}.\n\
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
            2 * tiling.rows * self.head_dim / 32,
        ));
        let [dk, dv, dcontext_k, dcontext_v] =
            ["dk", "dv", "dcontext_k", "dcontext_v"].map(|name| k.floats(self.storage, name));
        let inputs = Inputs::<E>::parameters(k);
        let (head, part, _) = Head::of_cta(k, self.head_dim, RowsAre::Keys, rows);
        let add = k.parameter::<U32>("accumulate");
        // Sums take most of a thread's registers: without this, ptxas would spill to fit more CTAs.
        k.min_ctas(1);
        let first = part * rows;
        k.comment("the first query that sees a key, if there are some that see none");
        let before = first.max(head.context) - head.context;
        let start = head.causal.select(before, 0u32) / columns;

        let (row_layout, column_layout) = (
            layout::<E>(rows, self.head_dim),
            layout::<E>(columns, self.head_dim),
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

macro_rules! by_head_dim {
    ($variant:ident, $kernel:literal) => {
        impl Variant for $variant {
            const KERNEL: &'static str = $kernel;

            fn all() -> Vec<$variant> {
                let of = |storage| HEAD_DIMS.map(|head_dim| $variant { storage, head_dim });
                Storage::ALL.into_iter().flat_map(of).collect()
            }

            fn label(&self) -> String {
                format!("{}_d{}", self.storage.name(), self.head_dim)
            }

            fn arch(&self) -> Arch {
                Arch::Sm80
            }

            fn block(&self) -> [u32; 3] {
                [32 * self.tiling().warps, 1, 1]
            }

            fn write(&self, k: &Assembler) {
                match self.storage {
                    Storage::F32 => self.write_as::<F32, scalar::Block>(k),
                    Storage::Bf16 => self.write_as::<Bf16, tensor::Block>(k),
                }
            }
        }
    };
}
by_head_dim!(QueryGradient, "attention/query_gradient");
by_head_dim!(KeyGradients, "attention/key_gradients");

impl Variant for Delta {
    const KERNEL: &'static str = "attention/delta";

    fn all() -> Vec<Delta> {
        Storage::ALL.map(|storage| Delta { storage }).to_vec()
    }

    fn label(&self) -> String {
        self.storage.name().to_string()
    }

    fn arch(&self) -> Arch {
        Arch::Sm80
    }

    fn block(&self) -> [u32; 3] {
        [DELTA_THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let rows = DELTA_THREADS / DELTA_LANES;
        k.contract(&format!(
            "delta[n, heads, queries] = sum of dout * out over a query's elements, {}.\n\
             Grid: ceil(n * queries * heads / {rows}) CTAs of {DELTA_THREADS} threads, {DELTA_LANES} lanes a query and head.\n\
             Reads dout and out and writes delta once.",
            self.storage.name()
        ));
        let delta = k.buffer::<F32>("delta");
        let dout = k.floats(self.storage, "dout").read_only();
        let out = k.floats(self.storage, "out").read_only();
        let [count, heads, queries] =
            ["count", "heads", "queries"].map(|name| k.parameter::<U32>(name));
        let head_dim = k.parameter::<U32>("head_dim").assume_multiple_of(16);
        let row = k.cta_x() * rows + k.thread_x() / DELTA_LANES;
        let chunk = self.storage.chunk();
        let lane = k.lane() % DELTA_LANES;
        let sum = k.variable(0.0f32);
        k.if_(row.lt(count), || {
            k.for_(lane * chunk, head_dim, DELTA_LANES * chunk, |element| {
                let at = row * head_dim + element;
                let (dout, out) = (dout.at(at).load_chunk(), out.at(at).load_chunk());
                for (dout, out) in dout.into_iter().zip(out) {
                    sum.set(dout.mul_add(out, sum));
                }
            });
        });
        let total = [4, 2, 1]
            .into_iter()
            .fold(sum.get(), |total, mask| total + k.shuffle_xor(total, mask));
        k.comment("rows are [n, queries, heads]");
        let (token, head) = (row / heads, row % heads);
        let (image, query) = (token / queries, token % queries);
        k.when(row.lt(count) & lane.eq(0), || {
            delta
                .at((image * heads + head) * queries + query)
                .store(total);
        });
    }
}
