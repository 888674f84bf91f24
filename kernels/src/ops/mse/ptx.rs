//! Mean squared error on GPUs.

use crate::Accum;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::{Call, Division, Divisor, linear_grid};
use crate::ops::reduction::{Fold, over_cta};
use crate::ops::spans::{Access, for_each_span};
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, F32, Storage, U32, Value};

/// `partial[sample, block] = weight[sample] · Σ (x − target)²` over the block's elements, in f32. Launch with
/// `Write(partial), Read(x), Read(target)`, `Read(weight)` if `weighted`, and the call's numbers. The mean is a sum of
/// [`reduce`](crate::ops::reduce) over all partials with scale 1 / elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub access: Access,
    pub weighted: bool,
}

/// `dx (+)= dy · 2 / elements · weight[sample] · (x − target)`. Launch with `Write(dx)`, or `Update(dx)` under
/// [`Accum::Add`], then `Read(dy)` (one f32), `Read(x), Read(target)`, `Read(weight)` if `weighted`, and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    pub access: Access,
    pub accum: Accum,
    pub weighted: bool,
}

/// Spans of a block that each thread adds.
const SPANS: u32 = 4;

impl Forward {
    /// For `[samples, m]`: samples of m elements. Also gives the number of partials.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(
        storage: Storage,
        [samples, m]: [usize; 2],
        weighted: bool,
    ) -> Result<(Call<Self>, usize), Refused> {
        count(samples.saturating_mul(m), "the number of elements")?;
        let access = Access::widest(storage, &[m]);
        let spans = m as u32 / access.span;
        let blocks = spans.div_ceil(THREADS * SPANS).max(1);
        let partials = samples * blocks as usize;
        let grid = linear_grid(partials)?;
        let variant = Forward { access, weighted };
        Ok((Call::new(variant, grid, vec![spans, blocks]), partials))
    }
}

impl Backward {
    /// For `[samples, m]`: samples of m elements.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        [samples, m]: [usize; 2],
        weighted: bool,
    ) -> Result<Call<Self>, Refused> {
        let access = Access::widest(storage, &[m]);
        let elements = samples.saturating_mul(m);
        let (spans, grid) = access.cover(elements, "the number of elements")?;
        let sample = Divisor::new((m as u32 / access.span).max(1));
        let mut numbers = vec![spans, elements as u32];
        numbers.extend(sample.numbers());
        let variant = Backward {
            access,
            accum,
            weighted,
        };
        Ok(Call::new(variant, grid, numbers))
    }
}

/// A part of both kernels' names.
fn weights(weighted: bool) -> &'static str {
    match weighted {
        true => "weighted",
        false => "plain",
    }
}

impl Variant for Forward {
    const KERNEL: &'static str = "mse/forward";

    fn all() -> Vec<Forward> {
        let pair = |access| [false, true].map(|weighted| Forward { access, weighted });
        Access::all().into_iter().flat_map(pair).collect()
    }

    fn label(&self) -> String {
        format!("{}_{}", self.access.name(), weights(self.weighted))
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let Access { storage, span } = self.access;
        let weight = if self.weighted {
            "weight[sample] * "
        } else {
            ""
        };
        k.contract(&format!(
            "partial[sample, block] = {weight}sum (x - target)^2 over the block, {}; partial is f32.\n\
             Grid: a CTA a block of {} elements, the blocks of a sample first. Reads x and target once.",
            storage.name(),
            THREADS * SPANS * span
        ));
        let partial = k.buffer::<F32>("partial");
        let x = k.floats(storage, "x").read_only();
        let target = k.floats(storage, "target").read_only();
        let weight = self
            .weighted
            .then(|| k.floats(storage, "weight").read_only());
        let spans = k.parameter::<U32>("sample_spans");
        let blocks = k.parameter::<U32>("blocks");
        let (sample, block) = (k.cta_x() / blocks, k.cta_x() % blocks);
        let first = block * (THREADS * SPANS) + k.thread_x();
        let sums: Vec<_> = (0..span).map(|_| k.variable(0.0f32)).collect();
        for s in 0..SPANS {
            let i = first + s * THREADS;
            k.if_(i.lt(spans), || {
                let at = sample.mul_add(spans, i) * span;
                let (x, target) = (x.at(at).load_span(span), target.at(at).load_span(span));
                for ((sum, x), target) in sums.iter().zip(x).zip(target) {
                    let difference = x - target;
                    sum.set(difference.mul_add(difference, *sum));
                }
            });
        }
        let own = sums[1..]
            .iter()
            .fold(sums[0].get(), |total, sum| total + *sum);
        let sum = over_cta(k, Fold::Sum, own);
        k.if_(k.thread_x().eq(0), || {
            let sum = weight.map_or(sum, |weight| weight.at(sample).load() * sum);
            partial.at(k.cta_x()).store(sum);
        });
    }
}

impl Variant for Backward {
    const KERNEL: &'static str = "mse/backward";

