//! Muon on GPUs: matrices of one shape at a time, wherever they lie in the arenas.
//!
//! Momentum copies them into one batch, which the caller orthogonalises with the kernels of other ops; the directions go
//! back where gradients were, and the descent reads them there. Nothing that changes from step to step is an argument.

use super::{Matrix, Rates};
use crate::ops::geometry::{Call, linear_grid};
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, F32, Floats, Global, IntoValue, Pointer, Storage, U32, U64, Value};

/// Threads of a CTA.
const THREADS: u32 = 256;
/// Elements that a thread treats at once, where every matrix begins and ends with as many: 16 bytes of f32.
const CHUNK: u32 = 4;
/// Elements of a matrix that a CTA treats.
const BLOCK: u32 = 4096;

/// How the elements of matrices are stored and grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Of the gradient; everything else is f32.
    pub storage: Storage,
    /// Whether matrices begin and end with whole chunks.
    pub aligned: bool,
}

/// `m ← m + (1 − beta)·(scale·g − m)`, `x = scale·g + beta·(m − scale·g)`: momentum with Nesterov's look-ahead. Where the
/// clip's scale is NaN, m stays and x is zero.
///
/// Launch with `Update(m), Write(x)` ([matrices, rows, columns] in f32), `Read(gradient), Read(starts)` (as [`starts`] gives
/// them), `Read(clip)` (a [`Clip`](crate::ops::optimizer::Clip)), `F32(beta), F32(1 − beta)` and the
/// call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Momentum(pub Access);

/// `gradient = scale·x`. Launch with `Update(gradient), Read(x), Read(starts), F32(scale)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub Access);

/// `p ← keep·p − rate·direction`, `ema ← ema + (1 − decay)·(p − ema)`; nothing where the clip's scale is NaN.
///
/// Launch with `Update(parameters), Update(ema), Read(direction), Read(starts), Read(scalars)` (as [`descent`] gives them),
/// `Read(clip)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descend(pub Access);

/// Where matrices begin, as kernels read it.
pub fn starts(matrices: &[Matrix]) -> Vec<u64> {
    matrices.iter().map(|matrix| matrix.start as u64).collect()
}

/// The scalars of a descent as kernels read them, each computed in f64 and rounded once: the rate, what decay leaves of a
/// parameter, and what is new of the average.
pub fn descent(rates: Rates) -> [f32; 3] {
    [
        rates.learning_rate,
        1.0 - rates.learning_rate * rates.weight_decay,
        1.0 - rates.ema_decay,
    ]
    .map(|scalar| scalar as f32)
}

/// A launch for matrices of one shape, of which there is at least one.
///
/// # Errors
/// If a matrix, or all of them together, have more elements than kernels count.
pub fn config<V: Variant>(
    variant: fn(Access) -> V,
    storage: Storage,
    matrices: &[Matrix],
) -> Result<Call<V>, Refused> {
    let len = matrices.first().map_or(0, |matrix| matrix.range().len());
    let chunk = CHUNK as usize;
    let aligned = |matrix: &Matrix| matrix.start.is_multiple_of(chunk);
    let access = Access {
        storage,
        aligned: len.is_multiple_of(chunk) && matrices.iter().all(aligned),
    };
    count(
        len.saturating_mul(matrices.len()),
        "the size of all matrices",
    )?;
    let grid = linear_grid(len.div_ceil(BLOCK as usize) * matrices.len())?;
    Ok(Call::new(variant(access), grid, vec![len as u32]))
}

impl Access {
    fn all() -> impl Iterator<Item = Access> {
        let of = |storage| [true, false].map(|aligned| Access { storage, aligned });
        Storage::ALL.into_iter().flat_map(of)
    }

    fn label(self) -> String {
        let alignment = if self.aligned { "aligned" } else { "any" };
        format!("{}_{alignment}", self.storage.name())
    }

    /// What the kernels' contracts have in common.
    fn contract(self, k: &Assembler, formula: &str) {
        k.contract(&format!(
            "{formula}\n\
             Of matrices of len elements each, the gradient or direction {}, the rest f32; in the arenas a matrix begins at\n\
             its element of starts, in x they follow one another.\n\
             Grid: matrices * ceil(len / {BLOCK}) CTAs. Reads and writes each element once.",
            self.storage.name()
        ));
    }

    /// Calls `body(operands, i, width)` for every chunk of this thread, `i` counted from the first element of the CTA's
    /// matrix; `of_matrix` gives the operands from there on, of where it begins in the arenas and in x.
    fn for_each_chunk<'k, A>(
        self,
        k: &'k Assembler,
        starts: Pointer<'k, Global, U64>,
        of_matrix: impl Fn(Value<'k, U64>, Value<'k, U64>) -> A,
        body: impl Fn(&A, Value<'k, U32>, u32),
    ) {
        let len = k.parameter::<U32>("len");
        let width = if self.aligned { CHUNK } else { 1 };
        // What `config` has checked.
        len.assume_multiple_of(width.into());
        k.comment("this CTA's part of which matrix");
        let blocks = (len + (BLOCK - 1)) / BLOCK;
        let (matrix, block) = (k.cta_x() / blocks, k.cta_x() % blocks);
        let start = starts.at(matrix).load().assume_multiple_of(width.into());
        let at = of_matrix(start, matrix.mul_wide(len));
        let first = block * BLOCK;
        let end = (first + BLOCK).min(len);
        k.for_(first + k.thread_x() * width, end, THREADS * width, |i| {
            body(&at, i, width);
        });
    }
}

