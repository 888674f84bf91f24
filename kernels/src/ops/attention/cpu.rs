//! Tiles of queries meet tiles of keys; a tile of scores lives in L2 and is never written further (Dao et al., arXiv
//! 2205.14135), so that memory grows with the number of tokens, not with its square.

use super::Attention;
use crate::gemm::{self, Destination, K_BLOCK, Operand, Rhs};
use crate::parallel::{self, Disjoint, Scratch};
use crate::simd::{self, Level};
use crate::{Accum, Float, multiversion};

/// Queries of one tile.
const QUERIES: usize = 64;
/// Keys of one tile: the depth of one register accumulation of probabilities times values.
const KEYS: usize = K_BLOCK;
/// Elements between rows of a tile of scores, off the same cache sets.
const SCORE_STRIDE: usize = KEYS + 16;

/// out, and lse [n, heads, queries]: the log of each query's sum of exponentials (+∞ for a query that sees no key).
///
/// # Panics
/// If a slice is too short for the descriptor.
#[allow(clippy::too_many_arguments)] // one argument per operand
pub fn forward<T: Float>(
    d: &Attention,
    out: &mut [T],
    lse: &mut [T],
    q: &[T],
    k: &[T],
    v: &[T],
    context: Option<(&[T], &[T])>,
    mask: Option<&[u8]>,
) {
    let level = simd::level();
    let stride = row_stride(d);
    // Heads are the parts; queries divide them further only where heads are few, because every part packs its keys.
    let groups = 16usize
        .div_ceil(d.n * d.heads)
        .min(d.queries.div_ceil(2 * QUERIES))
        .max(1);
    let group = d.queries.div_ceil(groups).next_multiple_of(QUERIES);
    let scratch = Scratch::new(
        packed_len::<T>(level, d) + d.total() * stride + QUERIES * (SCORE_STRIDE + stride),
    );
    let (out, lse) = (Disjoint::new(out), Disjoint::new(lse));
    parallel::for_each(d.n * d.heads * groups, d.work(), |part| {
        let head = Head::new(d, part / groups);
        let queries = part % groups * group..((part % groups + 1) * group).min(d.queries);
        let compute = |mut memory: &mut [T]| {
            let values = take(&mut memory, d.total() * stride);
            let packed = take(&mut memory, packed_len::<T>(level, d));
            head.stage(values, k, context.map(|c| c.0));
            let keys = Keys::pack(level, d, packed, values);
            head.stage(values, v, context.map(|c| c.1));
            let scores = take(&mut memory, QUERIES * SCORE_STRIDE);
            let sums = take(&mut memory, QUERIES * stride);
            for start in queries.clone().step_by(QUERIES) {
                let rows = QUERIES.min(queries.end - start);
                let mut softmax = [Softmax::EMPTY; QUERIES];
                let q = head.operand(q, d.queries, start);
                for (first, columns) in head.key_tiles(start + rows) {
                    keys.product(destination(scores, SCORE_STRIDE), q, rows, first, columns);
                    for (i, softmax) in softmax.iter_mut().enumerate().take(rows) {
                        let row = &mut scores[i * SCORE_STRIDE..][..columns];
                        head.hide(row, mask, start + i, first);
                        let decay = softmax.extend(row, T::from_f64(d.scale));
                        if first > 0 && decay != T::ONE {
                            scale(&mut sums[i * stride..][..d.head_dim], decay);
                        }
                    }
                    let probabilities = Operand::AlongDepth {
                        data: &*scores,
                        stride: SCORE_STRIDE,
                    };
                    let accum = if first == 0 {
                        Accum::Replace
                    } else {
                        Accum::Add
                    };
                    let values = Rhs::in_place(level, &values[first * stride..], stride);
                    let sums = destination(sums, stride);
                    // SAFETY: `sums` belongs to this part.
                    unsafe {
                        gemm::block(
                            level,
                            sums,
                            accum,
                            probabilities,
                            values,
                            rows,
                            d.head_dim,
                            columns,
                        )
                    };
                }
                for (i, softmax) in softmax.iter().enumerate().take(rows) {
                    // SAFETY: every query of a head belongs to one part.
                    let (out, lse) = unsafe {
                        (
                            out.range(head.token(d.queries, start + i), d.head_dim),
                            &mut lse.range(part / groups * d.queries + start + i, 1)[0],
                        )
                    };
                    *lse = softmax.log_sum();
                    if softmax.sum == T::ZERO {
                        out.fill(T::ZERO);
                    } else {
                        out.copy_from_slice(&sums[i * stride..][..d.head_dim]);
                        scale(out, T::ONE / softmax.sum);
                    }
                }
            }
        };
        // SAFETY: `compute` does not call rayon.
        unsafe { scratch.with(compute) };
    });
}

