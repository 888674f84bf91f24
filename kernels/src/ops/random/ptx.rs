//! Four elements a thread: what one application of Philox gives.

use crate::launch::Argument;
use crate::ops::variants::{Plan, Refused, Variant, count};
use crate::philox::philox4x32_10;
use crate::ptx::{Assembler, Bf16x2, F32, Floats, Storage, U32, Value};
use crate::random::{Draw, normal_pair, open_unit};
use crate::real::Real;

/// Threads of a CTA; nothing is shared between them.
const THREADS: u32 = 256;

/// out[sample, element] drawn from a distribution. Launch with [`Fill::arguments`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    pub distribution: Distribution,
    pub storage: Storage,
    /// Whether samples hold whole quads, so that a thread's four elements are one store.
    pub whole_quads: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// `scale · normal`.
    Normal,
    /// `offset + scale · u`, u in (0, 1).
    Uniform,
}

impl Distribution {
    fn name(self) -> &'static str {
        match self {
            Distribution::Normal => "normal",
            Distribution::Uniform => "uniform",
        }
    }
}

/// What of a draw changes from step to step: read from device memory, so that a captured step can be replayed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Counters {
    pub step: u32,
    pub first_sample: u32,
}

impl From<Draw> for Counters {
    fn from(draw: Draw) -> Counters {
        Counters {
            step: draw.step,
            first_sample: draw.first_sample,
        }
    }
}

/// The kernel for `samples` of `per_sample` elements.
///
/// # Errors
/// If there are more elements than kernels count.
pub fn config(
    distribution: Distribution,
    storage: Storage,
    samples: usize,
    per_sample: usize,
) -> Result<Plan<Fill>, Refused> {
    let elements = samples.saturating_mul(per_sample);
    count(elements, "the number of elements")?;
    let quads = samples * per_sample.div_ceil(4);
    let quads = count(quads, "the number of quads")?;
    Ok(Plan {
        variant: Fill {
            distribution,
            storage,
            whole_quads: per_sample.is_multiple_of(4),
        },
        grid: [quads.div_ceil(THREADS), 1, 1],
    })
}

impl Fill {
    /// `out` is `Write`, `counters` a `Read` of [`Counters`]; of `draw`, only what stays from step to step is passed.
    pub fn arguments<'a>(
        out: Argument<'a>,
        counters: Argument<'a>,
        draw: &Draw,
        [samples, per_sample]: [usize; 2],
        scale: f64,
        offset: f64,
    ) -> Vec<Argument<'a>> {
        vec![
            out,
            counters,
            Argument::U32(draw.key[0]),
            Argument::U32(draw.key[1]),
            Argument::U32(draw.stream),
            Argument::U32(samples as u32),
            Argument::U32(per_sample as u32),
            Argument::F32(scale as f32),
            Argument::F32(offset as f32),
        ]
    }
}

impl Variant for Fill {
    const KERNEL: &'static str = "random/fill";

    fn all() -> Vec<Fill> {
        let mut all = vec![];
        for distribution in [Distribution::Normal, Distribution::Uniform] {
            for storage in Storage::ALL {
                all.extend([true, false].map(|whole_quads| Fill {
                    distribution,
                    storage,
                    whole_quads,
                }));
            }
        }
        all
    }

    fn label(&self) -> String {
        let quads = if self.whole_quads { "quads" } else { "any" };
        format!(
            "{}_{}_{quads}",
            self.distribution.name(),
            self.storage.name()
        )
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "out[sample, element] = {}, {}.\n\
             Grid: ceil(samples * ceil(per_sample / 4) / {THREADS}) CTAs. Writes out once.",
            match self.distribution {
                Distribution::Normal => "scale * normal",
                Distribution::Uniform => "offset + scale * uniform",
            },
            self.storage.name()
        ));
        let out = k.floats(self.storage, "out");
        let counters = k.buffer::<U32>("counters").read_only();
        let key = ["key0", "key1"].map(|name| k.parameter::<U32>(name));
        let stream = k.parameter::<U32>("stream");
        let samples = k.parameter::<U32>("samples");
        let per_sample = k.parameter::<U32>("per_sample");
        let scale = k.parameter::<F32>("scale");
        let offset = k.parameter::<F32>("offset");
        if self.whole_quads {
            per_sample.assume_multiple_of(4);
        }

        k.comment("this thread's sample, and its four elements there");
        let index = k.cta_x() * THREADS + k.thread_x();
        let quads = (per_sample + 3) / 4;
        let (sample, quad) = (index / quads, index % quads);
        k.if_(sample.lt(samples), || {
            let step = counters.at(0).load();
            let first_sample = counters.at(1).load();
            k.comment("Philox4x32-10");
            let words = philox4x32_10(key, [quad, first_sample + sample, step, stream]);
            let values = self.transform(k, words, scale, offset);
            let element = quad * 4;
            let to = out.at(sample * per_sample + element);
            if self.whole_quads {
                store_quad(k, to, values);
            } else {
                for (i, value) in (0..).zip(values) {
                    k.if_((element + i).lt(per_sample), || to.at(i).store(value));
                }
            }
        });
    }
}

impl Fill {
    fn transform<'k>(
        &self,
        k: &'k Assembler,
        words: [Value<'k, U32>; 4],
        scale: Value<'k, F32>,
        offset: Value<'k, F32>,
    ) -> [Value<'k, F32>; 4] {
        match self.distribution {
            Distribution::Normal => {
                k.comment("Box-Muller");
                let [a, b] = normal_pair(words[0], words[1]);
                let [c, d] = normal_pair(words[2], words[3]);
                [a, b, c, d].map(|z| z * scale)
            }
            Distribution::Uniform => {
                words.map(|word| Real::mul_add(open_unit(word), scale, offset))
            }
        }
    }
}

fn store_quad<'k>(k: &'k Assembler, to: Floats<'k>, [a, b, c, d]: [Value<'k, F32>; 4]) {
    match to {
        Floats::F32(to) => to.store_vector([a, b, c, d]),
        Floats::Bf16(to) => {
            let pairs = [k.pack_bf16(a, b), k.pack_bf16(c, d)];
            to.cast::<Bf16x2>().store_vector(pairs);
        }
    }
}
