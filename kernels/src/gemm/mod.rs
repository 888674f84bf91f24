//! The inner product machine that matmul, convolution and attention share: one register-tiled micro-kernel, and the
//! packing of what it reads.
//!
//! Blocking follows Goto & van de Geijn (ACM TOMS 34, 2008): k is cut into blocks of [`K_BLOCK`], within which a tile of
//! C lives in registers. Every element of C is, at every SIMD level, one chain of fused multiply-adds in ascending k per
//! block, and the blocks' sums are added in order. Tiles, packing and threads may therefore be chosen freely: they
//! cannot change a bit.

mod vector;

use std::marker::PhantomData;

use crate::parallel::{self, Disjoint};
use crate::simd::Level;
use crate::{Accum, Buffer, Float, multiversion};
pub use vector::Registers;
use vector::{TRANSPOSE, Vector};

/// Products of one register accumulation. Part of every result's definition: see the module's documentation.
///
/// A packed panel of 32 f32 columns then fills 32 KiB, which streams from L2 while the tile's rows stay in L1.
pub const K_BLOCK: usize = 256;

/// A matrix operand, element (i, p) being row i of a, or column i of b, at depth p.
#[derive(Clone, Copy)]
pub enum Operand<'a, T> {
    /// Element (i, p) at `i·stride + p`.
    AlongDepth { data: &'a [T], stride: usize },
    /// Element (i, p) at `p·stride + i`.
    AcrossDepth { data: &'a [T], stride: usize },
}

impl<'a, T> Operand<'a, T> {
    /// The part that begins at (i, p).
    pub fn at(self, i: usize, p: usize) -> Self {
        match self {
            Operand::AlongDepth { data, stride } => Operand::AlongDepth {
                data: &data[i * stride + p..],
                stride,
            },
            Operand::AcrossDepth { data, stride } => Operand::AcrossDepth {
                data: &data[p * stride + i..],
                stride,
            },
        }
    }
}

/// Keeps the rows of a stage off the same cache sets.
pub const STAGE_PADDING: usize = 16;

/// Elements that [`Operand::stage`] may need for `rows` rows.
pub fn stage_len(rows: usize) -> usize {
    (rows + STAGE_PADDING) * (K_BLOCK + STAGE_PADDING)
}

impl<T: Float> Operand<'_, T> {
    /// Copies `rows` × `k` elements together, in the order they have.
    pub fn stage<'a>(self, stage: &'a mut [T], rows: usize, k: usize) -> Operand<'a, T> {
        let (data, from_stride, lines, width) = match self {
            Operand::AlongDepth { data, stride } => (data, stride, rows, k),
            Operand::AcrossDepth { data, stride } => (data, stride, k, rows),
        };
        let stride = width + STAGE_PADDING;
        for (to, from) in stage
            .chunks_mut(stride)
            .zip(data.chunks(from_stride))
            .take(lines)
        {
            to[..width].copy_from_slice(&from[..width]);
        }
        match self {
            Operand::AlongDepth { .. } => Operand::AlongDepth {
                data: stage,
                stride,
            },
            Operand::AcrossDepth { .. } => Operand::AcrossDepth {
                data: stage,
                stride,
            },
        }
    }
}

/// The right operand of a block: panels of [`panel_width`] columns, the last of which may be narrower.
#[derive(Clone, Copy)]
pub struct Rhs<'a, T> {
    data: &'a [T],
    /// Elements between panels.
    panel: usize,
    /// Elements between depths within a panel.
    step: usize,
}

impl<'a, T: Float> Rhs<'a, T> {
    /// Consecutive panels of `k` depths that [`pack`] wrote.
    pub fn packed(level: Level, data: &'a [T], k: usize) -> Self {
        let width = panel_width::<T>(level);
        Rhs {
            data,
            panel: width * k,
            step: width,
        }
    }

    /// Rows of `stride` elements, read in place. The block's columns must be a multiple of [`lanes`], or the rows
    /// padded to one.
    pub fn in_place(level: Level, data: &'a [T], stride: usize) -> Self {
        Rhs {
            data,
            panel: panel_width::<T>(level),
            step: stride,
        }
    }
}

/// Where a block goes: element (i, j) at `data + i·stride + j`.
#[derive(Clone, Copy)]
pub struct Destination<T> {
    pub data: *mut T,
    pub stride: usize,
}

/// Elements of one register.
pub fn lanes<T: Float>(level: Level) -> usize {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => T::Avx512::LANES,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => T::Avx2::LANES,
        _ => T::Portable::LANES,
    }
}

