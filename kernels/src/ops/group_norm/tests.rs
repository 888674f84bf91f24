use super::*;
use crate::testing::{assert_bits_agree, assert_within_budget, bits, to_f64, values};
use crate::{Accum, Float};

pub(super) struct Operands<T> {
    pub x: Vec<T>,
    pub dy: Vec<T>,
    pub gamma: Vec<T>,
    pub beta: Vec<T>,
    pub scale_shift: Vec<T>,
}

pub(super) fn operands<T: Float>(d: &GroupNorm) -> Operands<T> {
    let n = d.n * d.pixels * d.c;
    Operands {
        x: values(n, 1),
        dy: values(n, 2),
        gamma: values(d.c, 3),
        beta: values(d.c, 4),
        scale_shift: values(d.n * 2 * d.c, 5),
    }
}

/// y, mean, rstd, dx, dgamma, dbeta, dscale_shift.
pub(super) type Results<T> = [Vec<T>; 7];

pub(super) const NAMES: [&str; 7] = ["y", "mean", "rstd", "dx", "dgamma", "dbeta", "dscale_shift"];

fn filled<T: Float>(d: &GroupNorm, x: f64) -> Results<T> {
    let n = d.n * d.pixels * d.c;
    [
        n,
        d.n * d.groups,
        d.n * d.groups,
        n,
        d.c,
        d.c,
        d.n * 2 * d.c,
    ]
    .map(|n| vec![T::from_f64(x); n])
}

/// Everything by the definitions, in the type of the operands.
pub(super) fn naive<T: Float>(d: &GroupNorm, o: &Operands<T>, scaled: bool) -> Results<T> {
    let [
        mut y,
        mut mean,
        mut rstd,
        mut dx,
        mut dgamma,
        mut dbeta,
        mut dss,
    ] = filled(d, 0.0);
    let width = d.c / d.groups;
    let count = T::from_f64((d.pixels * width) as f64);
    for image in 0..d.n {
        for group in 0..d.groups {
            let index = || {
                (0..d.pixels).flat_map(move |p| {
                    (group * width..(group + 1) * width)
                        .map(move |j| ((image * d.pixels + p) * d.c + j, j))
                })
            };
            let sum =
                |f: &dyn Fn(usize, usize) -> T| index().fold(T::ZERO, |s, (i, j)| s + f(i, j));
            let m = sum(&|i, _| o.x[i]) / count;
            let variance = sum(&|i, _| (o.x[i] - m) * (o.x[i] - m)) / count;
            let r = T::ONE / (variance + T::from_f64(d.eps)).sqrt();
            mean[image * d.groups + group] = m;
            rstd[image * d.groups + group] = r;
            let scale = |j: usize| {
                if scaled {
                    T::ONE + o.scale_shift[image * 2 * d.c + j]
                } else {
                    T::ONE
                }
            };
            let normal = |i: usize| (o.x[i] - m) * r;
            let affine = |i: usize, j: usize| normal(i) * o.gamma[j] + o.beta[j];
            let z = |i: usize, j: usize| {
                let shift = if scaled {
                    o.scale_shift[(image * 2 + 1) * d.c + j]
                } else {
                    T::ZERO
                };
                affine(i, j) * scale(j) + shift
            };
            let dz = |i: usize, j: usize| {
                let s = z(i, j).sigmoid();
                if d.silu {
                    o.dy[i] * (s + z(i, j) * s * (T::ONE - s))
                } else {
                    o.dy[i]
                }
            };
            let g = |i: usize, j: usize| dz(i, j) * scale(j) * o.gamma[j];
            let mean_g = sum(&g) / count;
            let mean_gx = sum(&|i, j| g(i, j) * normal(i)) / count;
            for (i, j) in index() {
                y[i] = if d.silu {
                    z(i, j) * z(i, j).sigmoid()
                } else {
                    z(i, j)
                };
                dx[i] = r * (g(i, j) - mean_g - normal(i) * mean_gx);
                dgamma[j] = dgamma[j] + dz(i, j) * scale(j) * normal(i);
                dbeta[j] = dbeta[j] + dz(i, j) * scale(j);
                let (scale, shift) = (image * 2 * d.c + j, (image * 2 + 1) * d.c + j);
                dss[scale] = dss[scale] + dz(i, j) * affine(i, j);
                dss[shift] = dss[shift] + dz(i, j);
            }
        }
    }
    [y, mean, rstd, dx, dgamma, dbeta, dss]
}

