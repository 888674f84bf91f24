//! Gradients of attention (Dao, arXiv 2307.08691, algorithm 2): probabilities are computed anew from the saved
//! log-sum-exp, and no score leaves the registers.
//!
//! One kernel owns queries and walks through keys, for dq; another one owns keys and walks through queries, for dk and dv.
//! Each output has one owner that adds in one order, so that nothing is added by atomics and the bits are always the same;
//! the price is that scores are computed twice.

mod delta;
mod keys;
mod queries;

pub use delta::Delta;
pub use keys::KeyGradients;
pub use queries::QueryGradient;

use std::f32::consts::LOG2_E;

use super::head::{Head, Tokens};
use super::softmax::Scores;
use super::{Tiling, check, sizes};
use crate::Accum;
use crate::launch::Arch;
use crate::ops::attention::Attention;
use crate::ops::geometry::{Call, linear_grid};
use crate::ops::matmul::ptx::operand::Element;
use crate::ops::variants::{Refused, count};
use crate::ptx::{
    Assembler, F32, Floats, Global, Layout, Pointer, Storage, Tile, Type, U32, Value,
};

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
    let head_dim = check(d, storage)?;
    let deltas = d.n * d.heads * d.queries;
    count(deltas, "the number of queries")?;
    let numbers = |accums: &[Accum]| {
        let bits = accums.iter().zip(0..);
        let bits = bits.map(|(accum, i)| u32::from(*accum == Accum::Add) << i);
        let numbers = sizes(d).into_iter().chain([bits.sum()]);
        numbers.collect::<Vec<u32>>()
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
    let rows = delta::ROWS as usize;
    Ok(Launches {
        delta: Call::new(
            Delta {
                storage,
                aligned: head_dim.aligned,
            },
            linear_grid(deltas.div_ceil(rows))?,
            [deltas, d.heads, d.queries, d.head_dim]
                .map(|n| n as u32)
                .to_vec(),
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
struct Inputs<'k, E: Element> {
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

impl<'k, E: Element> Inputs<'k, E> {
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
pub(super) fn differentiate<'k>(
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
            let to = match self.own.storage() {
                Storage::F32 => Floats::F32(Pointer::new(base)),
                Storage::Bf16 => Floats::Bf16(Pointer::new(base)),
            };
            let row = self.head.row(row * heads + head);
            self.head.for_each_span(element, values, |element, values| {
                let to = to.at(row + element);
                k.if_else(
                    add.ne(0),
                    || to.put_span(Accum::Add, values),
                    || to.put_span(Accum::Replace, values),
                );
            });
        });
    }
}

/// A kernel that has a variant for each storage and head dim.
macro_rules! by_head_dim {
    ($variant:ident, $kernel:literal) => {
        impl crate::ops::variants::Variant for $variant {
            const KERNEL: &'static str = $kernel;

            fn all() -> Vec<$variant> {
                let of = |storage| {
                    crate::ops::attention::ptx::HeadDim::all()
                        .map(move |head_dim| $variant { storage, head_dim })
                };
                Storage::ALL.into_iter().flat_map(of).collect()
            }

            fn label(&self) -> String {
                format!("{}_{}", self.storage.name(), self.head_dim.label())
            }

            fn arch(&self) -> crate::launch::Arch {
                crate::launch::Arch::Sm80
            }

            fn block(&self) -> [u32; 3] {
                [32 * self.tiling().warps, 1, 1]
            }

            fn write(&self, k: &Assembler) {
                match self.storage {
                    Storage::F32 => {
                        self.write_as::<F32, crate::ops::attention::ptx::scalar::Block>(k)
                    }
                    Storage::Bf16 => self
                        .write_as::<crate::ptx::Bf16, crate::ops::attention::ptx::tensor::Block>(k),
                }
            }
        }
    };
}
pub(super) use by_head_dim;
