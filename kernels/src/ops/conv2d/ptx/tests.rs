use super::*;
use crate::ops::conv2d;
use crate::ops::geometry::Call;
use crate::ops::matmul::ptx::parts::InParts;
use crate::sim::Profile;
use crate::testing::gpu::{decode, encode};
use crate::testing::operands::{Operand as Bytes, assert_within_budget, rounded, simulate};
use crate::testing::values;

/// A 3×3 convolution with padding 1.
fn conv(n: usize, [h, w]: [usize; 2], c_in: usize, c_out: usize, stride: usize) -> Conv2d {
    Conv2d {
        n,
        h,
        w,
        c_in,
        c_out,
        kernel_h: 3,
        kernel_w: 3,
        stride,
        padding: 1,
    }
}

fn plan(d: &Conv2d, storage: Storage) -> Plan<Forward> {
    config(d, storage, Arch::Sm80).expect("a size that kernels count")
}

/// Runs a plan on the simulated GPU, with bias and residual where `fused`, and holds y to the CPU's.
fn check(d: &Conv2d, plan: &Plan<Forward>, fused: bool) -> (String, Profile) {
    let storage = plan.variant.storage;
    let outputs = d.n * d.out_h() * d.out_w() * d.c_out;
    let weights = d.c_out * d.kernel_h * d.kernel_w * d.c_in;
    let mut seed = 0;
    let operands = [d.n * d.h * d.w * d.c_in, weights, d.c_out, outputs].map(|n| {
        seed += 1;
        rounded(storage, &values::<f32>(n, seed))
    });
    let wide: [Vec<f64>; 4] = operands
        .each_ref()
        .map(|x| x.iter().map(|&x| f64::from(x)).collect());

    let [x, weight, bias, residual] = operands.each_ref().map(|x| encode(storage, x));
    let optional = |x: Vec<u8>| match fused {
        true => Bytes::In(x),
        false => Bytes::Absent,
    };
    let mut launch = vec![
        Bytes::Out(outputs * storage.bytes() as usize),
        Bytes::In(x),
        Bytes::In(weight),
        optional(bias),
        optional(residual),
    ];
    launch.extend(Forward::sizes(d).map(Bytes::U32));
    let (written, profile) = simulate(plan, &launch);
    let got = decode(storage, &written[0]);
    let case = format!("{d:?} {} {fused}", plan.variant.name());
    assert_within_budget(
        &case,
        storage,
        &got,
        &on_cpu(d, &operands, fused),
        &on_cpu(d, &wide, fused),
    );
    (plan.assemble().0.kernel.text, profile)
}

fn on_cpu<T: crate::Float>(
    d: &Conv2d,
    [x, weight, bias, residual]: &[Vec<T>; 4],
    fused: bool,
) -> Vec<T> {
    let mut y = vec![T::ZERO; residual.len()];
    let [bias, residual] = [bias, residual].map(|x| fused.then_some(&x[..]));
    conv2d::forward(d, &mut y, x, weight, bias, residual);
    y
}

fn check_both(d: &Conv2d, fused: bool) {
    for storage in Storage::ALL {
        check(d, &plan(d, storage), fused);
    }
}

#[test]
fn tiles_are_large_where_they_fill_a_gpu() {
    let chosen = |d: &Conv2d| {
        let plan = plan(d, Storage::Bf16);
        (plan.variant.tile, plan.variant.aligned, plan.grid[0])
    };
    let body = conv(16, [32, 32], 320, 320, 1);
    assert_eq!(chosen(&body), (Tile::Large, true, 384));
    assert_eq!(chosen(&Conv2d { n: 1, ..body }), (Tile::Small, true, 80));
    // Pictures come in and go out element by element.
    assert_eq!(
        chosen(&Conv2d { c_in: 3, ..body }),
        (Tile::Small, false, 1280)
    );
    assert_eq!(
        chosen(&Conv2d { c_out: 6, ..body }),
        (Tile::Small, false, 256)
    );
}

#[test]
fn what_kernels_cannot_do_is_refused() {
    let refuse = |d: &Conv2d| {
        let refused = config(d, Storage::F32, Arch::Sm80).expect_err("refused");
        refused.to_string()
    };
    let d = conv(1, [8, 8], 8, 8, 1);
    let none = Conv2d { c_in: 0, ..d };
    assert_eq!(refuse(&none), "there are no channels");
    let huge = Conv2d { n: 1 << 28, ..d };
    assert!(refuse(&huge).starts_with("the size of x is 137438953472"));
}

