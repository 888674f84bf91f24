use super::Matmul;
use crate::parallel;
use crate::{Accum, Float, multiversion};

/// Computes `c` [batch, m, n] from `a` and `b`, with `bias` [n] and `residual` [batch, m, n] where given.
///
/// `pre` [batch, m, n] receives a·b + bias, for the activation's backward. [`Accum::Add`] adds the result to `c`.
#[allow(clippy::too_many_arguments)] // one argument per operand
pub fn forward<T: Float>(
    d: &Matmul,
    c: &mut [T],
    accum: Accum,
    pre: Option<&mut [T]>,
    a: &[T],
    b: &[T],
    bias: Option<&[T]>,
    residual: Option<&[T]>,
) {
    let Matmul { m, n, k, .. } = *d;
    let pre = pre.map(parallel::Disjoint::new);
    let (a_row, a_k) = if d.transpose_a { (1, m) } else { (k, 1) };
    let out = parallel::Disjoint::new(c);
    parallel::for_each(d.batch * m, d.batch * m * n * k, |row| {
        let (batch, i) = (row / m, row % m);
        let a = &a[batch * d.a_stride + i * a_row..];
        let b = &b[batch * d.b_stride..];
        let mut sums = vec![T::ZERO; n];
        row_product(&mut sums, a, a_k, b, k, d.transpose_b);
        if let Some(bias) = bias {
            for (s, &bias) in sums.iter_mut().zip(bias) {
                *s = *s + bias;
            }
        }
        if let Some(pre) = &pre {
            // SAFETY: every row belongs to one part.
            unsafe { pre.range(row * n, n) }.copy_from_slice(&sums);
        }
        // SAFETY: every row belongs to one part.
        let c = unsafe { out.range(row * n, n) };
        for (j, (c, &s)) in c.iter_mut().zip(&sums).enumerate() {
            let y = d.activation.apply(s);
            accum.put(c, residual.map_or(y, |r| y + r[row * n + j]));
        }
    });
}

multiversion! {
    fn row_product<T: Float>(sums: &mut [T], a: &[T], a_k: usize, b: &[T], k: usize, transpose_b: bool) {
        let n = sums.len();
        for p in 0..k {
            let a = a[p * a_k];
            if transpose_b {
                for (j, s) in sums.iter_mut().enumerate() {
                    *s = a.mul_add(b[j * k + p], *s);
                }
            } else {
                for (s, &b) in sums.iter_mut().zip(&b[p * n..][..n]) {
                    *s = a.mul_add(b, *s);
                }
            }
        }
    }
}

/// out[j] = Σᵢ x[i, j] over the rows of `x` [rows, columns]: the gradient of a bias.
pub fn column_sums<T: Float>(out: &mut [T], accum: Accum, x: &[T], columns: usize) {
    let mut sums = vec![T::ZERO; columns];
    for row in x.chunks_exact(columns) {
        for (s, &x) in sums.iter_mut().zip(row) {
            *s = *s + x;
        }
    }
    for (out, s) in out.iter_mut().zip(sums) {
        accum.put(out, s);
    }
}
