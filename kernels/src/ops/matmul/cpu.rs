use super::Matmul;
use super::epilogue::Epilogue;
use crate::gemm::{self, Destination, K_BLOCK, Operand, PackedRhs, Rhs, work};
use crate::parallel::{self, Disjoint, Scratch};
use crate::simd::{self, Level};
use crate::{Accum, Buffer, Float, multiversion};

/// Computes `c` [batch, m, n] from `a` and `b`, with `bias` [n] and `residual` [batch, m, n] where given.
///
/// `pre` [batch, m, n] receives a·b + bias, for the activation's backward.
///
/// # Panics
/// If a slice is too short for the descriptor, or if [`Accum::Add`] comes with an epilogue: what accumulates is a
/// gradient, and gradients have none.
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
    let epilogue = Epilogue {
        pre: pre.map(Disjoint::new),
        bias,
        activation: d.activation,
        residual,
    };
    assert!(
        accum == Accum::Replace || epilogue.is_empty(),
        "matmul: accumulation has no epilogue"
    );
    let d = &merge_batch(d);
    let level = simd::level();
    let b = PreparedRhs::new(level, d, b);
    let tiling = Tiling::new(d);
    let staged = tiling.stages(d);
    let scratch = Scratch::new(if staged {
        gemm::stage_len(tiling.rows)
    } else {
        0
    });
    let c = Disjoint::new(c);
    parallel::for_each(tiling.parts(d), work(d.batch * d.m * d.n * d.k), |part| {
        let (batch, rows, columns) = tiling.part(d, part);
        let a = &a[batch * d.a_stride..];
        let a = match d.transpose_a {
            false => Operand::AlongDepth {
                data: a,
                stride: d.k,
            },
            true => Operand::AcrossDepth {
                data: a,
                stride: d.m,
            },
        };
        let start = (batch * d.m + rows.start) * d.n + columns.start;
        let span = (rows.len() - 1) * d.n + columns.len();
        let c = Destination {
            data: c.address(start, span),
            stride: d.n,
        };
        for depth in (0..d.k.max(1)).step_by(K_BLOCK) {
            let k = (d.k - depth).min(K_BLOCK);
            let accum = if depth == 0 { accum } else { Accum::Add };
            let a = if k == 0 { a } else { a.at(rows.start, depth) };
            let b = b.block(level, d, batch, columns.start, depth, k);
            let product = |a: Operand<T>| {
                // SAFETY: `c` is the part's own block of the output, checked by `address`.
                unsafe { gemm::block(level, c, accum, a, b, rows.len(), columns.len(), k) }
            };
            if staged {
                // SAFETY: `block` does not call rayon.
                unsafe { scratch.with(|stage| product(a.stage(stage, rows.len(), k))) };
            } else {
                product(a);
            }
        }
        // SAFETY: the part's own block.
        unsafe { epilogue.apply(c, rows.len(), columns.len(), start, columns.start) };
    });
}

/// Matrices that share b and lie one after the other are one taller matrix.
fn merge_batch(d: &Matmul) -> Matmul {
    if d.b_stride == 0 && d.a_stride == d.m * d.k && !d.transpose_a {
        Matmul {
            batch: 1,
            m: d.batch * d.m,
            ..*d
        }
    } else {
        *d
    }
}

/// How the output is cut into parts: a function of the shape alone.
struct Tiling {
    rows: usize,
    columns: usize,
}

impl Tiling {
    /// Rows whose [`K_BLOCK`] depths take 128 KiB of f32, a small part of L2.
    const ROWS: usize = 128;
    /// Products below which a part is not worth its scheduling, some ten microseconds.
    const PART: usize = 1 << 19;

    fn new(d: &Matmul) -> Self {
        let mut tiling = Tiling {
            rows: d.m.min(Self::ROWS),
            columns: d.n,
        };
        let wanted = (d.batch * d.m * d.n * d.k / Self::PART).min(16);
        while tiling.parts(d) < wanted {
            if tiling.columns > 128 && tiling.columns >= tiling.rows {
                tiling.columns = (tiling.columns / 2).next_multiple_of(64);
            } else if tiling.rows > 16 {
                tiling.rows = (tiling.rows / 2).next_multiple_of(8);
            } else {
                break;
            }
        }
        tiling
    }

    fn grid(&self, d: &Matmul) -> (usize, usize) {
        (
            d.m.div_ceil(self.rows.max(1)),
            d.n.div_ceil(self.columns.max(1)),
        )
    }

