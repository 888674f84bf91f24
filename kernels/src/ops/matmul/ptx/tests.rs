use super::hopper::WarpGroups;
use super::*;
use crate::Float;
use crate::ops::variants;
use crate::sim::Profile;
use crate::testing::gpu::{decode, encode};
use crate::testing::operands::{Operand as Bytes, assert_within_budget, rounded, simulate};
use crate::testing::values;

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

fn whole(d: &Matmul, storage: Storage) -> Plan<Product> {
    config(d, storage, Accum::Replace, Arch::Sm80).expect("a size that kernels count")
}

#[test]
fn tiles_are_large_where_they_fill_a_gpu() {
    assert_eq!(whole(&square(256), Storage::Bf16).variant.tile, Tile::Small);
    assert_eq!(whole(&square(256), Storage::Bf16).grid, [16, 1, 1]);
    assert_eq!(
        whole(&square(2048), Storage::Bf16).variant.tile,
        Tile::Large
    );
    assert_eq!(whole(&square(2048), Storage::F32).grid, [256, 1, 1]);
    let batched = Matmul {
        batch: 100,
        ..square(150)
    };
    assert_eq!(whole(&batched, Storage::F32).grid, [900, 1, 1]);
}

#[test]
fn rows_that_do_not_start_at_chunks_are_copied_by_element() {
    assert!(whole(&square(40), Storage::Bf16).variant.aligned);
    assert!(!whole(&square(36), Storage::Bf16).variant.aligned);
    assert!(whole(&square(36), Storage::F32).variant.aligned);
    // Only the dimension that runs along a row counts.
    let d = Matmul {
        m: 33,
        k: 40,
        n: 16,
        ..square(0)
    };
    assert!(whole(&d, Storage::Bf16).variant.aligned);
    let transposed = Matmul {
        transpose_a: true,
        ..d
    };
    assert!(!whole(&transposed, Storage::Bf16).variant.aligned);
    let apart = Matmul {
        batch: 2,
        a_stride: 33 * 40 + 4,
        ..d
    };
    assert!(!whole(&apart, Storage::Bf16).variant.aligned);
}