#[test]
fn strides_paddings_and_kernels_of_any_size() {
    for (kernel, stride, padding) in [
        ([3, 3], 1, 1),
        ([3, 3], 2, 1),
        ([3, 3], 1, 0),
        ([1, 1], 1, 0),
        ([1, 1], 2, 0),
        ([2, 4], 3, 3),
        ([5, 1], 1, 2),
    ] {
        for (c_in, c_out) in [(8, 16), (40, 72), (3, 5)] {
            let d = Conv2d {
                kernel_h: kernel[0],
                kernel_w: kernel[1],
                padding,
                ..conv(2, [7, 9], c_in, c_out, stride)
            };
            check_both(&d, stride == 1);
        }
    }
}

#[test]
fn few_channels_and_single_pixels() {
    for (c_in, c_out) in [(1, 1), (3, 64), (6, 8), (64, 6), (8, 3), (12, 20)] {
        for size in [[1, 1], [1, 5], [6, 11]] {
            check_both(&conv(3, size, c_in, c_out, 1), true);
        }
    }
}

#[test]
fn large_tiles() {
    for storage in Storage::ALL {
        for stride in [1, 2] {
            let d = conv(2, [10 * stride, 7 * stride], 48, 136, stride);
            let plan = Plan {
                variant: Forward {
                    tile: Tile::Large,
                    ..plan(&d, storage).variant
                },
                grid: [4, 1, 1],
            };
            check(&d, &plan, true);
        }
    }
}

/// The loop over slices passes through the banks as fast as its accesses' widths allow, and asks for whole sectors.
#[test]
fn the_loop_wastes_neither_banks_nor_sectors() {
    for storage in Storage::ALL {
        for tile in [Tile::Large, Tile::Small] {
            let d = conv(1, [16, 16], 64, 128, 1);
            let variant = Forward {
                tile,
                ..plan(&d, storage).variant
            };
            let [rows, columns] = Tiling::new(tile, storage).cta;
            let grid = [256 / rows * (128 / columns), 1, 1];
            let (text, profile) = check(&d, &Plan { variant, grid }, false);
            assert_pipeline_is_clean(&text, &profile);
        }
    }
}

/// Asserts that the loop over slices has no bank conflicts, and that it asks for whole sectors.
fn assert_pipeline_is_clean(text: &str, profile: &Profile) {
    let line = |comment| {
        let found = text.lines().position(|line| line.contains(comment));
        found.expect("a comment of the kernel's") as u32
    };
    let pipeline = line("fill 3 stages")..line("the stages are free");
    let here = |line: &u32| pipeline.contains(line);
    let conflicts = profile.bank_conflicts();
    let conflicts: Vec<_> = conflicts.iter().filter(|(line, _)| here(line)).collect();
    assert!(conflicts.is_empty(), "{conflicts:?}");
    for of_line in profile.lines.iter().filter(|l| here(&l.line)) {
        let counts = of_line.counts;
        let line = of_line.line;
        assert_eq!(counts.sectors, counts.least_sectors, "line {line}");
    }
}

/// Runs the plans for the gradient of x on the simulated GPU, and holds it to the CPU's.
fn check_backward(d: &Conv2d, (flip, plan): &(Plan<Flip>, Plan<BackwardInput>)) {
    let BackwardInput { storage, accum, .. } = plan.variant;
    let weights = d.c_out * d.kernel_h * d.kernel_w * d.c_in;
    let outputs = d.n * d.out_h() * d.out_w() * d.c_out;
    let mut seed = 0;
    let operands = [d.n * d.h * d.w * d.c_in, weights, outputs].map(|n| {
        seed += 1;
        rounded(storage, &values::<f32>(n, seed))
    });
    let wide: [Vec<f64>; 3] = operands
        .each_ref()
        .map(|x| x.iter().map(|&x| f64::from(x)).collect());
    let naive = gradient_on_cpu(d, &operands, accum);
    let exact = gradient_on_cpu(d, &wide, accum);

    let [dx, weight, dy] = operands.each_ref().map(|x| encode(storage, x));
    let flip_launch = [
        vec![Bytes::Out(weight.len()), Bytes::In(weight)],
        Flip::sizes(d).map(Bytes::U32).to_vec(),
    ];
    let (mut flipped, _) = simulate(flip, &flip_launch.concat());
    let launch = [
        match accum {
            Accum::Replace => Bytes::Out(dx.len()),
            Accum::Add => Bytes::InOut(dx),
        },
        Bytes::In(dy),
        Bytes::In(flipped.remove(0)),
        Bytes::Absent,
        Bytes::Absent,
    ];
    let sizes = BackwardInput::sizes(d).map(Bytes::U32).to_vec();
    let (written, _) = simulate(plan, &[launch.to_vec(), sizes].concat());
    let got = decode(storage, &written[0]);
    let case = format!("dx of {d:?} {}", plan.variant.name());
    assert_within_budget(&case, storage, &got, &naive, &exact);
}

