use super::*;
use crate::Accum;
use crate::ops::attention;
use crate::sim::Profile;
use crate::testing::gpu::{decode, encode};
use crate::testing::operands::{Operand as Bytes, assert_within_budget, rounded, simulate};
use crate::testing::values;

/// `queries` queries that meet `context` + `keys` keys.
fn attention(queries: usize, context: usize, keys: usize, head_dim: usize) -> Attention {
    Attention {
        n: 2,
        heads: 2,
        head_dim,
        queries,
        keys,
        context,
        causal: false,
        scale: 2.0 / (head_dim as f64).sqrt(),
    }
}

fn plan(d: &Attention, storage: Storage) -> Plan<Forward> {
    config(d, storage, Arch::Sm80).expect("a descriptor that kernels take")
}

/// out and lse of the CPU's kernel.
fn on_cpu<T: crate::Float>(
    d: &Attention,
    [q, k, v, context_k, context_v]: &[Vec<T>; 5],
    mask: Option<&[u8]>,
) -> [Vec<T>; 2] {
    let mut out = vec![T::ZERO; q.len()];
    let mut lse = vec![T::ZERO; d.n * d.heads * d.queries];
    let context = (d.context > 0).then_some((&context_k[..], &context_v[..]));
    attention::forward(d, &mut out, &mut lse, q, k, v, context, mask);
    [out, lse]
}

/// Runs what `config` chooses on the simulated GPU, and holds out and lse to the CPU's.
fn check(d: &Attention, storage: Storage, mask: Option<&[u8]>) -> (String, Profile) {
    let plan = plan(d, storage);
    let tokens = [d.queries, d.keys, d.keys, d.context, d.context];
    let mut seed = 0;
    let operands = tokens.map(|tokens| {
        seed += 1;
        let elements = d.n * tokens * d.heads * d.head_dim;
        rounded(storage, &values::<f32>(elements, seed))
    });
    let wide = operands
        .each_ref()
        .map(|x| x.iter().map(|&x| f64::from(x)).collect());
    let [out, lse] = on_cpu(d, &operands, mask);
    let [exact_out, exact_lse] = on_cpu::<f64>(d, &wide, mask);

    let mut launch = vec![
        Bytes::Out(out.len() * storage.bytes() as usize),
        Bytes::Out(lse.len() * 4),
    ];
    launch.extend(operands.iter().zip(tokens).map(|(x, tokens)| match tokens {
        0 => Bytes::Absent,
        _ => Bytes::In(encode(storage, x)),
    }));
    launch.push(mask.map_or(Bytes::Absent, |mask| Bytes::In(mask.to_vec())));
    launch.extend(sizes(d).map(Bytes::U32));
    launch.push(Bytes::F32(d.scale as f32));
    let (written, profile) = simulate(&plan, &launch);

    let case = format!("{d:?} {} {}", plan.variant.name(), mask.is_some());
    let got = decode(storage, &written[0]);
    assert_within_budget(&case, storage, &got, &out, &exact_out);
    // A query without keys has infinity there, exactly.
    let finite = |x: &[f32]| -> Vec<f32> {
        let pairs = x.iter().zip(&exact_lse);
        let infinite = |e: f64, x: f32| e.is_infinite() && x == f32::INFINITY;
        pairs
            .map(|(&x, &e)| if infinite(e, x) { 0.0 } else { x })
            .collect()
    };
    let exact = exact_lse
        .iter()
        .map(|&e| if e.is_infinite() { 0.0 } else { e });
    let exact: Vec<f64> = exact.collect();
    let (got, lse) = (finite(&decode(Storage::F32, &written[1])), finite(&lse));
    let case = format!("lse of {case}");
    assert_within_budget(&case, Storage::F32, &got, &lse, &exact);
    (plan.assemble().0.kernel.text, profile)
}

/// Of every image, some keys; of the second one, none.
fn mask(d: &Attention) -> Vec<u8> {
    let total = d.context + d.keys;
    let mut mask: Vec<u8> = values::<f64>(d.n * total, 7)
        .iter()
        .map(|&x| (x > -0.5).into())
        .collect();
    mask[total..2 * total].fill(0);
    mask
}

#[test]
fn keys_that_fit_in_registers_meet_at_once() {
    let keys = |queries, context, keys| {
        let d = attention(queries, context, keys, 64);
        plan(&d, Storage::Bf16).variant.keys
    };
    assert_eq!(keys(77, 0, 77), Keys::Once96);
    assert_eq!(keys(64, 81, 64), Keys::Once160);
    assert_eq!(keys(257, 0, 80), Keys::Once160);
    assert_eq!(keys(64, 97, 64), Keys::Streamed);
    assert_eq!(
        plan(&attention(130, 0, 500, 64), Storage::Bf16).grid,
        [8, 1, 1]
    );
}

