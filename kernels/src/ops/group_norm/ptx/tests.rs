//! The GPU kernels on the simulated GPU, against the definitions.

use super::backward::{InputGradient, MergeSums, Parameters, Sums};
use super::forward::{Apply, Merge, Moments};
use super::*;
use crate::Accum;
use crate::ops::group_norm::tests::{NAMES, Operands, Results, naive, operands};
use crate::ops::variants::Plan;
use crate::testing::gpu::{assert_moves, decode, encode};
use crate::testing::operands::{Operand, assert_within_budget, rounded, simulate};

/// Elements of x, statistics, and elements of scale_shift.
fn lengths(d: &GroupNorm) -> [usize; 3] {
    [d.n * d.pixels * d.c, d.n * d.groups, d.n * 2 * d.c]
}

/// A gradient of `n` elements, with what it is added to.
fn destination(storage: Storage, accum: Accum, former: f32, n: usize) -> Operand {
    match accum {
        Accum::Replace => Operand::Out(n * storage.bytes() as usize),
        Accum::Add => Operand::InOut(encode(storage, &vec![former; n])),
    }
}

/// dgamma and dbeta, from the images' totals.
fn parameter_gradients(
    d: &GroupNorm,
    storage: Storage,
    accum: Accum,
    former: f32,
    totals: Operand,
    scale_shift: Operand,
) -> [Vec<f32>; 2] {
    let plan = Plan {
        variant: Parameters { storage, accum },
        grid: sizes(d, storage).expect("few elements").channels_grid,
    };
    let gradient = destination(storage, accum, former, d.c);
    let operands = [
        gradient.clone(),
        gradient,
        totals,
        scale_shift,
        Operand::U32(d.c as u32),
        Operand::U32(d.n as u32),
    ];
    let (gradients, _) = simulate(&plan, &operands);
    [0, 1].map(|i: usize| decode(storage, &gradients[i]))
}

/// What the kernels compute that go through the pixels twice, as floats.
fn gpu(
    d: &GroupNorm,
    storage: Storage,
    o: &Operands<f32>,
    scaled: bool,
    accum: Accum,
    former: f32,
) -> Results<f32> {
    let sizes = sizes(d, storage).expect("a size that kernels count");
    let channels = sizes.channels;
    let silu = d.silu;
    let [x, dy, gamma, beta, scale_shift] =
        [&o.x, &o.dy, &o.gamma, &o.beta, &o.scale_shift].map(|x| Operand::In(encode(storage, x)));
    let scale_shift = if scaled { scale_shift } else { Operand::Absent };
    let extents = [d.pixels, d.c, d.groups];
    let numbers = || extents.map(|n| Operand::U32(n as u32)).to_vec();
    let single = |n: usize| Operand::Out(4 * n);
    let [elements, groups, dscale_shift] = lengths(d);
    let out = |n| destination(storage, accum, former, n);
    let pixels = sizes.pixels_grid;

    let plan = Plan {
        variant: Moments(channels),
        grid: pixels,
    };
    let operands = [vec![single(sizes.partials), x.clone()], numbers()].concat();
    let partials = Operand::In(simulate(&plan, &operands).0.remove(0));

    let plan = Plan {
        variant: Merge,
        grid: sizes.groups_grid,
    };
    let eps = Operand::F32(d.eps as f32);
    let beside = Operand::U32(sizes.groups_beside as u32);
    let operands = [
        vec![single(groups), single(groups), partials],
        numbers(),
        vec![beside.clone(), eps],
    ];
    let (statistics, _) = simulate(&plan, &operands.concat());
    let [mean, rstd] = [0, 1].map(|i: usize| decode(Storage::F32, &statistics[i]));
    let affine: Vec<Operand> = statistics
        .into_iter()
        .map(Operand::In)
        .chain([gamma, beta, scale_shift.clone()])
        .collect();

    let plan = Plan {
        variant: Apply { channels, silu },
        grid: pixels,
    };
    let y = Operand::Out(elements * storage.bytes() as usize);
    let operands = [vec![y, x.clone()], affine.clone(), numbers()].concat();
    let y = simulate(&plan, &operands).0.remove(0);

    let plan = Plan {
        variant: Sums { channels, silu },
        grid: pixels,
    };
    let operands = [
        vec![single(sizes.partials), dy.clone(), x.clone()],
        affine.clone(),
        numbers(),
    ];
    let partials = Operand::In(simulate(&plan, &operands.concat()).0.remove(0));

    let plan = Plan {
        variant: MergeSums { storage, accum },
        grid: sizes.groups_grid,
    };
    let dscale_shift = match scaled {
        true => out(dscale_shift),
        false => Operand::Absent,
    };
    let operands = [
        vec![
            single(sizes.totals),
            single(2 * groups),
            dscale_shift,
            partials,
        ],
        affine.clone(),
        numbers(),
        vec![beside],
    ];
    let mut merged = simulate(&plan, &operands.concat()).0.into_iter();
    let [totals, means] = [(); 2].map(|()| Operand::In(merged.next().expect("written")));
    let dscale_shift = merged.next().map(|b| decode(storage, &b));

    let parameters = parameter_gradients(d, storage, accum, former, totals, scale_shift);

    let plan = Plan {
        variant: InputGradient {
            channels,
            silu,
            accum,
        },
        grid: pixels,
    };
    let operands = [vec![out(elements), means, dy, x], affine, numbers()].concat();
    let dx = simulate(&plan, &operands).0.remove(0);
    [
        decode(storage, &y),
        mean,
        rstd,
        decode(storage, &dx),
        parameters[0].clone(),
        parameters[1].clone(),
        dscale_shift.unwrap_or_default(),
    ]
}

