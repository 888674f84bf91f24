//! Images are cut into blocks of pixels, whose channel sums are merged in order: several threads can share one image,
//! and the variance is never E[x²] − m².

use std::ops::Range;

use super::GroupNorm;
use crate::parallel::{self, Disjoint};
use crate::{Accum, Buffer, Float, multiversion};

/// Elements of a block of pixels: 64 KiB of f32.
const BLOCK: usize = 16 * 1024;

/// From this many images on, each is one part, so that its second pass finds it in cache; fewer are divided further.
const WHOLE_IMAGES: usize = 4;

/// y, and each group's mean and reciprocal standard deviation.
///
/// # Panics
/// If a slice is too short for the descriptor.
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
    let (y, mean, rstd) = (Disjoint::new(y), Disjoint::new(mean), Disjoint::new(rstd));
    let mut coefficients = Buffer::uninit(d.n * COEFFICIENTS * d.c * size_of::<T>());
    for_each_image(
        d,
        coefficients.as_mut_slice(),
        3,
        |sums, _, elements| {
            let (means, rest) = sums.split_at_mut(d.c);
            let (residuals, squares) = rest.split_at_mut(d.c);
            moments(means, residuals, squares, &x[elements]);
        },
        |partials, coefficients, image| {
            // SAFETY: every image is finished once.
            let (mean, rstd) = unsafe {
                (
                    mean.range(image * d.groups, d.groups),
                    rstd.range(image * d.groups, d.groups),
                )
            };
            merge_moments(d, mean, rstd, partials);
            Coefficients::new(coefficients).set(d, image, mean, rstd, gamma, beta, scale_shift);
        },
        |coefficients, elements| {
            // SAFETY: every block is visited once.
            let y = unsafe { y.range(elements.start, elements.len()) };
            normalise(y, &x[elements], coefficients, d.silu);
        },
    );
}