#[test]
fn every_plan_is_listed() {
    let names: Vec<String> = variants::all().into_iter().map(|l| l.name).collect();
    for extent in [1, 40, 2048] {
        for storage in Storage::ALL {
            assert!(names.contains(&whole(&square(extent), storage).variant.name()));
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

/// What a product has besides its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fused {
    Nothing,
    /// Bias, pre, an activation and the residual.
    Everything,
    /// The former contents.
    Accumulation,
}

/// c and pre by the definition, in the type of the operands, which are a, b, bias, residual and the former c.
fn naive<T: Float>(
    d: &Matmul,
    fused: Fused,
    [a, b, bias, residual, c]: &[Vec<T>; 5],
) -> [Vec<T>; 2] {
    let (mut results, mut pre) = (vec![], vec![]);
    for element in 0..d.batch * d.m * d.n {
        let (batch, row) = (element / (d.m * d.n), element / d.n % d.m);
        let column = element % d.n;
        let (a, b) = (&a[batch * d.a_stride..], &b[batch * d.b_stride..]);
        let sum = (0..d.k).fold(T::ZERO, |sum, p| {
            let a = a[if d.transpose_a {
                p * d.m + row
            } else {
                row * d.k + p
            }];
            let b = b[if d.transpose_b {
                column * d.k + p
            } else {
                p * d.n + column
            }];
            a.mul_add(b, sum)
        });
        let (before, after) = match fused {
            Fused::Nothing => (sum, sum),
            Fused::Accumulation => (sum, c[element] + sum),
            Fused::Everything => {
                let before = sum + bias[column];
                (before, d.activation.apply(before) + residual[element])
            }
        };
        pre.push(before);
        results.push(after);
    }
    [results, pre]
}

/// Runs a plan on the simulated GPU and judges what it wrote.
fn check(d: &Matmul, plan: &Plan<Product>, fused: Fused) -> Profile {
    let product = Call {
        plan: *plan,
        numbers: Product::numbers(d, d.k).to_vec(),
    };
    let whole = InParts {
        product,
        merge: None,
        partials: 0,
    };
    check_plans(d, &whole, fused)
}

/// Runs plans on the simulated GPU and judges what they wrote; gives the last one's profile.
fn check_plans(d: &Matmul, plans: &InParts<Product>, fused: Fused) -> Profile {
    let Call { plan, numbers } = &plans.product;
    let numbers = numbers.iter().map(|&n| Bytes::U32(n));
    let numbers: Vec<Bytes> = numbers.collect();
    let name = plan.variant.name();
    judge(d, plan.variant.storage, fused, &name, |buffers| {
        let Some(merge) = &plans.merge else {
            return simulate(plan, &[buffers.to_vec(), numbers].concat());
        };
        let [c, pre, a, b, bias, residual] = buffers;
        let partials = Bytes::Out(plans.partials * 4);
        let nothing = || Bytes::Absent;
        let operands = vec![partials, nothing(), a, b, nothing(), nothing()];
        let (mut written, _) = simulate(plan, &[operands, numbers].concat());
        let numbers = merge.numbers.iter().map(|&n| Bytes::U32(n));
        let operands = vec![c, pre, Bytes::In(written.remove(0)), bias, residual];
        simulate(
            &merge.plan,
            &operands.into_iter().chain(numbers).collect::<Vec<_>>(),
        )
    })
}

/// Judges what `run` makes of a launch's buffers: c, pre, a, b, bias and residual.
fn judge(
    d: &Matmul,
    storage: Storage,
    fused: Fused,
    name: &str,
    run: impl FnOnce([Bytes; 6]) -> (Vec<Vec<u8>>, Profile),
) -> Profile {
    let matrices = |stride: usize, one: usize| (d.batch - 1) * stride + one;
    let outputs = d.batch * d.m * d.n;
    let sizes = [
        matrices(d.a_stride, d.m * d.k),
        matrices(d.b_stride, d.n * d.k),
        d.n,
        outputs,
        outputs,
    ];
    let mut seed = 0;
    let operands = sizes.map(|n| {
        seed += 1;
        rounded(storage, &values::<f32>(n, seed))
    });
    let wide = operands
        .each_ref()
        .map(|x| x.iter().map(|&x| f64::from(x)).collect());
    let [naive_c, naive_pre] = naive(d, fused, &operands);
    let [exact_c, exact_pre] = naive::<f64>(d, fused, &wide);

    let size = outputs * storage.bytes() as usize;
    let [a, b, bias, residual, old] = operands.map(|x| encode(storage, &x));
    let everything = fused == Fused::Everything;
    let optional = |x: Bytes| if everything { x } else { Bytes::Absent };
    let c = match fused {
        Fused::Accumulation => Bytes::InOut(old),
        _ => Bytes::Out(size),
    };
    let pre = optional(Bytes::Out(size));
    let [bias, residual] = [bias, residual].map(|x| optional(Bytes::In(x)));
    let (written, profile) = run([c, pre, Bytes::In(a), Bytes::In(b), bias, residual]);
    let case = format!("{d:?} {fused:?} {name}");
    let got = decode(storage, &written[0]);
    assert_within_budget(&case, storage, &got, &naive_c, &exact_c);
    if everything {
        let got = decode(storage, &written[1]);
        assert_within_budget(
            &format!("pre of {case}"),
            storage,
            &got,
            &naive_pre,
            &exact_pre,
        );
    }
    profile
}

fn check_config(d: &Matmul, storage: Storage, fused: Fused) {
    let accum = match fused {
        Fused::Accumulation => Accum::Add,
        _ => Accum::Replace,
    };
    let plan = config(d, storage, accum, Arch::Sm80).expect("a size that kernels count");
    check(d, &plan, fused);
}

const TRANSPOSES: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

fn product(m: usize, n: usize, k: usize, (transpose_a, transpose_b): (bool, bool)) -> Matmul {
    Matmul {
        m,
        n,
        k,
        transpose_a,
        transpose_b,
        ..square(0)
    }
}

#[test]
fn odd_shapes_and_all_transposes() {
    for storage in Storage::ALL {
        for transposes in TRANSPOSES {
            for (m, n, k) in [(1, 1, 1), (5, 3, 0), (67, 65, 35), (72, 80, 136)] {
                check_config(&product(m, n, k, transposes), storage, Fused::Nothing);
            }
        }
    }
}

/// One large tile after the other, whatever `config` would choose.
fn in_large_tiles(d: &Matmul, storage: Storage) -> Plan<Product> {
    let variant = Product {
        tile: Tile::Large,
        ..whole(d, storage).variant
    };
    assert!(variant.aligned);
    let tiles = d.m.div_ceil(128) * d.n.div_ceil(128);
    Plan {
        variant,
        grid: [tiles as u32, 1, 1],
    }
}

#[test]
fn large_tiles() {
    for storage in Storage::ALL {
        for transposes in TRANSPOSES {
            let d = product(136, 144, 72, transposes);
            check(&d, &in_large_tiles(&d, storage), Fused::Nothing);
        }
    }
}

/// Before the epilogue, every access takes as few passes through the banks and as few sectors as its width allows.
#[test]
fn main_loops_have_no_bank_conflicts_and_full_sectors() {
    for storage in Storage::ALL {
        for transposes in TRANSPOSES {
            let d = product(128, 128, 64, transposes);
            let plan = in_large_tiles(&d, storage);
            let text = plan.variant.assemble().kernel.text;
            let epilogue = text.lines().position(|l| l.contains("free for the sums"));
            let epilogue = epilogue.expect("the comment before the epilogue") as u32;
            let profile = check(&d, &plan, Fused::Nothing);
            for line in profile.lines.iter().filter(|line| line.line <= epilogue) {
                let counts = line.counts;
                let what = text.lines().nth(line.line as usize - 1);
                let case = format!("{} {what:?} {counts:?}", plan.variant.name());
                assert_eq!(counts.wavefronts, counts.least_wavefronts, "{case}");
                assert_eq!(counts.sectors, counts.least_sectors, "{case}");
            }
        }
    }
}

#[test]
fn batches_shared_and_strided() {
    for (a_stride, b_stride) in [
        (24 * 40, 0),
        (0, 40 * 16),
        (24 * 40 + 8, 40 * 16 + 16),
        (961, 643),
    ] {
        let d = Matmul {
            batch: 3,
            a_stride,
            b_stride,
            ..product(24, 16, 40, (false, true))
        };
        check_config(&d, Storage::Bf16, Fused::Nothing);
        check_config(&d, Storage::F32, Fused::Nothing);
    }
}

#[test]
fn epilogues() {
    for storage in Storage::ALL {
        for (m, n, k) in [(70, 72, 40), (9, 13, 21)] {
            check_config(
                &product(m, n, k, (false, false)),
                storage,
                Fused::Accumulation,
            );
            for activation in Activation::ALL {
                let d = Matmul {
                    activation,
                    ..product(m, n, k, (false, false))
                };
                check_config(&d, storage, Fused::Everything);
            }
        }
    }
}

#[test]
fn deep_products_of_few_tiles_are_cut_into_parts() {
    let chosen = |m, n, k| {
        let d = product(m, n, k, (true, false));
        let plans = plan(&d, Storage::Bf16, Accum::Add, Arch::Sm80).expect("a product");
        let Call { plan: product, .. } = plans.product;
        (
            product.variant.tile,
            product.grid[0],
            plans.partials / (m * n),
        )
    };
    // The weights of a layer, from 8192 tokens: 9 large tiles, in as many parts as have 16 slices.
    assert_eq!(chosen(320, 320, 8192), (Tile::Large, 144, 16));
    // 100 large tiles twice, rather than 400 small ones.
    assert_eq!(chosen(1280, 1280, 4096), (Tile::Large, 200, 2));
    assert_eq!(chosen(2048, 2048, 65536), (Tile::Large, 256, 0));
    assert_eq!(chosen(128, 128, 2048), (Tile::Small, 16, 4));
    assert_eq!(chosen(256, 256, 256), (Tile::Small, 16, 0));
    assert_eq!(chosen(33, 7, 65536), (Tile::Small, 128, 128));
    // Three quarters of a large tile would be outside.
    assert_eq!(chosen(64, 64, 65536), (Tile::Small, 128, 128));
}

#[test]
fn products_in_parts() {
    for storage in Storage::ALL {
        for (m, n, k) in [(24, 40, 1056), (9, 13, 1100)] {
            for (batch, transposes) in [(1, (true, false)), (3, (false, true))] {
                for fused in [Fused::Nothing, Fused::Everything, Fused::Accumulation] {
                    let d = Matmul {
                        batch,
                        a_stride: m * k,
                        b_stride: 0,
                        activation: match fused {
                            Fused::Everything => Activation::Silu,
                            _ => Activation::None,
                        },
                        ..product(m, n, k, transposes)
                    };
                    let accum = match fused {
                        Fused::Accumulation => Accum::Add,
                        _ => Accum::Replace,
                    };
                    let plans = plan(&d, storage, accum, Arch::Sm80).expect("a product");
                    assert!(plans.merge.is_some(), "{d:?}");
                    check_plans(&d, &plans, fused);
                }
            }
        }
    }
}

/// The same on Hopper.
fn check_warp_groups(d: &Matmul, fused: Fused) -> Profile {
    let accum = match fused {
        Fused::Accumulation => Accum::Add,
        _ => Accum::Replace,
    };
    let plan = WarpGroups::config(d, accum).expect("a product of whole chunks");
    judge(d, Storage::Bf16, fused, &plan.variant.name(), |buffers| {
        let numbers = WarpGroups::numbers(d).map(Bytes::U32);
        let maps = WarpGroups::maps(d).map(Bytes::TensorMap);
        let operands = buffers.into_iter().chain(numbers).chain(maps);
        simulate(&plan, &operands.collect::<Vec<_>>())
    })
}

#[test]
fn warp_groups_multiply_all_transposes_and_tails() {
    for transposes in TRANSPOSES {
        for (m, n, k) in [(8, 8, 8), (72, 40, 24), (200, 136, 328)] {
            check_warp_groups(&product(m, n, k, transposes), Fused::Nothing);
        }
    }
    // Only what runs along a row is whole chunks.
    check_warp_groups(&product(131, 8, 64, (false, true)), Fused::Nothing);
    check_warp_groups(&product(136, 8, 67, (true, false)), Fused::Nothing);
}

#[test]
fn warp_groups_take_batches_and_epilogues() {
    for (a_stride, b_stride) in [(24 * 40, 0), (0, 40 * 16), (24 * 40 + 8, 40 * 16 + 16)] {
        let d = Matmul {
            batch: 3,
            a_stride,
            b_stride,
            ..product(24, 16, 40, (false, true))
        };
        check_warp_groups(&d, Fused::Nothing);
    }
    check_warp_groups(&product(136, 136, 72, (false, false)), Fused::Accumulation);
    for activation in Activation::ALL {
        let d = Matmul {
            activation,
            ..product(70, 72, 40, (false, false))
        };
        check_warp_groups(&d, Fused::Everything);
    }
}

#[test]
fn warp_groups_read_each_slice_once_and_without_bank_conflicts() {
    for transposes in TRANSPOSES {
        let d = product(128, 128, 192, transposes);
        let profile = check_warp_groups(&d, Fused::Nothing);
        assert_eq!(profile.unique_read(), 2 * 2 * 128 * 192);
        // Counted once by each warp that computes 16 rows of the product, tails included.
        assert_eq!(profile.total().matrix_flops, 2 * 128 * 128 * 192);
    }
}

#[test]
fn what_tensor_maps_do_not_describe_is_refused() {
    for d in [
        product(64, 64, 0, (false, false)),
        product(64, 63, 64, (false, false)),
        product(64, 64, 63, (false, false)),
        product(63, 64, 64, (true, false)),
        product(64, 64, 63, (true, true)),
    ] {
        assert!(WarpGroups::config(&d, Accum::Replace).is_err(), "{d:?}");
    }
    let activated = Matmul {
        activation: Activation::Gelu,
        ..square(8)
    };
    assert!(WarpGroups::config(&activated, Accum::Add).is_err());
}
