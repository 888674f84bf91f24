//! Dropout on GPUs: the mask is drawn in the kernel, as [`random`](crate::ops::random) draws.

use crate::Accum;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::{Call, Division, Divisor, linear_grid};
use crate::ops::spans::for_each_span;
use crate::ops::variants::{Refused, Variant, count};
use crate::philox::philox4x32_10;
use crate::ptx::{Assembler, F32, Pred, Storage, U32, Value};
use crate::random::Draw;

/// `dst (+)= src · scale` where the element's random word is at least p·2³², zero elsewhere, with scale = 1 / (1 − p).
/// Launch with `Write(dst)`, or `Update(dst)` under [`Accum::Add`], then `Read(src)`, a `Read` of
/// [`Counters`](crate::ops::random::ptx::Counters), `F32(scale)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apply {
    pub storage: Storage,
    pub accum: Accum,
    /// Elements that a thread treats: as many quads, of which each takes one application of Philox, as 16 bytes hold, where
    /// samples are made of them.
    pub width: Width,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Whole chunks of 16 bytes.
    Chunk,
    /// A quad, element by element, whose last ones the sample may lack.
    Quad,
}

impl Apply {
    /// For `samples` of `per_sample` elements. Of `draw`, only what stays from step to step is passed.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        [samples, per_sample]: [usize; 2],
        draw: &Draw,
        p: f64,
    ) -> Result<Call<Self>, Refused> {
        count(samples.saturating_mul(per_sample), "the number of elements")?;
        let chunk = storage.chunk() as usize;
        let (width, elements) = match per_sample.is_multiple_of(chunk) {
            true => (Width::Chunk, chunk),
            false => (Width::Quad, 4),
        };
        let units = per_sample.div_ceil(elements);
        let all = count(samples * units, "the number of quads")?;
        let grid = linear_grid(all.div_ceil(THREADS) as usize)?;
        let mut numbers = vec![all];
        numbers.extend(Divisor::new((units as u32).max(1)).numbers());
        numbers.extend([per_sample as u32, draw.key[0], draw.key[1], draw.stream]);
        numbers.push((p * 4_294_967_296.0) as u32);
        let variant = Apply {
            storage,
            accum,
            width,
        };
        Ok(Call::new(variant, grid, numbers))
    }
}

/// Zero where the element is dropped.
fn drop<'k>(x: Value<'k, F32>, dropped: Value<'k, Pred>) -> Value<'k, F32> {
    dropped.select(0.0f32, x)
}

impl Variant for Apply {
    const KERNEL: &'static str = "dropout/apply";

    fn all() -> Vec<Apply> {
        let mut all = vec![];
        for storage in Storage::ALL {
            for accum in Accum::ALL {
                all.extend([Width::Chunk, Width::Quad].map(|width| Apply {
                    storage,
                    accum,
                    width,
                }));
            }
        }
        all
    }

    fn label(&self) -> String {
        let width = match self.width {
            Width::Chunk => "chunk",
            Width::Quad => "quad",
        };
        format!("{}_{}_{width}", self.storage.name(), self.accum.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let width = match self.width {
            Width::Chunk => self.storage.chunk(),
            Width::Quad => 4,
        };
        k.contract(&format!(
            "dst {} word < threshold ? 0 : src * scale, word being the element's from Philox4x32-10, {}.\n\
             Grid: ceil(samples * ceil(per_sample / {width}) / {THREADS}) CTAs, {width} elements a thread. Reads src and writes \
             dst once.",
            self.accum.symbol(),
            self.storage.name()
        ));
        let dst = k.floats(self.storage, "dst");
        let src = k.floats(self.storage, "src").read_only();
        let counters = k.buffer::<U32>("counters").read_only();
        let scale = k.parameter::<F32>("scale");
        let units = k.parameter::<U32>("units");
        let sample_units = Division::parameter(k, "sample_units");
        let per_sample = k.parameter::<U32>("per_sample");
        let key = ["key0", "key1"].map(|name| k.parameter::<U32>(name));
        let stream = k.parameter::<U32>("stream");
        let threshold = k.parameter::<U32>("threshold");
        for_each_span(k, units, |i| {
            let [sample, unit] = sample_units.split(i);
            let step = counters.at(0).load();
            let drawn_sample = counters.at(1).load() + sample;
            k.comment("Philox4x32-10");
            let words: Vec<Value<U32>> = (0..width / 4)
                .flat_map(|q| {
                    let quad = unit * (width / 4) + q;
                    philox4x32_10(key, [quad, drawn_sample, step, stream])
                })
                .collect();
            if self.width == Width::Chunk {
                let at = i * width;
                let pairs = words.into_iter().zip(src.at(at).load_chunk());
                let results: Vec<_> = pairs
                    .map(|(word, x)| drop(x * scale, word.lt(threshold)))
                    .collect();
                dst.at(at).put_span(self.accum, &results);
            } else {
                let element = unit * width;
                let at = sample.mul_add(per_sample, element);
                for (e, word) in (0..).zip(words) {
                    k.if_((element + e).lt(per_sample), || {
                        let x = src.at(at + e).load();
                        let result = drop(x * scale, word.lt(threshold));
                        dst.at(at + e).put_span(self.accum, &[result]);
                    });
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::dropout;
    use crate::ops::random::ptx::Counters;
    use crate::testing::gpu::{self, assert_moves, assert_same_bits, encode, stored_values};

    #[test]
    fn it_drops_what_cpus_drop() {
        let draw = Draw {
            step: 5,
            first_sample: 17,
            ..Draw::named(3, "decoder.dropout", 0)
        };
        let counters = Counters::from(draw);
        for storage in Storage::ALL {
            for accum in Accum::ALL {
                for shape in [[1, 1], [3, 7], [2, 12], [5, 2048]] {
                    let [samples, per_sample] = shape;
                    let n = samples * per_sample;
                    let src = stored_values(storage, n, 1);
                    let case = format!("{shape:?}");
                    let cpu =
                        |dst: &mut [f32]| dropout::apply(dst, accum, &src, &draw, per_sample, 0.3);
                    let kernel = |dst: Argument<'_>| {
                        let call = Apply::config(storage, accum, shape, &draw, 0.3);
                        let src = encode(storage, &src);
                        let operands = vec![
                            dst,
                            Argument::Read(&src),
                            Argument::Read(bytemuck::bytes_of(&counters)),
                            Argument::F32((1.0 / 0.7) as f32),
                        ];
                        gpu::run(&call.expect("few elements"), operands)
                    };
                    let profile = assert_same_bits(&case, storage, accum, n, cpu, kernel);
                    if per_sample == 2048 {
                        let tensors = 2 + usize::from(accum == Accum::Add);
                        // A sector of counters for each warp's chunks of 512 bytes, from the first cache.
                        let least = tensors * n * storage.bytes() as usize;
                        let warps = n * storage.bytes() as usize / 512;
                        assert_moves(&case, &profile, least + 2 * 32 * warps);
                    }
                }
            }
        }
    }
}
