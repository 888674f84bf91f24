//! Products that are cut along k: deep ones of few tiles, such as gradients of weights, fill a GPU only so.
//!
//! Every part's CTAs write f32 sums to scratch memory, and [`Merge`] adds those of an output in the order of the parts. How
//! many there are is a function of the shape alone, and so are the bits.

use super::epilogue::{Fused, Operands};
use super::{Tile, Tiling};
use crate::Accum;
use crate::ops::geometry::{Call, linear_grid};
use crate::ops::matmul::Activation;
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, F32, IntoValue, Storage, U32, Value, Variable};

/// CTAs that fill a GPU of some 130 multiprocessors.
pub(in crate::ops) const FILLING: usize = 128;
/// CTAs that are worth cutting a product for: two for each multiprocessor.
const WANTED: usize = 2 * FILLING;
/// Slices of a part at least: beside them, filling the pipeline and moving the sums cost little.
const LEAST_SLICES: usize = 16;
/// Threads of a CTA of [`Merge`].
const THREADS: u32 = 128;
/// Parts whose sums a thread asks for at once.
const AT_ONCE: u32 = 4;

/// The launches of a product that may be cut along k.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InParts<V> {
    /// Writes the output; or, where there is a `merge`, the parts' sums.
    pub product: Call<V>,
    pub merge: Option<Call<Merge>>,
    /// f32 of the parts' sums: scratch memory between the two.
    pub partials: usize,
}

/// How k is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Parts {
    pub count: usize,
    /// k of each part but the last one, which may be shorter.
    pub depth: usize,
}

/// Tile and parts of a product that is `depth` deep and has `tiles` of a size, if it is to be cut. Large tiles need whole
/// chunks, which `aligned` promises.
pub(in crate::ops) fn choose(
    storage: Storage,
    aligned: bool,
    depth: usize,
    tiles: impl Fn(Tile) -> usize,
) -> Option<(Tile, Parts)> {
    let cut = |tile| {
        let slice = Tiling::new(tile, storage).depth as usize;
        let slices = depth.div_ceil(slice);
        let most = slices / LEAST_SLICES;
        let parts = (WANTED / tiles(tile).max(1)).min(most).max(1);
        let part = slices.div_ceil(parts).max(1);
        let parts = Parts {
            count: slices.div_ceil(part).max(1),
            depth: part * slice,
        };
        (tile, parts)
    };
    if aligned && tiles(Tile::Large) >= FILLING {
        return None;
    }
    // A large tile reads half as much for each product: where its parts fill the GPU, it wins over more small tiles,
    // unless less than half of it lies inside.
    let large = cut(Tile::Large);
    let inside = tiles(Tile::Small) > 2 * tiles(Tile::Large);
    let fills = inside && tiles(Tile::Large) * large.1.count >= FILLING;
    let small = cut(Tile::Small);
    match aligned && fills {
        true => Some(large),
        false if tiles(Tile::Small) < FILLING && small.1.count > 1 => Some(small),
        false => None,
    }
}

/// Where part `index` of those that are `part` deep begins and ends.
pub(in crate::ops) fn range<'k>(
    index: Value<'k, U32>,
    part: Value<'k, U32>,
    depth: Value<'k, U32>,
) -> [Value<'k, U32>; 2] {
    let first = index * part;
    [first, (first + part).min(depth)]
}

/// c = act(Σ partials + bias) + residual, or c += Σ partials, in the order of the parts.
///
/// Launch with `Write(c)`, or `Update(c)` under [`Accum::Add`], `Write(pre)` or `Null`, `Read(partials)`, `Read(bias)` or
/// `Null`, `Read(residual)` or `Null`, and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    pub storage: Storage,
    /// Whether every row of c starts at a multiple of 16 bytes.
    pub aligned: bool,
    pub accum: Accum,
}

impl Merge {
    /// Elements of c that a thread completes.
    fn width(self) -> u32 {
        if self.aligned {
            self.storage.chunk()
        } else {
            1
        }
    }

