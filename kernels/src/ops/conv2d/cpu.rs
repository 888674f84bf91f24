use super::Conv2d;
use crate::gemm::{self, Destination, K_BLOCK, Operand, PackedRhs, Rhs, STAGE_PADDING};
use crate::ops::matmul::{self, Activation, Epilogue, Matmul};
use crate::parallel::{self, Disjoint, Scratch};
use crate::simd;
use crate::{Accum, Buffer, Float, multiversion};

/// y [n, out_h, out_w, c_out] from x [n, h, w, c_in], weight [c_out, kernel_h, kernel_w, c_in], bias [c_out] and
/// residual (like y).
///
/// A product of patches [pixels, taps·c_in] with the weights, of which only a block at a time exists.
///
/// # Panics
/// If a slice is too short for the descriptor.
pub fn forward<T: Float>(
    d: &Conv2d,
    y: &mut [T],
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    residual: Option<&[T]>,
) {
    if let Some(d) = as_matmul(d) {
        return matmul::forward(&d, y, Accum::Replace, None, x, weight, bias, residual);
    }
    let patches = Patches::forward(d);
    let k = patches.width();
    let level = simd::level();
    let weights = PackedRhs::new(level, 1, d.c_out, k, |panel, _, column, depth, depths| {
        let filters = Operand::AlongDepth {
            data: weight,
            stride: k,
        };
        gemm::pack(
            level,
            panel,
            filters.at(column, depth),
            d.c_out - column,
            depths,
        );
    });
    let epilogue = Epilogue {
        pre: None,
        bias,
        activation: Activation::None,
        residual,
    };
    let y = Disjoint::new(y);
    patches.for_each_block(d.n, d.c_out, |stage, pixels| {
        let (start, len) = (pixels.start * d.c_out, pixels.len() * d.c_out);
        let block = Destination {
            data: y.address(start, len),
            stride: d.c_out,
        };
        // SAFETY: the pixels of a block belong to one part.
        unsafe {
            patches.product(
                stage,
                block,
                Accum::Replace,
                x,
                &weights,
                pixels.clone(),
                d.c_out,
            );
            epilogue.apply(block, pixels.len(), d.c_out, start, 0);
        }
    });
}

