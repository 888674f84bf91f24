use super::*;
use crate::testing::{assert_bits_agree, assert_within_budget, bits, to_f64, values};
use crate::{Accum, Float};

struct Operands<T> {
    x: Vec<T>,
    dy: Vec<T>,
    gamma: Vec<T>,
    beta: Vec<T>,
}

fn operands<T: Float>(d: &LayerNorm) -> Operands<T> {
    Operands {
        x: values(d.rows * d.c, 1),
        dy: values(d.rows * d.c, 2),
        gamma: values(d.c, 3),
        beta: values(d.c, 4),
    }
}

/// y, mean, rstd, dx, dgamma, dbeta.
type Results<T> = [Vec<T>; 6];

const NAMES: [&str; 6] = ["y", "mean", "rstd", "dx", "dgamma", "dbeta"];

fn filled<T: Float>(d: &LayerNorm, x: f64) -> Results<T> {
    let n = d.rows * d.c;
    [n, d.rows, d.rows, n, d.c, d.c].map(|n| vec![T::from_f64(x); n])
}

/// Everything by the definitions, in the type of the operands.
fn naive<T: Float>(d: &LayerNorm, o: &Operands<T>) -> Results<T> {
    let [mut y, mut mean, mut rstd, mut dx, mut dgamma, mut dbeta] = filled(d, 0.0);
    let count = T::from_f64(d.c as f64);
    for row in 0..d.rows {
        let (x, dy) = (&o.x[row * d.c..][..d.c], &o.dy[row * d.c..][..d.c]);
        let sum = |f: &dyn Fn(usize) -> T| (0..d.c).fold(T::ZERO, |s, j| s + f(j));
        let m = sum(&|j| x[j]) / count;
        let variance = sum(&|j| (x[j] - m) * (x[j] - m)) / count;
        let r = T::ONE / (variance + T::from_f64(d.eps)).sqrt();
        (mean[row], rstd[row]) = (m, r);
        let normal = |j: usize| (x[j] - m) * r;
        let mean_g = sum(&|j| dy[j] * o.gamma[j]) / count;
        let mean_gx = sum(&|j| dy[j] * o.gamma[j] * normal(j)) / count;
        for j in 0..d.c {
            y[row * d.c + j] = normal(j) * o.gamma[j] + o.beta[j];
            dx[row * d.c + j] = r * (dy[j] * o.gamma[j] - mean_g - normal(j) * mean_gx);
            dgamma[j] = dgamma[j] + dy[j] * normal(j);
            dbeta[j] = dbeta[j] + dy[j];
        }
    }
    [y, mean, rstd, dx, dgamma, dbeta]
}

fn run<T: Float>(d: &LayerNorm, o: &Operands<T>, accum: Accum, into: &mut Results<T>) {
    let [y, mean, rstd, dx, dgamma, dbeta] = into;
    forward(d, y, mean, rstd, &o.x, &o.gamma, &o.beta);
    let gradients = LayerNormGradients {
        dx: Some((dx, accum)),
        dgamma: Some((dgamma, accum)),
        dbeta: Some((dbeta, accum)),
    };
    backward(d, gradients, &o.dy, &o.x, mean, rstd, &o.gamma);
}

fn check<T: Float>(d: &LayerNorm, offset: f64) {
    let mut o = operands::<T>(d);
    o.x.iter_mut().for_each(|x| *x = *x + T::from_f64(offset));
    let wide = Operands {
        x: to_f64(&o.x),
        dy: to_f64(&o.dy),
        gamma: to_f64(&o.gamma),
        beta: to_f64(&o.beta),
    };
    let (exact, plain) = (naive(d, &wide), naive(d, &o));
    let mut got = filled(d, f64::NAN);
    run(d, &o, Accum::Replace, &mut got);
    for i in 0..6 {
        let case = format!("{} of {d:?} offset {offset} {}", NAMES[i], T::DTYPE);
        assert_within_budget(&case, &got[i], &plain[i], &exact[i]);
    }
    let mut twice = got.clone();
    run(d, &o, Accum::Add, &mut twice);
    for i in 3..6 {
        let doubled = twice[i]
            .iter()
            .zip(&got[i])
            .all(|(&twice, &once)| twice == once + once);
        assert!(doubled, "{} += of {d:?}", NAMES[i]);
    }
}

fn norm(rows: usize, c: usize) -> LayerNorm {
    LayerNorm { rows, c, eps: 1e-5 }
}

#[test]
fn odd_shapes() {
    for (rows, c) in [
        (1, 2),
        (2, 3),
        (3, 15),
        (17, 17),
        (31, 33),
        (65, 64),
        (63, 65),
        (200, 129),
    ] {
        check::<f32>(&norm(rows, c), 0.0);
        check::<f64>(&norm(rows, c), 0.0);
    }
}

/// Where E[x²] − m² would have lost every digit of the variance.
#[test]
fn a_mean_far_from_zero_costs_nothing() {
    check::<f32>(&norm(100, 128), 1000.0);
}

#[test]
fn bits_do_not_depend_on_level_or_threads() {
    let d = norm(500, 100);
    let o = operands::<f32>(&d);
    assert_bits_agree(&format!("{d:?}"), || {
        let mut results = filled(&d, 0.5);
        run(&d, &o, Accum::Add, &mut results);
        results.map(|x| bits(&x))
    });
}
