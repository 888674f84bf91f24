//! Cross-entropy on GPUs.

use crate::Accum;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::{Call, Division, Divisor};
use crate::ops::reduction::Fold;
use crate::ops::rows::{self, Rows, exp};
use crate::ops::spans::{Access, for_each_span};
use crate::ops::variants::{Refused, Variant};
use crate::ptx::{Assembler, F32, Fast, S32, Storage, U32, Value};
use crate::real::Real;

/// `lse = ln Σ exp` of every row of logits, and `loss = lse − logits[target]`, both [n] in f32 whatever the storage. Launch
/// with `Write(lse), Write(loss), Read(logits), Read(target)` and the call's numbers; every target is less than c. The mean
/// of the losses is a sum of [`reduce`](crate::ops::reduce).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub rows: Rows,
}

/// `dlogits (+)= scale·(exp(logits − lse) − onehot(target))` with scale = dy / n. Launch with `Write(dlogits)`, or
/// `Update(dlogits)` under [`Accum::Add`], then `Read(dy)` (one f32), `Read(logits)`, `Read(lse)` (f32),
/// `Read(target)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    pub access: Access,
    pub accum: Accum,
}

impl Forward {
    /// For logits `[n, c]`.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(storage: Storage, shape: [usize; 2]) -> Result<Call<Self>, Refused> {
        Rows::call(storage, shape, |rows| Forward { rows })
    }
}

impl Backward {
    /// For logits `[n, c]`.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        [n, c]: [usize; 2],
    ) -> Result<Call<Self>, Refused> {
        let access = Access::widest(storage, &[c]);
        let (spans, grid) = access.cover(n.saturating_mul(c), "the number of elements")?;
        let row = Divisor::new((c as u32 / access.span).max(1));
        let numbers = [vec![spans, n as u32], row.numbers().to_vec()].concat();
        Ok(Call::new(Backward { access, accum }, grid, numbers))
    }
}

impl Variant for Forward {
    const KERNEL: &'static str = "cross_entropy/forward";

    rows::variants!(rows: Rows);

    fn write(&self, k: &Assembler) {
        let storage = self.rows.access.storage;
        k.contract(&format!(
            "lse = max + ln sum exp(logits - max) and loss = lse - logits[target] for each row, {}; both f32.\n{}\n\
             Reads logits and target and writes lse and loss.",
            storage.name(),
            self.rows.describe()
        ));
        let lse = k.buffer::<F32>("lse");
        let loss = k.buffer::<F32>("loss");
        let logits = k.floats(storage, "logits").read_only();
        let target = k.buffer::<S32>("target").read_only();
        self.rows.for_each(k, |row| {
            let x = row.read(logits);
            k.comment("the largest logit");
            let max = row.fold(Fold::Max, &[&x], |max, x| max.max(x[0]));
            k.comment("the sum of exponentials");
            let sum = row.fold(Fold::Sum, &[&x], |sum, x| sum + exp(storage, x[0] - max));
            row.once(|| {
                let ln = match storage {
                    Storage::F32 => Real::ln(sum),
                    Storage::Bf16 => Fast(sum).ln().0,
                };
                let result = max + ln;
                let target = target.at(row.index()).load().cast::<U32>();
                let right = logits.at(row.first() + target).load();
                lse.at(row.index()).store(result);
                loss.at(row.index()).store(result - right);
            });
        });
    }
}

impl Variant for Backward {
    const KERNEL: &'static str = "cross_entropy/backward";

    rows::variants!(access: Access, accum);

