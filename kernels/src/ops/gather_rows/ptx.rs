//! Row selection on GPUs.

use crate::Accum;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::{Call, Division, Divisor};
use crate::ops::rows;
use crate::ops::spans::{Access, for_each_span};
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, S32, Storage, U32, Value};

/// `y[i] = x[i, index[i]]` for x [n, l, c] and y [n, c], every index being less than l. Launch with
/// `Write(y), Read(x), Read(index)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub access: Access,
}

/// `dx[i, index[i]] (+)= dy[i]`; every other row gets zeros on [`Accum::Replace`]. Launch with `Write(dx)`, or `Update(dx)`
/// under [`Accum::Add`], then `Read(dy), Read(index)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    pub access: Access,
    pub accum: Accum,
}

/// The numbers of both kernels for x [n, l, c], after those of spans.
fn numbers(access: Access, l: usize, c: usize) -> Vec<u32> {
    let row = c as u32 / access.span;
    let mut numbers = Divisor::new(row.max(1)).numbers().to_vec();
    numbers.extend(Divisor::new((l as u32).max(1)).numbers());
    numbers
}

impl Forward {
    /// For x [n, l, c].
    ///
    /// # Errors
    /// If x has more elements than kernels count.
    pub fn config(storage: Storage, [n, l, c]: [usize; 3]) -> Result<Call<Self>, Refused> {
        count(
            n.saturating_mul(l).saturating_mul(c),
            "the number of elements",
        )?;
        let access = Access::widest(storage, &[c]);
        let (spans, grid) = access.cover(n * c, "the number of elements")?;
        let numbers = [vec![spans], numbers(access, l, c)].concat();
        Ok(Call::new(Forward { access }, grid, numbers))
    }
}

impl Backward {
    /// For dx [n, l, c].
    ///
    /// # Errors
    /// If dx has more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        [n, l, c]: [usize; 3],
    ) -> Result<Call<Self>, Refused> {
        let elements = n.saturating_mul(l).saturating_mul(c);
        count(elements, "the number of elements")?;
        let access = Access::widest(storage, &[c]);
        // Threads stand for what is written: all of dx, or the rows that are added to.
        let written = match accum {
            Accum::Replace => elements,
            Accum::Add => n * c,
        };
        let (spans, grid) = access.cover(written, "the number of elements")?;
        let numbers = [vec![spans], numbers(access, l, c)].concat();
        Ok(Call::new(Backward { access, accum }, grid, numbers))
    }
}

impl Variant for Forward {
    const KERNEL: &'static str = "gather_rows/forward";

    rows::variants!(access: Access);

    fn write(&self, k: &Assembler) {
        let Access { storage, span } = self.access;
        k.contract(&format!(
            "y[i] = x[i, index[i]] for x [n, l, c], {}.\n\
             Grid: ceil(elements of y / {}) CTAs, {span} elements a thread. Reads the rows that it copies and writes y once.",
            storage.name(),
            THREADS * span
        ));
        let y = k.floats(storage, "y");
        let x = k.floats(storage, "x").read_only();
        let index = k.buffer::<S32>("index").read_only();
        let spans = k.parameter::<U32>("spans");
        let row = Division::parameter(k, "row_spans");
        let rows = Division::parameter(k, "rows");
        for_each_span(k, spans, |i| {
            let [sample, column] = row.split(i);
            let index = index.at(sample).load().cast::<U32>();
            let at = sample.mul_add(rows.divisor(), index);
            let x = x.at(at.mul_add(row.divisor(), column) * span);
            y.at(i * span).store_span(&x.load_span(span));
        });
    }
}

impl Variant for Backward {
    const KERNEL: &'static str = "gather_rows/backward";

    rows::variants!(access: Access, accum);

    fn write(&self, k: &Assembler) {
        let Access { storage, span } = self.access;
        let (rest, over) = match self.accum {
            Accum::Replace => ("0 elsewhere", "dx"),
            Accum::Add => ("nothing elsewhere", "dy"),
        };
        k.contract(&format!(
            "dx[i, index[i]] {} dy[i], {rest}, for dx [n, l, c], {}.\n\
             Grid: ceil(elements of {over} / {}) CTAs, {span} elements a thread. Reads dy once and writes dx once.",
            self.accum.symbol(),
            storage.name(),
            THREADS * span
        ));
        let dx = k.floats(storage, "dx");
        let dy = k.floats(storage, "dy").read_only();
        let index = k.buffer::<S32>("index").read_only();
        let spans = k.parameter::<U32>("spans");
        let row = Division::parameter(k, "row_spans");
        let rows = Division::parameter(k, "rows");
        for_each_span(k, spans, |i| match self.accum {
            Accum::Replace => {
                let [at, column] = row.split(i);
                let [sample, place] = rows.split(at);
                let index = index.at(sample).load().cast::<U32>();
                k.if_else(
                    place.eq(index),
                    || {
                        let dy = dy.at(sample.mul_add(row.divisor(), column) * span);
                        dx.at(i * span).store_span(&dy.load_span(span));
                    },
                    || {
                        let zeros = vec![Value::from_bits(0); span as usize];
                        dx.at(i * span).store_span(&zeros);
                    },
                );
            }
            Accum::Add => {
                let [sample, column] = row.split(i);
                let index = index.at(sample).load().cast::<U32>();
                let at = sample.mul_add(rows.divisor(), index);
                let dx = dx.at(at.mul_add(row.divisor(), column) * span);
                dx.put_span(Accum::Add, &dy.at(i * span).load_span(span));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::gather_rows;
    use crate::testing::gpu::{self, assert_moves, assert_same_bits, encode, stored_values};

    #[test]
    fn they_move_what_cpus_move() {
        for storage in Storage::ALL {
            for shape in [[1, 1, 1], [3, 5, 7], [5, 2, 12], [2, 77, 64], [9, 3, 512]] {
                let [n, l, c] = shape;
                let index: Vec<i32> = (0..n).map(|i| (i * 31 % l) as i32).collect();
                let index_bytes: &[u8] = bytemuck::cast_slice(&index);
                let case = format!("{shape:?}");
                let bytes = storage.bytes() as usize;

                let x = stored_values(storage, n * l * c, 1);
                let cpu = |y: &mut [f32]| gather_rows::forward(y, &x, &index, l, c);
                let kernel = |y: Argument<'_>| {
                    let call = Forward::config(storage, shape).expect("few elements");
                    let x = encode(storage, &x);
                    let operands = vec![y, Argument::Read(&x), Argument::Read(index_bytes)];
                    gpu::run(&call, operands)
                };
                assert_same_bits(&case, storage, Accum::Replace, n * c, cpu, kernel);

                let dy = stored_values(storage, n * c, 1);
                for accum in Accum::ALL {
                    let cpu = |dx: &mut [f32]| gather_rows::backward(dx, accum, &dy, &index, l, c);
                    let kernel = |dx: Argument<'_>| {
                        let call = Backward::config(storage, accum, shape).expect("few elements");
                        let dy = encode(storage, &dy);
                        let operands = vec![dx, Argument::Read(&dy), Argument::Read(index_bytes)];
                        gpu::run(&call, operands)
                    };
                    let profile = assert_same_bits(&case, storage, accum, n * l * c, cpu, kernel);
                    if c == 512 {
                        let rows = match accum {
                            Accum::Replace => n * l + n,
                            Accum::Add => 3 * n,
                        };
                        assert_moves(&case, &profile, rows * c * bytes);
                    }
                }
            }
        }
    }
}