/// Where [`backward`] puts each gradient; `None` is not computed.
pub struct Gradients<'a, T> {
    pub dq: Option<(&'a mut [T], Accum)>,
    pub dk: Option<(&'a mut [T], Accum)>,
    pub dv: Option<(&'a mut [T], Accum)>,
    pub dcontext_k: Option<(&'a mut [T], Accum)>,
    pub dcontext_v: Option<(&'a mut [T], Accum)>,
}

/// Gradients from dout, and out and lse as [`forward`] left them.
///
/// With P the probabilities: dv = Pᵀ·dout, dS = P ∘ (dout·vᵀ − rowsum(dout ∘ out)) · scale, dq = dS·k, dk = dSᵀ·q.
///
/// # Panics
/// If a slice is too short for the descriptor.
#[allow(clippy::too_many_arguments)] // one argument per operand
pub fn backward<T: Float>(
    d: &Attention,
    gradients: Gradients<'_, T>,
    dout: &[T],
    out: &[T],
    lse: &[T],
    q: &[T],
    k: &[T],
    v: &[T],
    context: Option<(&[T], &[T])>,
    mask: Option<&[u8]>,
) {
    let level = simd::level();
    let stride = row_stride(d);
    let sink = |g: Option<(&mut [T], Accum)>| g.map(|(dst, accum)| (Disjoint::new(dst), accum));
    let dq = sink(gradients.dq);
    let (dk, dcontext_k) = (sink(gradients.dk), sink(gradients.dcontext_k));
    let (dv, dcontext_v) = (sink(gradients.dv), sink(gradients.dcontext_v));
    let wants_keys = dk.is_some() || dcontext_k.is_some();
    let wants_values = dv.is_some() || dcontext_v.is_some();
    let (packed, joint) = (packed_len::<T>(level, d), d.total() * stride);
    let scratch = Scratch::new(2 * packed + 3 * joint + QUERIES * (2 * SCORE_STRIDE + 3 * stride));
    parallel::for_each(d.n * d.heads, 3 * d.work(), |part| {
        let head = Head::new(d, part);
        let compute = |mut memory: &mut [T]| {
            let key_rows = take(&mut memory, joint);
            let packed_values = take(&mut memory, packed);
            head.stage(key_rows, v, context.map(|c| c.1));
            let values = Keys::pack(level, d, packed_values, key_rows);
            let packed_keys = take(&mut memory, packed);
            head.stage(key_rows, k, context.map(|c| c.0));
            let keys = Keys::pack(level, d, packed_keys, key_rows);
            // Their accumulation starts from zero: which tile of queries meets a key first depends on the masks.
            let (key_sums, value_sums) = (take(&mut memory, joint), take(&mut memory, joint));
            key_sums.fill(T::ZERO);
            value_sums.fill(T::ZERO);
            let scores = take(&mut memory, QUERIES * SCORE_STRIDE);
            let dscores = take(&mut memory, QUERIES * SCORE_STRIDE);
            let q_rows = take(&mut memory, QUERIES * stride);
            let dout_rows = take(&mut memory, QUERIES * stride);
            let query_sums = take(&mut memory, QUERIES * stride);
            for start in (0..d.queries).step_by(QUERIES) {
                let rows = QUERIES.min(d.queries - start);
                let mut products = [T::ZERO; QUERIES];
                for i in 0..rows {
                    let token = head.token(d.queries, start + i);
                    let dout = &dout[token..][..d.head_dim];
                    products[i] = dot(dout, &out[token..][..d.head_dim]);
                    dout_rows[i * stride..][..d.head_dim].copy_from_slice(dout);
                    q_rows[i * stride..][..d.head_dim].copy_from_slice(&q[token..][..d.head_dim]);
                }
                let (q_tile, dout_tile) = (along(q_rows, stride), along(dout_rows, stride));
                query_sums.fill(T::ZERO);
                for (first, columns) in head.key_tiles(start + rows) {
                    keys.product(
                        destination(scores, SCORE_STRIDE),
                        q_tile,
                        rows,
                        first,
                        columns,
                    );
                    values.product(
                        destination(dscores, SCORE_STRIDE),
                        dout_tile,
                        rows,
                        first,
                        columns,
                    );
                    for i in 0..rows {
                        let scores = &mut scores[i * SCORE_STRIDE..][..columns];
                        let dscores = &mut dscores[i * SCORE_STRIDE..][..columns];
                        head.hide(scores, mask, start + i, first);
                        let lse = lse[part * d.queries + start + i];
                        score_gradients(scores, dscores, lse, products[i], T::from_f64(d.scale));
                    }
                    let across = |data| Operand::AcrossDepth {
                        data,
                        stride: SCORE_STRIDE,
                    };
                    let tile = |rows: &mut [T]| destination(&mut rows[first * stride..], stride);
                    let (add, width) = (Accum::Add, d.head_dim);
                    // SAFETY: the sums belong to this part.
                    unsafe {
                        if wants_values {
                            let b = Rhs::in_place(level, dout_rows, stride);
                            let c = tile(value_sums);
                            gemm::block(level, c, add, across(&*scores), b, columns, width, rows);
                        }
                        if wants_keys {
                            let b = Rhs::in_place(level, q_rows, stride);
                            let c = tile(key_sums);
                            gemm::block(level, c, add, across(&*dscores), b, columns, width, rows);
                        }
                        if dq.is_some() {
                            let b = Rhs::in_place(level, &key_rows[first * stride..], stride);
                            let c = destination(query_sums, stride);
                            let a = along(dscores, SCORE_STRIDE);
                            gemm::block(level, c, add, a, b, rows, width, columns);
                        }
                    }
                }
                head.put(&dq, d.queries, start..start + rows, query_sums);
            }
            let (context_keys, own_keys) = key_sums.split_at(d.context * stride);
            let (context_values, own_values) = value_sums.split_at(d.context * stride);
            head.put(&dcontext_k, d.context, 0..d.context, context_keys);
            head.put(&dcontext_v, d.context, 0..d.context, context_values);
            head.put(&dk, d.keys, 0..d.keys, own_keys);
            head.put(&dv, d.keys, 0..d.keys, own_values);
        };
        // SAFETY: `compute` does not call rayon.
        unsafe { scratch.with(compute) };
    });
}

/// The attention map [n, heads, queries, context + keys] that [`forward`] never materialises, for whoever studies it.
///
/// # Panics
/// If a slice is too short for the descriptor.
pub fn probabilities<T: Float>(
    d: &Attention,
    probabilities: &mut [T],
    q: &[T],
    k: &[T],
    context_k: Option<&[T]>,
    mask: Option<&[u8]>,
) {
    let level = simd::level();
    let packed_len = packed_len::<T>(level, d);
    let scratch = Scratch::new(packed_len + d.total() * row_stride(d));
    let map = Disjoint::new(probabilities);
    parallel::for_each(d.n * d.heads, d.work(), |part| {
        let head = Head::new(d, part);
        // SAFETY: every head belongs to one part.
        let map = unsafe { map.range(part * d.queries * d.total(), d.queries * d.total()) };
        let compute = |memory: &mut [T]| {
            let (packed, rows) = memory.split_at_mut(packed_len);
            head.stage(rows, k, context_k);
            let keys = Keys::pack(level, d, packed, rows);
            let q = head.operand(q, d.queries, 0);
            for first in (0..d.total()).step_by(KEYS) {
                let columns = KEYS.min(d.total() - first);
                let tile = destination(&mut map[first..], d.total());
                keys.product(tile, q, d.queries, first, columns);
            }
            for (query, row) in map.chunks_exact_mut(d.total()).enumerate() {
                head.hide(row, mask, query, 0);
                let mut softmax = Softmax::EMPTY;
                softmax.extend(row, T::from_f64(d.scale));
                if softmax.sum != T::ZERO {
                    scale(row, T::ONE / softmax.sum);
                }
            }
        };
        // SAFETY: `compute` does not call rayon.
        unsafe { scratch.with(compute) };
    });
}

impl Attention {
    /// Context keys and own keys.
    fn total(&self) -> usize {
        self.context + self.keys
    }

    fn work(&self) -> usize {
        gemm::work(self.n * self.heads * self.queries * self.total() * self.head_dim)
    }
}

/// Elements between staged rows of one head: whole registers, off the same cache sets.
fn row_stride(d: &Attention) -> usize {
    d.head_dim.next_multiple_of(16) + 16
}

fn along<T>(data: &[T], stride: usize) -> Operand<'_, T> {
    Operand::AlongDepth { data, stride }
}

fn destination<T>(rows: &mut [T], stride: usize) -> Destination<T> {
    Destination {
        data: rows.as_mut_ptr(),
        stride,
    }
}

/// Cuts `n` elements off the front of `memory`.
fn take<'a, T>(memory: &mut &'a mut [T], n: usize) -> &'a mut [T] {
    let (taken, rest) = std::mem::take(memory).split_at_mut(n);
    *memory = rest;
    taken
}

/// One head of one image.
struct Head<'a> {
    d: &'a Attention,
    image: usize,
    head: usize,
}