fn gradient_on_cpu<T: crate::Float>(
    d: &Conv2d,
    [dx, weight, dy]: &[Vec<T>; 3],
    accum: Accum,
) -> Vec<T> {
    let mut dx = dx.clone();
    conv2d::backward_input(d, &mut dx, accum, dy, weight);
    dx
}

#[test]
fn gradients_of_strides_paddings_and_kernels_of_any_size() {
    for (kernel, stride, padding) in [
        ([3, 3], 1, 1),
        ([3, 3], 2, 1),
        ([3, 3], 1, 0),
        ([1, 1], 1, 0),
        ([1, 1], 2, 0),
        ([2, 4], 3, 3),
        ([5, 1], 1, 2),
    ] {
        for (c_in, c_out) in [(8, 16), (72, 40), (3, 5)] {
            let d = Conv2d {
                kernel_h: kernel[0],
                kernel_w: kernel[1],
                padding,
                ..conv(2, [7, 9], c_in, c_out, stride)
            };
            for storage in Storage::ALL {
                for accum in Accum::ALL {
                    let plans = config_backward_input(&d, storage, accum, Arch::Sm80);
                    check_backward(&d, &plans.expect("a size that kernels count"));
                }
            }
        }
    }
}

/// Runs the launches for the gradient of the weights on the simulated GPU, and holds it to the CPU's.
fn check_backward_weight(d: &Conv2d, plan: &InParts<BackwardWeight>, accum: Accum) -> Profile {
    let storage = plan.product.plan.variant.storage;
    let weights = d.c_out * d.kernel_h * d.kernel_w * d.c_in;
    let outputs = d.n * d.out_h() * d.out_w() * d.c_out;
    let mut seed = 0;
    let operands = [weights, outputs, d.n * d.h * d.w * d.c_in].map(|n| {
        seed += 1;
        rounded(storage, &values::<f32>(n, seed))
    });
    let wide: [Vec<f64>; 3] = operands
        .each_ref()
        .map(|x| x.iter().map(|&x| f64::from(x)).collect());
    fn on_cpu<T: crate::Float>(d: &Conv2d, [dw, dy, x]: &[Vec<T>; 3], accum: Accum) -> Vec<T> {
        let mut dw = dw.clone();
        conv2d::backward_weight(d, &mut dw, accum, dy, x);
        dw
    }
    let (naive, exact) = (on_cpu(d, &operands, accum), on_cpu(d, &wide, accum));

    let [dw, dy, x] = operands.each_ref().map(|x| encode(storage, x));
    let destination = match accum {
        Accum::Replace => Bytes::Out(dw.len()),
        Accum::Add => Bytes::InOut(dw),
    };
    let launch = |first: Bytes, others: Vec<Bytes>, numbers: &[u32]| {
        let numbers = numbers.iter().map(|&n| Bytes::U32(n));
        let operands = [first].into_iter().chain(others);
        operands.chain(numbers).collect::<Vec<_>>()
    };
    let first = match plan.merge {
        None => destination.clone(),
        Some(_) => Bytes::Out(plan.partials * 4),
    };
    let InParts { product, merge, .. } = plan;
    let operands = launch(first, vec![Bytes::In(dy), Bytes::In(x)], &product.numbers);
    let (mut written, profile) = simulate(&product.plan, &operands);
    if let Some(merge) = merge {
        let partials = Bytes::In(written.remove(0));
        let others = vec![Bytes::Absent, partials, Bytes::Absent, Bytes::Absent];
        let operands = launch(destination, others, &merge.numbers);
        (written, _) = simulate(&merge.plan, &operands);
    }
    let got = decode(storage, &written[0]);
    let case = format!("dw of {d:?} {}", product.plan.variant.name());
    assert_within_budget(&case, storage, &got, &naive, &exact);
    profile
}

