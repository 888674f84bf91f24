//! Attention on GPUs since Ampere (Dao, arXiv 2307.08691): tiles of queries meet tiles of keys, and no score leaves the
//! registers. bf16 multiplies on tensor cores ([`tensor`]), f32 with fused multiply-adds ([`scalar`]), never rounded to
//! TF32. Sums, softmax and the log-sum-exp are f32.

pub mod backward;
mod head;
pub mod map;
mod scalar;
mod softmax;
mod tensor;
#[cfg(test)]
mod tests;

use super::Attention;
use crate::launch::Arch;
use crate::ops::matmul::ptx::operand::Element;
use crate::ops::variants::{MAX_ELEMENTS, Plan, Refused, Variant, count};
use crate::ptx::{
    Assembler, Bf16, F32, Global, IntoValue, Pointer, Storage, Tile, Tiles, U32, Value,
};
use head::{Head, RowsAre, Tokens, layout};

pub use head::HeadDim;

/// Tiles of keys in shared memory: one is copied while another one is met.
const STAGES: u32 = 2;

/// out = softmax(scale · q·kᵀ)·v, and the log of each query's sum of exponentials.
///
/// Launch with `Write(out), Write(lse), Read(q), Read(k), Read(v)`, `Read(context_k), Read(context_v)` or twice `Null`,
/// `Read(mask)` or `Null`, `U32` of [`sizes`], and `F32(scale)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub storage: Storage,
    pub head_dim: HeadDim,
    pub keys: Keys,
}

/// How keys come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// In tiles, as many as there are.
    Streamed,
    /// All at once, at most 96: the softmax knows all scores, and nothing is rescaled.
    Once96,
    /// All at once, at most 160.
    Once160,
}

/// The numbers of a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiling {
    warps: u32,
    /// Tokens of a warp: in the forward pass, queries.
    rows: u32,
    /// Tokens that they meet at a time: for queries, keys.
    columns: u32,
}

impl Tiling {
    fn new(variant: Forward) -> Tiling {
        let head_dim = variant.head_dim.padded;
        let (warps, rows, columns) = match (variant.storage, variant.keys, head_dim) {
            // 96 queries, so that up to 96 tokens that attend to each other are one CTA and read their keys once: texts of
            // 77 and priors of 81 tokens, maps of 8x8.
            (Storage::Bf16, Keys::Once96, _) => (6, 16, 96),
            // 64 queries: a map of 8x8 with 77 or 81 tokens of context is one CTA.
            (Storage::Bf16, Keys::Once160, _) => (4, 16, 160),
            // Two fragments of queries a warp, for each of which a fragment of keys is loaded once: with one, shared memory
            // could not feed the tensor cores. 64 keys while scores (64 registers) and outputs (64) fit in registers
            // together; 32 where the outputs take more.
            (Storage::Bf16, Keys::Streamed, ..=64) => (4, 32, 64),
            (Storage::Bf16, Keys::Streamed, _) => (4, 32, 32),
            // A thread's 4 x 4 scores and 4 x head_dim / 8 outputs.
            (Storage::F32, _, _) => (4, 16, 32),
        };
        Tiling {
            warps,
            rows,
            columns,
        }
    }

    /// Tokens of a CTA.
    fn cta_rows(self) -> u32 {
        self.warps * self.rows
    }
}

/// The kernel for a descriptor.
///
/// # Errors
/// If the head dim is above 128, the scale is not positive, or an operand is larger than kernels count.
pub fn config(d: &Attention, storage: Storage, _arch: Arch) -> Result<Plan<Forward>, Refused> {
    let head_dim = check(d, storage)?;
    let total = d.keys + d.context;
    let keys = match storage {
        _ if !head_dim.aligned => Keys::Streamed,
        // More queries than one CTA has would read all keys again.
        Storage::Bf16 if total <= 96 && d.queries <= 96 => Keys::Once96,
        Storage::Bf16 if total <= 160 => Keys::Once160,
        _ => Keys::Streamed,
    };
    let variant = Forward {
        storage,
        head_dim,
        keys,
    };
    let tiles = d.queries.div_ceil(Tiling::new(variant).cta_rows() as usize);
    let ctas = tiles * d.n * d.heads;
    if ctas >= MAX_ELEMENTS {
        return Err(Refused(format!(
            "the queries fill {ctas} tiles, more than the {MAX_ELEMENTS} CTAs of a grid"
        )));
    }
    Ok(Plan {
        variant,
        grid: [ctas as u32, 1, 1],
    })
}

