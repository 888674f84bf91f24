//! The variational bound on GPUs, in f64 as on CPUs: both terms are small differences of large numbers.
//!
//! A thread treats one element at a time. The work is arithmetic, of which wider loads would only unroll more.

use super::Coefficients;
use super::function::{divergence, likelihood};
use crate::Accum;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::{Call, Division, Divisor, linear_grid};
use crate::ops::reduction::{Fold, over_cta};
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, F32, F64, Floats, Global, Pointer, Storage, U32, Value};

/// `partial[sample, block] = weight[sample] · Σ bits` over the block's elements, in f32. Launch with `Write(partial),
/// Read(variance), Read(eps), Read(x0), Read(xt), Read(coefficients)` ([samples, 7] in f64, as [`Coefficients`] lies in
/// memory), `Read(weight)` or `Null`, and the call's numbers. The mean is a sum of [`reduce`](crate::ops::reduce) over all
/// partials with scale 1 / elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub storage: Storage,
}

/// `dvariance (+)= dy / elements · weight[sample] · ∂ bits / ∂ variance`. Launch with `Write(dvariance)`, or
/// `Update(dvariance)` under [`Accum::Add`], then `Read(dy)` (one f32), and as [`Forward`] from variance on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    pub storage: Storage,
    pub accum: Accum,
}

/// Elements of a block that each thread adds.
const ELEMENTS: u32 = 16;

impl Forward {
    /// For `[samples, m]`: samples of m elements. Also gives the number of partials.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(
        storage: Storage,
        [samples, m]: [usize; 2],
    ) -> Result<(Call<Self>, usize), Refused> {
        count(samples.saturating_mul(m), "the number of elements")?;
        let blocks = (m as u32).div_ceil(THREADS * ELEMENTS).max(1);
        let partials = samples * blocks as usize;
        let grid = linear_grid(partials)?;
        let call = Call::new(Forward { storage }, grid, vec![m as u32, blocks]);
        Ok((call, partials))
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
    ) -> Result<Call<Self>, Refused> {
        let elements = count(samples.saturating_mul(m), "the number of elements")?;
        let grid = linear_grid(elements.div_ceil(THREADS) as usize)?;
        let sample = Divisor::new((m as u32).max(1));
        let numbers = [vec![elements], sample.numbers().to_vec()].concat();
        Ok(Call::new(Backward { storage, accum }, grid, numbers))
    }
}

/// What both kernels read.
#[derive(Clone, Copy)]
struct Operands<'k> {
    k: &'k Assembler,
    /// v, ε, x₀, xₜ.
    pictures: [Floats<'k>; 4],
    coefficients: Pointer<'k, Global, F64>,
    weight: Floats<'k>,
}