fn plan_backward_weight(d: &Conv2d, storage: Storage, accum: Accum) -> InParts<BackwardWeight> {
    let plan = config_backward_weight(d, storage, accum, Arch::Sm80);
    plan.expect("a size that kernels count")
}

#[test]
fn gradients_of_weights_are_cut_into_parts_that_fill_a_gpu() {
    let chosen = |n, size: usize, c| {
        let d = conv(n, [size, size], c, c, 1);
        let plan = plan_backward_weight(&d, Storage::Bf16, Accum::Add);
        let Call { plan: product, .. } = plan.product;
        let parts = plan.partials / (c * 9 * c);
        (product.variant.tile, product.grid[0], parts)
    };
    // 3 by 23 large tiles, three times.
    assert_eq!(chosen(16, 32, 320), (Tile::Large, 207, 3));
    // Deep enough for two parts of 3 by 23 tiles.
    assert_eq!(chosen(1, 32, 320), (Tile::Large, 138, 2));
    // More tiles than a GPU takes at once.
    assert_eq!(chosen(16, 32, 640), (Tile::Large, 225, 0));
    assert_eq!(chosen(16, 8, 64), (Tile::Small, 18, 2));
    assert_eq!(chosen(1, 8, 64), (Tile::Small, 9, 0));
}

#[test]
fn gradients_of_weights_of_strides_paddings_and_kernels_of_any_size() {
    for (kernel, stride, padding) in [
        ([3, 3], 1, 1),
        ([3, 3], 2, 1),
        ([3, 3], 1, 0),
        ([1, 1], 1, 0),
        ([1, 1], 2, 0),
        ([2, 4], 3, 3),
        ([5, 1], 1, 2),
    ] {
        for (c_in, c_out) in [(8, 16), (40, 72), (3, 5)] {
            let d = Conv2d {
                kernel_h: kernel[0],
                kernel_w: kernel[1],
                padding,
                ..conv(2, [7, 9], c_in, c_out, stride)
            };
            for storage in Storage::ALL {
                for accum in Accum::ALL {
                    let plan = plan_backward_weight(&d, storage, accum);
                    assert!(plan.merge.is_none());
                    check_backward_weight(&d, &plan, accum);
                }
            }
        }
    }
}

#[test]
fn gradients_of_weights_in_parts() {
    for (c_in, c_out) in [(8, 24), (3, 8), (8, 3)] {
        for (kernel, stride) in [(3, 1), (3, 2), (1, 1)] {
            let d = Conv2d {
                kernel_h: kernel,
                kernel_w: kernel,
                padding: kernel / 2,
                ..conv(3, [19 * stride, 20 * stride], c_in, c_out, stride)
            };
            for storage in Storage::ALL {
                let accum = if stride == 1 {
                    Accum::Add
                } else {
                    Accum::Replace
                };
                let plan = plan_backward_weight(&d, storage, accum);
                assert!(plan.merge.is_some(), "{d:?}");
                check_backward_weight(&d, &plan, accum);
            }
        }
    }
}

/// One image, in large tiles and in small ones.
#[test]
fn gradients_of_weights_waste_neither_banks_nor_sectors() {
    for storage in Storage::ALL {
        for tile in [Tile::Large, Tile::Small] {
            let d = Conv2d {
                kernel_h: 1,
                kernel_w: 1,
                padding: 0,
                ..conv(1, [8, 16], 128, 128, 1)
            };
            let mut plan = plan_backward_weight(&d, storage, Accum::Replace);
            let [rows, columns] = Tiling::new(tile, storage).cta;
            plan.product.plan.variant.tile = tile;
            plan.product.plan.grid = [128 / rows * (128 / columns), 1, 1];
            let profile = check_backward_weight(&d, &plan, Accum::Replace);
            assert_pipeline_is_clean(&plan.product.assemble().0.kernel.text, &profile);
        }
    }
}