    pub(in crate::ops) fn call(
        self,
        outputs: usize,
        columns: usize,
        parts: usize,
        activation: Activation,
    ) -> Result<Call<Merge>, Refused> {
        let numbers = [
            count(outputs, "the number of outputs")?,
            columns as u32,
            parts as u32,
            activation as u32,
        ];
        let ctas = outputs.div_ceil((THREADS * self.width()) as usize);
        Ok(Call::new(self, linear_grid(ctas)?, numbers.to_vec()))
    }
}

impl Variant for Merge {
    const KERNEL: &'static str = "matmul/merge";

    fn all() -> Vec<Merge> {
        let mut all = vec![];
        for storage in Storage::ALL {
            for aligned in [true, false] {
                all.extend(Accum::ALL.map(|accum| Merge {
                    storage,
                    aligned,
                    accum,
                }));
            }
        }
        all
    }

    fn label(&self) -> String {
        let aligned = if self.aligned { "aligned" } else { "any" };
        let (storage, accum) = (self.storage.name(), self.accum.name());
        format!("{storage}_{aligned}_{accum}")
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        self.write_in(k);
    }
}

impl Merge {
    fn write_in<'k>(self, k: &'k Assembler) {
        let width = self.width();
        k.contract(&format!(
            "{} for partials [parts, outputs] in f32, {}.\n\
             Grid: ceil(outputs / {}) CTAs of {THREADS} threads; {width} outputs a thread, the parts one after the other.\n\
             Reads partials, bias and residual and writes c and pre once.",
            match self.accum {
                Accum::Replace => "c = act(sum of partials + bias) + residual",
                Accum::Add => "c += sum of partials",
            },
            self.storage.name(),
            THREADS * width,
        ));
        let c = k.floats(self.storage, "c");
        let pre = k.floats(self.storage, "pre");
        let partials = k.floats(Storage::F32, "partials").read_only();
        let bias = k.floats(self.storage, "bias").read_only();
        let residual = k.floats(self.storage, "residual").read_only();
        let [outputs, columns, parts] =
            ["outputs", "columns", "parts"].map(|name| k.parameter::<U32>(name));
        let activation = k.parameter::<U32>("activation");
        outputs.assume_multiple_of(width.into());
        columns.assume_multiple_of(width.into());

        k.comment("this thread's outputs");
        let element = (k.cta_x() * THREADS + k.thread_x()) * width;
        k.exit_if(element.ge(outputs));
        let sums: Vec<Variable<F32>> = (0..width).map(|_| k.variable(0.0f32)).collect();
        let load = |part: Value<'k, U32>| {
            let from = partials.at_wide(part.mul_wide(outputs) + element.widen());
            let vector = width.min(Storage::F32.chunk());
            let vectors = (0..width).step_by(vector as usize);
            let loaded = vectors.flat_map(|i| from.at(i).load_span(vector));
            loaded.collect::<Vec<_>>()
        };
        let add = |values: Vec<Value<'k, F32>>| {
            for (sum, value) in sums.iter().zip(values) {
                sum.set(*sum + value);
            }
        };
        let part = k.variable::<U32>(0);
        k.while_(
            || (part + (AT_ONCE - 1)).lt(parts),
            || {
                let loaded: Vec<_> = (0..AT_ONCE).map(|i| load(part + i)).collect();
                loaded.into_iter().for_each(add);
                part.set(part + AT_ONCE);
            },
        );
        k.comment("the last parts");
        k.while_(
            || part.lt(parts),
            || {
                add(load(part.get()));
                part.set(part + 1);
            },
        );
        let fused = Fused {
            activation: Some(activation),
            pre: Some(pre),
            bias,
            residual,
        };
        let operands = Operands {
            k,
            accum: self.accum,
            c,
            fused: Some(fused),
        };
        let zero: Value<'k, U32> = 0u32.into_value();
        let sums = sums.iter().map(|sum| sum.get()).collect();
        let completion = operands.completion(zero.widen());
        completion.complete(sums, element, element % columns);
    }
}