impl<'k> Operands<'k> {
    fn parameters(k: &'k Assembler, storage: Storage) -> Operands<'k> {
        Operands {
            k,
            pictures: ["variance", "eps", "x0", "xt"]
                .map(|name| k.floats(storage, name).read_only()),
            coefficients: k.buffer("coefficients").read_only(),
            weight: k.floats(storage, "weight").read_only(),
        }
    }

    /// The constants of a sample.
    fn coefficients(self, sample: Value<'k, U32>) -> Coefficients<Value<'k, F64>> {
        let first = self.coefficients.at(sample * 7);
        let [a, b, c, d, e, f, g] = [0u32, 1, 2, 3, 4, 5, 6].map(|i| first.at(i).load());
        Coefficients {
            x0_from_xt: a,
            x0_from_eps: b,
            mean_from_x0: c,
            mean_from_xt: d,
            log_variance_low: e,
            log_variance_high: f,
            first: g,
        }
    }

    /// Calls `body` with the bits of element `i`, and their derivative with respect to v.
    fn term(
        self,
        coefficients: &Coefficients<Value<'k, F64>>,
        i: Value<'k, U32>,
        body: impl Fn(Value<'k, F64>, Value<'k, F64>),
    ) {
        let element = self.pictures.map(|x| x.at(i).load().widen());
        // Samples are longer than warps, mostly: one side is skipped.
        self.k.if_else(
            coefficients.first.ne(0.0),
            || {
                self.k.comment("the likelihood of the 8-bit picture");
                let (bits, slope) = likelihood(coefficients, element);
                body(bits, slope);
            },
            || {
                self.k.comment("the divergence of two normals");
                let (bits, slope) = divergence(coefficients, element);
                body(bits, slope);
            },
        );
    }

    /// The sample's weight; 1 without weights.
    fn weight(self, sample: Value<'k, U32>) -> Value<'k, F64> {
        let weight = self.k.variable(1.0f64);
        self.k.if_(self.weight.is_present(), || {
            weight.set(self.weight.at(sample).load().widen());
        });
        weight.get()
    }
}

impl Variant for Forward {
    const KERNEL: &'static str = "variational_bound/forward";

    fn all() -> Vec<Forward> {
        Storage::ALL.map(|storage| Forward { storage }).to_vec()
    }

    fn label(&self) -> String {
        self.storage.name().to_string()
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "partial[sample, block] = weight[sample] * sum of the bound in bits over the block, {}; partial is f32.\n\
             Grid: a CTA a block of {} elements, the blocks of a sample first. Computes in f64. Reads its operands once.",
            self.storage.name(),
            THREADS * ELEMENTS
        ));
        let partial = k.buffer("partial");
        let operands = Operands::parameters(k, self.storage);
        let m = k.parameter::<U32>("sample_elements");
        let blocks = k.parameter::<U32>("blocks");
        let (sample, block) = (k.cta_x() / blocks, k.cta_x() % blocks);
        let coefficients = operands.coefficients(sample);
        let sum = k.variable(0.0f64);
        let first = block * (THREADS * ELEMENTS);
        let end = m.min(first + THREADS * ELEMENTS);
        k.for_(first + k.thread_x(), end, THREADS, |i| {
            let i = sample.mul_add(m, i);
            operands.term(&coefficients, i, |bits, _| sum.set(sum + bits));
        });
        let weighted = sum * operands.weight(sample);
        let total = over_cta(k, Fold::Sum, weighted.narrow());
        k.if_(k.thread_x().eq(0), || {
            Floats::F32(partial).at(k.cta_x()).store(total);
        });
    }
}

impl Variant for Backward {
    const KERNEL: &'static str = "variational_bound/backward";

    fn all() -> Vec<Backward> {
        let pair = |storage| Accum::ALL.map(|accum| Backward { storage, accum });
        Storage::ALL.into_iter().flat_map(pair).collect()
    }