/// The sizes that launches pass: heads, head_dim, queries, keys, context, and 1 under causality.
pub fn sizes(d: &Attention) -> [u32; 6] {
    let causal = usize::from(d.causal);
    [d.heads, d.head_dim, d.queries, d.keys, d.context, causal].map(|size| size as u32)
}

/// Refuses what kernels cannot do; gives the head dim that does it.
fn check(d: &Attention, storage: Storage) -> Result<HeadDim, Refused> {
    let Some(head_dim) = HeadDim::of(d.head_dim, storage) else {
        return Err(Refused(format!(
            "head_dim is {}; GPU kernels have 1 to {}",
            d.head_dim,
            head::LARGEST_HEAD_DIM
        )));
    };
    if !(d.scale > 0.0 && d.scale.is_finite()) {
        return Err(Refused(format!(
            "scale is {}; GPU kernels take positive ones",
            d.scale
        )));
    }
    let tokens = d.n.saturating_mul(d.heads).saturating_mul(d.head_dim);
    let total = d.keys.saturating_add(d.context);
    for (elements, what) in [
        (tokens.saturating_mul(d.queries), "the size of q"),
        (tokens.saturating_mul(total), "the size of all keys"),
    ] {
        count(elements, what)?;
    }
    Ok(head_dim)
}

impl Variant for Forward {
    const KERNEL: &'static str = "attention/forward";

    fn all() -> Vec<Forward> {
        let kinds = [
            (Storage::Bf16, Keys::Streamed),
            (Storage::Bf16, Keys::Once96),
            (Storage::Bf16, Keys::Once160),
            (Storage::F32, Keys::Streamed),
        ];
        let of = |(storage, keys)| {
            HeadDim::all()
                .filter(move |dim| dim.aligned || keys == Keys::Streamed)
                .map(move |head_dim| Forward {
                    storage,
                    head_dim,
                    keys,
                })
        };
        kinds.into_iter().flat_map(of).collect()
    }

    fn label(&self) -> String {
        let keys = match self.keys {
            Keys::Streamed => "streamed",
            Keys::Once96 => "once96",
            Keys::Once160 => "once160",
        };
        format!("{}_{}_{keys}", self.storage.name(), self.head_dim.label())
    }

    fn block(&self) -> [u32; 3] {
        [32 * Tiling::new(*self).warps, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        match self.storage {
            Storage::F32 => self.write_as::<F32, scalar::Queries>(k),
            Storage::Bf16 => self.write_as::<Bf16, tensor::Queries>(k),
        }
    }
}

/// What the queries of a CTA have seen so far, spread over the registers of its threads.
trait Queries<'k, E: Element>: Sized {
    /// What keys weigh for queries: exponentials of scores.
    type Weights;