    fn write(&self, k: &Assembler) {
        let Access { storage, span } = self.access;
        k.contract(&format!(
            "dlogits {} dy / n * (exp(logits - lse) - onehot(target)), {}.\n\
             Grid: ceil(elements / {}) CTAs, {span} elements a thread. Reads logits and writes dlogits once.",
            self.accum.symbol(),
            storage.name(),
            THREADS * span
        ));
        let dlogits = k.floats(storage, "dlogits");
        let dy = k.buffer::<F32>("dy").read_only();
        let logits = k.floats(storage, "logits").read_only();
        let lse = k.buffer::<F32>("lse").read_only();
        let target = k.buffer::<S32>("target").read_only();
        let spans = k.parameter::<U32>("spans");
        let n = k.parameter::<U32>("n");
        let row = Division::parameter(k, "row_spans");
        for_each_span(k, spans, |i| {
            let scale = dy.load() / n.to_f32();
            let [sample, column] = row.split(i);
            let lse = lse.at(sample).load();
            let target = target.at(sample).load().cast::<U32>();
            // Wraps to more than the span where the right class lies elsewhere.
            let right = target - column * span;
            let x = logits.at(i * span).load_span(span);
            let dlogits = dlogits.at(i * span);
            let old = match self.accum {
                Accum::Replace => vec![None; span as usize],
                Accum::Add => dlogits.load_span(span).into_iter().map(Some).collect(),
            };
            let results: Vec<Value<F32>> = (0..)
                .zip(x.into_iter().zip(old))
                .map(|(e, (x, old)): (u32, _)| {
                    let power = exp(storage, x - lse) * scale;
                    // In the order of additions that CPUs have.
                    let sum = old.map_or(power, |old: Value<F32>| old + power);
                    right.eq(e).select(sum - scale, sum)
                })
                .collect();
            dlogits.store_span(&results);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::cross_entropy;
    use crate::testing::gpu::{self, assert_close, assert_moves, encode, stored_values};
    use crate::testing::to_f64;

    const SHAPES: [[usize; 2]; 7] = [
        [1, 1],
        [9, 5],
        [17, 77],
        [8, 256],
        [2, 1027],
        [2, 4096],
        [1, 8200],
    ];

    #[test]
    fn it_is_that_of_cpus() {
        for storage in Storage::ALL {
            for shape in SHAPES {
                let [n, c] = shape;
                let case = format!("{shape:?}");
                let logits: Vec<f32> = stored_values(storage, n * c, 1)
                    .iter()
                    .map(|x| 4.0 * x)
                    .collect();
                let target: Vec<i32> = (0..n).map(|i| (i * 31 % c) as i32).collect();
                let target_bytes: &[u8] = bytemuck::cast_slice(&target);

                let mut loss = vec![0; 4 * n];
                let logits_bytes = encode(storage, &logits);
                let kernel = |lse: Argument<'_>| {
                    let call = Forward::config(storage, shape).expect("few elements");
                    let read = [&*logits_bytes, target_bytes].map(Argument::Read);
                    let operands = [lse, Argument::Write(&mut loss)].into_iter().chain(read);
                    gpu::run(&call, operands.collect())
                };
                let mut mean = 0.0;
                let profile = assert_close(
                    &case,
                    // Statistics are f32 whatever the storage.
                    Storage::F32,
                    Accum::Replace,
                    n,
                    |lse: &mut [f32]| {
                        cross_entropy::forward(lse, &logits, &target, c);
                    },
                    |lse: &mut [f64]| {
                        mean = cross_entropy::forward(lse, &to_f64(&logits), &target, c);
                    },
                    kernel,
                );
                let losses = gpu::decode(Storage::F32, &loss);
                let got: f64 = losses.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
                // 2.7e-8 is measured.
                assert!(
                    (got - mean).abs() <= 1e-7 * mean.abs().max(1.0),
                    "{case}: {got}, {mean}"
                );
                if c == 4096 {
                    assert_moves(&case, &profile, n * c * storage.bytes() as usize);
                }

                let mut lse = vec![0.0; n];
                cross_entropy::forward(&mut lse, &logits, &target, c);
                let dy = 0.75f32;
                let scale = f64::from(dy) / n as f64;
                for accum in Accum::ALL {
                    let kernel = |dlogits: Argument<'_>| {
                        let call = Backward::config(storage, accum, shape).expect("few elements");
                        let dy = encode(Storage::F32, &[dy]);
                        let read = [
                            &*dy,
                            &*logits_bytes,
                            bytemuck::cast_slice(&lse),
                            target_bytes,
                        ];
                        let read = read.map(Argument::Read);
                        gpu::run(&call, [dlogits].into_iter().chain(read).collect())
                    };
                    let cpu = |d: &mut [f32]| {
                        cross_entropy::backward(d, accum, scale, &logits, &lse, &target, c)
                    };
                    if storage == Storage::F32 {
                        gpu::assert_same_bits(&case, storage, accum, n * c, cpu, kernel);
                        continue;
                    }
                    assert_close(
                        &case,
                        storage,
                        accum,
                        n * c,
                        cpu,
                        |d: &mut [f64]| {
                            let (logits, lse) = (to_f64(&logits), to_f64(&lse));
                            cross_entropy::backward(d, accum, scale, &logits, &lse, &target, c)
                        },
                        kernel,
                    );
                }
            }
        }
    }
}