/// dx [n, h, w, c_in] from dy [n, out_h, out_w, c_out] and the weights.
///
/// Input pixels that agree modulo the stride meet the same taps, so each such phase is a convolution of dy with stride 1
/// and mirrored taps.
///
/// # Panics
/// If a slice is too short for the descriptor.
pub fn backward_input<T: Float>(d: &Conv2d, dx: &mut [T], accum: Accum, dy: &[T], weight: &[T]) {
    if let Some(d) = as_matmul(d) {
        let d = Matmul {
            n: d.k,
            k: d.n,
            transpose_b: false,
            ..d
        };
        return matmul::forward(&d, dx, accum, None, dy, weight, None, None);
    }
    let level = simd::level();
    let filter = d.kernel_h * d.kernel_w * d.c_in;
    let dx = Disjoint::new(dx);
    for phase in 0..d.stride * d.stride {
        let rows = Phase::new(d, phase / d.stride, d.kernel_h, d.h);
        let columns = Phase::new(d, phase % d.stride, d.kernel_w, d.w);
        let patches = Patches::backward(d, &rows, &columns);
        let k = patches.width();
        let weights = PackedRhs::new(level, 1, d.c_in, k, |panel, _, column, depth, depths| {
            // A block of depths covers parts of several taps.
            let width = gemm::panel_width::<T>(level);
            let mut p = 0;
            while p < depths {
                let (tap, channel) = ((depth + p) / d.c_out, (depth + p) % d.c_out);
                let (u, v) = (
                    rows.tap(tap / columns.taps),
                    columns.tap(tap % columns.taps),
                );
                let channels = (d.c_out - channel).min(depths - p);
                let filters = Operand::AcrossDepth {
                    data: &weight[(u * d.kernel_w + v) * d.c_in..],
                    stride: filter,
                };
                let panel = &mut panel[p * width..];
                gemm::pack(
                    level,
                    panel,
                    filters.at(column, channel),
                    d.c_in - column,
                    channels,
                );
                p += channels;
            }
        });
        if d.stride == 1 {
            patches.for_each_block(d.n, d.c_in, |stage, pixels| {
                let block = Destination {
                    data: dx.address(pixels.start * d.c_in, pixels.len() * d.c_in),
                    stride: d.c_in,
                };
                // SAFETY: the pixels of a block belong to one part.
                unsafe { patches.product(stage, block, accum, dy, &weights, pixels, d.c_in) };
            });
            continue;
        }
        let sums = Scratch::new(BLOCK_PIXELS * d.c_in);
        patches.for_each_block(d.n, d.c_in, |stage, pixels| {
            let scatter = |sums: &mut [T]| {
                let block = Destination {
                    data: sums.as_mut_ptr(),
                    stride: d.c_in,
                };
                // SAFETY: `sums` holds a block of pixels and belongs to this thread.
                unsafe {
                    patches.product(
                        stage,
                        block,
                        Accum::Replace,
                        dy,
                        &weights,
                        pixels.clone(),
                        d.c_in,
                    )
                };
                for (pixel, sums) in pixels.clone().zip(sums.chunks_exact(d.c_in)) {
                    let (image, i, j) = patches.position(pixel);
                    let (i, j) = (rows.coordinate(i), columns.coordinate(j));
                    // SAFETY: every pixel belongs to one part of one phase.
                    let dx = unsafe { dx.range(((image * d.h + i) * d.w + j) * d.c_in, d.c_in) };
                    for (dx, &sum) in dx.iter_mut().zip(sums) {
                        accum.put(dx, sum);
                    }
                }
            };
            // SAFETY: `scatter` does not call rayon.
            unsafe { sums.with(scatter) };
        });
    }
}

