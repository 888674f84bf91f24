//! Sums over any dimensions on GPUs.
//!
//! One run of dimensions is summed at a time, the innermost first: [outer, length, inner] → [outer, inner]. Where that alone
//! would not fill a GPU, its length is cut into blocks, whose f32 sums the next launch adds. Which thread adds what, and in
//! which order, is a function of the shape alone.

use crate::Accum;
use crate::ops::geometry::{Call, linear_grid};
use crate::ops::reduction::{Fold, over_cta, over_warp};
use crate::ops::spans::Access;
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, F32, Floats, Storage, U32, Value, Variable};

/// Threads of a CTA.
pub(crate) const THREADS: u32 = 256;
/// Spans of a block that each thread has at least, so that several loads are under way.
const LEAST_SPANS: u32 = 4;
/// The most blocks of a row: what one CTA adds with one load a thread.
const MOST_BLOCKS: u32 = THREADS * 4;
/// Rows that a thread of [`Shape::Columns`] asks for at once.
const ROWS_AT_ONCE: u32 = 4;
/// CTAs that [`Shape::Columns`] is cut into: some four for each multiprocessor.
const FILLING: usize = 512;

/// `out (+)= scale · Σ x` over blocks of the middle dimension of x [outer, length, inner], for out [outer, blocks, inner].
/// Launch with `Write(out)`, or `Update(out)` under [`Accum::Add`], then `Read(x), F32(scale)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    pub from: Access,
    pub to: Storage,
    pub accum: Accum,
    pub shape: Shape,
}

/// Along which direction is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Along contiguous runs, a warp a run.
    WarpRows,
    /// Along contiguous runs, a CTA a block.
    CtaRows,
    /// Across rows, which stay as wide as they are.
    Columns,
}

/// One launch of a sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    pub call: Call<Sum>,
    /// Elements that it writes.
    pub written: usize,
}

/// The launches of `out (+)= scale · Σ x` over the dimensions marked in `reduced`: the first one reads x, each other one
/// what the one before wrote, in f32, and the last one writes out, in the storage of `x`'s sums `to`. Only the last one is
/// given the scale; the others have 1.
///
/// # Errors
/// If there are more elements than kernels count.
pub fn config(
    storage: Storage,
    to: Storage,
    accum: Accum,
    dims: &[usize],
    reduced: &[bool],
) -> Result<Vec<Pass>, Refused> {
    count(dims.iter().product(), "the number of elements")?;
    // Neighbouring dimensions of one kind are one: (extent, reduced), outermost first.
    let mut loops: Vec<(usize, bool)> = vec![];
    for (&extent, &reduced) in dims.iter().zip(reduced).filter(|(d, _)| **d != 1) {
        match loops.last_mut() {
            Some(last) if last.1 == reduced => last.0 *= extent,
            _ => loops.push((extent, reduced)),
        }
    }
    let mut shapes = vec![];
    while let Some(at) = loops.iter().rposition(|&(_, reduced)| reduced) {
        let extent = |loops: &[(usize, bool)]| loops.iter().map(|l| l.0).product::<usize>();
        let (outer, inner) = (extent(&loops[..at]), extent(&loops[at + 1..]));
        let mut length = loops.remove(at).0;
        loop {
            let from = if shapes.is_empty() {
                storage
            } else {
                Storage::F32
            };
            let cut = Cut::new(from, [outer, length, inner]);
            shapes.push(([outer, length, inner], cut));
            length = cut.blocks as usize;
            if length == 1 {
                break;
            }
        }
    }
    if shapes.is_empty() {
        // Nothing is summed; the elements are still scaled.
        let shape = [1, 1, dims.iter().product()];
        shapes.push((shape, Cut::new(storage, shape)));
    }
    let last = shapes.len() - 1;
    let passes = shapes.into_iter().enumerate().map(|(i, (shape, cut))| {
        let [outer, length, inner] = shape;
        let (to, accum) = match i == last {
            true => (to, accum),
            false => (Storage::F32, Accum::Replace),
        };
        let span = cut.from.span;
        let mut numbers = vec![outer as u32, length as u32, cut.block, cut.blocks];
        let grid = match cut.shape {
            Shape::WarpRows => outer.div_ceil(THREADS as usize / 32),
            Shape::CtaRows => outer * cut.blocks as usize,
            Shape::Columns => {
                let spans = inner as u32 / span;
                numbers.extend([spans, cut.columns, spans.div_ceil(cut.columns.max(1))]);
                outer * cut.blocks as usize * spans.div_ceil(cut.columns.max(1)) as usize
            }
        };
        let variant = Sum {
            from: cut.from,
            to,
            accum,
            shape: cut.shape,
        };
        Ok(Pass {
            call: Call::new(variant, linear_grid(grid)?, numbers),
            written: outer * cut.blocks as usize * inner,
        })
    });
    passes.collect()
}