/// Where [`backward`] puts each gradient; `None` is not computed.
pub struct GroupNormGradients<'a, T> {
    pub dx: Option<(&'a mut [T], Accum)>,
    pub dgamma: Option<(&'a mut [T], Accum)>,
    pub dbeta: Option<(&'a mut [T], Accum)>,
    pub dscale_shift: Option<(&'a mut [T], Accum)>,
}

/// Gradients from dy, and mean and rstd as [`forward`] left them.
///
/// With z what the activation receives and g = γ·(1 + scale)·dz: dx = rstd·(g − mean(g) − x̂·mean(g·x̂)), the means
/// taken over the group.
///
/// # Panics
/// If a slice is too short for the descriptor.
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
    let dx = gradients.dx.map(|(dx, accum)| (Disjoint::new(dx), accum));
    // Per image and channel: Σ dz, then Σ dz·x̂.
    let mut totals = Buffer::uninit(d.n * 2 * d.c * size_of::<T>());
    let image_totals = Disjoint::new(totals.as_mut_slice::<T>());
    let mut coefficients = Buffer::uninit(d.n * COEFFICIENTS * d.c * size_of::<T>());
    let coefficients = coefficients.as_mut_slice::<T>();
    for (image, memory) in coefficients
        .chunks_exact_mut(COEFFICIENTS * d.c)
        .enumerate()
    {
        let groups = image * d.groups..(image + 1) * d.groups;
        let (mean, rstd) = (&mean[groups.clone()], &rstd[groups]);
        Coefficients::new(memory).set(d, image, mean, rstd, gamma, beta, scale_shift);
    }
    for_each_image(
        d,
        coefficients,
        2,
        |sums, coefficients, elements| {
            let (sum, sum_x) = sums.split_at_mut(d.c);
            channel_sums(
                sum,
                sum_x,
                &dy[elements.clone()],
                &x[elements],
                coefficients,
                d.silu,
            );
        },
        |partials, coefficients, image| {
            // SAFETY: every image is finished once.
            let totals = unsafe { image_totals.range(image * 2 * d.c, 2 * d.c) };
            totals.fill(T::ZERO);
            for partial in partials.chunks_exact(2 * d.c) {
                for (total, &partial) in totals.iter_mut().zip(partial) {
                    *total = *total + partial;
                }
            }
            let (dz, dzx) = totals.split_at_mut(d.c);
            let k = Coefficients::new(coefficients);
            let width = d.c / d.groups;
            let count = T::from_f64((d.pixels * width) as f64);
            for (j, dzx) in dzx.iter_mut().enumerate() {
                *dzx = *dzx * rstd[image * d.groups + j / width];
            }
            for group in 0..d.groups {
                let channels = group * width..(group + 1) * width;
                let mean_of = |sums: &[T]| {
                    let terms = channels.clone().map(|j| k.a[j] * sums[j]);
                    terms.fold(T::ZERO, |sum, x| sum + x) / count
                };
                k.offset[channels.clone()].fill(mean_of(dz));
                k.slope[channels.clone()].fill(mean_of(dzx) * rstd[image * d.groups + group]);
            }
        },
        |coefficients, elements| {
            if let Some((dx, accum)) = &dx {
                // SAFETY: every block is visited once.
                let dx = unsafe { dx.range(elements.start, elements.len()) };
                input_gradient(
                    dx,
                    *accum,
                    &dy[elements.clone()],
                    &x[elements],
                    coefficients,
                    d.silu,
                );
            }
        },
    );
    let images = || totals.as_slice::<T>().chunks_exact(2 * d.c).enumerate();
    // z = (x̂·γ + β)·(1 + scale) + shift.
    let one_plus =
        |image: usize, j: usize| scale_shift.map_or(T::ONE, |s| T::ONE + s[image * 2 * d.c + j]);
    let over_images = |dst: Option<(&mut [T], Accum)>, first: usize| {
        let Some((dst, accum)) = dst else { return };
        for (j, dst) in dst.iter_mut().enumerate() {
            let terms = images().map(|(image, totals)| totals[first + j] * one_plus(image, j));
            accum.put(dst, terms.fold(T::ZERO, |sum, x| sum + x));
        }
    };
    over_images(gradients.dbeta, 0);
    over_images(gradients.dgamma, d.c);
    if let Some((dst, accum)) = gradients.dscale_shift {
        for ((_, totals), dst) in images().zip(dst.chunks_exact_mut(2 * d.c)) {
            let (dz, dzx) = totals.split_at(d.c);
            let (dscale, dshift) = dst.split_at_mut(d.c);
            for j in 0..d.c {
                accum.put(&mut dscale[j], gamma[j].mul_add(dzx[j], beta[j] * dz[j]));
                accum.put(&mut dshift[j], dz[j]);
            }
        }
    }
}

/// Values per channel and image that [`Coefficients`] views.
const COEFFICIENTS: usize = 5;

/// What one image's channels need: z = (x − mean)·a + b, and in the backward dx = a·dz − offset − (x − mean)·slope.
struct Coefficients<'a, T> {
    mean: &'a mut [T],
    a: &'a mut [T],
    b: &'a mut [T],
    offset: &'a mut [T],
    slope: &'a mut [T],
}

impl<'a, T: Float> Coefficients<'a, T> {
    fn new(memory: &'a mut [T]) -> Self {
        let c = memory.len() / COEFFICIENTS;
        let (mean, rest) = memory.split_at_mut(c);
        let (a, rest) = rest.split_at_mut(c);
        let (b, rest) = rest.split_at_mut(c);
        let (offset, slope) = rest.split_at_mut(c);
        Coefficients {
            mean,
            a,
            b,
            offset,
            slope,
        }
    }

    #[allow(clippy::too_many_arguments)] // one argument per operand
    fn set(
        self,
        d: &GroupNorm,
        image: usize,
        mean: &[T],
        rstd: &[T],
        gamma: &[T],
        beta: &[T],
        scale_shift: Option<&[T]>,
    ) {
        let width = d.c / d.groups;
        for j in 0..d.c {
            let (scale, shift) = match scale_shift {
                Some(s) => (
                    T::ONE + s[image * 2 * d.c + j],
                    s[(image * 2 + 1) * d.c + j],
                ),
                None => (T::ONE, T::ZERO),
            };
            self.mean[j] = mean[j / width];
            self.a[j] = rstd[j / width] * gamma[j] * scale;
            self.b[j] = beta[j].mul_add(scale, shift);
        }
    }
}

/// For every image: `reduce(sums, coefficients, elements)` each block of pixels to `sums` sums per channel,
/// `finish(all blocks' sums, coefficients, image)`, then `apply(coefficients, elements)` to each block.
fn for_each_image<T: Float>(
    d: &GroupNorm,
    coefficients: &mut [T],
    sums: usize,
    reduce: impl Fn(&mut [T], &[T], Range<usize>) + Sync + Send,
    finish: impl Fn(&[T], &mut [T], usize) + Sync + Send,
    apply: impl Fn(&[T], Range<usize>) + Sync + Send,
) {
    let pixels = block_pixels(d);
    let sums = sums * d.c;
    let blocks = d.pixels.div_ceil(pixels);
    let mut partials = Buffer::uninit(d.n * blocks * sums * size_of::<T>());
    let partials = partials.as_mut_slice::<T>();
    let elements = |image: usize, block: usize| {
        let start = block * pixels;
        let end = (start + pixels).min(d.pixels);
        (image * d.pixels + start) * d.c..(image * d.pixels + end) * d.c
    };
    let work = d.n * d.pixels * d.c;
    if d.n >= WHOLE_IMAGES {
        let partials = Disjoint::new(partials);
        let coefficients = Disjoint::new(coefficients);
        parallel::for_each(d.n, work, |image| {
            // SAFETY: every image is one part.
            let (partials, coefficients) = unsafe {
                (
                    partials.range(image * blocks * sums, blocks * sums),
                    coefficients.range(image * COEFFICIENTS * d.c, COEFFICIENTS * d.c),
                )
            };
            for (block, sums) in partials.chunks_exact_mut(sums).enumerate() {
                reduce(sums, coefficients, elements(image, block));
            }
            finish(partials, coefficients, image);
            (0..blocks).for_each(|block| apply(coefficients, elements(image, block)));
        });
        return;
    }
    let of_image = |image: usize| image * COEFFICIENTS * d.c..(image + 1) * COEFFICIENTS * d.c;
    let block_sums = Disjoint::new(&mut *partials);
    parallel::for_each(d.n * blocks, work, |part| {
        let (image, block) = (part / blocks, part % blocks);
        // SAFETY: every block is one part.
        let sums = unsafe { block_sums.range(part * sums, sums) };
        reduce(sums, &coefficients[of_image(image)], elements(image, block));
    });
    for (image, partials) in partials.chunks_exact(blocks * sums).enumerate() {
        finish(partials, &mut coefficients[of_image(image)], image);
    }
    parallel::for_each(d.n * blocks, work, |part| {
        let (image, block) = (part / blocks, part % blocks);
        apply(&coefficients[of_image(image)], elements(image, block));
    });
}

/// Pixels of one block.
fn block_pixels(d: &GroupNorm) -> usize {
    (BLOCK / d.c).max(1)
}

/// Each group's mean and rstd from its blocks' and channels' moments.
///
/// A rounded mean m' leaves a residual Σ(x − m'), with which Σ(x − m)² = Σ(x − m')² + 2·(m' − m)·Σ(x − m') + n·(m' − m)²
/// holds however far from zero the means lie (the corrected two-pass algorithm of Chan, Golub & LeVeque, 1983).
fn merge_moments<T: Float>(d: &GroupNorm, mean: &mut [T], rstd: &mut [T], partials: &[T]) {
    let width = d.c / d.groups;
    let pixels = block_pixels(d);
    let count = T::from_f64((d.pixels * width) as f64);
    for (group, (mean, rstd)) in mean.iter_mut().zip(rstd).enumerate() {
        let channels = group * width..(group + 1) * width;
        let total = |f: &dyn Fn(T, T, T, T) -> T| {
            let mut total = T::ZERO;
            for (block, partial) in partials.chunks_exact(3 * d.c).enumerate() {
                let pixels = T::from_f64(pixels.min(d.pixels - block * pixels) as f64);
                for j in channels.clone() {
                    let (mean, residual, squares) =
                        (partial[j], partial[d.c + j], partial[2 * d.c + j]);
                    total = total + f(pixels, mean, residual, squares);
                }
            }
            total
        };
        let m = total(&|pixels, mean, residual, _| pixels.mul_add(mean, residual)) / count;
        let squares = total(&|pixels, mean, residual, squares| {
            let apart = mean - m;
            squares + (residual + residual + pixels * apart) * apart
        });
        *mean = m;
        *rstd = T::ONE / (squares / count + T::from_f64(d.eps)).sqrt();
    }
}

multiversion! {
    /// Over the rows of `x`, each channel's mean m', Σ(x − m') and Σ(x − m')².
    fn moments<T: Float>(means: &mut [T], residuals: &mut [T], squares: &mut [T], x: &[T]) {
        let c = means.len();
        let mut j = 0;
        while j < c {
            // As many channels at a time as keep their sums in registers.
            j += match c - j {
                left if left >= 64 => moments_of::<T, 64>(means, residuals, squares, x, j),
                left if left >= 16 => moments_of::<T, 16>(means, residuals, squares, x, j),
                _ => moments_of::<T, 1>(means, residuals, squares, x, j),
            };
        }
    }
}

/// [`moments`] of channels `j..j + N`; returns N.
#[inline(always)]
fn moments_of<T: Float, const N: usize>(
    means: &mut [T],
    residuals: &mut [T],
    squares: &mut [T],
    x: &[T],
    j: usize,
) -> usize {
    let c = means.len();
    let count = T::from_f64((x.len() / c) as f64);
    let mut mean = [T::ZERO; N];
    for row in x.chunks_exact(c) {
        let row = &row[j..][..N];
        for i in 0..N {
            mean[i] = mean[i] + row[i];
        }
    }
    for sum in &mut mean {
        *sum = *sum / count;
    }
    let mut residual = [T::ZERO; N];
    let mut square = [T::ZERO; N];
    for row in x.chunks_exact(c) {
        let row = &row[j..][..N];
        for i in 0..N {
            let apart = row[i] - mean[i];
            residual[i] = residual[i] + apart;
            square[i] = apart.mul_add(apart, square[i]);
        }
    }
    means[j..][..N].copy_from_slice(&mean);
    residuals[j..][..N].copy_from_slice(&residual);
    squares[j..][..N].copy_from_slice(&square);
    N
}

multiversion! {
    fn normalise<T: Float>(y: &mut [T], x: &[T], coefficients: &[T], silu: bool) {
        let c = coefficients.len() / COEFFICIENTS;
        let (mean, a, b) = (&coefficients[..c], &coefficients[c..2 * c], &coefficients[2 * c..3 * c]);
        for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            let channels = y.iter_mut().zip(x).zip(mean).zip(a).zip(b);
            if silu {
                channels.for_each(|((((y, &x), &mean), &a), &b)| {
                    let z = (x - mean).mul_add(a, b);
                    *y = z * z.sigmoid();
                });
            } else {
                channels.for_each(|((((y, &x), &mean), &a), &b)| *y = (x - mean).mul_add(a, b));
            }
        }
    }
}