#[test]
fn what_kernels_cannot_do_is_refused() {
    let refuse = |d: Attention| {
        let refused = config(&d, Storage::Bf16, Arch::Sm80).expect_err("refused");
        refused.to_string()
    };
    let d = attention(5, 0, 5, 64);
    assert_eq!(
        refuse(attention(5, 0, 5, 130)),
        "head_dim is 130; GPU kernels have 1 to 128"
    );
    assert_eq!(
        refuse(Attention { scale: -1.0, ..d }),
        "scale is -1; GPU kernels take positive ones"
    );
    assert!(refuse(Attention { n: 1 << 30, ..d }).contains("the size of q"));
}

#[test]
fn every_head_dim() {
    for head_dim in HeadDim::ALIGNED {
        for storage in Storage::ALL {
            check(&attention(9, 0, 18, head_dim as usize), storage, None);
            check(&attention(33, 100, 17, head_dim as usize), storage, None);
            check(&attention(70, 31, 170, head_dim as usize), storage, None);
        }
    }
}

/// Heads that fill no tile: fewer elements than the smallest one has, chunks between two tiles, and no whole chunks.
const ODD_HEAD_DIMS: [usize; 8] = [1, 6, 8, 17, 24, 60, 88, 99];

#[test]
fn odd_head_dims() {
    for head_dim in ODD_HEAD_DIMS {
        for storage in Storage::ALL {
            check(&attention(9, 0, 18, head_dim), storage, None);
            let d = Attention {
                causal: true,
                ..attention(70, 31, 70, head_dim)
            };
            check(&d, storage, Some(&mask(&d)));
        }
    }
}

#[test]
fn odd_sizes_masks_and_causality() {
    for (queries, context, keys) in [
        (1, 0, 1),
        (77, 0, 77),
        (100, 3, 100),
        (65, 81, 64),
        (3, 77, 0),
        (131, 0, 197),
        (200, 77, 200),
    ] {
        for causal in [false, true] {
            let d = Attention {
                causal,
                ..attention(queries, context, keys, 32)
            };
            for storage in Storage::ALL {
                check(&d, storage, None);
                check(&d, storage, Some(&mask(&d)));
            }
        }
    }
}

/// Every access of a loop, and all but a few elsewhere, passes through the banks as fast as its width allows.
#[test]
fn shared_memory_has_no_bank_conflicts() {
    for head_dim in HeadDim::ALIGNED {
        for (queries, keys) in [(96, 96), (64, 160), (128, 192)] {
            for storage in Storage::ALL {
                let d = Attention {
                    n: 1,
                    heads: 1,
                    ..attention(queries, 0, keys, head_dim as usize)
                };
                let (text, profile) = check(&d, storage, None);
                assert_no_conflicts(&format!("{d:?} {storage:?}"), &text, &profile);
            }
        }
    }
}

/// Asserts that no access but those of an epilogue takes more passes through the banks than its width needs.
fn assert_no_conflicts(case: &str, text: &str, profile: &Profile) {
    for (line, conflicts) in profile.bank_conflicts() {
        let before = text.lines().take(line as usize);
        let part = before.filter(|line| line.contains("//")).last();
        let epilogue = part.is_some_and(|part| part.contains("rows of outputs"));
        assert!(
            epilogue,
            "{case}: {conflicts} conflicts in line {line}, after {part:?}"
        );
    }
}

/// What the backward pass reads besides what the forward pass reads.
struct Saved<T> {
    dout: Vec<T>,
    out: Vec<T>,
    lse: Vec<T>,
}

impl Saved<f32> {
    fn widen(&self) -> Saved<f64> {
        let widen = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect();
        Saved {
            dout: widen(&self.dout),
            out: widen(&self.out),
            lse: widen(&self.lse),
        }
    }
}

/// dq, dk, dv, dcontext_k and dcontext_v of the CPU's kernel; `old` are their destinations' contents.
fn gradients_on_cpu<T: crate::Float>(
    d: &Attention,
    accum: Accum,
    old: &[Vec<T>; 5],
    [q, k, v, context_k, context_v]: &[Vec<T>; 5],
    saved: &Saved<T>,
    mask: Option<&[u8]>,
) -> [Vec<T>; 5] {
    let mut gradients = old.clone();
    let [dq, dk, dv, dcontext_k, dcontext_v] = &mut gradients;
    let context = (d.context > 0).then_some((&context_k[..], &context_v[..]));
    let sinks = attention::Gradients {
        dq: Some((dq, accum)),
        dk: Some((dk, accum)),
        dv: Some((dv, accum)),
        dcontext_k: (d.context > 0).then_some((dcontext_k, accum)),
        dcontext_v: (d.context > 0).then_some((dcontext_v, accum)),
    };
    let Saved { dout, out, lse } = saved;
    attention::backward(d, sinks, dout, out, lse, q, k, v, context, mask);
    gradients
}