impl<'a> Head<'a> {
    fn new(d: &'a Attention, part: usize) -> Self {
        Head {
            d,
            image: part / d.heads,
            head: part % d.heads,
        }
    }

    /// Where the head's part of token `i` begins in a tensor of `tokens` tokens per image.
    fn token(&self, tokens: usize, i: usize) -> usize {
        ((self.image * tokens + i) * self.d.heads + self.head) * self.d.head_dim
    }

    /// The head's rows from token `first` on, in place.
    fn operand<'b, T>(&self, x: &'b [T], tokens: usize, first: usize) -> Operand<'b, T> {
        along(
            &x[self.token(tokens, first).min(x.len())..],
            self.d.heads * self.d.head_dim,
        )
    }

    /// Copies the head's rows of the context and of the own keys (or values) together.
    fn stage<T: Float>(&self, rows: &mut [T], own: &[T], context: Option<&[T]>) {
        let d = self.d;
        let mut rows = rows.chunks_exact_mut(row_stride(d));
        let mut copy = |x: &[T], tokens: usize| {
            for (i, row) in (0..tokens).zip(&mut rows) {
                row[..d.head_dim].copy_from_slice(&x[self.token(tokens, i)..][..d.head_dim]);
            }
        };
        if let Some(context) = context {
            copy(context, d.context);
        }
        copy(own, d.keys);
    }

    /// Adds staged rows to a gradient, or replaces it.
    fn put<T: Float>(
        &self,
        sink: &Option<(Disjoint<T>, Accum)>,
        tokens: usize,
        range: std::ops::Range<usize>,
        rows: &[T],
    ) {
        let Some((sink, accum)) = sink else { return };
        for (i, row) in range.zip(rows.chunks_exact(row_stride(self.d))) {
            // SAFETY: every head of an image belongs to one part.
            let dst = unsafe { sink.range(self.token(tokens, i), self.d.head_dim) };
            for (dst, &x) in dst.iter_mut().zip(row) {
                accum.put(dst, x);
            }
        }
    }

    /// First key and number of keys of every tile that some query below `end` may see.
    fn key_tiles(&self, end: usize) -> impl Iterator<Item = (usize, usize)> {
        let visible = self.visible(end.saturating_sub(1));
        let starts = (0..visible).step_by(KEYS);
        starts.map(move |first| (first, KEYS.min(visible - first)))
    }

    /// Number of leading keys that a query may see.
    fn visible(&self, query: usize) -> usize {
        let total = self.d.total();
        if self.d.causal {
            total.min(self.d.context + query + 1)
        } else {
            total
        }
    }

    /// Makes −∞ of the scores of keys that the query does not see. `first` is the row's first key.
    fn hide<T: Float>(&self, row: &mut [T], mask: Option<&[u8]>, query: usize, first: usize) {
        let visible = self.visible(query).saturating_sub(first).min(row.len());
        row[visible..].fill(T::NEG_INFINITY);
        if let Some(mask) = mask {
            let mask = &mask[self.image * self.d.total() + first..];
            for (score, &allowed) in row.iter_mut().zip(mask) {
                if allowed == 0 {
                    *score = T::NEG_INFINITY;
                }
            }
        }
    }
}