/// dw [c_out, kernel_h, kernel_w, c_in] from dy [n, out_h, out_w, c_out] and x.
///
/// The product dyᵀ·patches over all pixels, cut into parts by columns and, where these are few, into ranges of pixels
/// whose sums are added in order.
///
/// # Panics
/// If a slice is too short for the descriptor.
pub fn backward_weight<T: Float>(d: &Conv2d, dw: &mut [T], accum: Accum, dy: &[T], x: &[T]) {
    if let Some(d) = as_matmul(d) {
        let d = Matmul {
            m: d.n,
            n: d.k,
            k: d.m,
            transpose_a: true,
            transpose_b: false,
            ..d
        };
        return matmul::forward(&d, dw, accum, None, dy, x, None, None);
    }
    /// Most columns of one part. Every part reads all of dy and of x for its pixels, from beyond L2.
    const PART_COLUMNS: usize = 512;
    const PARTS: usize = 12;
    /// Fewest pixels of a range.
    const PIXELS: usize = 4 * K_BLOCK;
    /// Columns gathered at a time, which with a block of pixels take 144 KiB of f32.
    const COLUMNS: usize = 128;
    /// Elements between the staged patches of two pixels.
    const STRIDE: usize = COLUMNS + STAGE_PADDING;
    let patches = Patches::forward(d);
    let (k, pixels) = (patches.width(), d.n * patches.out_h * patches.out_w);
    let column_parts = k.div_ceil(PART_COLUMNS);
    let part_columns = k.div_ceil(column_parts).next_multiple_of(64);
    let ranges = PARTS
        .div_ceil(column_parts)
        .min(pixels.div_ceil(PIXELS))
        .max(1);
    let range = pixels.div_ceil(ranges).next_multiple_of(K_BLOCK);
    let level = simd::level();
    let scratch = Scratch::new(K_BLOCK * STRIDE + gemm::stage_len(d.c_out));

    let mut partial = Buffer::uninit(if ranges > 1 {
        ranges * dw.len() * size_of::<T>()
    } else {
        0
    });
    let (sums, first) = if ranges > 1 {
        (Disjoint::new(partial.as_mut_slice()), Accum::Replace)
    } else {
        (Disjoint::new(&mut *dw), accum)
    };
    parallel::for_each(
        column_parts * ranges,
        gemm::work(pixels * k * d.c_out),
        |part| {
            let start = part / column_parts * range;
            let end = (start + range).min(pixels);
            let columns = part % column_parts * part_columns;
            let columns = columns..(columns + part_columns).min(k);
            let accumulate = |stage: &mut [T]| {
                let (stage, stage_dy) = stage.split_at_mut(K_BLOCK * STRIDE);
                // A range that rounding left empty still has its sums to clear.
                for pixel in (start..end.max(start + 1)).step_by(K_BLOCK) {
                    let pixels = pixel.min(end)..(pixel + K_BLOCK).min(end);
                    let dy = Operand::AcrossDepth {
                        data: &dy[pixels.start * d.c_out..],
                        stride: d.c_out,
                    };
                    let dy = dy.stage(stage_dy, d.c_out, pixels.len());
                    let accum = if pixel == start { first } else { Accum::Add };
                    for column in columns.clone().step_by(COLUMNS) {
                        let columns = column..(column + COLUMNS).min(columns.end);
                        patches.gather(stage, STRIDE, x, pixels.clone(), columns.clone());
                        let offset = part / column_parts * d.c_out * k + column;
                        let block = Destination {
                            data: sums.address(offset, (d.c_out - 1) * k + columns.len()),
                            stride: k,
                        };
                        let b = Rhs::in_place(level, stage, STRIDE);
                        let (rows, columns, depths) = (d.c_out, columns.len(), pixels.len());
                        // SAFETY: a block of columns of one range belongs to one part.
                        unsafe { gemm::block(level, block, accum, dy, b, rows, columns, depths) };
                    }
                }
            };
            // SAFETY: `accumulate` does not call rayon.
            unsafe { scratch.with(accumulate) };
        },
    );
    if ranges > 1 {
        let partial = partial.as_slice::<T>();
        parallel::chunks_mut(dw, 4096, |chunk, dw| {
            for (i, dw) in dw.iter_mut().enumerate() {
                let ranges = partial.chunks_exact(d.c_out * k);
                accum.put(dw, ranges.fold(T::ZERO, |sum, r| sum + r[chunk * 4096 + i]));
            }
        });
    }
}

/// A 1×1 convolution of every pixel is a product [pixels, c_in] · [c_out, c_in]ᵀ.
fn as_matmul(d: &Conv2d) -> Option<Matmul> {
    (d.kernel_h == 1 && d.kernel_w == 1 && d.stride == 1 && d.padding == 0).then_some(Matmul {
        batch: 1,
        m: d.n * d.h * d.w,
        n: d.c_out,
        k: d.c_in,
        transpose_a: false,
        transpose_b: true,
        a_stride: 0,
        b_stride: 0,
        activation: Activation::None,
    })
}

/// Input coordinates `remainder`, `remainder + stride`, …, along one axis, and the taps through which dy reaches them.
struct Phase {
    stride: usize,
    remainder: usize,
    /// Number of coordinates.
    extent: usize,
    first_tap: usize,
    taps: usize,
    /// Coordinate of dy that coordinate 0 meets at mirrored tap 0.
    origin: isize,
}

impl Phase {
    /// Input coordinate s·i + r receives output coordinate o at tap u = s·i + r + padding − s·o.
    fn new(d: &Conv2d, remainder: usize, kernel: usize, extent: usize) -> Self {
        let first_tap = (remainder + d.padding) % d.stride;
        let taps = kernel.saturating_sub(first_tap).div_ceil(d.stride);
        let nearest = (remainder + d.padding - first_tap) / d.stride;
        Phase {
            stride: d.stride,
            remainder,
            extent: extent.saturating_sub(remainder).div_ceil(d.stride),
            first_tap,
            taps,
            origin: nearest as isize + 1 - taps as isize,
        }
    }