    /// Nothing seen. Their tile of shared memory stays theirs.
    fn new(head: Head<'k>, tiling: Tiling, tile: Tile<'k, E>, first: Value<'k, U32>) -> Self;

    /// Meets the keys from `first` on. Where all `once` are here, none was before and none will be.
    fn meet(
        &self,
        scale: Value<'k, F32>,
        keys: Tile<'k, E>,
        first: Value<'k, U32>,
        once: bool,
    ) -> Self::Weights;

    /// Adds the values of the keys just met.
    fn add(&self, weights: Self::Weights, values: Tile<'k, E>);

    /// Writes the outputs, and the log-sum-exps.
    fn finish(
        &self,
        scale: Value<'k, F32>,
        out: Pointer<'k, Global, E>,
        lse: Pointer<'k, Global, F32>,
    );
}

impl Forward {
    fn write_as<'k, E: Element, Q: Queries<'k, E>>(&self, k: &'k Assembler) {
        let tiling = Tiling::new(*self);
        let once = self.keys != Keys::Streamed;
        self.contract(k, tiling);
        let out = k.buffer::<E>("out");
        let lse = k.buffer::<F32>("lse");
        let [q, keys, values, context_keys, context_values] =
            ["q", "k", "v", "context_k", "context_v"].map(|name| k.buffer::<E>(name));
        let (head, part, parts) =
            Head::of_cta::<E>(k, self.head_dim, RowsAre::Queries, tiling.cta_rows());
        let scale = k.parameter::<F32>("scale");
        if !self.head_dim.aligned {
            // Elements on their way take registers too: without this, ptxas would spill to fit more CTAs.
            k.min_ctas(1);
        }
        // Under causality the last queries have most to do: they begin first.
        let first = (parts - 1 - part) * tiling.cta_rows();
        let last = (first + (tiling.cta_rows() - 1)).min(head.queries - 1);
        let end = head.visible(last);

        let q_layout = layout::<E>(tiling.cta_rows(), head.head_dim);
        let key_layout = layout::<E>(tiling.columns, head.head_dim);
        let stages = if once { 1 } else { STAGES };
        let q_tile = k.shared_tile(q_layout);
        let key_tiles = k.shared_tiles(key_layout, stages);
        let value_tiles = k.shared_tiles(key_layout, stages);
        k.comment("what this thread copies of queries, keys and values");
        let q = Tokens::new(head, q_layout, q, head.queries, None);
        let keys = Tokens::new(head, key_layout, keys, head.keys, Some(context_keys));
        let values = Tokens::new(head, key_layout, values, head.keys, Some(context_values));

        k.comment("the queries and the first keys");
        let zero: Value<'k, U32> = 0u32.into_value();
        q.copy(q_tile, first);
        keys.copy(key_tiles.tile(0), zero);
        if once {
            k.cp_async_commit();
            k.comment("the values, which arrive while scores are computed");
            values.copy(value_tiles.tile(0), zero);
            k.cp_async_commit();
            k.cp_async_wait(1);
            k.barrier();
            let queries = Q::new(head, tiling, q_tile, first);
            let weights = queries.meet(scale, key_tiles.tile(0), zero, once);
            k.cp_async_wait_all();
            k.barrier();
            queries.add(weights, value_tiles.tile(0));
            queries.finish(
                scale,
                head.first_token(out, head.queries),
                head.first_query(lse),
            );
            return;
        }
        values.copy(value_tiles.tile(0), zero);
        k.cp_async_wait_all();
        k.barrier();
        let queries = Q::new(head, tiling, q_tile, first);
        k.for_(0, (end + (tiling.columns - 1)) / tiling.columns, 1, |i| {
            let first = i * tiling.columns;
            let stage = |tiles: Tiles<'k, E>, i: Value<'k, U32>| tiles.tile(i % STAGES);
            k.comment("the next keys and values");
            let next = first + tiling.columns;
            k.if_(next.lt(end), || {
                keys.copy(stage(key_tiles, i + 1), next);
                values.copy(stage(value_tiles, i + 1), next);
            });
            let weights = queries.meet(scale, stage(key_tiles, i), first, once);
            queries.add(weights, stage(value_tiles, i));
            k.comment("the next tile has arrived, and everybody is done with this one");
            k.cp_async_wait_all();
            k.barrier();
        });
        queries.finish(
            scale,
            head.first_token(out, head.queries),
            head.first_query(lse),
        );
    }

    fn contract(&self, k: &Assembler, tiling: Tiling) {
        let (queries, keys) = (tiling.cta_rows(), tiling.columns);
        let stages = if self.keys == Keys::Streamed {
            STAGES
        } else {
            1
        };
        let scores = tiling.rows * keys / 32;
        let outputs = tiling.rows * self.head_dim.padded / 32;
        k.contract(&format!(
            "out = softmax(scale * q*k^T) * v and lse = log(sum(exp(scale * q*k^T))), {}, {}.\n\
             Grid: n * heads * ceil(queries / {queries}) CTAs of {} threads, the last queries first.\n\
             {} queries a warp meet {keys} keys at a time, {}.\n\
             Shared memory: {queries} queries, and {stages} times {keys} keys and values.\n\
             Registers of a lane: {scores} scores, {outputs} outputs, and what is loaded for the next products.\n\
             Reads q once, and keys, values and mask once for each {queries} queries; writes out and lse once.",
            self.head_dim,
            self.storage.name(),
            32 * tiling.warps,
            tiling.rows,
            match self.keys {
                Keys::Streamed => "the next tile on its way meanwhile",
                _ => "which are all",
            },
        ));
    }
}