/// Elements that [`Keys::pack`] fills.
fn packed_len<T: Float>(level: Level, d: &Attention) -> usize {
    d.total().next_multiple_of(gemm::panel_width::<T>(level)) * d.head_dim
}

/// The keys (or values) of one head, packed as the right operand whose columns they are.
struct Keys<'a, T> {
    level: Level,
    packed: &'a [T],
    /// Keys, padded to whole panels.
    padded: usize,
    depth: usize,
}

impl<'a, T: Float> Keys<'a, T> {
    fn pack(level: Level, d: &Attention, packed: &'a mut [T], rows: &[T]) -> Self {
        let width = gemm::panel_width::<T>(level);
        let padded = d.total().next_multiple_of(width);
        for depth in (0..d.head_dim).step_by(K_BLOCK) {
            let k = K_BLOCK.min(d.head_dim - depth);
            for key in (0..d.total()).step_by(width) {
                let panel = &mut packed[depth * padded + key * k..][..width * k];
                let rows = along(rows, row_stride(d)).at(key, depth);
                gemm::pack(level, panel, rows, d.total() - key, k);
            }
        }
        Keys {
            level,
            packed,
            padded,
            depth: d.head_dim,
        }
    }

    /// tile [rows, columns] = a · keysᵀ for `columns` keys from `first` (the first of a panel) on.
    fn product(
        &self,
        tile: Destination<T>,
        a: Operand<T>,
        rows: usize,
        first: usize,
        columns: usize,
    ) {
        for depth in (0..self.depth).step_by(K_BLOCK) {
            let k = K_BLOCK.min(self.depth - depth);
            let accum = if depth == 0 {
                Accum::Replace
            } else {
                Accum::Add
            };
            let keys = Rhs::packed(
                self.level,
                &self.packed[depth * self.padded + first * k..],
                k,
            );
            // SAFETY: the callers' tiles hold `rows` × `columns` elements and belong to their parts.
            unsafe {
                gemm::block(
                    self.level,
                    tile,
                    accum,
                    a.at(0, depth),
                    keys,
                    rows,
                    columns,
                    k,
                )
            };
        }
    }
}

