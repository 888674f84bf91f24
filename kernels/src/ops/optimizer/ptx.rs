//! The optimiser on GPUs: the gradient's norm in two launches, then one that clips, updates and averages.
//!
//! Nothing that changes from step to step is an argument, so that a captured step replays.

use super::step::Step;
use super::{Decay, Run};
use crate::ops::geometry::linear_grid;
use crate::ops::reduction::sum_f64_over_cta;
use crate::ops::variants::{Plan, Refused, Variant};
use crate::ptx::{Assembler, F32, F64, Floats, Storage, U32, Value};
use crate::real::Real;

/// Threads of a CTA.
const THREADS: u32 = 256;
/// Elements of the arenas that a thread treats at once: 16 bytes of f32.
const CHUNK: u32 = 4;
/// Elements of a [`Portion`].
const PORTION: u32 = 4096;
/// Elements whose squares a CTA adds up.
const BLOCK: u32 = 32 * 1024;

/// `partial[block] = Σ g²` over a block of the gradient, in f64. Launch with `Write(partial)` (f64, one for each CTA),
/// `Read(gradient), U64(elements)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Squares {
    pub storage: Storage,
}

/// The gradient's norm, and what clips it: a [`Clip`](super::Clip). Launch with `Write(clip), Read(partial),
/// Read(scalars)` (an [`UpdateScalars`](super::UpdateScalars)), `U32(partials)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Norm;

/// One step of AdamW, then one of the moving average, as the CPU's [`update`](super::update) defines them. Launch with
/// `Update(parameters), Update(m), Update(v)`, `Update(ema)` or `Null`, `Update(weights)` (the parameters rounded to bf16) or
/// `Null`, `Read(gradient), Read(portions)` (as [`portions`] gives them), `Read(scalars), Read(clip)`. Arenas are f32 but
/// for the gradient, which has the storage. Nothing changes where the clip's scale is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// Of the gradient.
    pub storage: Storage,
}

/// What a CTA of [`Update`] treats: elements of one run, counted from a chunk of four.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Portion {
    /// The chunk of the arenas that the others count from.
    pub chunk: u32,
    /// The first element: less than a chunk.
    pub begin: u32,
    pub end: u32,
    /// 1 where parameters decay, else 0.
    pub decays: u32,
}

/// The portions of an arena's runs, which stay the same for every step. Frozen runs have none.
///
/// # Errors
/// If a run lies beyond what kernels count: 2³² chunks.
pub fn portions(runs: &[Run]) -> Result<Vec<Portion>, Refused> {
    let mut portions = vec![];
    for run in runs.iter().filter(|run| run.decay != Decay::Frozen) {
        let mut start = run.start;
        while start < run.end {
            let chunk = start / CHUNK as usize;
            let first = chunk * CHUNK as usize;
            let end = run.end.min(first + PORTION as usize);
            let chunk = u32::try_from(chunk).map_err(|_| {
                Refused(format!(
                    "the arena reaches element {}, beyond the 2^34 that GPU kernels count",
                    run.end
                ))
            })?;
            portions.push(Portion {
                chunk,
                begin: (start - first) as u32,
                end: (end - first) as u32,
                decays: u32::from(run.decay == Decay::Yes),
            });
            start = end;
        }
    }
    Ok(portions)
}

impl Squares {
    /// For a gradient of `n` elements. Its CTAs are the partial sums.
    ///
    /// # Errors
    /// If there are more than a grid holds.
    pub fn config(self, n: usize) -> Result<Plan<Self>, Refused> {
        let grid = linear_grid(n.div_ceil(BLOCK as usize).max(1))?;
        Ok(Plan {
            variant: self,
            grid,
        })
    }
}

impl Norm {
    /// For any number of partial sums.
    pub fn config(self) -> Plan<Self> {
        Plan {
            variant: self,
            grid: [1; 3],
        }
    }
}

impl Update {
    /// For so many portions, of which there is at least one.
    ///
    /// # Errors
    /// If there are more than a grid holds.
    pub fn config(self, portions: usize) -> Result<Plan<Self>, Refused> {
        let grid = linear_grid(portions)?;
        Ok(Plan {
            variant: self,
            grid,
        })
    }
}

impl Variant for Squares {
    const KERNEL: &'static str = "optimizer/squares";

    fn all() -> Vec<Squares> {
        Storage::ALL.map(|storage| Squares { storage }).to_vec()
    }

    fn label(&self) -> String {
        self.storage.name().to_string()
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "partial[block] = sum of squares over a block of the gradient, {}; squares and sums are f64.\n\
             Grid: ceil(n / {BLOCK}) CTAs. Reads the gradient once.",
            self.storage.name()
        ));
        let partial = k.buffer::<F64>("partial");
        let gradient = k.floats(self.storage, "gradient").read_only();
        let n = k.parameter("n");
        k.comment("this CTA's block");
        let first = k.cta_x().widen() * u64::from(BLOCK);
        let gradient = gradient.at_wide(first);
        let count = (n - first).min(u64::from(BLOCK)).truncate();
        let width = self.storage.chunk();
        // Two sums, so that an addition need not wait for the one before.
        let sums = [0.0f64; 2].map(|zero| k.variable(zero));
        let add = |values: Vec<Value<'_, F32>>| {
            for (x, sum) in values.into_iter().zip(sums.iter().cycle()) {
                let x = x.widen();
                sum.set(x.mul_add(x, *sum));
            }
        };
        let whole = count - count % width;
        k.for_(k.thread_x() * width, whole, THREADS * width, |i| {
            add(gradient.at(i).load_span(width));
        });
        k.comment("the last elements");
        let last = whole + k.thread_x();
        k.if_(last.lt(count), || add(vec![gradient.at(last).load()]));
        let sum = sum_f64_over_cta(k, sums[0] + sums[1]);
        k.if_(k.thread_x().eq(0), || partial.at(k.cta_x()).store(sum));
    }
}

