use super::GroupNorm;
use crate::parallel::{self, Disjoint};
use crate::{Accum, Float, multiversion};

/// y, and each group's mean and reciprocal standard deviation.
#[allow(clippy::too_many_arguments)] // one argument per operand
pub fn forward<T: Float>(
    d: &GroupNorm,
    y: &mut [T],
    mean: &mut [T],
    rstd: &mut [T],
    x: &[T],
    gamma: &[T],
    beta: &[T],
    scale_shift: Option<&[T]>,
) {
    let (mean, rstd) = (Disjoint::new(mean), Disjoint::new(rstd));
    let image_elements = d.pixels * d.c;
    parallel::chunks_mut(y, image_elements, |image, y| {
        let x = &x[image * image_elements..][..image_elements];
        // SAFETY: every image belongs to one part.
        let (mean, rstd) = unsafe {
            (
                mean.range(image * d.groups, d.groups),
                rstd.range(image * d.groups, d.groups),
            )
        };
        statistics(mean, rstd, x, d.c, d.eps);
        let affine = Affine::new(d, image, mean, rstd, gamma, beta, scale_shift);
        apply(y, x, &affine.a, &affine.b, d.silu);
    });
}

/// A normalisation as one line per channel: y = act(a·x + b).
struct Affine<T> {
    a: Vec<T>,
    b: Vec<T>,
}

impl<T: Float> Affine<T> {
    fn new(
        d: &GroupNorm,
        image: usize,
        mean: &[T],
        rstd: &[T],
        gamma: &[T],
        beta: &[T],
        scale_shift: Option<&[T]>,
    ) -> Self {
        let width = d.c / d.groups;
        let (a, b) = (0..d.c)
            .map(|j| {
                let a = rstd[j / width] * gamma[j];
                let b = beta[j] - mean[j / width] * a;
                match scale_shift.map(|s| &s[image * 2 * d.c..][..2 * d.c]) {
                    Some(s) => (a * (T::ONE + s[j]), b.mul_add(T::ONE + s[j], s[d.c + j])),
                    None => (a, b),
                }
            })
            .unzip();
        Affine { a, b }
    }
}

multiversion! {
    fn statistics<T: Float>(mean: &mut [T], rstd: &mut [T], x: &[T], c: usize, eps: f64) {
        let width = c / mean.len();
        let count = T::from_f64((x.len() / mean.len()) as f64);
        // Channel sums first: they vectorise whatever the group's width.
        let mut sums = vec![T::ZERO; c];
        for row in x.chunks_exact(c) {
            for (s, &x) in sums.iter_mut().zip(row) {
                *s = *s + x;
            }
        }
        for (mean, sums) in mean.iter_mut().zip(sums.chunks_exact(width)) {
            *mean = sums.iter().fold(T::ZERO, |a, &b| a + b) / count;
        }
        let means: Vec<T> = (0..c).map(|j| mean[j / width]).collect();
        sums.fill(T::ZERO);
        for row in x.chunks_exact(c) {
            for ((s, &x), &mean) in sums.iter_mut().zip(row).zip(&means) {
                *s = (x - mean).mul_add(x - mean, *s);
            }
        }
        for (rstd, sums) in rstd.iter_mut().zip(sums.chunks_exact(width)) {
            let variance = sums.iter().fold(T::ZERO, |a, &b| a + b) / count;
            *rstd = T::ONE / (variance + T::from_f64(eps)).sqrt();
        }
    }
}

multiversion! {
    fn apply<T: Float>(y: &mut [T], x: &[T], a: &[T], b: &[T], silu: bool) {
        let c = a.len();
        for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            for (((y, &x), &a), &b) in y.iter_mut().zip(x).zip(a).zip(b) {
                let z = a.mul_add(x, b);
                *y = if silu { z * z.sigmoid() } else { z };
            }
        }
    }
}

