use super::*;
use crate::testing::{assert_bits_agree, assert_within_budget, bits, to_f64, values};
use crate::{Accum, Float};

struct Operands<T> {
    x: Vec<T>,
    weight: Vec<T>,
    bias: Vec<T>,
    residual: Vec<T>,
    dy: Vec<T>,
}

fn operands<T: Float>(d: &Conv2d) -> Operands<T> {
    let out = d.n * d.out_h() * d.out_w() * d.c_out;
    Operands {
        x: values(d.n * d.h * d.w * d.c_in, 1),
        weight: values(d.c_out * d.kernel_h * d.kernel_w * d.c_in, 2),
        bias: values(d.c_out, 3),
        residual: values(out, 4),
        dy: values(out, 5),
    }
}

/// Calls `f(y, x, w)` with the indices of every product of the convolution.
fn for_each_product(d: &Conv2d, mut f: impl FnMut(usize, usize, usize)) {
    for image in 0..d.n {
        for i in 0..d.out_h() {
            for j in 0..d.out_w() {
                for o in 0..d.c_out {
                    let y = ((image * d.out_h() + i) * d.out_w() + j) * d.c_out + o;
                    for u in 0..d.kernel_h {
                        for v in 0..d.kernel_w {
                            let (row, column) = (i * d.stride + u, j * d.stride + v);
                            if row < d.padding || column < d.padding {
                                continue;
                            }
                            let (row, column) = (row - d.padding, column - d.padding);
                            if row >= d.h || column >= d.w {
                                continue;
                            }
                            for c in 0..d.c_in {
                                let x = ((image * d.h + row) * d.w + column) * d.c_in + c;
                                let w = ((o * d.kernel_h + u) * d.kernel_w + v) * d.c_in + c;
                                f(y, x, w);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// y, dx and dw by the definition, in the type of the operands.
fn naive<T: Float>(d: &Conv2d, x: &[T], weight: &[T], dy: &[T]) -> [Vec<T>; 3] {
    let mut y = vec![T::ZERO; dy.len()];
    let mut dx = vec![T::ZERO; x.len()];
    let mut dw = vec![T::ZERO; weight.len()];
    for_each_product(d, |i, j, w| {
        y[i] = y[i] + x[j] * weight[w];
        dx[j] = dx[j] + dy[i] * weight[w];
        dw[w] = dw[w] + dy[i] * x[j];
    });
    [y, dx, dw]
}

fn check<T: Float>(d: &Conv2d) {
    let o = operands::<T>(d);
    let naive_results = naive(d, &o.x, &o.weight, &o.dy);
    let exact = naive(d, &to_f64(&o.x), &to_f64(&o.weight), &to_f64(&o.dy));
    let nan = |n| vec![T::from_f64(f64::NAN); n];
    let (mut y, mut dx, mut dw) = (nan(o.dy.len()), nan(o.x.len()), nan(o.weight.len()));
    forward(d, &mut y, &o.x, &o.weight, None, None);
    backward_input(d, &mut dx, Accum::Replace, &o.dy, &o.weight);
    backward_weight(d, &mut dw, Accum::Replace, &o.dy, &o.x);
    for (i, (got, name)) in [(&y, "y"), (&dx, "dx"), (&dw, "dw")].iter().enumerate() {
        let case = format!("{name} of {d:?} {}", T::DTYPE);
        assert_within_budget(&case, got, &naive_results[i], &exact[i]);
    }
    // Accumulation: a second gradient on top of the first.
    let twice = |x: &[f64]| x.iter().map(|x| 2.0 * x).collect::<Vec<_>>();
    let naive_twice = |x: &[T]| x.iter().map(|&x| x + x).collect::<Vec<_>>();
    backward_input(d, &mut dx, Accum::Add, &o.dy, &o.weight);
    backward_weight(d, &mut dw, Accum::Add, &o.dy, &o.x);
    assert_within_budget(
        &format!("dx += {d:?}"),
        &dx,
        &naive_twice(&naive_results[1]),
        &twice(&exact[1]),
    );
    assert_within_budget(
        &format!("dw += {d:?}"),
        &dw,
        &naive_twice(&naive_results[2]),
        &twice(&exact[2]),
    );
    // Bias and residual come on top of the same sums.
    let mut full = nan(o.dy.len());
    forward(
        d,
        &mut full,
        &o.x,
        &o.weight,
        Some(&o.bias),
        Some(&o.residual),
    );
    for (i, full) in full.iter().enumerate() {
        assert!(*full == (y[i] + o.bias[i % d.c_out]) + o.residual[i]);
    }
}

fn conv(
    n: usize,
    size: (usize, usize),
    channels: (usize, usize),
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Conv2d {
    Conv2d {
        n,
        h: size.0,
        w: size.1,
        c_in: channels.0,
        c_out: channels.1,
        kernel_h: kernel,
        kernel_w: kernel,
        stride,
        padding,
    }
}

#[test]
fn all_kernels_strides_and_paddings() {
    let cases = [
        conv(1, (1, 1), (1, 1), 1, 1, 0),
        conv(2, (5, 7), (3, 5), 1, 1, 0),
        conv(1, (3, 3), (1, 2), 3, 1, 1),
        conv(2, (7, 5), (3, 33), 3, 1, 1),
        conv(1, (8, 9), (33, 17), 3, 1, 1),
        conv(2, (6, 6), (64, 6), 3, 1, 1),
        conv(1, (9, 8), (5, 7), 3, 2, 1),
        conv(2, (8, 8), (34, 31), 3, 2, 1),
        conv(1, (7, 7), (4, 3), 5, 1, 2),
        conv(1, (7, 9), (4, 3), 5, 2, 2),
        conv(1, (6, 6), (3, 4), 3, 1, 0),
        conv(1, (5, 5), (2, 3), 1, 2, 0),
        conv(1, (5, 5), (2, 3), 1, 1, 1),
        conv(2, (8, 12), (3, 16), 4, 4, 0),
        conv(1, (9, 10), (3, 2), 4, 4, 0),
        conv(1, (4, 4), (2, 2), 3, 1, 3),
        conv(1, (10, 11), (2, 3), 3, 3, 1),
        // Several ranges of pixels.
        conv(3, (32, 33), (3, 8), 3, 1, 1),
        // Several blocks of depths in each of the three products.
        conv(1, (20, 20), (40, 36), 3, 1, 1),
    ];
    for d in &cases {
        check::<f32>(d);
        check::<f64>(d);
    }
    let oblong = Conv2d {
        kernel_w: 1,
        ..conv(1, (6, 6), (3, 4), 3, 1, 0)
    };
    check::<f64>(&oblong);
}

#[test]
fn bits_do_not_depend_on_level_or_threads() {
    for d in [
        conv(2, (16, 17), (40, 33), 3, 1, 1),
        conv(2, (16, 16), (32, 32), 3, 2, 1),
        conv(2, (40, 40), (3, 16), 3, 1, 1),
        conv(2, (16, 16), (3, 48), 4, 4, 0),
    ] {
        let o = operands::<f32>(&d);
        assert_bits_agree(&format!("{d:?}"), || {
            let mut y = vec![0.0; o.dy.len()];
            let (mut dx, mut dw) = (o.x.clone(), vec![0.0; o.weight.len()]);
            forward(
                &d,
                &mut y,
                &o.x,
                &o.weight,
                Some(&o.bias),
                Some(&o.residual),
            );
            backward_input(&d, &mut dx, Accum::Add, &o.dy, &o.weight);
            backward_weight(&d, &mut dw, Accum::Replace, &o.dy, &o.x);
            [bits(&y), bits(&dx), bits(&dw)]
        });
    }
}