/// y, mean and rstd of the kernel that keeps groups on chip, if it takes them. It moves every byte once.
fn in_one_launch(
    d: &GroupNorm,
    storage: Storage,
    o: &Operands<f32>,
    scaled: bool,
) -> Option<[Vec<f32>; 3]> {
    let call = whole::config(d, storage)?;
    let [elements, groups, _] = lengths(d);
    let read = |x: &[f32]| Operand::In(encode(storage, x));
    let written = [elements * storage.bytes() as usize, 4 * groups, 4 * groups];
    let mut operands: Vec<Operand> = written.map(Operand::Out).into();
    operands.extend([&o.x, &o.gamma, &o.beta].map(|x| read(x)));
    operands.push(if scaled {
        read(&o.scale_shift)
    } else {
        Operand::Absent
    });
    operands.push(Operand::F32(d.eps as f32));
    operands.extend(call.numbers.iter().map(|&n| Operand::U32(n)));
    let (written, profile) = simulate(&call.plan, &operands);
    if elements > 30_000 {
        let least = 2 * elements * storage.bytes() as usize;
        assert_moves(&format!("{d:?} {storage:?}"), &profile, least);
    }
    let storages = [storage, Storage::F32, Storage::F32];
    Some([0, 1, 2].map(|i: usize| decode(storages[i], &written[i])))
}

/// dx, dgamma, dbeta and dscale_shift of the kernel that keeps groups on chip, if it takes them, from the forward pass's
/// statistics. It moves every byte once.
fn backward_in_one_launch(
    d: &GroupNorm,
    storage: Storage,
    o: &Operands<f32>,
    scaled: bool,
    accum: Accum,
    former: f32,
    statistics: [&[f32]; 2],
) -> Option<[Vec<f32>; 4]> {
    let call = whole_backward::config(d, storage, [accum; 2])?;
    let [elements, _, dscale_shift] = lengths(d);
    let out = |n| destination(storage, accum, former, n);
    let read = |x: &[f32]| Operand::In(encode(storage, x));
    let scale_shift = match scaled {
        true => read(&o.scale_shift),
        false => Operand::Absent,
    };
    let mut operands = vec![
        out(elements),
        Operand::Absent,
        Operand::Out(4 * 2 * d.n * d.c),
    ];
    if scaled {
        operands[1] = out(dscale_shift);
    }
    operands.extend([&o.dy, &o.x].map(|x| read(x)));
    operands.extend(statistics.map(|x| Operand::In(encode(Storage::F32, x))));
    operands.extend([&o.gamma, &o.beta].map(|x| read(x)));
    operands.push(scale_shift.clone());
    operands.extend(call.numbers.iter().map(|&n| Operand::U32(n)));
    let (written, profile) = simulate(&call.plan, &operands);
    if elements > 30_000 && accum == Accum::Replace {
        let least = 3 * elements * storage.bytes() as usize;
        assert_moves(&format!("backward {d:?} {storage:?}"), &profile, least);
    }
    // Gradients that nobody wants change none of the others.
    operands[0] = Operand::Absent;
    operands[1] = Operand::Absent;
    let (alone, _) = simulate(&call.plan, &operands);
    assert_eq!(alone.first(), written.last(), "{d:?} {storage:?}");

    let mut written = written.into_iter();
    let dx = decode(storage, &written.next()?);
    let dscale_shift = scaled.then(|| written.next()).flatten();
    let totals = Operand::In(written.next()?);
    let [dgamma, dbeta] = parameter_gradients(d, storage, accum, former, totals, scale_shift);
    let dscale_shift = dscale_shift.map(|x| decode(storage, &x));
    Some([dx, dgamma, dbeta, dscale_shift.unwrap_or_default()])
}