    fn label(&self) -> String {
        format!("{}_{}", self.storage.name(), self.accum.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "dvariance {} dy / elements * weight[sample] * derivative of the bound in bits, {}.\n\
             Grid: ceil(elements / {THREADS}) CTAs, an element a thread. Computes in f64. Reads its operands and writes \
             dvariance once.",
            self.accum.symbol(),
            self.storage.name(),
        ));
        let dvariance = k.floats(self.storage, "dvariance");
        let dy = k.buffer::<F32>("dy").read_only();
        let operands = Operands::parameters(k, self.storage);
        let elements = k.parameter::<U32>("elements");
        let samples = Division::parameter(k, "sample_elements");
        let i = k.cta_x() * THREADS + k.thread_x();
        k.exit_if(i.ge(elements));
        let sample = samples.quotient(i);
        let scale = dy.load().widen() / elements.to_f64() * operands.weight(sample);
        operands.term(&operands.coefficients(sample), i, |_, slope| {
            let gradient = (slope * scale).narrow();
            dvariance.at(i).put_span(self.accum, &[gradient]);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::{reduce, variational_bound};
    use crate::testing::gpu::{self, assert_close, assert_moves, encode, stored_values};
    use crate::testing::to_f64;

    /// Step t of the linear schedule of 1000 steps from β = 1e-4 to 0.02.
    fn coefficients(t: usize) -> Coefficients {
        let beta = |t: usize| 1e-4 + (0.02 - 1e-4) * t as f64 / 999.0;
        let alpha_bar = |steps: usize| (0..steps).map(|t| 1.0 - beta(t)).product::<f64>();
        let posterior = |t: usize| beta(t) * (1.0 - alpha_bar(t)) / (1.0 - alpha_bar(t + 1));
        let (bar, before) = (alpha_bar(t + 1), alpha_bar(t));
        Coefficients {
            x0_from_xt: (1.0 / bar).sqrt(),
            x0_from_eps: (1.0 / bar - 1.0).sqrt(),
            mean_from_x0: beta(t) * before.sqrt() / (1.0 - bar),
            mean_from_xt: (1.0 - before) * (1.0 - beta(t)).sqrt() / (1.0 - bar),
            log_variance_low: posterior(t.max(1)).ln(),
            log_variance_high: beta(t).ln(),
            first: if t == 0 { 1.0 } else { 0.0 },
        }
    }

    /// v, a predicted ε, 8-bit x₀, and the xₜ that ε was nearly added to: what a trained model sees.
    fn pictures(storage: Storage, m: usize, coefficients: &[Coefficients]) -> [Vec<f32>; 4] {
        let n = m * coefficients.len();
        let [variance, noise, wrong, x0] = [1, 2, 3, 4].map(|seed| stored_values(storage, n, seed));
        let x0: Vec<f32> = x0
            .iter()
            .map(|x| (x * 140.0).clamp(-127.5, 127.5).round() / 127.5)
            .collect();
        let x0: Vec<f32> = x0.iter().map(|x| x.clamp(-1.0, 1.0)).collect();
        let xt = (0..n).map(|i| {
            let k = &coefficients[i / m];
            let eps = f64::from(noise[i]) * 1.7;
            ((f64::from(x0[i]) + k.x0_from_eps * eps) / k.x0_from_xt) as f32
        });
        let xt: Vec<f32> = xt.collect();
        let eps: Vec<f32> = noise
            .iter()
            .zip(&wrong)
            .map(|(e, w)| 1.7 * e + 0.2 * w)
            .collect();
        [variance, eps, x0, xt].map(|x| gpu::decode(storage, &encode(storage, &x)))
    }

    #[test]
    fn it_is_that_of_cpus() {
        for storage in Storage::ALL {
            for (steps, m, weighted) in [
                (&[0][..], 1, false),
                (&[500], 7, true),
                (&[0, 1, 999], 65, true),
                (&[0, 0], 8192, false),
                (&[2], 4100, false),
                (&[3, 0, 40], 1024, true),
            ] {
                let case = format!("{m} elements at {steps:?}, weighted: {weighted}");
                let coefficients: Vec<_> = steps.iter().map(|&t| coefficients(t)).collect();
                let shape = [steps.len(), m];
                let n = steps.len() * m;
                let single = pictures(storage, m, &coefficients);
                let double = single.each_ref().map(|x| to_f64(x));
                let weight = weighted.then(|| stored_values(storage, steps.len(), 5));
                let wide_weight = weight.as_ref().map(|w| to_f64(w));
                let bytes = single.each_ref().map(|x| encode(storage, x));
                let weight_bytes = weight.as_ref().map(|w| encode(storage, w));
                let read = || {
                    let pictures = bytes.iter().map(|x| Argument::Read(x));
                    let constants = Argument::Read(bytemuck::cast_slice(&coefficients));
                    let weight = weight_bytes.as_ref();
                    let weight = weight.map_or(Argument::Null, |w| Argument::Read(w));
                    pictures.chain([constants, weight]).collect::<Vec<_>>()
                };
                let on_cpu = variational_bound::Operands {
                    variance: &single[0],
                    eps: &single[1],
                    x0: &single[2],
                    xt: &single[3],
                    coefficients: &coefficients,
                    weight: weight.as_deref(),
                };
                let exact = variational_bound::Operands {
                    variance: &double[0],
                    eps: &double[1],
                    x0: &double[2],
                    xt: &double[3],
                    coefficients: &coefficients,
                    weight: wide_weight.as_deref(),
                };
                assert_close(
                    &case,
                    storage,
                    Accum::Replace,
                    1,
                    |out: &mut [f32]| out[0] = variational_bound::forward(&on_cpu),
                    |out: &mut [f64]| out[0] = variational_bound::forward(&exact),
                    |out| {
                        let (call, count) = Forward::config(storage, shape).expect("few elements");
                        let mut partial = vec![0; 4 * count];
                        let operands = [Argument::Write(&mut partial)].into_iter().chain(read());
                        let profile = gpu::run(&call, operands.collect());
                        if m == 8192 {
                            assert_moves(&case, &profile, 4 * n * storage.bytes() as usize);
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
                        let scale = Argument::F32(1.0 / n as f32);
                        gpu::run(&sum[0].call, vec![out, Argument::Read(&partial), scale])
                    },
                );
                let dy = 0.75;
                for accum in Accum::ALL {
                    assert_close(
                        &case,
                        storage,
                        accum,
                        n,
                        |d: &mut [f32]| variational_bound::backward(d, accum, dy, &on_cpu),
                        |d: &mut [f64]| variational_bound::backward(d, accum, dy, &exact),
                        |d| {
                            let call = Backward::config(storage, accum, shape);
                            let dy = encode(Storage::F32, &[dy as f32]);
                            let first = [d, Argument::Read(&dy)].into_iter();
                            gpu::run(&call.expect("few"), first.chain(read()).collect())
                        },
                    );
                }
            }
        }
    }
}
