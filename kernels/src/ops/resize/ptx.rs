//! Separable resampling on GPUs: the rows of pixels first, in f32, then the columns.

use super::Taps;
use crate::Accum;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::{Call, Division, Divisor};
use crate::ops::spans::{Access, for_each_span};
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, F32, Storage, U32};

/// `dst[o, i, :] (+)= Σₖ weight[i, k] · src[o, start[i] + k, :]` for src [outer, inputs, inner] and dst [outer, outputs, inner].
/// Launch with `Write(dst)`, or `Update(dst)` under [`Accum::Add`], then `Read(src)`, `Read(bands)` and `Read(weights)` of a
/// [`Table`], and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apply {
    pub from: Storage,
    pub to: Storage,
    pub accum: Accum,
    /// Elements of a thread.
    pub span: u32,
}

/// A banded matrix as kernels read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// First input, and number of weights, of each output.
    pub bands: Vec<[u32; 2]>,
    /// As many for each output as the longest row has, its own ones first.
    pub weights: Vec<f32>,
    inputs: u32,
    longest: u32,
}

impl Table {
    pub fn new(taps: &Taps) -> Table {
        let rows = || (0..taps.outputs()).map(|i| taps.row(i));
        let longest = rows().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        let padded = rows().flat_map(|(_, weights)| {
            let zeros = std::iter::repeat_n(0.0, longest - weights.len());
            weights.iter().map(|&w| w as f32).chain(zeros)
        });
        Table {
            weights: padded.collect(),
            bands: rows()
                .map(|(start, weights)| [start as u32, weights.len() as u32])
                .collect(),
            inputs: taps.inputs() as u32,
            longest: longest as u32,
        }
    }
}

/// The two launches of `dst (+)= rows · src · columnsᵀ` for `n` images of c channels: the first one, with the table of
/// `rows`, writes [n, rows, columns of src, c] in f32, of which the second one, with the table of `columns`, makes dst.
///
/// # Errors
/// If there are more elements than kernels count.
pub fn config(
    storage: Storage,
    accum: Accum,
    [n, c]: [usize; 2],
    rows: &Table,
    columns: &Table,
) -> Result<[Call<Apply>; 2], Refused> {
    let wide = columns.inputs as usize * c;
    let first = Apply::config(storage, Storage::F32, Accum::Replace, [n, wide], rows)?;
    let outer = n * rows.bands.len();
    let second = Apply::config(Storage::F32, storage, accum, [outer, c], columns)?;
    Ok([first, second])
}

impl Apply {
    fn config(
        from: Storage,
        to: Storage,
        accum: Accum,
        [outer, inner]: [usize; 2],
        table: &Table,
    ) -> Result<Call<Apply>, Refused> {
        let inputs = outer.saturating_mul(table.inputs as usize);
        count(inputs.saturating_mul(inner), "the number of elements")?;
        // Four elements: one side is always f32.
        let access = Access::widest(Storage::F32, &[inner]);
        let outputs = outer.saturating_mul(table.bands.len());
        let elements = outputs.saturating_mul(inner);
        let (spans, grid) = access.cover(elements, "the number of elements")?;
        let span = access.span;
        let mut numbers = vec![spans];
        numbers.extend(Divisor::new((inner as u32 / span).max(1)).numbers());
        numbers.extend(Divisor::new((table.bands.len() as u32).max(1)).numbers());
        numbers.extend([table.inputs, table.longest]);
        let variant = Apply {
            from,
            to,
            accum,
            span,
        };
        Ok(Call::new(variant, grid, numbers))
    }
}

impl Variant for Apply {
    const KERNEL: &'static str = "resize/apply";

    fn all() -> Vec<Apply> {
        use Storage::{Bf16, F32};
        let passes = [
            (Bf16, F32, Accum::Replace),
            (F32, F32, Accum::Replace),
            (F32, F32, Accum::Add),
            (F32, Bf16, Accum::Replace),
            (F32, Bf16, Accum::Add),
        ];
        let spans = |(from, to, accum)| {
            [1, 2, 4].map(|span| Apply {
                from,
                to,
                accum,
                span,
            })
        };
        passes.into_iter().flat_map(spans).collect()
    }

