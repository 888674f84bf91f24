use super::*;
use crate::testing::{assert_bits_agree, assert_within_budget, bits, to_f64, values};
use crate::{Accum, Float};

struct Operands<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    context_k: Vec<T>,
    context_v: Vec<T>,
    dout: Vec<T>,
    mask: Vec<u8>,
}

fn operands<T: Float>(d: &Attention) -> Operands<T> {
    let tokens = |count: usize, seed| values(d.n * count * d.heads * d.head_dim, seed);
    Operands {
        q: tokens(d.queries, 1),
        k: tokens(d.keys, 2),
        v: tokens(d.keys, 3),
        context_k: tokens(d.context, 4),
        context_v: tokens(d.context, 5),
        dout: tokens(d.queries, 6),
        mask: values::<f64>(d.n * (d.context + d.keys), 7)
            .iter()
            .map(|&x| (x > -0.5) as u8)
            .collect(),
    }
}

impl<T> Operands<T> {
    fn context(&self, d: &Attention) -> Option<(&[T], &[T])> {
        (d.context > 0).then_some((&self.context_k[..], &self.context_v[..]))
    }
}

#[derive(Clone, PartialEq)]
struct Results<T> {
    out: Vec<T>,
    lse: Vec<T>,
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
    dcontext_k: Vec<T>,
    dcontext_v: Vec<T>,
    probabilities: Vec<T>,
}

impl<T: Float> Results<T> {
    fn filled(d: &Attention, x: f64) -> Self {
        let tokens = |count: usize| vec![T::from_f64(x); d.n * count * d.heads * d.head_dim];
        let map = d.n * d.heads * d.queries;
        Results {
            out: tokens(d.queries),
            lse: vec![T::from_f64(x); map],
            dq: tokens(d.queries),
            dk: tokens(d.keys),
            dv: tokens(d.keys),
            dcontext_k: tokens(d.context),
            dcontext_v: tokens(d.context),
            probabilities: vec![T::from_f64(x); map * (d.context + d.keys)],
        }
    }

    fn gradients(&mut self, accum: Accum) -> Gradients<'_, T> {
        Gradients {
            dq: Some((&mut self.dq, accum)),
            dk: Some((&mut self.dk, accum)),
            dv: Some((&mut self.dv, accum)),
            dcontext_k: Some((&mut self.dcontext_k, accum)),
            dcontext_v: Some((&mut self.dcontext_v, accum)),
        }
    }

    fn named(&self) -> [(&'static str, &[T]); 7] {
        [
            ("out", &self.out),
            ("dq", &self.dq),
            ("dk", &self.dk),
            ("dv", &self.dv),
            ("dcontext_k", &self.dcontext_k),
            ("dcontext_v", &self.dcontext_v),
            ("probabilities", &self.probabilities),
        ]
    }
}