    fn parts(&self, d: &Matmul) -> usize {
        let (rows, columns) = self.grid(d);
        d.batch * rows * columns
    }

    fn part(
        &self,
        d: &Matmul,
        part: usize,
    ) -> (usize, std::ops::Range<usize>, std::ops::Range<usize>) {
        let (rows, columns) = self.grid(d);
        let (batch, part) = (part / (rows * columns), part % (rows * columns));
        let (row, column) = (part / columns * self.rows, part % columns * self.columns);
        (
            batch,
            row..(row + self.rows).min(d.m),
            column..(column + self.columns).min(d.n),
        )
    }

    /// Whether parts copy their rows of a together first, which pays where several panels read them again: strides of
    /// whole pages fall into few cache sets, and a tile that steps over rows would wait for each of them.
    fn stages(&self, d: &Matmul) -> bool {
        if d.transpose_a {
            self.columns > 32 && d.m > 64
        } else {
            self.columns > 64 && d.k > K_BLOCK
        }
    }
}

/// The right operand as parts read it.
enum PreparedRhs<'a, T> {
    InPlace(&'a [T]),
    Packed(PackedRhs<T>),
}

impl<'a, T: Float> PreparedRhs<'a, T> {
    fn new(level: Level, d: &Matmul, b: &'a [T]) -> Self {
        // Packing pays where several rows of tiles read b again, or where its rows lie far apart.
        let few_rows = d.m <= 16 || d.n <= 64;
        if !d.transpose_b && few_rows && d.n.is_multiple_of(gemm::lanes::<T>(level)) {
            return PreparedRhs::InPlace(b);
        }
        let matrices = if d.b_stride == 0 { 1 } else { d.batch };
        let pack = |panel: &mut [T], matrix: usize, column: usize, depth: usize, k: usize| {
            let b = &b[matrix * d.b_stride..];
            let b = match d.transpose_b {
                false => Operand::AcrossDepth {
                    data: b,
                    stride: d.n,
                },
                true => Operand::AlongDepth {
                    data: b,
                    stride: d.k,
                },
            };
            gemm::pack(level, panel, b.at(column, depth), d.n - column, k);
        };
        PreparedRhs::Packed(PackedRhs::new(level, matrices, d.n, d.k, pack))
    }

    /// `k` depths from `depth` on, of the columns from `column` on.
    fn block(
        &self,
        level: Level,
        d: &Matmul,
        matrix: usize,
        column: usize,
        depth: usize,
        k: usize,
    ) -> Rhs<'_, T> {
        match self {
            PreparedRhs::InPlace(b) => {
                let start = matrix * d.b_stride + depth * d.n + column;
                Rhs::in_place(level, &b[start.min(b.len())..], d.n)
            }
            PreparedRhs::Packed(packed) => {
                let matrix = if d.b_stride == 0 { 0 } else { matrix };
                packed.block(matrix, column, depth, k)
            }
        }
    }
}

/// out[j] (= or +=) Σᵢ x[i, j] over the rows of `x` [rows, columns]: the gradient of a bias.
///
/// Rows are summed in order within fixed blocks, and the blocks in order.
pub fn column_sums<T: Float>(out: &mut [T], accum: Accum, x: &[T], columns: usize) {
    const ROWS: usize = 256;
    if columns == 0 {
        return;
    }
    let blocks = (x.len() / columns).div_ceil(ROWS);
    let mut partial = Buffer::uninit(blocks * columns * size_of::<T>());
    let parts = Disjoint::new(partial.as_mut_slice::<T>());
    parallel::for_each(blocks, x.len(), |block| {
        let end = ((block + 1) * ROWS * columns).min(x.len());
        // SAFETY: every block has its own sums.
        let sums = unsafe { parts.range(block * columns, columns) };
        sums.fill(T::ZERO);
        add_rows(sums, &x[block * ROWS * columns..end]);
    });
    let partial = partial.as_mut_slice::<T>();
    let (first, rest) = partial.split_at_mut(columns.min(partial.len()));
    add_rows(first, rest);
    for (j, out) in out.iter_mut().enumerate() {
        accum.put(out, first.get(j).copied().unwrap_or(T::ZERO));
    }
}

multiversion! {
    fn add_rows<T: Float>(sums: &mut [T], rows: &[T]) {
        for row in rows.chunks_exact(sums.len().max(1)) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum = *sum + x;
            }
        }
    }
}