/// Runs the backward launches on the simulated GPU, and holds all gradients to the CPU's. Gives texts and profiles of the
/// two large kernels.
fn check_backward(
    d: &Attention,
    storage: Storage,
    accum: Accum,
    mask: Option<&[u8]>,
) -> [(String, Profile); 2] {
    let tokens = [d.queries, d.keys, d.keys, d.context, d.context];
    let elements = tokens.map(|tokens| d.n * tokens * d.heads * d.head_dim);
    let mut seed = 0;
    let mut stored = |n: usize| {
        seed += 1;
        rounded(storage, &values::<f32>(n, seed))
    };
    let operands = elements.map(&mut stored);
    let old = elements.map(&mut stored);
    let [out, lse] = on_cpu(d, &operands, mask);
    let saved = Saved {
        dout: stored(out.len()),
        out: rounded(storage, &out),
        lse,
    };
    let wide = |x: &[Vec<f32>; 5]| -> [Vec<f64>; 5] {
        x.each_ref()
            .map(|x| x.iter().map(|&x| f64::from(x)).collect())
    };
    let naive = gradients_on_cpu(d, accum, &old, &operands, &saved, mask);
    let exact = gradients_on_cpu(
        d,
        accum,
        &wide(&old),
        &wide(&operands),
        &saved.widen(),
        mask,
    );

    let accums = backward::Accums {
        dq: accum,
        dk: accum,
        dv: accum,
        dcontext_k: accum,
        dcontext_v: accum,
    };
    let plan = backward::config(d, storage, accums, Arch::Sm80).expect("what kernels take");
    let numbers = |numbers: &[u32]| numbers.iter().map(|&n| Bytes::U32(n)).collect::<Vec<_>>();
    let [dout, out] = [&saved.dout, &saved.out].map(|x| Bytes::In(encode(storage, x)));
    let launch = [vec![Bytes::Out(plan.deltas * 4), dout.clone(), out]];
    let launch = [launch.concat(), numbers(&plan.delta.numbers)].concat();
    let (mut delta, _) = simulate(&plan.delta.plan, &launch);
    let delta = delta.remove(0);

    let of_tokens = |x: &Vec<f32>, bytes: fn(Vec<u8>) -> Bytes| match x.len() {
        0 => Bytes::Absent,
        _ => bytes(encode(storage, x)),
    };
    let destination = |old: &Vec<f32>| match accum {
        Accum::Add => of_tokens(old, Bytes::InOut),
        Accum::Replace => of_tokens(old, |bytes| Bytes::Out(bytes.len())),
    };
    let mut inputs = vec![
        dout,
        Bytes::In(encode(Storage::F32, &saved.lse)),
        Bytes::In(delta),
    ];
    inputs.extend(operands.iter().map(|x| of_tokens(x, Bytes::In)));
    inputs.push(Bytes::F32(d.scale as f32));
    inputs.push(mask.map_or(Bytes::Absent, |mask| Bytes::In(mask.to_vec())));
    let [dq, rest @ ..] = old.each_ref().map(destination);
    let launch = [vec![dq], inputs.clone(), numbers(&plan.queries.numbers)].concat();
    let (mut written, queries) = simulate(&plan.queries.plan, &launch);
    let launch = [rest.to_vec(), inputs, numbers(&plan.keys.numbers)].concat();
    let (of_keys, keys) = simulate(&plan.keys.plan, &launch);
    written.extend(of_keys);

    let names = ["dq", "dk", "dv", "dcontext_k", "dcontext_v"];
    let mut written = written.into_iter();
    for ((name, naive), exact) in names.into_iter().zip(&naive).zip(&exact) {
        if exact.is_empty() {
            continue;
        }
        let got = decode(storage, &written.next().expect("an output for each tensor"));
        let case = format!("{name} of {d:?} {storage:?} {accum:?} {}", mask.is_some());
        assert_within_budget(&case, storage, &got, naive, exact);
    }
    let texts = [
        plan.queries.assemble().0.kernel.text,
        plan.keys.assemble().0.kernel.text,
    ];
    let [query, key] = texts;
    [(query, queries), (key, keys)]
}

