use super::Attention;
use crate::parallel::{self, Disjoint};
use crate::{Accum, Float, multiversion, simd};

multiversion! {
    fn dot<T: Float>(x: &[T], y: &[T]) -> T { simd::dot(x, y) }
}
multiversion! {
    fn axpy<T: Float>(y: &mut [T], a: T, x: &[T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = a.mul_add(x, *y);
        }
    }
}

/// The head's slice of token `i` of image `image`, in a tensor of `tokens` tokens per image.
fn at<'a, T>(
    x: &'a [T],
    d: &Attention,
    tokens: usize,
    image: usize,
    head: usize,
    i: usize,
) -> &'a [T] {
    &x[((image * tokens + i) * d.heads + head) * d.head_dim..][..d.head_dim]
}

fn joint<'a, T>(
    d: &Attention,
    own: &'a [T],
    context: Option<&'a [T]>,
    image: usize,
    head: usize,
    key: usize,
) -> &'a [T] {
    match context {
        Some(context) if key < d.context => at(context, d, d.context, image, head, key),
        _ => at(own, d, d.keys, image, head, key - d.context),
    }
}

fn visible(d: &Attention, mask: Option<&[u8]>, image: usize, query: usize, key: usize) -> bool {
    let allowed = mask.is_none_or(|m| m[image * (d.context + d.keys) + key] != 0);
    allowed && (!d.causal || key < d.context || key - d.context <= query)
}

/// Scores of one query, −∞ where it does not see the key.
#[allow(clippy::too_many_arguments)]
fn scores<T: Float>(
    d: &Attention,
    q: &[T],
    k: &[T],
    context_k: Option<&[T]>,
    mask: Option<&[u8]>,
    image: usize,
    head: usize,
    query: usize,
) -> Vec<T> {
    let q = at(q, d, d.queries, image, head, query);
    (0..d.context + d.keys)
        .map(|key| {
            if visible(d, mask, image, query, key) {
                dot(q, joint(d, k, context_k, image, head, key)) * T::from_f64(d.scale)
            } else {
                -T::INFINITY
            }
        })
        .collect()
}

/// out and lse [n, heads, queries], the log of each query's sum of exponentials (+∞ for a query that sees no key).
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
    let out = Disjoint::new(out);
    let lse = Disjoint::new(lse);
    let parts = d.n * d.heads;
    let work = parts * d.queries * (d.keys + d.context);
    parallel::for_each(parts, work, |part| {
        let (image, head) = (part / d.heads, part % d.heads);
        for query in 0..d.queries {
            let s = scores(d, q, k, context.map(|c| c.0), mask, image, head, query);
            let largest = s.iter().fold(-T::INFINITY, |a, &b| a.max(b));
            // SAFETY: every query of a head belongs to one part.
            let (out, lse) = unsafe {
                (
                    out.range(
                        ((image * d.queries + query) * d.heads + head) * d.head_dim,
                        d.head_dim,
                    ),
                    &mut lse.range(part * d.queries + query, 1)[0],
                )
            };
            out.fill(T::ZERO);
            if largest == -T::INFINITY {
                *lse = T::INFINITY;
                continue;
            }
            let mut sum = T::ZERO;
            for (key, &s) in s.iter().enumerate() {
                let p = (s - largest).exp();
                sum = sum + p;
                axpy(out, p, joint(d, v, context.map(|c| c.1), image, head, key));
            }
            for o in out.iter_mut() {
                *o = *o / sum;
            }
            *lse = largest + sum.ln();
        }
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
    let sink = |g: Option<(&mut [T], Accum)>| {
        g.map(|(dst, accum)| {
            if accum == Accum::Replace {
                dst.fill(T::ZERO);
            }
            Disjoint::new(dst)
        })
    };
    let dq = sink(gradients.dq);
    let (dk, dv) = (sink(gradients.dk), sink(gradients.dv));
    let (dcontext_k, dcontext_v) = (sink(gradients.dcontext_k), sink(gradients.dcontext_v));
    let add = |sink: &Option<Disjoint<T>>, tokens, image, head, i, a, x: &[T]| {
        if let Some(sink) = sink {
            let start = ((image * tokens + i) * d.heads + head) * d.head_dim;
            // SAFETY: every head of an image belongs to one part.
            axpy(unsafe { sink.range(start, d.head_dim) }, a, x);
        }
    };
    let parts = d.n * d.heads;
    let work = parts * d.queries * (d.keys + d.context);
    parallel::for_each(parts, work, |part| {
        let (image, head) = (part / d.heads, part % d.heads);
        for query in 0..d.queries {
            let lse = lse[part * d.queries + query];
            let s = scores(d, q, k, context.map(|c| c.0), mask, image, head, query);
            let dout = at(dout, d, d.queries, image, head, query);
            let delta = dot(dout, at(out, d, d.queries, image, head, query));
            let q = at(q, d, d.queries, image, head, query);
            for (key, &s) in s.iter().enumerate() {
                let p = (s - lse).exp();
                let dp = dot(dout, joint(d, v, context.map(|c| c.1), image, head, key));
                let ds = p * (dp - delta) * T::from_f64(d.scale);
                let key_k = joint(d, k, context.map(|c| c.0), image, head, key);
                add(&dq, d.queries, image, head, query, ds, key_k);
                if key < d.context {
                    add(&dcontext_k, d.context, image, head, key, ds, q);
                    add(&dcontext_v, d.context, image, head, key, p, dout);
                } else {
                    add(&dk, d.keys, image, head, key - d.context, ds, q);
                    add(&dv, d.keys, image, head, key - d.context, p, dout);
                }
            }
        }
    });
}

/// The attention map [n, heads, queries, context + keys] that [`forward`] never materialises, for whoever studies it.
pub fn probabilities<T: Float>(
    d: &Attention,
    probabilities: &mut [T],
    q: &[T],
    k: &[T],
    context_k: Option<&[T]>,
    mask: Option<&[u8]>,
) {
    parallel::chunks_mut(probabilities, d.context + d.keys, |row, p| {
        let (part, query) = (row / d.queries, row % d.queries);
        let (image, head) = (part / d.heads, part % d.heads);
        p.copy_from_slice(&scores(d, q, k, context_k, mask, image, head, query));
        let largest = p.iter().fold(-T::INFINITY, |a, &b| a.max(b));
        if largest == -T::INFINITY {
            p.fill(T::ZERO);
            return;
        }
        let mut sum = T::ZERO;
        for p in p.iter_mut() {
            *p = (*p - largest).exp();
            sum = sum + *p;
        }
        for p in p.iter_mut() {
            *p = *p / sum;
        }
    });
}