    fn all() -> Vec<Backward> {
        let mut all = vec![];
        for access in Access::all() {
            for accum in Accum::ALL {
                all.extend([false, true].map(|weighted| Backward {
                    access,
                    accum,
                    weighted,
                }));
            }
        }
        all
    }

    fn label(&self) -> String {
        let (access, accum) = (self.access.name(), self.accum.name());
        format!("{access}_{accum}_{}", weights(self.weighted))
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let Access { storage, span } = self.access;
        let weight = if self.weighted {
            " * weight[sample]"
        } else {
            ""
        };
        k.contract(&format!(
            "dx {} dy * 2 / elements{weight} * (x - target), {}.\n\
             Grid: ceil(elements / {}) CTAs, {span} elements a thread. Reads x and target and writes dx once.",
            self.accum.symbol(),
            storage.name(),
            THREADS * span
        ));
        let dx = k.floats(storage, "dx");
        let dy = k.buffer::<F32>("dy").read_only();
        let x = k.floats(storage, "x").read_only();
        let target = k.floats(storage, "target").read_only();
        let weight = self
            .weighted
            .then(|| k.floats(storage, "weight").read_only());
        let spans = k.parameter::<U32>("spans");
        let elements = k.parameter::<U32>("elements");
        let sample = Division::parameter(k, "sample_spans");
        for_each_span(k, spans, |i| {
            let scale: Value<F32> = dy.load() * 2.0 / elements.to_f32();
            let scale = match weight {
                Some(weight) => scale * weight.at(sample.quotient(i)).load(),
                None => scale,
            };
            let x = x.at(i * span).load_span(span);
            let target = target.at(i * span).load_span(span);
            let pairs = x.into_iter().zip(target);
            let results: Vec<_> = pairs.map(|(x, target)| (x - target) * scale).collect();
            dx.at(i * span).put_span(self.accum, &results);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::{mse, reduce};
    use crate::testing::gpu::{self, assert_close, assert_moves, encode, stored_values};
    use crate::testing::to_f64;

    #[test]
    fn it_is_that_of_cpus() {
        for storage in Storage::ALL {
            for (shape, weighted) in [
                ([1, 1], false),
                ([3, 7], true),
                ([5, 12], true),
                ([2, 8192], true),
                ([1, 20_000], false),
            ] {
                let [n, m] = shape;
                let case = format!("{shape:?}, weighted: {weighted}");
                let [x, target] = [1, 2].map(|seed| stored_values(storage, n * m, seed));
                let weight = weighted.then(|| stored_values(storage, n, 3));
                let bytes = [&x, &target].map(|x| encode(storage, x));
                let weight_bytes = weight.as_ref().map(|w| encode(storage, w));
                let operands = bytes.iter().chain(&weight_bytes);
                let operands: Vec<&[u8]> = operands.map(Vec::as_slice).collect();
                let wide = [&x, &target].map(|x| to_f64(x));
                let weight_wide = weight.as_ref().map(|w| to_f64(w));
                assert_close(
                    &case,
                    storage,
                    Accum::Replace,
                    1,
                    |out: &mut [f32]| out[0] = mse::forward(&x, &target, weight.as_deref(), n),
                    |out: &mut [f64]| {
                        out[0] = mse::forward(&wide[0], &wide[1], weight_wide.as_deref(), n)
                    },
                    |out| {
                        let (call, count) =
                            Forward::config(storage, shape, weighted).expect("few elements");
                        let mut partial = vec![0; 4 * count];
                        let write = [Argument::Write(&mut partial)].into_iter();
                        let read = operands.iter().map(|bytes| Argument::Read(bytes));
                        let profile = gpu::run(&call, write.chain(read).collect());
                        if m == 8192 {
                            let least = 2 * n * m * storage.bytes() as usize;
                            assert_moves(&case, &profile, least);
                        }
                        let sum = reduce::ptx::config(
                            Storage::F32,
                            storage,
                            Accum::Replace,
                            &[count],
                            &[true],
                        );
                        let sum = sum.expect("few elements");
                        assert_eq!(sum.len(), 1);
                        let scale = Argument::F32(1.0 / (n * m) as f32);
                        gpu::run(&sum[0].call, vec![out, Argument::Read(&partial), scale])
                    },
                );
                let dy = 0.75;
                for accum in Accum::ALL {
                    let weight = weight.as_deref();
                    assert_close(
                        &case,
                        storage,
                        accum,
                        n * m,
                        |dx: &mut [f32]| mse::backward(dx, accum, dy, &x, &target, weight, n),
                        |dx: &mut [f64]| {
                            let weight = weight_wide.as_deref();
                            mse::backward(dx, accum, dy, &wide[0], &wide[1], weight, n)
                        },
                        |dx| {
                            let call = Backward::config(storage, accum, shape, weighted);
                            let dy = encode(Storage::F32, &[dy as f32]);
                            let first = [dx, Argument::Read(&dy)].into_iter();
                            let read = operands.iter().map(|bytes| Argument::Read(bytes));
                            gpu::run(&call.expect("few"), first.chain(read).collect())
                        },
                    );
                }
            }
        }
    }
}
