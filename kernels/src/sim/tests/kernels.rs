//! The repository's own kernels, as the assembler writes them.

use half::bf16;

use super::pipelines::survivors;
use super::*;
use crate::Accum;
use crate::ops::matmul::ptx::hopper::WarpGroups;
use crate::ops::matmul::ptx::{Buffers, Product, config};
use crate::ops::matmul::{Activation, Matmul};
use crate::ops::variants;
use crate::ptx::{Assembled, Storage};
use crate::sim::parse;
use crate::sim::program;

#[test]
fn every_variant_decodes() {
    for listing in variants::all() {
        let assembled = listing.assemble();
        let text = &assembled.kernel.text;
        let decoded = parse::parse(text).and_then(|module| {
            let entry = &module.entries[0];
            program::decode(&module, entry, listing.arch, 8)
        });
        if let Err(fault) = decoded {
            panic!("{}", fault.in_kernel(&listing.name, text));
        }
    }
}

fn encode(storage: Storage, values: &[f32]) -> Vec<u8> {
    let bytes = |&x: &f32| match storage {
        Storage::F32 => x.to_le_bytes().to_vec(),
        Storage::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

/// A product with tails on all sides, deep enough that every stage of the pipeline is used again.
fn product(storage: Storage, transpose_b: bool) -> Matmul {
    Matmul {
        batch: 1,
        m: 72,
        n: 40,
        k: 5 * 64 / storage.bytes() as usize + 8,
        transpose_a: false,
        transpose_b,
        a_stride: 0,
        b_stride: 0,
        activation: Activation::None,
    }
}

fn gemm_survivors(storage: Storage, transpose_b: bool) -> Vec<String> {
    let d = product(storage, transpose_b);
    let plan = match config(&d, storage, Accum::Replace, Arch::Sm80) {
        Ok(plan) => plan,
        Err(refused) => panic!("{refused}"),
    };
    product_survivors(&d, storage, plan.assemble(), Product::arguments)
}

/// The survivors among a product's mutants, once it has given exact results.
fn product_survivors(
    d: &Matmul,
    storage: Storage,
    (assembled, launch): (Assembled, Launch),
    arguments: for<'a> fn(&Matmul, Buffers<'a>) -> Vec<Argument<'a>>,
) -> Vec<String> {
    let values = |n: usize, step: usize| -> Vec<f32> {
        (0..n).map(|i| (i * step % 5) as f32 - 2.0).collect()
    };
    let (a, b) = (values(d.m * d.k, 3), values(d.k * d.n, 7));
    let (a_bytes, b_bytes) = (encode(storage, &a), encode(storage, &b));
    let go = |kernel: &Kernel, options: &Options| {
        let mut c = vec![0; d.m * d.n * storage.bytes() as usize];
        let buffers = Buffers {
            c: Argument::Write(&mut c),
            pre: Argument::Null,
            a: Argument::Read(&a_bytes),
            b: Argument::Read(&b_bytes),
            bias: Argument::Null,
            residual: Argument::Null,
        };
        let mut arguments = arguments(d, buffers);
        run(kernel, &launch, &mut arguments, options)?;
        drop(arguments);
        Ok(c)
    };
    // Small integers: exact whatever the order of the sums.
    let mut want = vec![0.0; d.m * d.n];
    for i in 0..d.m {
        for j in 0..d.n {
            let at = |k: usize| {
                if d.transpose_b {
                    j * d.k + k
                } else {
                    k * d.n + j
                }
            };
            want[i * d.n + j] = (0..d.k).map(|k| a[i * d.k + k] * b[at(k)]).sum();
        }
    }
    for options in all_options() {
        match go(&assembled.kernel, &options) {
            Ok(c) => assert!(c == encode(storage, &want), "{storage:?} {options:?}"),
            Err(error) => panic!("{storage:?} {options:?}: {error}"),
        }
    }
    survivors(&assembled.kernel, go)
}

/// With slices of both directions: of a along k, of b across it.
#[test]
fn every_mutant_of_the_warp_group_product_is_caught() {
    let d = Matmul {
        k: 6 * 64 + 8,
        ..product(Storage::Bf16, false)
    };
    let plan = match WarpGroups::config(&d, Accum::Replace) {
        Ok(plan) => plan,
        Err(refused) => panic!("{refused}"),
    };
    // Registers per thread are the hardware's to share out: without setmaxnreg the kernel is only slower.
    let unneeded = [
        "setmaxnreg.dec.sync.aligned.u32 40;",
        "setmaxnreg.inc.sync.aligned.u32 232;",
    ];
    assert_eq!(
        product_survivors(&d, Storage::Bf16, plan.assemble(), WarpGroups::arguments),
        unneeded
    );
}

#[test]
fn every_mutant_of_the_matrix_products_is_caught() {
    for storage in Storage::ALL {
        assert_eq!(
            gemm_survivors(storage, true),
            Vec::<String>::new(),
            "{storage:?}"
        );
    }
    assert_eq!(gemm_survivors(Storage::Bf16, false), Vec::<String>::new());
    // Where B is not transposed, an f32 kernel's lane owns four columns next to each other in every fourth row, and
    // reads back from the epilogue's slab just what it wrote: the slab's warp barriers order nothing there.
    assert_eq!(
        gemm_survivors(Storage::F32, false),
        ["bar.warp.sync 0xffffffff;"; 3]
    );
}