    /// The kernel's tap that mirrored tap `t` stands for.
    fn tap(&self, t: usize) -> usize {
        self.first_tap + self.stride * (self.taps - 1 - t)
    }

    fn coordinate(&self, i: usize) -> usize {
        i * self.stride + self.remainder
    }
}

/// The rows of the left operand: for every output pixel, the pixels of the source under its taps.
///
/// Row (image, i, j) holds source[image, i·stride + u + origin_h, j·stride + v + origin_w, c] at column
/// (u·taps_w + v)·c, zero outside the source.
struct Patches {
    h: usize,
    w: usize,
    c: usize,
    taps_h: usize,
    taps_w: usize,
    stride: usize,
    origin_h: isize,
    origin_w: isize,
    out_h: usize,
    out_w: usize,
}

/// Pixels of one part; with [`K_BLOCK`] depths they take 136 KiB of f32, a small part of L2.
const BLOCK_PIXELS: usize = 128;

impl Patches {
    fn forward(d: &Conv2d) -> Self {
        Patches {
            h: d.h,
            w: d.w,
            c: d.c_in,
            taps_h: d.kernel_h,
            taps_w: d.kernel_w,
            stride: d.stride,
            origin_h: -(d.padding as isize),
            origin_w: -(d.padding as isize),
            out_h: d.out_h(),
            out_w: d.out_w(),
        }
    }

    fn backward(d: &Conv2d, rows: &Phase, columns: &Phase) -> Self {
        Patches {
            h: d.out_h(),
            w: d.out_w(),
            c: d.c_out,
            taps_h: rows.taps,
            taps_w: columns.taps,
            stride: 1,
            origin_h: rows.origin,
            origin_w: columns.origin,
            out_h: rows.extent,
            out_w: columns.extent,
        }
    }

    /// Elements of a row.
    fn width(&self) -> usize {
        self.taps_h * self.taps_w * self.c
    }

    /// Image and coordinates of an output pixel.
    fn position(&self, pixel: usize) -> (usize, usize, usize) {
        (
            pixel / self.out_w / self.out_h,
            pixel / self.out_w % self.out_h,
            pixel % self.out_w,
        )
    }

    /// Calls `f(stage, pixels)` for blocks of output pixels, in parallel; `stage` holds a block's patches.
    fn for_each_block<T: Float>(
        &self,
        images: usize,
        columns: usize,
        f: impl Fn(&mut [T], std::ops::Range<usize>) + Sync + Send,
    ) {
        let pixels = images * self.out_h * self.out_w;
        // Small images still give every thread something to do.
        let block = (pixels / 16).next_multiple_of(16).clamp(16, BLOCK_PIXELS);
        let scratch = Scratch::new(block * (K_BLOCK + STAGE_PADDING));
        let work = gemm::work(pixels * self.width() * columns);
        parallel::for_each(pixels.div_ceil(block), work, |part| {
            let pixels = part * block..(part * block + block).min(pixels);
            // SAFETY: `f` computes one block, without rayon.
            unsafe { scratch.with(|stage| f(stage, pixels)) };
        });
    }