/// How one launch is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    from: Access,
    shape: Shape,
    /// Elements of the summed dimension in a block.
    block: u32,
    blocks: u32,
    /// Spans of a row that a CTA of [`Shape::Columns`] sums.
    columns: u32,
}

impl Cut {
    fn new(storage: Storage, [outer, length, inner]: [usize; 3]) -> Cut {
        let whole = |length: usize, shape: Shape, from: Access| Cut {
            from,
            shape,
            block: length as u32,
            blocks: 1,
            columns: 0,
        };
        if inner == 1 {
            // Of a single run, what does not fill a span is added by itself.
            let span = match outer == 1 || length.is_multiple_of(storage.chunk() as usize) {
                true => storage.chunk(),
                false => 1,
            };
            let from = Access { storage, span };
            let spans = length as u32 / span;
            // A warp's runs need no barrier; a CTA has 16 times as many loads under way, where there are as many.
            if spans <= 32 * LEAST_SPANS && outer > 1 {
                return whole(length, Shape::WarpRows, from);
            }
            // Blocks that give each thread something to do, and few enough that one more launch adds them up.
            let block = (THREADS * LEAST_SPANS).max(spans.div_ceil(MOST_BLOCKS));
            let blocks = spans.div_ceil(block).max(1);
            return Cut {
                block: block * span,
                blocks,
                ..whole(length, Shape::CtaRows, from)
            };
        }
        let from = Access::widest(storage, &[inner]);
        let spans = inner as u32 / from.span;
        // Rows of up to 512 bytes a CTA, equally wide, so that few lanes idle; the other threads take other rows.
        let tiles = spans.div_ceil(32).max(1);
        let columns = spans.div_ceil(tiles).max(1);
        let rows_at_once = THREADS / columns;
        // As few rows as an earlier launch leaves take one launch.
        let most = match length <= FILLING {
            true => 1,
            false => (length as u32).div_ceil(rows_at_once * ROWS_AT_ONCE),
        };
        let wanted = FILLING.div_ceil((outer * tiles as usize).max(1)) as u32;
        let blocks = wanted.min(most).max(1);
        let block = (length as u32).div_ceil(blocks);
        Cut {
            block,
            blocks: (length as u32).div_ceil(block.max(1)).max(1),
            columns,
            ..whole(length, Shape::Columns, from)
        }
    }
}

impl Variant for Sum {
    const KERNEL: &'static str = "reduce/sum";

    fn all() -> Vec<Sum> {
        let mut all = vec![];
        for from in Access::all() {
            let is_run = from.span == 1 || from.span == from.storage.chunk();
            for to in Storage::ALL {
                for accum in Accum::ALL {
                    let shapes = [Shape::WarpRows, Shape::CtaRows, Shape::Columns].into_iter();
                    let shapes = shapes.filter(|shape| is_run || *shape == Shape::Columns);
                    all.extend(shapes.map(|shape| Sum {
                        from,
                        to,
                        accum,
                        shape,
                    }));
                }
            }
        }
        all
    }

    fn label(&self) -> String {
        let shape = match self.shape {
            Shape::WarpRows => "warp_rows",
            Shape::CtaRows => "cta_rows",
            Shape::Columns => "columns",
        };
        let (from, to, accum) = (self.from.name(), self.to.name(), self.accum.name());
        format!("{shape}_{from}_to_{to}_{accum}")
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let grid = match self.shape {
            Shape::WarpRows => format!("ceil(outer / {}) CTAs, a warp a run", THREADS / 32),
            Shape::CtaRows => "a CTA a block, the blocks of a run first".to_string(),
            Shape::Columns => {
                "a CTA for some columns of a block: the columns first, then the blocks".to_string()
            }
        };
        k.contract(&format!(
            "out {} scale * sum x over blocks of the middle dimension of x [outer, length, inner], {} to {}.\n\
             Grid: {grid}. Reads x and writes out once.",
            self.accum.symbol(),
            self.from.storage.name(),
            self.to.name(),
        ));
        let out = k.floats(self.to, "out");
        let x = k.floats(self.from.storage, "x").read_only();
        let scale = k.parameter::<F32>("scale");
        let sizes = Sizes {
            outer: k.parameter("outer"),
            length: k.parameter("length"),
            block: k.parameter("block"),
            blocks: k.parameter("blocks"),
        };
        match self.shape {
            Shape::WarpRows => self.write_warp_rows(k, out, x, scale, sizes),
            Shape::CtaRows => self.write_cta_rows(k, out, x, scale, sizes),
            Shape::Columns => self.write_columns(k, out, x, scale, sizes),
        }
    }
}

