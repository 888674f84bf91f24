use super::LayerNorm;
use crate::parallel::{self, Disjoint};
use crate::simd::{LANES, fold_lanes, sum_map};
use crate::{Accum, Float, multiversion};

/// Rows of one part: enough work to be worth a thread, few enough to balance.
const ROWS: usize = 64;

/// y [rows, c], and each row's mean and reciprocal standard deviation.
pub fn forward<T: Float>(
    d: &LayerNorm,
    y: &mut [T],
    mean: &mut [T],
    rstd: &mut [T],
    x: &[T],
    gamma: &[T],
    beta: &[T],
) {
    let (mean, rstd) = (Disjoint::new(mean), Disjoint::new(rstd));
    parallel::chunks_mut(y, ROWS * d.c, |part, y| {
        let rows = y.len() / d.c;
        let x = &x[part * ROWS * d.c..][..y.len()];
        // SAFETY: every row belongs to one part.
        let (mean, rstd) =
            unsafe { (mean.range(part * ROWS, rows), rstd.range(part * ROWS, rows)) };
        forward_rows(y, mean, rstd, x, gamma, beta, d.eps);
    });
}

multiversion! {
    fn forward_rows<T: Float>(y: &mut [T], mean: &mut [T], rstd: &mut [T], x: &[T], gamma: &[T], beta: &[T], eps: f64) {
        let c = gamma.len();
        let count = T::from_f64(c as f64);
        for (((y, x), mean), rstd) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(mean).zip(rstd) {
            let m = sum_map(x, |x| x) / count;
            let variance = sum_map(x, |x| (x - m) * (x - m)) / count;
            let r = T::ONE / (variance + T::from_f64(eps)).sqrt();
            for (((y, &x), &gamma), &beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                *y = ((x - m) * r).mul_add(gamma, beta);
            }
            *mean = m;
            *rstd = r;
        }
    }
}

/// Where [`backward`] puts each gradient; `None` is not computed.
pub struct LayerNormGradients<'a, T> {
    pub dx: Option<(&'a mut [T], Accum)>,
    pub dgamma: Option<(&'a mut [T], Accum)>,
    pub dbeta: Option<(&'a mut [T], Accum)>,
}

/// Gradients from dy, and mean and rstd as [`forward`] left them.
pub fn backward<T: Float>(
    d: &LayerNorm,
    gradients: LayerNormGradients<'_, T>,
    dy: &[T],
    x: &[T],
    mean: &[T],
    rstd: &[T],
    gamma: &[T],
) {
    let LayerNormGradients { dx, dgamma, dbeta } = gradients;
    if let Some((dx, accum)) = dx {
        parallel::chunks_mut(dx, ROWS * d.c, |part, dx| {
            let rows = part * ROWS..part * ROWS + dx.len() / d.c;
            let elements = rows.start * d.c..rows.end * d.c;
            let (dy, x) = (&dy[elements.clone()], &x[elements]);
            backward_rows(dx, accum, dy, x, &mean[rows.clone()], &rstd[rows], gamma);
        });
    }
    if dgamma.is_none() && dbeta.is_none() {
        return;
    }
    // Each part sums its rows in order; the parts' sums are added in order.
    let parts = parallel::map(d.rows.div_ceil(ROWS), dy.len(), |part| {
        let rows = part * ROWS..(part * ROWS + ROWS).min(d.rows);
        let elements = rows.start * d.c..rows.end * d.c;
        let mut sums = vec![T::ZERO; 2 * d.c];
        let (dgamma, dbeta) = sums.split_at_mut(d.c);
        let (dy, x) = (&dy[elements.clone()], &x[elements]);
        parameter_sums(dgamma, dbeta, dy, x, &mean[rows.clone()], &rstd[rows]);
        sums
    });
    let total = |offset: usize, (out, accum): (&mut [T], Accum)| {
        for (j, out) in out.iter_mut().enumerate() {
            let sum = parts.iter().fold(T::ZERO, |sum, p| sum + p[offset + j]);
            accum.put(out, sum);
        }
    };
    dgamma.into_iter().for_each(|dst| total(0, dst));
    dbeta.into_iter().for_each(|dst| total(d.c, dst));
}

multiversion! {
    fn backward_rows<T: Float>(dx: &mut [T], accum: Accum, dy: &[T], x: &[T], mean: &[T], rstd: &[T], gamma: &[T]) {
        let c = gamma.len();
        let count = T::from_f64(c as f64);
        for (row, dx) in dx.chunks_exact_mut(c).enumerate() {
            let (dy, x) = (&dy[row * c..][..c], &x[row * c..][..c]);
            let (m, r) = (mean[row], rstd[row]);
            // With g = γ·dy: dx = rstd · (g − mean(g) − x̂ · mean(g·x̂)).
            let mut sum_g = [T::ZERO; LANES];
            let mut sum_gx = [T::ZERO; LANES];
            for (j, ((&dy, &x), &gamma)) in dy.iter().zip(x).zip(gamma).enumerate() {
                let g = gamma * dy;
                sum_g[j % LANES] = sum_g[j % LANES] + g;
                sum_gx[j % LANES] = g.mul_add((x - m) * r, sum_gx[j % LANES]);
            }
            let mean_g = fold_lanes(sum_g) / count;
            let mean_gx = fold_lanes(sum_gx) / count;
            for (((dx, &dy), &x), &gamma) in dx.iter_mut().zip(dy).zip(x).zip(gamma) {
                let normal = (x - m) * r;
                accum.put(dx, r * (gamma * dy - mean_g - normal * mean_gx));
            }
        }
    }
}

multiversion! {
    fn parameter_sums<T: Float>(dgamma: &mut [T], dbeta: &mut [T], dy: &[T], x: &[T], mean: &[T], rstd: &[T]) {
        let c = dgamma.len();
        for (row, (&m, &r)) in mean.iter().zip(rstd).enumerate() {
            let (dy, x) = (&dy[row * c..][..c], &x[row * c..][..c]);
            for (((dgamma, dbeta), &dy), &x) in dgamma.iter_mut().zip(dbeta.iter_mut()).zip(dy).zip(x) {
                *dgamma = dy.mul_add((x - m) * r, *dgamma);
                *dbeta = *dbeta + dy;
            }
        }
    }
}
