use super::Conv2d;
use crate::parallel::{self, Disjoint};
use crate::{Accum, Float, multiversion, simd};

multiversion! {
    fn dot<T: Float>(x: &[T], y: &[T]) -> T { simd::dot(x, y) }
}
multiversion! {
    fn axpy<T: Float>(y: &mut [T], a: T, x: &[T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = a.mul_add(x, *y);
        }
    }
}

/// Input coordinate that output coordinate `o` meets at tap `t`, if it lies inside `0..extent`.
fn source(o: usize, t: usize, d: &Conv2d, extent: usize) -> Option<usize> {
    (o * d.stride + t)
        .checked_sub(d.padding)
        .filter(|&i| i < extent)
}

/// y [n, out_h, out_w, c_out] from x [n, h, w, c_in], weight [c_out, kernel_h, kernel_w, c_in], bias [c_out] and
/// residual (like y).
pub fn forward<T: Float>(
    d: &Conv2d,
    y: &mut [T],
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    residual: Option<&[T]>,
) {
    let (out_h, out_w) = (d.out_h(), d.out_w());
    let out = Disjoint::new(y);
    parallel::for_each(
        d.n * out_h * out_w,
        d.n * out_h * out_w * d.c_out,
        |pixel| {
            let (image, i, j) = (pixel / out_w / out_h, pixel / out_w % out_h, pixel % out_w);
            // SAFETY: every pixel belongs to one part.
            let y = unsafe { out.range(pixel * d.c_out, d.c_out) };
            for (o, y) in y.iter_mut().enumerate() {
                let mut sum = bias.map_or(T::ZERO, |b| b[o]);
                for u in 0..d.kernel_h {
                    let Some(row) = source(i, u, d, d.h) else {
                        continue;
                    };
                    for v in 0..d.kernel_w {
                        let Some(column) = source(j, v, d, d.w) else {
                            continue;
                        };
                        let x = &x[((image * d.h + row) * d.w + column) * d.c_in..][..d.c_in];
                        let w = &weight[((o * d.kernel_h + u) * d.kernel_w + v) * d.c_in..];
                        sum = sum + dot(x, &w[..d.c_in]);
                    }
                }
                *y = residual.map_or(sum, |r| sum + r[pixel * d.c_out + o]);
            }
        },
    );
}

/// dx [n, h, w, c_in] from dy [n, out_h, out_w, c_out] and the weights.
pub fn backward_input<T: Float>(d: &Conv2d, dx: &mut [T], accum: Accum, dy: &[T], weight: &[T]) {
    let (out_h, out_w) = (d.out_h(), d.out_w());
    let image_elements = d.h * d.w * d.c_in;
    parallel::chunks_mut(dx, image_elements, |image, dx| {
        if accum == Accum::Replace {
            dx.fill(T::ZERO);
        }
        for i in 0..out_h {
            for j in 0..out_w {
                let dy = &dy[((image * out_h + i) * out_w + j) * d.c_out..][..d.c_out];
                for u in 0..d.kernel_h {
                    let Some(row) = source(i, u, d, d.h) else {
                        continue;
                    };
                    for v in 0..d.kernel_w {
                        let Some(column) = source(j, v, d, d.w) else {
                            continue;
                        };
                        let dx = &mut dx[(row * d.w + column) * d.c_in..][..d.c_in];
                        for (o, &dy) in dy.iter().enumerate() {
                            let w = &weight[((o * d.kernel_h + u) * d.kernel_w + v) * d.c_in..];
                            axpy(dx, dy, &w[..d.c_in]);
                        }
                    }
                }
            }
        }
    });
}

/// dw [c_out, kernel_h, kernel_w, c_in] from dy [n, out_h, out_w, c_out] and x.
pub fn backward_weight<T: Float>(d: &Conv2d, dw: &mut [T], accum: Accum, dy: &[T], x: &[T]) {
    let (out_h, out_w) = (d.out_h(), d.out_w());
    let filter = d.kernel_h * d.kernel_w * d.c_in;
    let out = Disjoint::new(dw);
    parallel::for_each(d.c_out, dy.len() * filter, |o| {
        // SAFETY: every filter belongs to one part.
        let dw = unsafe { out.range(o * filter, filter) };
        if accum == Accum::Replace {
            dw.fill(T::ZERO);
        }
        for (pixel, dy) in dy.chunks_exact(d.c_out).enumerate() {
            let (image, i, j) = (pixel / out_w / out_h, pixel / out_w % out_h, pixel % out_w);
            for u in 0..d.kernel_h {
                let Some(row) = source(i, u, d, d.h) else {
                    continue;
                };
                for v in 0..d.kernel_w {
                    let Some(column) = source(j, v, d, d.w) else {
                        continue;
                    };
                    let x = &x[((image * d.h + row) * d.w + column) * d.c_in..][..d.c_in];
                    axpy(&mut dw[(u * d.kernel_w + v) * d.c_in..][..d.c_in], dy[o], x);
                }
            }
        }
    });
}