/// Declares a [`Clip`](crate::ops::optimizer::Clip), and reads what it multiplies gradients by.
fn gradient_scale(k: &Assembler) -> Value<'_, F32> {
    k.buffer::<F32>("clip").read_only().at(2).load()
}

macro_rules! variants {
    ($($variant:ident: $kernel:literal;)*) => { $(
        impl Variant for $variant {
            const KERNEL: &'static str = $kernel;

            fn all() -> Vec<$variant> {
                Access::all().map($variant).collect()
            }

            fn label(&self) -> String {
                self.0.label()
            }

            fn block(&self) -> [u32; 3] {
                [THREADS, 1, 1]
            }

            fn write(&self, k: &Assembler) {
                self.body(k);
            }
        }
    )* };
}
variants! {
    Momentum: "muon/momentum";
    Place: "muon/place";
    Descend: "muon/descend";
}

impl Momentum {
    fn body<'k>(self, k: &'k Assembler) {
        let formula = "g = scale * gradient; m += (1 - beta) * (g - m); x = g + beta * (m - g).\n\
                       Where the scale is NaN, m stays and x is 0.";
        self.0.contract(k, formula);
        let m = Floats::F32(k.buffer("m"));
        let x = Floats::F32(k.buffer("x"));
        let gradient = k.floats(self.0.storage, "gradient").read_only();
        let starts = k.buffer::<U64>("starts").read_only();
        let scale = gradient_scale(k);
        let beta = k.parameter::<F32>("beta");
        let new = k.parameter::<F32>("one_minus_beta");
        let is_finite = !scale.is_nan();
        self.0.for_each_chunk(
            k,
            starts,
            |start, before| (m.at_wide(start), x.at_wide(before), gradient.at_wide(start)),
            |(m, x, gradient), i, width| {
                let step = |(g, m): (Value<'k, F32>, Value<'k, F32>)| {
                    let g = g * scale;
                    let m = new.mul_add(g - m, m);
                    (m, beta.mul_add(m - g, g))
                };
                let move_on = || {
                    let elements = gradient.at(i).load_span(width).into_iter();
                    let elements = elements.zip(m.at(i).load_span(width));
                    let (new_m, ahead): (Vec<_>, Vec<_>) = elements.map(step).unzip();
                    m.at(i).store_span(&new_m);
                    x.at(i).store_span(&ahead);
                };
                let stay = || {
                    x.at(i)
                        .store_span(&vec![0.0f32.into_value(); width as usize])
                };
                k.if_else(is_finite, move_on, stay);
            },
        );
    }
}

impl Place {
    fn body(self, k: &Assembler) {
        self.0.contract(k, "gradient = scale * x.");
        let gradient = k.floats(self.0.storage, "gradient");
        let x = Floats::F32(k.buffer("x")).read_only();
        let starts = k.buffer::<U64>("starts").read_only();
        let scale = k.parameter::<F32>("scale");
        self.0.for_each_chunk(
            k,
            starts,
            |start, before| (gradient.at_wide(start), x.at_wide(before)),
            |(gradient, x), i, width| {
                let scaled = x.at(i).load_span(width).into_iter().map(|x| x * scale);
                gradient.at(i).store_span(&scaled.collect::<Vec<_>>());
            },
        );
    }
}

impl Descend {
    fn body<'k>(self, k: &'k Assembler) {
        let formula = "p = keep * p - rate * direction; ema += new * (p - ema). Nothing where the clip's scale is NaN.";
        self.0.contract(k, formula);
        let parameters = Floats::F32(k.buffer("parameters"));
        let ema = Floats::F32(k.buffer("ema"));
        let direction = k.floats(self.0.storage, "direction").read_only();
        let starts = k.buffer::<U64>("starts").read_only();
        let scalars = k.buffer::<F32>("scalars").read_only();
        k.exit_if(gradient_scale(k).is_nan());
        let [rate, keep, new] = [0u32, 1, 2].map(|i| scalars.at(i).load());
        self.0.for_each_chunk(
            k,
            starts,
            |start, _| [parameters, ema, direction].map(|x| x.at_wide(start)),
            |at, i, width| {
                let [p, old, direction] = at.map(|x| x.at(i).load_span(width));
                let moved = p.into_iter().zip(direction);
                let moved: Vec<_> = moved.map(|(p, d)| p * keep - rate * d).collect();
                let average =
                    |(old, p): (Value<'k, F32>, &Value<'k, F32>)| new.mul_add(*p - old, old);
                let averages: Vec<_> = old.into_iter().zip(&moved).map(average).collect();
                at[0].at(i).store_span(&moved);
                at[1].at(i).store_span(&averages);
            },
        );
    }
}