fn run<T: Float>(
    d: &GroupNorm,
    o: &Operands<T>,
    scaled: bool,
    accum: Accum,
    into: &mut Results<T>,
) {
    let scale_shift = scaled.then_some(&o.scale_shift[..]);
    let [y, mean, rstd, dx, dgamma, dbeta, dss] = into;
    forward(d, y, mean, rstd, &o.x, &o.gamma, &o.beta, scale_shift);
    let gradients = GroupNormGradients {
        dx: Some((dx, accum)),
        dgamma: Some((dgamma, accum)),
        dbeta: Some((dbeta, accum)),
        dscale_shift: Some((dss, accum)),
    };
    backward(
        d,
        gradients,
        &o.dy,
        &o.x,
        mean,
        rstd,
        &o.gamma,
        &o.beta,
        scale_shift,
    );
}

fn check<T: Float>(d: &GroupNorm, scaled: bool, offset: f64) {
    let mut o = operands::<T>(d);
    o.x.iter_mut().for_each(|x| *x = *x + T::from_f64(offset));
    let wide = Operands {
        x: to_f64(&o.x),
        dy: to_f64(&o.dy),
        gamma: to_f64(&o.gamma),
        beta: to_f64(&o.beta),
        scale_shift: to_f64(&o.scale_shift),
    };
    let (exact, plain) = (naive(d, &wide, scaled), naive(d, &o, scaled));
    let mut got = filled(d, f64::NAN);
    run(d, &o, scaled, Accum::Replace, &mut got);
    let case = |name: &str| {
        format!(
            "{name} of {d:?} scaled: {scaled} offset {offset} {}",
            T::DTYPE
        )
    };
    for i in 0..7 {
        assert_within_budget(&case(NAMES[i]), &got[i], &plain[i], &exact[i]);
    }
    let mut twice = got.clone();
    run(d, &o, scaled, Accum::Add, &mut twice);
    for i in 3..7 {
        let doubled = twice[i]
            .iter()
            .zip(&got[i])
            .all(|(&twice, &once)| twice == once + once);
        assert!(doubled, "{}", case(NAMES[i]));
    }
}

fn norm(n: usize, pixels: usize, c: usize, groups: usize) -> GroupNorm {
    GroupNorm {
        n,
        pixels,
        c,
        groups,
        eps: 1e-5,
        silu: false,
    }
}

#[test]
fn all_variants_and_odd_shapes() {
    for d in [
        norm(1, 3, 1, 1),
        norm(2, 3, 6, 2),
        norm(3, 17, 15, 5),
        norm(5, 4, 33, 3),
        norm(1, 65, 80, 16),
        norm(4, 64, 128, 32),
        // Several blocks of pixels, in whole images and divided ones.
        norm(2, 700, 96, 32),
        norm(4, 900, 64, 8),
    ] {
        for silu in [false, true] {
            for scaled in [false, true] {
                check::<f32>(&GroupNorm { silu, ..d }, scaled, 0.0);
                check::<f64>(&GroupNorm { silu, ..d }, scaled, 0.0);
            }
        }
    }
}

/// Where E[x²] − m² would have lost every digit of the variance.
#[test]
fn a_mean_far_from_zero_costs_nothing() {
    check::<f32>(&norm(2, 300, 64, 8), false, 1000.0);
    check::<f32>(&norm(4, 300, 64, 8), true, -1000.0);
}

#[test]
fn bits_do_not_depend_on_level_or_threads() {
    for d in [norm(2, 700, 96, 32), norm(5, 300, 80, 16)] {
        let d = GroupNorm { silu: true, ..d };
        let o = operands::<f32>(&d);
        assert_bits_agree(&format!("{d:?}"), || {
            let mut results = filled(&d, 0.5);
            run(&d, &o, true, Accum::Add, &mut results);
            results.map(|x| bits(&x))
        });
    }
}