/// Columns of one panel of the right operand: two registers.
pub fn panel_width<T: Float>(level: Level) -> usize {
    2 * lanes::<T>(level)
}

/// The work of `products` multiply-adds, in the elements that [`parallel`] counts in.
pub fn work(products: usize) -> usize {
    products / 16
}

/// c (= or +=) a·b for `rows` × `columns` elements over `k` ≤ [`K_BLOCK`] depths.
///
/// `level` is read once per operation by its caller, because packed panels depend on it.
///
/// # Safety
/// `c` must be valid for all its elements, and nobody else may touch them meanwhile.
///
/// # Panics
/// If an operand's slice is too short.
#[allow(clippy::too_many_arguments)] // the inside of loops
#[inline]
pub unsafe fn block<T: Float>(
    level: Level,
    c: Destination<T>,
    accum: Accum,
    a: Operand<T>,
    b: Rhs<T>,
    rows: usize,
    columns: usize,
    k: usize,
) {
    if rows == 0 || columns == 0 || k == 0 {
        // An empty sum.
        for i in 0..if accum == Accum::Replace { rows } else { 0 } {
            // SAFETY: `c` is valid for `rows` rows of `columns` elements.
            unsafe { std::slice::from_raw_parts_mut(c.data.add(i * c.stride), columns) }
                .fill(T::ZERO);
        }
        return;
    }
    let a_span = match a {
        Operand::AlongDepth { data, stride } => ((rows - 1) * stride + k, data.len()),
        Operand::AcrossDepth { data, stride } => ((k - 1) * stride + rows, data.len()),
    };
    assert!(a_span.0 <= a_span.1, "left operand too short");
    let panels = columns.div_ceil(panel_width::<T>(level));
    let last = columns - (panels - 1) * panel_width::<T>(level);
    let b_span =
        (panels - 1) * b.panel + (k - 1) * b.step + last.next_multiple_of(lanes::<T>(level));
    assert!(b_span <= b.data.len(), "right operand too short");
    match level {
        // SAFETY: `simd::level` never exceeds what the CPU has, the operands' spans have just been checked, and `c` is
        // valid by this function's contract. Likewise below.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(c, accum, a, b, rows, columns, k) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(c, accum, a, b, rows, columns, k) },
        // SAFETY: as above; arrays need no instruction set.
        _ => unsafe { tiles::<T::Portable, 4>(c, accum, a, b, rows, columns, k) },
    }
}

/// Tiles of 8 × 32 f32: 16 of the 32 registers. Taller tiles gain nothing where one 512-bit FMA retires per cycle, and
/// the widths of our models divide by 8.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
unsafe fn avx512<T: Float>(
    c: Destination<T>,
    accum: Accum,
    a: Operand<T>,
    b: Rhs<T>,
    rows: usize,
    columns: usize,
    k: usize,
) {
    // SAFETY: this function's caller vouches for the operands, its attribute for the instruction set.
    unsafe { tiles::<T::Avx512, 8>(c, accum, a, b, rows, columns, k) }
}

/// Tiles of 6 × 16 f32: 12 of the 16 registers, two for b, one for a.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<T: Float>(
    c: Destination<T>,
    accum: Accum,
    a: Operand<T>,
    b: Rhs<T>,
    rows: usize,
    columns: usize,
    k: usize,
) {
    // SAFETY: this function's caller vouches for the operands, its attribute for the instruction set.
    unsafe { tiles::<T::Avx2, 6>(c, accum, a, b, rows, columns, k) }
}

/// Covers the block with tiles of `M` rows and two registers, a panel at a time, and its rim with smaller ones.
#[inline(always)]
unsafe fn tiles<V: Vector, const M: usize>(
    c: Destination<V::Element>,
    accum: Accum,
    a: Operand<V::Element>,
    b: Rhs<V::Element>,
    rows: usize,
    columns: usize,
    k: usize,
) {
    for (panel, column) in (0..columns).step_by(2 * V::LANES).enumerate() {
        let width = (columns - column).min(2 * V::LANES);
        let mut row = 0;
        while row < rows {
            let height = match rows - row {
                left if left >= M => M,
                left if left >= 4 => 4,
                left if left >= 2 => 2,
                _ => 1,
            };
            // SAFETY: all offsets stay inside the spans that `block` checked.
            unsafe {
                let c = Destination {
                    data: c.data.add(row * c.stride + column),
                    stride: c.stride,
                };
                let b = (b.data.as_ptr().add(panel * b.panel), b.step);
                match height {
                    4 => tile::<V, 4>(c, accum, a, row, b, width, k),
                    2 => tile::<V, 2>(c, accum, a, row, b, width, k),
                    1 => tile::<V, 1>(c, accum, a, row, b, width, k),
                    _ => tile::<V, M>(c, accum, a, row, b, width, k),
                }
            }
            row += height;
        }
    }
}