/// Everything by the definitions, row by row, in the type of the operands.
fn naive<T: Float>(d: &Attention, o: &Operands<T>, mask: Option<&[u8]>) -> Results<T> {
    let mut r = Results::filled(d, 0.0);
    let total = d.context + d.keys;
    let scale = T::from_f64(d.scale);
    for (image, head) in (0..d.n).flat_map(|i| (0..d.heads).map(move |h| (i, h))) {
        let at = |tokens: usize, i: usize| ((image * tokens + i) * d.heads + head) * d.head_dim;
        for query in 0..d.queries {
            let visible = |key: usize| {
                mask.is_none_or(|m| m[image * total + key] == 1)
                    && (!d.causal || key < d.context || key - d.context <= query)
            };
            let row = |own: &[T], context: &[T], key: usize, e: usize| {
                if key < d.context {
                    context[at(d.context, key) + e]
                } else {
                    own[at(d.keys, key - d.context) + e]
                }
            };
            let token = at(d.queries, query);
            let dot = |x: &[T], own: &[T], context: &[T], key: usize| {
                (0..d.head_dim).fold(T::ZERO, |s, e| s + x[token + e] * row(own, context, key, e))
            };
            let scores: Vec<T> = (0..total)
                .map(|key| dot(&o.q, &o.k, &o.context_k, key) * scale)
                .collect();
            let seen: Vec<usize> = (0..total).filter(|&key| visible(key)).collect();
            let largest = seen
                .iter()
                .fold(T::NEG_INFINITY, |a, &key| a.max(scores[key]));
            let sum = seen
                .iter()
                .fold(T::ZERO, |s, &key| s + (scores[key] - largest).exp());
            let map = (image * d.heads + head) * d.queries + query;
            r.lse[map] = if seen.is_empty() {
                T::INFINITY
            } else {
                largest + sum.ln()
            };
            let p = |key: usize| (scores[key] - largest).exp() / sum;
            for &key in &seen {
                r.probabilities[map * total + key] = p(key);
                for e in 0..d.head_dim {
                    r.out[token + e] = r.out[token + e] + p(key) * row(&o.v, &o.context_v, key, e);
                }
            }
            let product =
                (0..d.head_dim).fold(T::ZERO, |s, e| s + o.dout[token + e] * r.out[token + e]);
            for &key in &seen {
                let dp = dot(&o.dout, &o.v, &o.context_v, key);
                let ds = p(key) * (dp - product) * scale;
                for e in 0..d.head_dim {
                    r.dq[token + e] = r.dq[token + e] + ds * row(&o.k, &o.context_k, key, e);
                    let (dk, dv, i) = if key < d.context {
                        (&mut r.dcontext_k, &mut r.dcontext_v, at(d.context, key) + e)
                    } else {
                        (&mut r.dk, &mut r.dv, at(d.keys, key - d.context) + e)
                    };
                    dk[i] = dk[i] + ds * o.q[token + e];
                    dv[i] = dv[i] + p(key) * o.dout[token + e];
                }
            }
        }
    }
    r
}

fn run<T: Float>(d: &Attention, o: &Operands<T>, mask: Option<&[u8]>) -> Results<T> {
    let mut r = Results::filled(d, f64::NAN);
    let context = o.context(d);
    forward(d, &mut r.out, &mut r.lse, &o.q, &o.k, &o.v, context, mask);
    let (out, lse) = (r.out.clone(), r.lse.clone());
    let sinks = r.gradients(Accum::Replace);
    backward(
        d, sinks, &o.dout, &out, &lse, &o.q, &o.k, &o.v, context, mask,
    );
    probabilities(
        d,
        &mut r.probabilities,
        &o.q,
        &o.k,
        context.map(|c| c.0),
        mask,
    );
    r
}

fn check<T: Float>(d: &Attention, masked: bool) {
    let o = operands::<T>(d);
    let mask = masked.then_some(&o.mask[..]);
    let wide = Operands {
        q: to_f64(&o.q),
        k: to_f64(&o.k),
        v: to_f64(&o.v),
        context_k: to_f64(&o.context_k),
        context_v: to_f64(&o.context_v),
        dout: to_f64(&o.dout),
        mask: o.mask.clone(),
    };
    let exact = naive(d, &wide, mask);
    let plain = naive(d, &o, mask);
    let got = run(d, &o, mask);
    for (i, (name, got)) in got.named().iter().enumerate() {
        let case = format!("{name} of {d:?} masked: {masked} {}", T::DTYPE);
        assert_within_budget(&case, got, plain.named()[i].1, exact.named()[i].1);
    }
    for (got, want) in got.lse.iter().zip(&exact.lse) {
        assert!(
            got.to_f64() == *want || (got.to_f64() - want).abs() < 1e-5,
            "{d:?}: {got:?} {want}"
        );
    }
    // A second gradient on top of the first.
    let mut twice = got.clone();
    let sinks = twice.gradients(Accum::Add);
    backward(
        d,
        sinks,
        &o.dout,
        &got.out,
        &got.lse,
        &o.q,
        &o.k,
        &o.v,
        o.context(d),
        mask,
    );
    for ((name, twice), (_, once)) in twice.named().iter().zip(got.named()).skip(1).take(5) {
        let doubled = twice
            .iter()
            .zip(once)
            .all(|(&twice, &once)| twice == once + once);
        assert!(doubled, "{name} += of {d:?}");
    }
}