    /// The block of the product of these patches with `weights`, [pixels, columns].
    ///
    /// # Safety
    /// `block` is valid for that many elements and belongs to the caller alone.
    #[allow(clippy::too_many_arguments)] // the inside of a loop
    unsafe fn product<T: Float>(
        &self,
        stage: &mut [T],
        block: Destination<T>,
        accum: Accum,
        source: &[T],
        weights: &PackedRhs<T>,
        pixels: std::ops::Range<usize>,
        columns: usize,
    ) {
        let width = self.width();
        // Without any tap there is still a sum, an empty one.
        for depth in (0..width.max(1)).step_by(K_BLOCK) {
            let depths = depth..width.min(depth + K_BLOCK);
            let k = depths.len();
            let stride = k + STAGE_PADDING;
            self.gather(stage, stride, source, pixels.clone(), depths);
            let patches = Operand::AlongDepth {
                data: &*stage,
                stride,
            };
            let level = weights.level();
            let weights = weights.block(0, 0, depth, k);
            let accum = if depth == 0 { accum } else { Accum::Add };
            let rows = pixels.len();
            // SAFETY: by this function's contract.
            unsafe { gemm::block(level, block, accum, patches, weights, rows, columns, k) };
        }
    }

    /// Copies columns `columns` of rows `pixels` to `stage`, which has `stride` elements per row.
    fn gather<T: Float>(
        &self,
        stage: &mut [T],
        stride: usize,
        source: &[T],
        pixels: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
    ) {
        gather(
            stage,
            stride,
            source,
            self,
            pixels.start,
            pixels.end,
            columns.start,
            columns.end,
        );
    }
}

multiversion! {
    fn gather<T: Float>(stage: &mut [T], stride: usize, source: &[T], p: &Patches, pixel: usize, pixel_end: usize, start: usize, end: usize) {
        // The taps of one kernel row meet neighbouring pixels, whose channels lie one after the other.
        let row = p.taps_w * p.c;
        let (mut image, mut i, mut j) = p.position(pixel);
        for stage in stage.chunks_mut(stride).take(pixel_end - pixel) {
            // The part of the kernel row that lies inside the source.
            let left = (j * p.stride) as isize + p.origin_w;
            let inside_start = (-left).clamp(0, p.taps_w as isize) as usize * p.c;
            let inside_end = (p.w as isize - left).clamp(0, p.taps_w as isize) as usize * p.c;
            let mut at = start;
            while at < end {
                let u = at / row;
                let (from, to) = (at - u * row, (end - u * row).min(row));
                let top = (i * p.stride + u) as isize + p.origin_h;
                let stage = &mut stage[at - start..];
                let inside = from.max(inside_start)..to.min(inside_end);
                if top < 0 || top >= p.h as isize || inside.is_empty() {
                    fill(stage, to - from);
                } else {
                    if from < inside.start {
                        fill(stage, inside.start - from);
                    }
                    // Not negative: `inside` begins at the source's first column or later.
                    let offset = ((image * p.h + top as usize) * p.w) as isize * p.c as isize
                        + left * p.c as isize
                        + inside.start as isize;
                    copy(&mut stage[inside.start - from..], &source[offset as usize..], inside.len());
                    if inside.end < to {
                        fill(&mut stage[inside.end - from..], to - inside.end);
                    }
                }
                at = u * row + to;
            }
            j += 1;
            if j == p.out_w {
                j = 0;
                i += 1;
                if i == p.out_h {
                    i = 0;
                    image += 1;
                }
            }
        }
    }
}

/// Elements that [`copy`] and [`fill`] move at once where they may.
const AT_ONCE: usize = 16;

/// Copies `len` elements; what lies behind them in `to` may be overwritten. Runs of few channels are shorter than the
/// call of a copy routine.
#[inline(always)]
fn copy<T: Float>(to: &mut [T], from: &[T], len: usize) {
    if len <= AT_ONCE && to.len() >= AT_ONCE && from.len() >= AT_ONCE {
        to[..AT_ONCE].copy_from_slice(&from[..AT_ONCE]);
    } else {
        to[..len].copy_from_slice(&from[..len]);
    }
}

/// Clears `len` elements; what lies behind them may be overwritten.
#[inline(always)]
fn fill<T: Float>(to: &mut [T], len: usize) {
    if len <= AT_ONCE && to.len() >= AT_ONCE {
        to[..AT_ONCE].fill(T::ZERO);
    } else {
        to[..len].fill(T::ZERO);
    }
}
