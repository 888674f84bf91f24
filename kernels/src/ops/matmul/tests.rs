use super::*;
use crate::testing::{assert_bits_agree, assert_within_budget, bits, to_f64, values};
use crate::{Accum, Float};

fn plain(m: usize, n: usize, k: usize) -> Matmul {
    Matmul {
        batch: 1,
        m,
        n,
        k,
        transpose_a: false,
        transpose_b: false,
        a_stride: 0,
        b_stride: 0,
        activation: Activation::None,
    }
}

struct Operands<T> {
    a: Vec<T>,
    b: Vec<T>,
    bias: Vec<T>,
    residual: Vec<T>,
    c: Vec<T>,
}

fn operands<T: Float>(d: &Matmul) -> Operands<T> {
    let matrices = |stride: usize, one: usize| (d.batch - 1) * stride + one;
    Operands {
        a: values(matrices(d.a_stride, d.m * d.k), 1),
        b: values(matrices(d.b_stride, d.n * d.k), 2),
        bias: values(d.n, 3),
        residual: values(d.batch * d.m * d.n, 4),
        c: values(d.batch * d.m * d.n, 5),
    }
}

/// a·b by the definition, in the type of its operands.
fn naive<T: Float>(d: &Matmul, a: &[T], b: &[T]) -> Vec<T> {
    let mut c = Vec::new();
    for batch in 0..d.batch {
        let (a, b) = (&a[batch * d.a_stride..], &b[batch * d.b_stride..]);
        for i in 0..d.m {
            for j in 0..d.n {
                let term = |p: usize| {
                    let a = if d.transpose_a {
                        a[p * d.m + i]
                    } else {
                        a[i * d.k + p]
                    };
                    let b = if d.transpose_b {
                        b[j * d.k + p]
                    } else {
                        b[p * d.n + j]
                    };
                    a * b
                };
                c.push((0..d.k).fold(T::ZERO, |sum, p| sum + term(p)));
            }
        }
    }
    c
}

fn check_product<T: Float>(d: &Matmul) {
    let o = operands::<T>(d);
    let exact = naive(d, &to_f64(&o.a), &to_f64(&o.b));
    let naive = naive(d, &o.a, &o.b);
    let mut c = vec![T::from_f64(f64::NAN); exact.len()];
    forward(d, &mut c, Accum::Replace, None, &o.a, &o.b, None, None);
    assert_within_budget(&format!("{d:?} {}", T::DTYPE), &c, &naive, &exact);

    let mut sum = o.c.clone();
    forward(d, &mut sum, Accum::Add, None, &o.a, &o.b, None, None);
    let exact: Vec<_> = exact
        .iter()
        .zip(&o.c)
        .map(|(x, c)| x + c.to_f64())
        .collect();
    let naive: Vec<_> = naive.iter().zip(&o.c).map(|(&x, &c)| x + c).collect();
    assert_within_budget(&format!("+= {d:?} {}", T::DTYPE), &sum, &naive, &exact);
}

const SHAPES: [(usize, usize, usize); 17] = [
    (1, 1, 1),
    (2, 3, 1),
    (3, 2, 15),
    (1, 16, 17),
    (15, 17, 16),
    (17, 31, 33),
    (16, 32, 31),
    (33, 15, 63),
    (31, 33, 64),
    (63, 65, 65),
    (65, 64, 255),
    (64, 63, 257),
    (8, 512, 100),
    (300, 16, 40),
    (5, 7, 600),
    (130, 200, 300),
    (3, 5, 0),
];

#[test]
fn products_of_odd_shapes_and_all_transposes() {
    for (m, n, k) in SHAPES {
        for (transpose_a, transpose_b) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let d = Matmul {
                transpose_a,
                transpose_b,
                ..plain(m, n, k)
            };
            check_product::<f32>(&d);
            check_product::<f64>(&d);
        }
    }
}

#[test]
fn batches_shared_and_strided() {
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        for (m, n, k) in [(5, 33, 20), (17, 32, 300), (40, 16, 64)] {
            for (a_stride, b_stride) in [
                (m * k, k * n),
                (m * k, 0),
                (0, k * n),
                (m * k + 3, k * n + 5),
            ] {
                let d = Matmul {
                    batch: 3,
                    a_stride,
                    b_stride,
                    transpose_a,
                    transpose_b,
                    ..plain(m, n, k)
                };
                check_product::<f32>(&d);
                check_product::<f64>(&d);
            }
        }
    }
}