impl Variant for Norm {
    const KERNEL: &'static str = "optimizer/norm";

    fn all() -> Vec<Norm> {
        vec![Norm]
    }

    fn label(&self) -> String {
        "f64".to_string()
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(
            "clip = (norm, gradient scale): the root of the sum of all partial sums, and min(max_norm / (norm + 1e-6), 1),\n\
             which is NaN where the norm is not finite.\n\
             Grid: one CTA. Reads the partial sums once.",
        );
        let clip = k.buffer::<F64>("clip");
        let partial = k.buffer::<F64>("partial").read_only();
        let scalars = k.buffer::<F64>("scalars").read_only();
        let partials = k.parameter::<U32>("partials");
        let sum = k.variable(0.0f64);
        k.for_(k.thread_x(), partials, THREADS, |i| {
            sum.set(sum + partial.at(i).load());
        });
        let sum = sum_f64_over_cta(k, sum.get());
        k.if_(k.thread_x().eq(0), || {
            let norm = Real::sqrt(sum);
            let factor = scalars.load() / (norm + 1e-6);
            let factor: Value<F64> = factor.gt(1.0).select(1.0, factor);
            // False for NaN too.
            let factor: Value<F64> = norm.lt(f64::INFINITY).select(factor, f64::NAN);
            clip.store(norm);
            clip.at(1).cast::<F32>().store(factor.narrow());
            clip.at(1).cast::<U32>().at(1).store(0);
        });
    }
}

impl Variant for Update {
    const KERNEL: &'static str = "optimizer/update";

    fn all() -> Vec<Update> {
        Storage::ALL.map(|storage| Update { storage }).to_vec()
    }

    fn label(&self) -> String {
        self.storage.name().to_string()
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "g = scale * gradient; m += (1 - beta1) * (g - m); v = beta2 * v + (1 - beta2) * g^2;\n\
             p = keep * p - step_size * m / (sqrt(v) / sqrt(bias2) + eps); ema += (1 - ema_decay) * (p - ema); weights = p.\n\
             The gradient is {}, weights are bf16, the others f32. Does nothing where the scale is NaN.\n\
             Grid: a CTA a portion of up to {PORTION} elements. Reads and writes each element once.",
            self.storage.name()
        ));
        let parameters = Floats::F32(k.buffer("parameters"));
        let m = Floats::F32(k.buffer("m"));
        let v = Floats::F32(k.buffer("v"));
        let ema = Floats::F32(k.buffer("ema"));
        let weights = Floats::Bf16(k.buffer("weights"));
        let gradient = k.floats(self.storage, "gradient").read_only();
        let portions = k.buffer::<U32>("portions").read_only();
        let scalars = k.buffer::<F32>("scalars").read_only();
        let clip = k.buffer::<F32>("clip").read_only();
        let gradient_scale = clip.at(2).load();
        k.exit_if(gradient_scale.is_nan());
        let [chunk, begin, end, decays] = portions.at(k.cta_x() * 4).load_vector::<4>();

        k.comment("the step's scalars, after the largest norm");
        let [
            keep,
            one_minus_beta1,
            beta2,
            one_minus_beta2,
            inverse_root_bias2,
            eps,
            step_size,
            one_minus_ema,
        ] = [2u32, 3, 4, 5, 6, 7, 8, 9].map(|i| scalars.at(i).load());
        let step = Step {
            gradient_scale,
            keep: decays.ne(0).select(keep, 1.0),
            one_minus_beta1,
            beta2,
            one_minus_beta2,
            inverse_root_bias2,
            eps,
            step_size,
            one_minus_ema,
        };
        let first = chunk.widen() * u64::from(CHUNK);
        let [parameters, m, v, gradient] = [parameters, m, v, gradient].map(|x| x.at_wide(first));
        let has = [ema, weights].map(Floats::is_present);
        let [ema, weights] = [ema, weights].map(|x| x.at_wide(first));
        let update = |i: Value<'_, U32>, width: u32| {
            let [p, g, old_m, old_v] =
                [parameters, gradient, m, v].map(|x| x.at(i).load_span(width));
            let elements = p.iter().zip(g).zip(old_m).zip(old_v);
            let new: Vec<_> = elements
                .map(|(((p, g), m), v)| step.element(*p, g, m, v))
                .collect();
            let [p, new_m, new_v] =
                [0, 1, 2].map(|part| new.iter().map(|x| x[part]).collect::<Vec<_>>());
            m.at(i).store_span(&new_m);
            v.at(i).store_span(&new_v);
            parameters.at(i).store_span(&p);
            k.if_(has[0], || {
                let old = ema.at(i).load_span(width);
                let pairs = old.into_iter().zip(&p);
                let new: Vec<_> = pairs.map(|(ema, p)| step.average(ema, *p)).collect();
                ema.at(i).store_span(&new);
            });
            k.if_(has[1], || weights.at(i).store_span(&p));
        };
        k.for_(k.thread_x() * CHUNK, end, THREADS * CHUNK, |i| {
            k.if_else(
                i.ge(begin) & (i + CHUNK).le(end),
                || update(i, CHUNK),
                || {
                    k.comment("a chunk that the run shares with others");
                    k.for_(i.max(begin), end.min(i + CHUNK), 1, |i| update(i, 1));
                },
            );
        });
    }
}