/// Softmax of a row that arrives in pieces (Milakov & Gimelshein, arXiv 1805.02867).
#[derive(Clone, Copy)]
struct Softmax<T> {
    largest: T,
    sum: T,
}

impl<T: Float> Softmax<T> {
    const EMPTY: Self = Softmax {
        largest: T::NEG_INFINITY,
        sum: T::ZERO,
    };

    /// Replaces a piece of unscaled scores by its exponentials relative to the largest score so far, and returns the
    /// factor that brings what was summed before to the same scale.
    fn extend(&mut self, piece: &mut [T], scale: T) -> T {
        let (next, decay) = extend(*self, piece, scale);
        *self = next;
        decay
    }

    /// +∞ for an empty sum, relative to which every probability is zero.
    fn log_sum(&self) -> T {
        if self.sum == T::ZERO {
            T::INFINITY
        } else {
            self.largest + self.sum.ln()
        }
    }
}

multiversion! {
    fn extend<T: Float>(state: Softmax<T>, piece: &mut [T], scale: T) -> (Softmax<T>, T) {
        let mut lanes = [T::NEG_INFINITY; simd::LANES];
        let mut blocks = piece.chunks_exact_mut(simd::LANES);
        for block in &mut blocks {
            for l in 0..simd::LANES {
                block[l] = block[l] * scale;
                lanes[l] = lanes[l].max(block[l]);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(blocks.into_remainder()) {
            *x = *x * scale;
            *lane = lane.max(*x);
        }
        let largest = lanes.iter().fold(state.largest, |a, &b| a.max(b));
        if largest == T::NEG_INFINITY {
            // No key seen so far: −∞ − (−∞) is not a number.
            piece.fill(T::ZERO);
            return (state, T::ONE);
        }
        for x in piece.iter_mut() {
            *x = (*x - largest).exp();
        }
        let decay = (state.largest - largest).exp();
        let sum = state.sum * decay + simd::sum_map(piece, |x| x);
        (Softmax { largest, sum }, decay)
    }
}

multiversion! {
    /// Turns unscaled scores into probabilities, and the gradients of the probabilities into those of the products.
    fn score_gradients<T: Float>(scores: &mut [T], dscores: &mut [T], lse: T, product: T, scale: T) {
        for (score, dscore) in scores.iter_mut().zip(dscores) {
            *score = (*score * scale - lse).exp();
            *dscore = *score * (*dscore - product) * scale;
        }
    }
}

multiversion! {
    fn scale<T: Float>(x: &mut [T], factor: T) {
        for x in x {
            *x = *x * factor;
        }
    }
}

multiversion! {
    fn dot<T: Float>(x: &[T], y: &[T]) -> T { simd::dot(x, y) }
}
