//! Attention and convolution with one synchronising line taken out at a time: every mutant is caught, none survives.

use super::pipelines::survivors;
use super::*;
use crate::Accum;
use crate::ops::attention::Attention;
use crate::ops::attention::ptx as attention;
use crate::ops::conv2d::Conv2d;
use crate::ops::conv2d::ptx as conv2d;
use crate::ops::variants::{Plan, Variant};
use crate::ptx::Storage;
use crate::testing::gpu::{encode, stored_values};
use crate::testing::operands::{Operand, with_arguments};

const NONE: [&str; 0] = [];

/// The lines of a plan's kernel whose removal nobody notices.
fn survivors_of<V: Variant>(plan: &Plan<V>, operands: &[Operand]) -> Vec<String> {
    let (assembled, launch) = plan.assemble();
    let go = |kernel: &Kernel, options: &Options| {
        let (written, result) = with_arguments(operands, |mut arguments| {
            run(kernel, &launch, &mut arguments, options)
        });
        result.map(|_| written.concat())
    };
    let results = all_options()
        .into_iter()
        .map(|options| match go(&assembled.kernel, &options) {
            Ok(result) => result,
            Err(error) => panic!("{options:?}: {error}"),
        });
    let results: Vec<Vec<u8>> = results.collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    survivors(&assembled.kernel, go)
}

/// Values of a storage, others for each `seed`.
fn tensor(storage: Storage, n: usize, seed: u64) -> Operand {
    Operand::In(encode(storage, &stored_values(storage, n, seed)))
}

fn out(storage: Storage, n: usize) -> Operand {
    Operand::Out(n * storage.bytes() as usize)
}

fn numbers(numbers: &[u32]) -> impl Iterator<Item = Operand> + '_ {
    numbers.iter().map(|&n| Operand::U32(n))
}

/// Some context, and as many own keys as queries.
fn attention_of(tokens: usize) -> Attention {
    Attention {
        n: 1,
        heads: 1,
        head_dim: 32,
        queries: tokens,
        keys: tokens,
        context: 5,
        causal: true,
        scale: 0.25,
    }
}

/// Queries, keys and values of the attention, then the context's keys and values.
fn tokens(d: &Attention, storage: Storage) -> Vec<Operand> {
    let tokens = [d.queries, d.keys, d.keys, d.context, d.context];
    tokens
        .into_iter()
        .zip(1..)
        .map(|(tokens, seed)| tensor(storage, tokens * d.head_dim, seed))
        .collect()
}

#[test]
fn every_mutant_of_attention_is_caught() {
    // Keys streamed through more tiles than there are stages, and both sizes that meet at once.
    for (storage, length) in [
        (Storage::Bf16, 200),
        (Storage::Bf16, 70),
        (Storage::Bf16, 120),
        (Storage::F32, 100),
    ] {
        let d = attention_of(length);
        let plan = match attention::config(&d, storage, Arch::Sm80) {
            Ok(plan) => plan,
            Err(refused) => panic!("{refused}"),
        };
        let sizes = attention::sizes(&d);
        let operands: Vec<Operand> = [
            out(storage, d.queries * d.head_dim),
            out(Storage::F32, d.queries),
        ]
        .into_iter()
        .chain(tokens(&d, storage))
        .chain([Operand::Absent])
        .chain(numbers(&sizes))
        .chain([Operand::F32(d.scale as f32)])
        .collect();
        let case = plan.variant.name();
        assert_eq!(survivors_of(&plan, &operands), NONE, "{case}");
    }
}