    fn label(&self) -> String {
        let (from, to, accum) = (self.from.name(), self.to.name(), self.accum.name());
        format!("{from}_to_{to}_x{}_{accum}", self.span)
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let span = self.span;
        k.contract(&format!(
            "dst[o, i, :] {} sum over k of weight[i, k] * src[o, start[i] + k, :] for dst [outer, outputs, inner], {} to {}.\n\
             Grid: ceil(elements of dst / {}) CTAs, {span} elements a thread. Reads src once for each output that it is part \
             of, from the caches after the first time, and writes dst once.",
            self.accum.symbol(),
            self.from.name(),
            self.to.name(),
            THREADS * span
        ));
        let dst = k.floats(self.to, "dst");
        let src = k.floats(self.from, "src").read_only();
        let bands = k.buffer::<U32>("bands").read_only();
        let weights = k.buffer::<F32>("weights").read_only();
        let spans = k.parameter::<U32>("spans");
        let inner = Division::parameter(k, "inner_spans");
        let outputs = Division::parameter(k, "outputs");
        let inputs = k.parameter::<U32>("inputs");
        let longest = k.parameter::<U32>("longest");
        for_each_span(k, spans, |i| {
            let [rest, column] = inner.split(i);
            let [outer, output] = outputs.split(rest);
            let [start, taps] = bands.at(output * 2).load_vector::<2>();
            let first = outer.mul_add(inputs, start);
            let weights = weights.at(output * longest);
            let sums: Vec<_> = (0..span).map(|_| k.variable(0.0f32)).collect();
            k.for_(0, taps, 1, |tap| {
                let weight = weights.at(tap).load();
                let at = (first + tap).mul_add(inner.divisor(), column) * span;
                for (sum, x) in sums.iter().zip(src.at(at).load_span(span)) {
                    sum.set(weight.mul_add(x, *sum));
                }
            });
            let sums: Vec<_> = sums.iter().map(|sum| sum.get()).collect();
            dst.at(i * span).put_span(self.accum, &sums);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::gaussian_blur;
    use crate::ops::resize::{self, Filter};
    use crate::testing::gpu::{self, assert_same_bits, encode, stored_values};

    /// Forward and, by the transposed tables, backward.
    #[test]
    fn it_resamples_as_cpus_do() {
        let resized = |filter, [h, w]: [usize; 2], [out_h, out_w]: [usize; 2]| {
            [
                Taps::resize(filter, h, out_h),
                Taps::resize(filter, w, out_w),
            ]
        };
        let cases = [
            (1, 1, resized(Filter::Bilinear, [1, 1], [1, 3])),
            (2, 3, resized(Filter::Bilinear, [5, 4], [8, 9])),
            (1, 8, resized(Filter::BicubicAntialias, [16, 12], [4, 5])),
            (2, 6, resized(Filter::BicubicAntialias, [4, 3], [16, 7])),
            (
                2,
                3,
                [9, 7].map(|extent| gaussian_blur::taps(extent, 5, 0.8)),
            ),
        ];
        for storage in Storage::ALL {
            for accum in Accum::ALL {
                for (n, c, forward) in &cases {
                    let backward = [0, 1].map(|side: usize| forward[side].transposed());
                    for [rows, columns] in [forward, &backward] {
                        let (n, c) = (*n, *c);
                        let src =
                            stored_values(storage, n * rows.inputs() * columns.inputs() * c, 1);
                        let case = format!(
                            "{n} images of {} x {} x {c} to {} x {}",
                            rows.inputs(),
                            columns.inputs(),
                            rows.outputs(),
                            columns.outputs()
                        );
                        let cpu =
                            |dst: &mut [f32]| resize::resample(dst, accum, &src, rows, columns, c);
                        let kernel = |dst: Argument<'_>| {
                            let tables = [rows, columns].map(Table::new);
                            let calls = config(storage, accum, [n, c], &tables[0], &tables[1]);
                            let [first, second] = calls.expect("few elements");
                            let operands = |table: &Table| {
                                [
                                    bytemuck::cast_slice(&table.bands).to_vec(),
                                    bytemuck::cast_slice(&table.weights).to_vec(),
                                ]
                            };
                            let [bands, weights] = operands(&tables[0]);
                            let src = encode(storage, &src);
                            let between = n * rows.outputs() * columns.inputs() * c;
                            let mut between = vec![0; 4 * between];
                            let read =
                                [&src, &bands, &weights].map(|b: &Vec<u8>| Argument::Read(b));
                            let write = [Argument::Write(&mut between)];
                            gpu::run(&first, write.into_iter().chain(read).collect());
                            let [bands, weights] = operands(&tables[1]);
                            let read =
                                [&between, &bands, &weights].map(|b: &Vec<u8>| Argument::Read(b));
                            gpu::run(&second, [dst].into_iter().chain(read).collect())
                        };
                        let elements = n * rows.outputs() * columns.outputs() * c;
                        assert_same_bits(&case, storage, accum, elements, cpu, kernel);
                    }
                }
            }
        }
    }
}