#[inline(always)]
unsafe fn tile<V: Vector, const M: usize>(
    c: Destination<V::Element>,
    accum: Accum,
    a: Operand<V::Element>,
    row: usize,
    b: (*const V::Element, usize),
    width: usize,
    k: usize,
) {
    // SAFETY: rows `row..row + M` and the panel's registers lie inside the spans that `block` checked.
    unsafe {
        match (a, width > V::LANES) {
            (Operand::AlongDepth { data, stride }, true) => {
                let a: [_; M] = std::array::from_fn(|i| data.as_ptr().add((row + i) * stride));
                put(c, accum, micro::<V, M, 2, true>(a, 1, b, k), width)
            }
            (Operand::AlongDepth { data, stride }, false) => {
                let a: [_; M] = std::array::from_fn(|i| data.as_ptr().add((row + i) * stride));
                put(c, accum, micro::<V, M, 1, true>(a, 1, b, k), width)
            }
            (Operand::AcrossDepth { data, stride }, true) => {
                let a: [_; M] = std::array::from_fn(|i| data.as_ptr().add(row + i));
                put(c, accum, micro::<V, M, 2, false>(a, stride, b, k), width)
            }
            (Operand::AcrossDepth { data, stride }, false) => {
                let a: [_; M] = std::array::from_fn(|i| data.as_ptr().add(row + i));
                put(c, accum, micro::<V, M, 1, false>(a, stride, b, k), width)
            }
        }
    }
}

/// The inner loop: M × N registers of sums, one fused multiply-add per depth in ascending order.
#[inline(always)]
unsafe fn micro<V: Vector, const M: usize, const N: usize, const DENSE: bool>(
    a: [*const V::Element; M],
    a_step: usize,
    (mut b, b_step): (*const V::Element, usize),
    k: usize,
) -> [[V; N]; M] {
    // SAFETY: `a[i]` is valid for `k` steps and `b` for `k` rows of N registers, by the caller's check.
    unsafe {
        let mut sums = [[V::splat(V::Element::ZERO); N]; M];
        for p in 0..k {
            let at = if DENSE { p } else { p * a_step };
            let b_row: [V; N] = std::array::from_fn(|v| V::load(b.add(v * V::LANES)));
            for i in 0..M {
                let a = V::splat(*a[i].add(at));
                for v in 0..N {
                    sums[i][v] = a.mul_add(b_row[v], sums[i][v]);
                }
            }
            b = b.wrapping_add(b_step);
        }
        sums
    }
}

/// Writes a tile's sums, `width` columns of them.
#[inline(always)]
unsafe fn put<V: Vector, const M: usize, const N: usize>(
    c: Destination<V::Element>,
    accum: Accum,
    sums: [[V; N]; M],
    width: usize,
) {
    // SAFETY: `c` is valid for M rows of `width` elements, by the contract of `block`.
    unsafe {
        if width == N * V::LANES {
            // Indices instead of iterators, so that the sums never leave their registers.
            #[allow(clippy::needless_range_loop)]
            for i in 0..M {
                for v in 0..N {
                    let c = c.data.add(i * c.stride + v * V::LANES);
                    match accum {
                        Accum::Replace => sums[i][v].store(c),
                        Accum::Add => V::load(c).add(sums[i][v]).store(c),
                    }
                }
            }
            return;
        }
        // Registers are at most 16 elements wide.
        let mut row = [V::Element::ZERO; 32];
        for (i, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(row.as_mut_ptr().add(v * V::LANES));
            }
            for (j, &sum) in row.iter().enumerate().take(width) {
                accum.put(&mut *c.data.add(i * c.stride + j), sum);
            }
        }
    }
}

/// All panels of one or several matrices [k, n], packed once per operation and read by all its parts.
///
/// The block of depths that begins at `depth` of matrix `i` lies at (i·k + depth) · padded n, its panels one after the
/// other.
pub struct PackedRhs<T> {
    memory: Buffer,
    level: Level,
    padded: usize,
    k: usize,
    element: PhantomData<T>,
}