/// dz from dy, z being `centred·a + b`.
#[inline(always)]
fn through_activation<T: Float>(dy: T, centred: T, a: T, b: T, silu: bool) -> T {
    if !silu {
        return dy;
    }
    let z = centred.mul_add(a, b);
    let s = z.sigmoid();
    dy * s * z.mul_add(T::ONE - s, T::ONE)
}

multiversion! {
    /// Σ dz and Σ dz·(x − mean) of each channel over the rows.
    fn channel_sums<T: Float>(sum: &mut [T], sum_x: &mut [T], dy: &[T], x: &[T], coefficients: &[T], silu: bool) {
        let c = sum.len();
        let sum_x = &mut sum_x[..c];
        let (mean, a, b) = (&coefficients[..c], &coefficients[c..2 * c], &coefficients[2 * c..3 * c]);
        sum.fill(T::ZERO);
        sum_x.fill(T::ZERO);
        for (dy, x) in dy.chunks_exact(c).zip(x.chunks_exact(c)) {
            let (dy, x) = (&dy[..c], &x[..c]);
            for j in 0..c {
                let centred = x[j] - mean[j];
                let dz = through_activation(dy[j], centred, a[j], b[j], silu);
                sum[j] = sum[j] + dz;
                sum_x[j] = dz.mul_add(centred, sum_x[j]);
            }
        }
    }
}