#[test]
fn every_mutant_of_the_gradients_of_attention_is_caught() {
    let replace = Accum::Replace;
    let accums = attention::backward::Accums {
        dq: replace,
        dk: replace,
        dv: replace,
        dcontext_k: replace,
        dcontext_v: replace,
    };
    for storage in Storage::ALL {
        let d = attention_of(150);
        let launches = match attention::backward::config(&d, storage, accums, Arch::Sm80) {
            Ok(launches) => launches,
            Err(refused) => panic!("{refused}"),
        };
        let elements = |tokens: usize| tokens * d.head_dim;
        let inputs: Vec<Operand> = [
            tensor(storage, elements(d.queries), 6),
            tensor(Storage::F32, d.queries, 7),
            tensor(Storage::F32, d.queries, 8),
        ]
        .into_iter()
        .chain(tokens(&d, storage))
        .chain([Operand::F32(d.scale as f32), Operand::Absent])
        .collect();
        let call = &launches.queries;
        let operands: Vec<Operand> = [out(storage, elements(d.queries))]
            .into_iter()
            .chain(inputs.clone())
            .chain(numbers(&call.numbers))
            .collect();
        let case = call.plan.variant.name();
        assert_eq!(survivors_of(&call.plan, &operands), NONE, "{case}");

        let call = &launches.keys;
        let gradients = [d.keys, d.keys, d.context, d.context];
        let operands: Vec<Operand> = gradients
            .into_iter()
            .map(|tokens| out(storage, elements(tokens)))
            .chain(inputs)
            .chain(numbers(&call.numbers))
            .collect();
        let case = call.plan.variant.name();
        assert_eq!(survivors_of(&call.plan, &operands), NONE, "{case}");
    }
}

/// Deep enough along taps and channels, and along pixels, that every stage of the pipeline is used again.
const CONV: Conv2d = Conv2d {
    n: 1,
    h: 13,
    w: 13,
    c_in: 16,
    c_out: 24,
    kernel_h: 3,
    kernel_w: 3,
    stride: 1,
    padding: 1,
};
const X: usize = 13 * 13 * 16;
const Y: usize = 13 * 13 * 24;
const WEIGHTS: usize = 24 * 9 * 16;

#[test]
fn every_mutant_of_convolution_is_caught() {
    for storage in Storage::ALL {
        let plan = match conv2d::config(&CONV, storage, Arch::Sm80) {
            Ok(plan) => plan,
            Err(refused) => panic!("{refused}"),
        };
        let operands: Vec<Operand> = [
            out(storage, Y),
            tensor(storage, X, 1),
            tensor(storage, WEIGHTS, 2),
            Operand::Absent,
            Operand::Absent,
        ]
        .into_iter()
        .chain(numbers(&conv2d::Forward::sizes(&CONV)))
        .collect();
        let case = plan.variant.name();
        assert_eq!(survivors_of(&plan, &operands), NONE, "{case}");

        let plans = conv2d::config_backward_input(&CONV, storage, Accum::Replace, Arch::Sm80);
        let (flip, plan) = match plans {
            Ok(plans) => plans,
            Err(refused) => panic!("{refused}"),
        };
        let operands: Vec<Operand> = [out(storage, WEIGHTS), tensor(storage, WEIGHTS, 2)]
            .into_iter()
            .chain(numbers(&conv2d::Flip::sizes(&CONV)))
            .collect();
        let case = flip.variant.name();
        assert_eq!(survivors_of(&flip, &operands), NONE, "{case}");
        let operands: Vec<Operand> = [
            out(storage, X),
            tensor(storage, Y, 3),
            tensor(storage, WEIGHTS, 2),
            Operand::Absent,
            Operand::Absent,
        ]
        .into_iter()
        .chain(numbers(&conv2d::BackwardInput::sizes(&CONV)))
        .collect();
        let case = plan.variant.name();
        assert_eq!(survivors_of(&plan, &operands), NONE, "{case}");
    }
}

#[test]
fn every_mutant_of_the_gradient_of_weights_is_caught() {
    for storage in Storage::ALL {
        let plan = conv2d::config_backward_weight(&CONV, storage, Accum::Replace, Arch::Sm80);
        let call = match plan {
            Ok(plan) => plan.product,
            Err(refused) => panic!("{refused}"),
        };
        let operands: Vec<Operand> = [
            out(storage, WEIGHTS),
            tensor(storage, Y, 3),
            tensor(storage, X, 1),
        ]
        .into_iter()
        .chain(numbers(&call.numbers))
        .collect();
        let case = call.plan.variant.name();
        assert_eq!(survivors_of(&call.plan, &operands), NONE, "{case}");
    }
}