#[test]
fn epilogue_applies_in_order() {
    for (m, n, k) in [(3, 5, 7), (33, 65, 300), (200, 64, 64)] {
        for activation in [
            Activation::None,
            Activation::Gelu,
            Activation::QuickGelu,
            Activation::Silu,
        ] {
            let d = Matmul {
                activation,
                ..plain(m, n, k)
            };
            let o = operands::<f64>(&d);
            let mut product = vec![0.0; m * n];
            forward(
                &plain(m, n, k),
                &mut product,
                Accum::Replace,
                None,
                &o.a,
                &o.b,
                None,
                None,
            );
            let (mut c, mut pre) = (vec![f64::NAN; m * n], vec![f64::NAN; m * n]);
            forward(
                &d,
                &mut c,
                Accum::Replace,
                Some(&mut pre),
                &o.a,
                &o.b,
                Some(&o.bias),
                Some(&o.residual),
            );
            for i in 0..m * n {
                assert_eq!(pre[i], product[i] + o.bias[i % n]);
                assert_eq!(c[i], activation.apply(pre[i]) + o.residual[i]);
            }
        }
    }
}

#[test]
fn activations_have_their_known_values() {
    // x·Φ(x), x·σ(1.702x) and x·σ(x) at 1, from their definitions with Φ(1) = 0.841 344 746 068 542 9.
    for (activation, want) in [
        (Activation::None, 1.0),
        (Activation::Gelu, 0.841_344_746_068_542_9),
        (Activation::QuickGelu, 1.0 / (1.0 + (-1.702f64).exp())),
        (Activation::Silu, 1.0 / (1.0 + (-1.0f64).exp())),
    ] {
        assert!(
            (activation.apply(1.0f64) - want).abs() < 1e-15,
            "{activation:?}"
        );
    }
}

#[test]
#[should_panic(expected = "accumulation has no epilogue")]
fn accumulation_refuses_an_epilogue() {
    let d = plain(1, 1, 1);
    forward(
        &d,
        &mut [0.0f32],
        Accum::Add,
        None,
        &[1.0],
        &[1.0],
        Some(&[1.0]),
        None,
    );
}

#[test]
fn column_sums_of_any_height() {
    for (rows, columns) in [(0, 3), (1, 1), (255, 5), (257, 33), (1500, 64)] {
        let x: Vec<f32> = values(rows * columns, 1);
        let sums = |x: &[f64]| -> Vec<f64> {
            (0..columns)
                .map(|j| x.iter().skip(j).step_by(columns).sum())
                .collect()
        };
        let exact = sums(&to_f64(&x));
        let naive: Vec<f32> = (0..columns)
            .map(|j| x.iter().skip(j).step_by(columns).sum())
            .collect();
        let mut out = vec![f32::NAN; columns];
        column_sums(&mut out, Accum::Replace, &x, columns);
        assert_within_budget(&format!("{rows}×{columns}"), &out, &naive, &exact);
        let once = out.clone();
        column_sums(&mut out, Accum::Add, &x, columns);
        assert!(
            out.iter()
                .zip(&once)
                .all(|(&twice, &once)| twice == 2.0 * once)
        );
    }
}

#[test]
fn bits_do_not_depend_on_level_or_threads() {
    for (m, n, k) in [(300, 200, 300), (17, 33, 600), (8, 512, 256), (512, 64, 64)] {
        for (transpose_a, transpose_b) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let activation = Activation::Gelu;
            let d = Matmul {
                transpose_a,
                transpose_b,
                activation,
                ..plain(m, n, k)
            };
            let o = operands::<f32>(&d);
            assert_bits_agree(&format!("{d:?}"), || {
                let mut c = vec![0.0; m * n];
                forward(
                    &d,
                    &mut c,
                    Accum::Replace,
                    None,
                    &o.a,
                    &o.b,
                    Some(&o.bias),
                    Some(&o.residual),
                );
                let mut sums = vec![0.0; n];
                column_sums(&mut sums, Accum::Replace, &c, n);
                (bits(&c), bits(&sums))
            });
        }
    }
    let d = plain(40, 60, 300);
    let o = operands::<f64>(&d);
    assert_bits_agree("f64", || {
        let mut c = o.c.clone();
        forward(&d, &mut c, Accum::Add, None, &o.a, &o.b, None, None);
        bits(&c)
    });
}