multiversion! {
    fn input_gradient<T: Float>(dx: &mut [T], accum: Accum, dy: &[T], x: &[T], coefficients: &[T], silu: bool) {
        // One loop for each: a choice inside would keep it from vectorising.
        match accum {
            Accum::Replace => for_each_gradient(dx, dy, x, coefficients, silu, |dx, g| *dx = g),
            Accum::Add => for_each_gradient(dx, dy, x, coefficients, silu, |dx, g| *dx = *dx + g),
        }
    }
}

/// Calls `put(dx, gradient)` for every element.
#[inline(always)]
fn for_each_gradient<T: Float>(
    dx: &mut [T],
    dy: &[T],
    x: &[T],
    coefficients: &[T],
    silu: bool,
    put: impl Fn(&mut T, T),
) {
    let c = coefficients.len() / COEFFICIENTS;
    let (mean, a, b) = (
        &coefficients[..c],
        &coefficients[c..2 * c],
        &coefficients[2 * c..3 * c],
    );
    let (offset, slope) = (&coefficients[3 * c..4 * c], &coefficients[4 * c..5 * c]);
    for ((dx, dy), x) in dx
        .chunks_exact_mut(c)
        .zip(dy.chunks_exact(c))
        .zip(x.chunks_exact(c))
    {
        let (dx, dy, x) = (&mut dx[..c], &dy[..c], &x[..c]);
        for j in 0..c {
            let centred = x[j] - mean[j];
            let dz = through_activation(dy[j], centred, a[j], b[j], silu);
            put(
                &mut dx[j],
                a[j].mul_add(dz, -offset[j]) - centred * slope[j],
            );
        }
    }
}
