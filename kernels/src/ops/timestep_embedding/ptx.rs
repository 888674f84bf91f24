//! Time embeddings on GPUs.

use super::MAX_PERIOD;
use crate::math;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::{Call, Division, Divisor, linear_grid};
use crate::ops::spans::for_each_span;
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, F32, Storage, U32, Value};

/// `y[i] = [sin(t·ω), cos(t·ω)]`, or the cosines first, and a zero at the end of an odd dim. Launch with `Write(y)`,
/// `Read(steps)` (f32 whatever the storage of y: bf16 holds no step beyond 256 exactly), `Read` of [`frequencies`], and the
/// call's numbers.
///
/// GPUs have few f64 units. An angle is a sum of two floats, whole turns are taken off exactly, and what is left is rounded
/// once: right to 1.6e-7 for steps up to 10000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub storage: Storage,
}

/// ω / 2π for each pair of a sine and a cosine: how many turns a step is, as a sum of two floats.
pub fn frequencies(dim: usize, shift: f64) -> Vec<[f32; 2]> {
    let half = dim / 2;
    let frequency = |j: usize| {
        let omega = (-MAX_PERIOD.ln() * j as f64 / (half as f64 - shift)).exp();
        let turns = omega / std::f64::consts::TAU;
        [turns as f32, (turns - f64::from(turns as f32)) as f32]
    };
    (0..half).map(frequency).collect()
}

impl Forward {
    /// For `n` steps.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(
        storage: Storage,
        n: usize,
        dim: usize,
        cos_first: bool,
    ) -> Result<Call<Self>, Refused> {
        count(n.saturating_mul(dim), "the number of elements")?;
        // A thread for each pair; an odd dim has one more, whose sine is the zero.
        let half = dim / 2;
        let pairs = dim.div_ceil(2);
        let all = n * pairs;
        let (sin_at, cos_at) = if cos_first { (half, 0) } else { (0, half) };
        let mut numbers = vec![all as u32];
        numbers.extend(Divisor::new((pairs as u32).max(1)).numbers());
        numbers.extend([dim, half, sin_at, cos_at].map(|number| number as u32));
        let grid = linear_grid(all.div_ceil(THREADS as usize))?;
        Ok(Call::new(Forward { storage }, grid, numbers))
    }
}

impl Variant for Forward {
    const KERNEL: &'static str = "timestep_embedding/forward";

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
            "y[i] = [sin(2 pi t f), cos(2 pi t f)] for the turns f that a step is, a sum of two floats; {}.\n\
             Grid: ceil(pairs / {THREADS}) CTAs, a sine and a cosine a thread. Writes y once.",
            self.storage.name()
        ));
        let y = k.floats(self.storage, "y");
        let steps = k.buffer::<F32>("steps").read_only();
        let frequencies = k.buffer::<F32>("frequencies").read_only();
        let threads = k.parameter::<U32>("pairs");
        let pairs = Division::parameter(k, "sample_pairs");
        let dim = k.parameter::<U32>("dim");
        let half = k.parameter::<U32>("half");
        let sin_at = k.parameter::<U32>("sin_at");
        let cos_at = k.parameter::<U32>("cos_at");
        for_each_span(k, threads, |i| {
            let [sample, pair] = pairs.split(i);
            let y = y.at(sample * dim);
            k.if_else(
                pair.lt(half),
                || {
                    let t = steps.at(sample).load();
                    let [high, low] = frequencies.at(pair * 2).load_vector::<2>();
                    k.comment("the turns, as a sum of two floats");
                    let turns = t * high;
                    let rest: Value<F32> = t.mul_add(low, t.mul_add(high, -turns));
                    let [sin, cos] = math::sin_cos_turns(turns, rest);
                    y.at(sin_at + pair).store(sin);
                    y.at(cos_at + pair).store(cos);
                },
                || y.at(dim - 1).store(0.0f32),
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Accum;
    use crate::launch::Argument;
    use crate::ops::timestep_embedding;
    use crate::testing::gpu::{self, assert_close};

    #[test]
    fn it_is_that_of_cpus() {
        let steps: Vec<f32> = (0..50)
            .map(|i| i as f32 * 20.4)
            .chain([999.0, 9999.5])
            .collect();
        let wide: Vec<f64> = steps.iter().map(|&t| f64::from(t)).collect();
        let n = steps.len();
        for storage in Storage::ALL {
            for (dim, cos_first, shift) in [(1, false, 0.0), (7, true, 0.0), (64, true, 1.0)] {
                let case = format!("dim {dim}");
                let table = frequencies(dim, shift);
                assert_close(
                    &case,
                    storage,
                    Accum::Replace,
                    n * dim,
                    |y: &mut [f32]| timestep_embedding::forward(y, &steps, dim, cos_first, shift),
                    |y: &mut [f64]| timestep_embedding::forward(y, &wide, dim, cos_first, shift),
                    |y| {
                        let call = Forward::config(storage, n, dim, cos_first);
                        let steps = Argument::Read(bytemuck::cast_slice(&steps));
                        let table = Argument::Read(bytemuck::cast_slice(&table));
                        gpu::run(&call.expect("few elements"), vec![y, steps, table])
                    },
                );
            }
        }
    }
}