fn check(d: &GroupNorm, storage: Storage, scaled: bool, accum: Accum, offset: f32) {
    let mut o = operands::<f32>(d);
    o.x.iter_mut().for_each(|x| *x += offset);
    for x in [
        &mut o.x,
        &mut o.dy,
        &mut o.gamma,
        &mut o.beta,
        &mut o.scale_shift,
    ] {
        *x = rounded(storage, x);
    }
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect();
    let wide = Operands {
        x: wide(&o.x),
        dy: wide(&o.dy),
        gamma: wide(&o.gamma),
        beta: wide(&o.beta),
        scale_shift: wide(&o.scale_shift),
    };
    let (mut exact, mut plain) = (naive(d, &wide, scaled), naive(d, &o, scaled));
    let former = if accum == Accum::Add { 0.5 } else { 0.0 };
    // Gradients are added to what is there.
    for gradient in 3..7 {
        exact[gradient].iter_mut().for_each(|x| *x += former);
        plain[gradient].iter_mut().for_each(|x| *x += former as f32);
    }
    let got = gpu(d, storage, &o, scaled, accum, former as f32);
    let at_once = in_one_launch(d, storage, &o, scaled);
    for (i, got) in at_once.iter().flatten().enumerate() {
        let case = format!("{} of {d:?} {storage:?} in one launch", NAMES[i]);
        let storage = if i == 0 { storage } else { Storage::F32 };
        assert_within_budget(&case, storage, got, &plain[i], &exact[i]);
    }
    let statistics = [&got[1][..], &got[2]];
    let backward = backward_in_one_launch(d, storage, &o, scaled, accum, former as f32, statistics);
    for (i, got) in (3..).zip(backward.iter().flatten()) {
        if i == 6 && !scaled {
            continue;
        }
        let case = format!(
            "{} of {d:?} {storage:?} scaled {scaled} {accum:?} in one launch",
            NAMES[i]
        );
        assert_within_budget(&case, storage, got, &plain[i], &exact[i]);
    }
    for i in 0..7 {
        if i == 6 && !scaled {
            continue;
        }
        let case = format!(
            "{} of {d:?} {storage:?} scaled {scaled} {accum:?}",
            NAMES[i]
        );
        // Statistics are f32 whatever x is.
        let storage = if i == 1 || i == 2 {
            Storage::F32
        } else {
            storage
        };
        assert_within_budget(&case, storage, &got[i], &plain[i], &exact[i]);
    }
}

fn norm(n: usize, pixels: usize, c: usize, groups: usize, silu: bool) -> GroupNorm {
    GroupNorm {
        n,
        pixels,
        c,
        groups,
        eps: 1e-5,
        silu,
    }
}

#[test]
fn all_variants_and_odd_shapes() {
    for storage in Storage::ALL {
        for (d, scaled, accum) in [
            (norm(1, 1, 2, 1, false), false, Accum::Replace),
            (norm(2, 9, 6, 3, true), true, Accum::Add),
            (norm(2, 300, 24, 4, true), true, Accum::Replace),
            (norm(1, 64, 80, 8, false), true, Accum::Add),
            (norm(3, 33, 64, 64, true), false, Accum::Add),
        ] {
            check(&d, storage, scaled, accum, 0.0);
        }
    }
}

/// Slabs of whole lines and of sectors alone, the last one narrower, in few rounds and in many, one group of many channels.
#[test]
fn groups_that_fit_on_chip() {
    for storage in Storage::ALL {
        for (d, scaled, accum) in [
            (norm(1, 1, 8, 2, false), false, Accum::Add),
            (norm(2, 64, 64, 32, true), true, Accum::Replace),
            (norm(1, 49, 160, 8, true), false, Accum::Replace),
            (norm(2, 300, 72, 3, false), true, Accum::Add),
            (norm(6, 5, 328, 1, true), true, Accum::Replace),
            (norm(1, 512, 96, 32, true), false, Accum::Replace),
        ] {
            assert_eq!(kept(&d, storage), [true; 2], "{d:?}");
            check(&d, storage, scaled, accum, 0.0);
        }
        // Room for x, but not for dy beside it.
        let d = norm(1, 1024, 96, 32, true);
        assert_eq!(kept(&d, storage), [true, false]);
        check(&d, storage, false, Accum::Replace, 0.0);
        for d in [
            norm(1, 128 * 128, 128, 32, true),
            norm(1, 4, 6, 3, true),
            norm(1, 7, 10, 10, true),
        ] {
            assert_eq!(kept(&d, storage), [false; 2], "{d:?}");
        }
    }
}

/// Whether the forward and the backward pass keep groups on chip.
fn kept(d: &GroupNorm, storage: Storage) -> [bool; 2] {
    let backward = whole_backward::config(d, storage, [Accum::Replace; 2]);
    [whole::config(d, storage).is_some(), backward.is_some()]
}

/// Where E[x²] − m² would have lost every digit of the variance.
#[test]
fn a_mean_far_from_zero_costs_nothing() {
    check(
        &norm(1, 300, 16, 2, false),
        Storage::F32,
        false,
        Accum::Replace,
        1000.0,
    );
}

#[test]
fn what_kernels_cannot_do_is_refused() {
    let refused = |d| sizes(&d, Storage::F32).expect_err("refused").to_string();
    assert_eq!(
        refused(norm(1, 1, 10, 4, false)),
        "10 channels do not fall into 4 groups"
    );
    assert_eq!(
        refused(norm(70_000, 1, 4, 4, false)),
        "70000 images, more than the 65535 of a grid"
    );
    assert!(refused(norm(1 << 15, 1 << 15, 4, 4, false)).contains("number of elements"));
}
