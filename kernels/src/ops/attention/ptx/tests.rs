use super::*;
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
    let sizes = [d.heads, d.queries, d.keys, d.context, d.causal.into()];
    launch.extend(sizes.map(|size| Bytes::U32(size as u32)));
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
        refuse(attention(5, 0, 5, 72)),
        "head_dim is 72; GPU kernels have multiples of 16 from 32 to 128"
    );
    assert_eq!(
        refuse(Attention { scale: -1.0, ..d }),
        "scale is -1; GPU kernels take positive ones"
    );
    assert!(refuse(Attention { n: 1 << 30, ..d }).contains("the size of q"));
}

#[test]
fn every_head_dim() {
    for head_dim in HEAD_DIMS {
        for storage in Storage::ALL {
            check(&attention(9, 0, 18, head_dim as usize), storage, None);
            check(&attention(33, 100, 17, head_dim as usize), storage, None);
            check(&attention(70, 31, 170, head_dim as usize), storage, None);
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
    for head_dim in HEAD_DIMS {
        for (queries, keys) in [(96, 96), (64, 160), (128, 192)] {
            for storage in Storage::ALL {
                let d = Attention {
                    n: 1,
                    heads: 1,
                    ..attention(queries, 0, keys, head_dim as usize)
                };
                let (text, profile) = check(&d, storage, None);
                for (line, conflicts) in profile.bank_conflicts() {
                    let before = text.lines().take(line as usize);
                    let part = before.filter(|line| line.contains("//")).last();
                    let epilogue = part.is_some_and(|part| part.contains("rows of outputs"));
                    assert!(
                        epilogue,
                        "{d:?} {storage:?}: {conflicts} conflicts in line {line}, after {part:?}"
                    );
                }
            }
        }
    }
}