#[test]
fn gradients_of_every_head_dim() {
    for head_dim in HeadDim::ALIGNED {
        for storage in Storage::ALL {
            for (queries, context, keys) in [(9, 0, 18), (33, 40, 17), (70, 31, 100)] {
                let d = attention(queries, context, keys, head_dim as usize);
                check_backward(&d, storage, Accum::Replace, None);
            }
        }
    }
}

#[test]
fn gradients_of_odd_head_dims() {
    for head_dim in ODD_HEAD_DIMS {
        for storage in Storage::ALL {
            let d = attention(9, 0, 18, head_dim);
            check_backward(&d, storage, Accum::Replace, None);
            let d = Attention {
                causal: true,
                ..attention(40, 31, 40, head_dim)
            };
            check_backward(&d, storage, Accum::Add, Some(&mask(&d)));
        }
    }
}

#[test]
fn gradients_of_odd_sizes_masks_and_causality() {
    for (queries, context, keys) in [
        (1, 0, 1),
        (77, 0, 77),
        (65, 81, 64),
        (3, 77, 0),
        (131, 0, 70),
        (40, 0, 150),
        (140, 77, 140),
    ] {
        for causal in [false, true] {
            let d = Attention {
                causal,
                ..attention(queries, context, keys, 32)
            };
            for storage in Storage::ALL {
                check_backward(&d, storage, Accum::Add, None);
                // The gradient of a single key's score is zero: beside former contents only is there something that
                // rounding errors can be held to.
                let accum = match context + keys {
                    1 => Accum::Add,
                    _ => Accum::Replace,
                };
                check_backward(&d, storage, accum, Some(&mask(&d)));
            }
        }
    }
}

#[test]
fn gradients_that_nobody_wants_are_not_written() {
    let d = attention(20, 10, 30, 32);
    let accums = backward::Accums {
        dq: Accum::Replace,
        dk: Accum::Add,
        dv: Accum::Replace,
        dcontext_k: Accum::Replace,
        dcontext_v: Accum::Add,
    };
    for storage in Storage::ALL {
        let plan = backward::config(&d, storage, accums, Arch::Sm80).expect("what kernels take");
        let tensor = |tokens: usize, seed| {
            let elements = d.n * tokens * d.heads * d.head_dim;
            encode(storage, &values::<f32>(elements, seed))
        };
        let statistics = Bytes::In(encode(Storage::F32, &vec![1.0; plan.deltas]));
        let run = |gradients: [Bytes; 4]| {
            let inputs = vec![
                Bytes::In(tensor(d.queries, 1)),
                statistics.clone(),
                statistics.clone(),
                Bytes::In(tensor(d.queries, 2)),
                Bytes::In(tensor(d.keys, 3)),
                Bytes::In(tensor(d.keys, 4)),
                Bytes::In(tensor(d.context, 5)),
                Bytes::In(tensor(d.context, 6)),
                Bytes::F32(d.scale as f32),
                Bytes::Absent,
            ];
            let numbers = plan.keys.numbers.iter().map(|&n| Bytes::U32(n)).collect();
            let launch = [gradients.to_vec(), inputs, numbers].concat();
            simulate(&plan.keys.plan, &launch).0
        };
        let (own, context) = (tensor(d.keys, 7), tensor(d.context, 8));
        let out = |like: &Vec<u8>| Bytes::Out(like.len());
        let all = run([
            Bytes::InOut(own.clone()),
            out(&own),
            out(&context),
            Bytes::InOut(context.clone()),
        ]);
        let absent = || Bytes::Absent;
        let some = run([absent(), out(&own), absent(), Bytes::InOut(context.clone())]);
        assert_eq!([&all[1], &all[3]], [&some[0], &some[1]], "{storage:?}");
        let some = run([Bytes::InOut(own.clone()), absent(), out(&context), absent()]);
        assert_eq!([&all[0], &all[2]], [&some[0], &some[1]], "{storage:?}");
    }
}

/// Every access of a loop, and all but a few elsewhere, passes through the banks as fast as its width allows.
#[test]
fn gradients_have_no_bank_conflicts() {
    for head_dim in HeadDim::ALIGNED {
        for storage in Storage::ALL {
            let d = Attention {
                n: 1,
                heads: 1,
                ..attention(128, 0, 128, head_dim as usize)
            };
            for (text, profile) in check_backward(&d, storage, Accum::Replace, None) {
                assert_no_conflicts(&format!("{d:?} {storage:?}"), &text, &profile);
            }
        }
    }
}