fn attention(
    n: usize,
    heads: usize,
    head_dim: usize,
    queries: usize,
    keys: usize,
    context: usize,
) -> Attention {
    Attention {
        n,
        heads,
        head_dim,
        queries,
        keys,
        context,
        causal: false,
        scale: 1.0 / (head_dim as f64).sqrt(),
    }
}

#[test]
fn all_masks_and_odd_shapes() {
    for d in [
        attention(1, 1, 1, 1, 1, 0),
        attention(2, 2, 3, 2, 2, 0),
        attention(1, 3, 16, 17, 15, 0),
        attention(2, 1, 8, 31, 31, 3),
        attention(1, 2, 33, 65, 65, 16),
        attention(2, 2, 64, 64, 64, 77),
        attention(1, 1, 300, 5, 9, 0),
        attention(1, 1, 4, 3, 0, 5),
        // Several tiles of keys and of queries.
        attention(1, 2, 16, 130, 300, 0),
        attention(1, 1, 32, 600, 600, 10),
    ] {
        for causal in [false, true] {
            for masked in [false, true] {
                check::<f32>(&Attention { causal, ..d }, masked);
                check::<f64>(&Attention { causal, ..d }, masked);
            }
        }
    }
}

#[test]
fn a_query_that_sees_no_key_gives_zeros_and_receives_none() {
    let d = attention(2, 2, 8, 5, 7, 2);
    let mut o = operands::<f32>(&d);
    o.mask = vec![0; d.n * 9];
    o.mask[9..].fill(1);
    let r = run(&d, &o, Some(&o.mask));
    let first = d.queries * d.heads * d.head_dim;
    for x in [
        &r.out[..first],
        &r.dq[..first],
        &r.dk[..7 * 16],
        &r.dv[..7 * 16],
        &r.probabilities[..2 * 5 * 9],
    ] {
        assert!(x.iter().all(|&x| x == 0.0));
    }
    assert!(r.lse[..10].iter().all(|&x| x == f32::INFINITY));
    assert!(r.out[first..].iter().any(|&x| x != 0.0));
}

#[test]
fn gradients_that_are_not_wanted_change_nothing() {
    let d = attention(1, 2, 16, 20, 30, 4);
    let o = operands::<f32>(&d);
    let all = run(&d, &o, None);
    let mut dq = vec![f32::NAN; all.dq.len()];
    let mut dv = vec![f32::NAN; all.dv.len()];
    let sinks = |dq, dv| Gradients {
        dq,
        dk: None,
        dv,
        dcontext_k: None,
        dcontext_v: None,
    };
    let run = |sinks| {
        backward(
            &d,
            sinks,
            &o.dout,
            &all.out,
            &all.lse,
            &o.q,
            &o.k,
            &o.v,
            o.context(&d),
            None,
        )
    };
    run(sinks(Some((&mut dq, Accum::Replace)), None));
    run(sinks(None, Some((&mut dv, Accum::Replace))));
    assert!(dq == all.dq && dv == all.dv);
}

#[test]
fn bits_do_not_depend_on_level_or_threads() {
    for d in [
        attention(2, 2, 16, 70, 300, 5),
        attention(1, 1, 40, 300, 300, 0),
    ] {
        for causal in [false, true] {
            let d = Attention { causal, ..d };
            let o = operands::<f32>(&d);
            assert_bits_agree(&format!("{d:?}"), || {
                let r = run(&d, &o, Some(&o.mask));
                r.named().map(|(_, x)| bits(x))
            });
        }
    }
}