/// The numbers that all shapes take.
#[derive(Clone, Copy)]
struct Sizes<'k> {
    outer: Value<'k, U32>,
    length: Value<'k, U32>,
    block: Value<'k, U32>,
    blocks: Value<'k, U32>,
}

/// Several sums that grow side by side, so that an addition need not wait for the one before.
pub(crate) fn accumulators(k: &Assembler, span: u32) -> Vec<Variable<'_, F32>> {
    (0..span).map(|_| k.variable(0.0f32)).collect()
}

/// Their sum, pair by pair.
pub(crate) fn total<'k>(sums: &[Variable<'k, F32>]) -> Value<'k, F32> {
    let mut values: Vec<Value<F32>> = sums.iter().map(|sum| sum.get()).collect();
    while values.len() > 1 {
        values = values.chunks(2).map(|pair| pair[0] + pair[1]).collect();
    }
    values[0]
}

impl Sum {
    fn put<'k>(self, out: Floats<'k>, sum: Value<'k, F32>, scale: Value<'k, F32>) {
        out.put_span(self.accum, &[scale * sum]);
    }

    fn write_warp_rows<'k>(
        self,
        k: &'k Assembler,
        out: Floats<'k>,
        x: Floats<'k>,
        scale: Value<'k, F32>,
        sizes: Sizes<'k>,
    ) {
        let span = self.from.span;
        let run = k.cta_x() * (THREADS / 32) + k.warp();
        k.if_(run.lt(sizes.outer), || {
            let spans = sizes.length / span;
            let first = run * spans;
            let sums = accumulators(k, span);
            k.for_(k.lane(), spans, 32, |i| {
                let values = x.at((first + i) * span).load_span(span);
                for (sum, value) in sums.iter().zip(values) {
                    sum.set(*sum + value);
                }
            });
            let sum = over_warp(k, Fold::Sum, total(&sums));
            k.if_(k.lane().eq(0), || self.put(out.at(run), sum, scale));
        });
    }

    fn write_cta_rows<'k>(
        self,
        k: &'k Assembler,
        out: Floats<'k>,
        x: Floats<'k>,
        scale: Value<'k, F32>,
        sizes: Sizes<'k>,
    ) {
        let span = self.from.span;
        let (run, block) = (k.cta_x() / sizes.blocks, k.cta_x() % sizes.blocks);
        let start = block * sizes.block;
        let end = sizes.length.min(start + sizes.block);
        let sums = accumulators(k, span);
        // Where there are several runs their length is a multiple of the span.
        let first = run * (sizes.length / span);
        let thread = k.thread_x();
        k.for_(start / span + thread, end / span, THREADS, |i| {
            let values = x.at((first + i) * span).load_span(span);
            for (sum, value) in sums.iter().zip(values) {
                sum.set(*sum + value);
            }
        });
        if span > 1 {
            k.comment("the last elements of a single run");
            let last = end - end % span + thread;
            k.if_(last.lt(end), || sums[0].set(sums[0] + x.at(last).load()));
        }
        let sum = over_cta(k, Fold::Sum, total(&sums));
        k.if_(thread.eq(0), || self.put(out.at(k.cta_x()), sum, scale));
    }

    fn write_columns<'k>(
        self,
        k: &'k Assembler,
        out: Floats<'k>,
        x: Floats<'k>,
        scale: Value<'k, F32>,
        sizes: Sizes<'k>,
    ) {
        let span = self.from.span;
        let spans = k.parameter::<U32>("row_spans");
        let columns = k.parameter::<U32>("columns");
        let tiles = k.parameter::<U32>("tiles");
        k.comment("this CTA's rows and columns, and this thread's");
        let (rest, tile) = (k.cta_x() / tiles, k.cta_x() % tiles);
        let (outer, block) = (rest / sizes.blocks, rest % sizes.blocks);
        let (group, lane) = (k.thread_x() / columns, k.thread_x() % columns);
        let groups = Value::<U32>::from_bits(THREADS.into()) / columns;
        let column = tile * columns + lane;
        let start = block * sizes.block;
        let end = sizes.length.min(start + sizes.block);
        let sums = accumulators(k, span);
        k.if_(group.lt(groups) & column.lt(spans), || {
            let base = outer * sizes.length;
            let row = k.variable(start + group);
            let load = |row: Value<'k, U32>| {
                x.at((base + row).mul_add(spans, column) * span)
                    .load_span(span)
            };
            let step = groups * ROWS_AT_ONCE;
            k.while_(
                || (row + groups * (ROWS_AT_ONCE - 1)).lt(end),
                || {
                    let rows: Vec<_> = (0..ROWS_AT_ONCE).map(|r| load(row + groups * r)).collect();
                    for values in rows {
                        for (sum, value) in sums.iter().zip(values) {
                            sum.set(*sum + value);
                        }
                    }
                    row.set(row + step);
                },
            );
            k.comment("the last rows");
            k.while_(
                || row.lt(end),
                || {
                    for (sum, value) in sums.iter().zip(load(row.get())) {
                        sum.set(*sum + value);
                    }
                    row.set(row + groups);
                },
            );
        });
        k.comment("the groups' sums, added in their order");
        let partial = k.shared_array::<F32>(THREADS * span);
        for (e, sum) in (0..).zip(&sums) {
            // Element by element over the threads, which so access different banks.
            partial.at(k.thread_x() + e * THREADS).store(*sum);
        }
        k.barrier();
        k.if_(group.eq(0) & column.lt(spans), || {
            let totals = accumulators(k, span);
            k.for_(0, groups, 1, |g| {
                for (e, total) in (0..).zip(&totals) {
                    let at = g.mul_add(columns, lane) + e * THREADS;
                    total.set(*total + partial.at(at).load());
                }
            });
            let scaled: Vec<_> = totals.iter().map(|total| scale * total.get()).collect();
            // The outputs' storage may be wider than the span's accesses: one by one, or as much as fits.
            let width = span.min(self.to.chunk());
            let at = rest.mul_add(spans, column) * span;
            for (i, scaled) in (0..)
                .step_by(width as usize)
                .zip(scaled.chunks(width as usize))
            {
                out.at(at + i).put_span(self.accum, scaled);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::reduce;
    use crate::testing::gpu::{self, assert_close, encode, stored_values};
    use crate::testing::to_f64;

    #[test]
    fn sums_are_those_of_cpus() {
        let cases: [(&[usize], &[bool]); 14] = [
            (&[], &[]),
            (&[1], &[true]),
            (&[7], &[true]),
            (&[7], &[false]),
            (&[30_001], &[true]),
            (&[3, 9000], &[false, true]),
            (&[9, 33], &[false, true]),
            (&[9, 64], &[false, true]),
            (&[33, 9], &[true, false]),
            (&[2, 700, 3], &[true, true, false]),
            (&[2, 300, 64], &[false, true, false]),
            (&[3, 5, 280], &[false, true, false]),
            (&[2, 3, 4, 5], &[true, false, true, false]),
            (&[2, 3, 4, 5], &[false, true, false, true]),
        ];
        let scale = 0.25;
        for storage in Storage::ALL {
            for accum in Accum::ALL {
                for (dims, reduced) in cases {
                    let case = format!("{dims:?} {reduced:?}");
                    let x = stored_values(storage, dims.iter().product(), 1);
                    // A mean beside which the differences are small.
                    let x: Vec<f32> = x.iter().map(|x| x + 8.0).collect();
                    let x = gpu::decode(storage, &encode(storage, &x));
                    let kept = dims.iter().zip(reduced).filter(|(_, r)| !**r);
                    let n = kept.map(|(d, _)| d).product();
                    let kernel = |out: Argument<'_>| {
                        let passes = config(storage, storage, accum, dims, reduced);
                        let mut passes = passes.expect("few elements");
                        let last = passes.pop().expect("a last pass");
                        let mut from = encode(storage, &x);
                        for pass in passes {
                            let mut sums = vec![0; pass.written * 4];
                            let write = Argument::Write(&mut sums);
                            let operands = vec![write, Argument::Read(&from), Argument::F32(1.0)];
                            gpu::run(&pass.call, operands);
                            from = sums;
                        }
                        assert_eq!(last.written, n, "{case}");
                        let scale = Argument::F32(scale as f32);
                        gpu::run(&last.call, vec![out, Argument::Read(&from), scale])
                    };
                    assert_close(
                        &case,
                        storage,
                        accum,
                        n,
                        |out: &mut [f32]| reduce::sum(out, accum, scale, &x, dims, reduced),
                        |out: &mut [f64]| {
                            reduce::sum(out, accum, scale, &to_f64(&x), dims, reduced)
                        },
                        kernel,
                    );
                }
            }
        }
    }

    #[test]
    fn long_sums_take_two_launches() {
        let sum = |dims: &[usize], reduced: &[bool]| {
            config(Storage::Bf16, Storage::Bf16, Accum::Replace, dims, reduced)
                .expect("few elements")
        };
        for (dims, reduced) in [
            (&[1 << 28][..], &[true][..]),
            (&[8, 4096, 320], &[true, true, false]),
            (&[1 << 20, 3], &[true, false]),
        ] {
            let passes = sum(dims, reduced);
            assert_eq!(passes.len(), 2, "{dims:?}");
            assert!(passes[0].call.plan.grid[0] >= 256, "{dims:?}");
        }
        assert_eq!(sum(&[64, 4096], &[false, true]).len(), 1);
    }
}