impl<T: Float> PackedRhs<T> {
    /// Calls `pack(panel, matrix, column, depth, k)` in parallel for every panel of every block.
    pub fn new(
        level: Level,
        matrices: usize,
        n: usize,
        k: usize,
        pack: impl Fn(&mut [T], usize, usize, usize, usize) + Sync + Send,
    ) -> Self {
        let width = panel_width::<T>(level);
        let padded = n.next_multiple_of(width);
        let mut memory = Buffer::uninit(matrices * k * padded * size_of::<T>());
        let packed = Disjoint::new(memory.as_mut_slice::<T>());
        let (blocks, panels) = (k.div_ceil(K_BLOCK), padded / width);
        let parts = matrices * blocks * panels;
        parallel::for_each(parts, matrices * k * padded, |part| {
            let (matrix, block, panel) = (
                part / panels / blocks,
                part / panels % blocks,
                part % panels,
            );
            let (depth, column) = (block * K_BLOCK, panel * width);
            let depths = (k - depth).min(K_BLOCK);
            // SAFETY: every panel belongs to one part.
            let panel = unsafe {
                packed.range(
                    (matrix * k + depth) * padded + column * depths,
                    width * depths,
                )
            };
            pack(panel, matrix, column, depth, depths);
        });
        PackedRhs {
            memory,
            level,
            padded,
            k,
            element: PhantomData,
        }
    }

    /// The level that the panels were packed for.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The block of `k` depths that begins at `depth`, from `column` (the first of a panel) on.
    pub fn block(&self, matrix: usize, column: usize, depth: usize, k: usize) -> Rhs<'_, T> {
        let start = (matrix * self.k + depth) * self.padded + column * k;
        Rhs::packed(self.level, &self.memory.as_slice()[start..], k)
    }
}

/// Packs one panel: `k` depths of the first `columns` columns of `b` (at most a panel's width), padded with zeros.
pub fn pack<T: Float>(level: Level, panel: &mut [T], b: Operand<T>, columns: usize, k: usize) {
    let width = panel_width::<T>(level);
    let panel = &mut panel[..width * k];
    let columns = columns.min(width);
    match b {
        Operand::AlongDepth { data, stride } => {
            transpose_panel(level, panel, data, stride, width, columns)
        }
        Operand::AcrossDepth { data, stride } => copy_panel(panel, data, stride, width, columns),
    }
}

multiversion! {
    fn copy_panel<T: Float>(packed: &mut [T], source: &[T], stride: usize, width: usize, filled: usize) {
        for (p, row) in packed.chunks_exact_mut(width).enumerate() {
            row[..filled].copy_from_slice(&source[p * stride..][..filled]);
            row[filled..].fill(T::ZERO);
        }
    }
}

/// A panel of `filled` columns from as many rows of the source: tiles of [`TRANSPOSE`]², and scalars at the rim.
fn transpose_panel<T: Float>(
    level: Level,
    packed: &mut [T],
    source: &[T],
    stride: usize,
    width: usize,
    filled: usize,
) {
    let k = packed.len() / width;
    assert!(
        (filled - 1) * stride + k <= source.len(),
        "right operand too short"
    );
    let (whole_k, whole_columns) = (k / TRANSPOSE * TRANSPOSE, filled / TRANSPOSE * TRANSPOSE);
    for p in (0..whole_k).step_by(TRANSPOSE) {
        for j in (0..whole_columns).step_by(TRANSPOSE) {
            let from = &source[j * stride + p..];
            let to = &mut packed[p * width + j..];
            match level {
                // SAFETY: the CPU has what `level` says, the tile lies inside the span just checked and, with
                // `whole_k` rows of `width` elements, inside the panel.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 | Level::Avx2 => unsafe {
                    T::Avx2::transpose(from.as_ptr(), stride, to.as_mut_ptr(), width)
                },
                // SAFETY: as above; arrays need no instruction set.
                _ => unsafe {
                    T::Portable::transpose(from.as_ptr(), stride, to.as_mut_ptr(), width)
                },
            }
        }
    }
    for (p, row) in packed.chunks_exact_mut(width).enumerate() {
        let done = if p < whole_k { whole_columns } else { 0 };
        for (j, x) in row.iter_mut().enumerate().skip(done) {
            *x = if j < filled {
                source[j * stride + p]
            } else {
                T::ZERO
            };
        }
    }
}