/// Where [`backward`] puts each gradient; `None` is not computed.
pub struct GroupNormGradients<'a, T> {
    pub dx: Option<(&'a mut [T], Accum)>,
    pub dgamma: Option<(&'a mut [T], Accum)>,
    pub dbeta: Option<(&'a mut [T], Accum)>,
    pub dscale_shift: Option<(&'a mut [T], Accum)>,
}

/// Gradients from dy, and mean and rstd as [`forward`] left them.
#[allow(clippy::too_many_arguments)] // one argument per operand
pub fn backward<T: Float>(
    d: &GroupNorm,
    gradients: GroupNormGradients<'_, T>,
    dy: &[T],
    x: &[T],
    mean: &[T],
    rstd: &[T],
    gamma: &[T],
    beta: &[T],
    scale_shift: Option<&[T]>,
) {
    let GroupNormGradients {
        dx,
        dgamma,
        dbeta,
        dscale_shift,
    } = gradients;
    let image_elements = d.pixels * d.c;
    let width = d.c / d.groups;
    let count = T::from_f64((d.pixels * width) as f64);
    let dx = dx.map(|(dx, accum)| (Disjoint::new(dx), accum));
    // Per image: Σ dz and Σ dz·x̂ of every channel, z being what the activation receives.
    let sums = parallel::map(d.n, dy.len(), |image| {
        let (dy, x) = (
            &dy[image * image_elements..][..image_elements],
            &x[image * image_elements..][..image_elements],
        );
        let mean = &mean[image * d.groups..][..d.groups];
        let rstd = &rstd[image * d.groups..][..d.groups];
        let affine = Affine::new(d, image, mean, rstd, gamma, beta, scale_shift);
        let means: Vec<T> = (0..d.c).map(|j| mean[j / width]).collect();
        let rstds: Vec<T> = (0..d.c).map(|j| rstd[j / width]).collect();
        let mut sums = [vec![T::ZERO; d.c], vec![T::ZERO; d.c]];
        let [dz, dzx] = &mut sums;
        channel_sums(dz, dzx, dy, x, &affine.a, &affine.b, &means, &rstds, d.silu);
        if let Some((dx, accum)) = &dx {
            // dx = a·dz − rstd·(mean(g) + x̂·mean(g·x̂)) with g = a/rstd·dz, the means taken over the group.
            let mut offset = vec![T::ZERO; d.c];
            let mut slope = vec![T::ZERO; d.c];
            for (group, &rstd) in rstd.iter().enumerate() {
                let channels = group * width..(group + 1) * width;
                let total = |sums: &[T]| {
                    let terms = channels.clone().map(|j| affine.a[j] * sums[j]);
                    terms.fold(T::ZERO, |a, b| a + b) / count
                };
                let (mean_g, mean_gx) = (total(&sums[0]), total(&sums[1]));
                offset[channels.clone()].fill(mean_g);
                slope[channels.clone()].fill(mean_gx * rstd);
            }
            // SAFETY: every image belongs to one part.
            let dx = unsafe { dx.range(image * image_elements, image_elements) };
            input_gradient(
                dx, *accum, dy, x, &affine.a, &affine.b, &means, &offset, &slope, d.silu,
            );
        }
        sums
    });
    // z = (x̂·γ + β)·(1 + scale) + shift.
    let one_plus =
        |image: usize, j: usize| scale_shift.map_or(T::ONE, |s| T::ONE + s[image * 2 * d.c + j]);
    let over_images = |(dst, accum): (&mut [T], Accum), which: usize| {
        for (j, dst) in dst.iter_mut().enumerate() {
            let terms = sums.iter().enumerate();
            let sum = terms.fold(T::ZERO, |sum, (image, s)| {
                sum + s[which][j] * one_plus(image, j)
            });
            accum.put(dst, sum);
        }
    };
    if let Some(dst) = dgamma {
        over_images(dst, 1);
    }
    if let Some(dst) = dbeta {
        over_images(dst, 0);
    }
    if let Some((dst, accum)) = dscale_shift {
        for ([dz, dzx], dst) in sums.iter().zip(dst.chunks_exact_mut(2 * d.c)) {
            let (dscale, dshift) = dst.split_at_mut(d.c);
            for j in 0..d.c {
                accum.put(&mut dscale[j], gamma[j].mul_add(dzx[j], beta[j] * dz[j]));
                accum.put(&mut dshift[j], dz[j]);
            }
        }
    }
}

/// Gradient of the activation's input z = a·x + b.
#[inline(always)]
fn through_activation<T: Float>(dy: T, x: T, a: T, b: T, silu: bool) -> T {
    if !silu {
        return dy;
    }
    let z = a.mul_add(x, b);
    let s = z.sigmoid();
    dy * s * (T::ONE + z * (T::ONE - s))
}

multiversion! {
    fn channel_sums<T: Float>(sum: &mut [T], sum_x: &mut [T], dy: &[T], x: &[T], a: &[T], b: &[T], mean: &[T], rstd: &[T], silu: bool) {
        let c = a.len();
        for (dy, x) in dy.chunks_exact(c).zip(x.chunks_exact(c)) {
            for j in 0..c {
                let dz = through_activation(dy[j], x[j], a[j], b[j], silu);
                sum[j] = sum[j] + dz;
                sum_x[j] = dz.mul_add((x[j] - mean[j]) * rstd[j], sum_x[j]);
            }
        }
    }
}

multiversion! {
    fn input_gradient<T: Float>(dx: &mut [T], accum: Accum, dy: &[T], x: &[T], a: &[T], b: &[T], mean: &[T], offset: &[T], slope: &[T], silu: bool) {
        let c = a.len();
        for ((dx, dy), x) in dx.chunks_exact_mut(c).zip(dy.chunks_exact(c)).zip(x.chunks_exact(c)) {
            for j in 0..c {
                let dz = through_activation(dy[j], x[j], a[j], b[j], silu);
                accum.put(&mut dx[j], a[j] * dz - offset[j] - (x[j] - mean[j]) * slope[j]);
            }
        }
    }
}
