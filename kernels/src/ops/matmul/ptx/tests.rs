use super::*;
use crate::ops::variants;

fn square(extent: usize) -> Matmul {
    Matmul {
        batch: 1,
        m: extent,
        n: extent,
        k: extent,
        transpose_a: false,
        transpose_b: false,
        a_stride: 0,
        b_stride: 0,
        activation: Activation::None,
    }
}

fn plan(d: &Matmul, storage: Storage) -> Plan<Product> {
    config(d, storage, Accum::Replace, Arch::Sm80).expect("a size that kernels count")
}

#[test]
fn tiles_are_large_where_they_fill_a_gpu() {
    assert_eq!(plan(&square(256), Storage::Bf16).variant.tile, Tile::Small);
    assert_eq!(plan(&square(256), Storage::Bf16).grid, [16, 1, 1]);
    assert_eq!(plan(&square(2048), Storage::Bf16).variant.tile, Tile::Large);
    assert_eq!(plan(&square(2048), Storage::F32).grid, [256, 1, 1]);
    let batched = Matmul {
        batch: 100,
        ..square(150)
    };
    assert_eq!(plan(&batched, Storage::F32).grid, [900, 1, 1]);
}

#[test]
fn rows_that_do_not_start_at_chunks_are_copied_by_element() {
    assert!(plan(&square(40), Storage::Bf16).variant.aligned);
    assert!(!plan(&square(36), Storage::Bf16).variant.aligned);
    assert!(plan(&square(36), Storage::F32).variant.aligned);
    // Only the dimension that runs along a row counts.
    let d = Matmul {
        m: 33,
        k: 40,
        n: 16,
        ..square(0)
    };
    assert!(plan(&d, Storage::Bf16).variant.aligned);
    let transposed = Matmul {
        transpose_a: true,
        ..d
    };
    assert!(!plan(&transposed, Storage::Bf16).variant.aligned);
    let apart = Matmul {
        batch: 2,
        a_stride: 33 * 40 + 4,
        ..d
    };
    assert!(!plan(&apart, Storage::Bf16).variant.aligned);
}

#[test]
fn every_plan_is_listed() {
    let names: Vec<String> = variants::all().into_iter().map(|l| l.name).collect();
    for extent in [1, 40, 2048] {
        for storage in Storage::ALL {
            assert!(names.contains(&plan(&square(extent), storage).variant.name()));
        }
    }
}

#[test]
fn what_kernels_cannot_do_is_refused() {
    let refuse = |d: &Matmul, accum| {
        let refused = config(d, Storage::F32, accum, Arch::Sm80).expect_err("refused");
        refused.to_string()
    };
    let activated = Matmul {
        activation: Activation::Gelu,
        ..square(8)
    };
    assert_eq!(
        refuse(&activated, Accum::Add),
        "accumulation has no activation"
    );
    assert_eq!(
        refuse(&square(1 << 16), Accum::Replace),
        "the size of one matrix of c is 4294967296, more than the 2147483648 that GPU kernels count"
    );
    let many = Matmul {
        batch: 1 << 31,
        ..square(1)
    };
    assert!(refuse(&many, Accum::Replace).contains("2147483648 tiles"));
}
