//! Binary functions on GPUs: 16 bytes of the output a thread where its rows are whole chunks.

use super::{Binary, Loop, merge};
use crate::Accum;
use crate::ops::elementwise::{THREADS, for_each_chunk, grid};
use crate::ops::geometry::{Call, Division, Divisor, linear_grid, place};
use crate::ops::spans::for_each_span;
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, F32, Floats, Storage, U32, Value};

/// `y (+)= f(a, b)`. Launch with `Write(y)`, or `Update(y)` under [`Accum::Add`], then `Read(a), Read(b)` and the call's
/// numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub function: Binary,
    pub storage: Storage,
    pub accum: Accum,
    pub walk: Walk,
    /// Loops that the output is walked through with, each a step of its own for each operand.
    pub loops: u32,
}

/// What a thread treats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// One element; operands step as they like.
    Elements,
    /// Consecutive elements of 16 bytes together, in which an operand moves along, or repeats one element.
    Chunks { a: Step, b: Step },
}

/// What an operand does along the output's innermost dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Moves,
    Repeats,
}

impl Walk {
    /// One of two operands that repeat all along would be better written as elements.
    const ALL: [Walk; 4] = [
        Walk::Elements,
        Walk::Chunks {
            a: Step::Moves,
            b: Step::Moves,
        },
        Walk::Chunks {
            a: Step::Moves,
            b: Step::Repeats,
        },
        Walk::Chunks {
            a: Step::Repeats,
            b: Step::Moves,
        },
    ];

    /// The widest that the loops allow.
    fn of(loops: &[Loop], chunk: usize) -> Walk {
        let (inner, outer) = loops.split_last().expect("merge leaves a loop");
        // Of a single run, what does not fill a chunk is treated by itself.
        let whole = outer.is_empty() || inner.extent.is_multiple_of(chunk);
        let moves = |step: fn(&Loop) -> usize| match step(inner) {
            1 if outer.iter().all(|l| step(l).is_multiple_of(chunk)) => Some(Step::Moves),
            0 => Some(Step::Repeats),
            _ => None,
        };
        match (moves(|l| l.a), moves(|l| l.b)) {
            (Some(Step::Repeats), Some(Step::Repeats)) => Walk::Elements,
            (Some(a), Some(b)) if whole => Walk::Chunks { a, b },
            _ => Walk::Elements,
        }
    }

    /// Elements that a thread treats.
    fn width(self, storage: Storage) -> u32 {
        match self {
            Walk::Elements => 1,
            Walk::Chunks { .. } => storage.chunk(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Walk::Elements => "elements",
            Walk::Chunks {
                a: Step::Moves,
                b: Step::Moves,
            } => "chunks",
            Walk::Chunks { a: Step::Moves, .. } => "chunks_b_repeats",
            Walk::Chunks { .. } => "chunks_a_repeats",
        }
    }
}

/// The numbers of loops that there are variants for; others take the next one, with loops that run once. One is a
/// whole tensor, two a vector along its rows, three one for each sample.
const LOOPS: [usize; 4] = [1, 2, 3, 6];

impl Forward {
    /// For y of `dims`, row-major, and operands with these strides, in elements: 0 where one repeats.
    ///
    /// # Errors
    /// If there are more elements than kernels count, or more than 6 dimensions that do not merge.
    pub fn config(
        function: Binary,
        storage: Storage,
        accum: Accum,
        dims: &[usize],
        [a, b]: [&[usize]; 2],
    ) -> Result<Call<Self>, Refused> {
        let elements: usize = dims.iter().product();
        count(elements, "the number of elements")?;
        let mut loops = merge(dims, a, b);
        let Some(&most) = LOOPS.iter().find(|&&n| n >= loops.len()) else {
            let n = loops.len();
            return Err(Refused(format!("it takes {n} loops, more than 6")));
        };
        let variant = Forward {
            function,
            storage,
            accum,
            walk: Walk::of(&loops, storage.chunk() as usize),
            loops: most as u32,
        };
        if variant.is_flat() {
            let grid = grid(storage, elements)?;
            return Ok(Call::new(variant, grid, vec![elements as u32]));
        }

        // What moves along is counted in spans, what repeats in elements.
        let span = variant.walk.width(storage) as usize;
        let inner = loops.len() - 1;
        let [a_unit, b_unit] =
            [loops[inner].a, loops[inner].b].map(|step| if step == 1 { span } else { 1 });
        for l in &mut loops[..inner] {
            l.a /= a_unit;
            l.b /= b_unit;
        }
        loops[inner].extent /= span;
        loops.splice(0..0, vec![Loop::ONE; most - inner - 1]);

        let spans = elements / span;
        let mut numbers = vec![spans as u32];
        numbers.extend(loops.iter().flat_map(|l| [l.a as u32, l.b as u32]));
        // The outermost index is what the divisions by the others leave.
        for l in &loops[1..] {
            numbers.extend(Divisor::new(l.extent.max(1) as u32).numbers());
        }
        let grid = linear_grid(spans.div_ceil(THREADS as usize))?;
        Ok(Call::new(variant, grid, numbers))
    }

    /// Whether both operands are as the output, or one number.
    fn is_flat(self) -> bool {
        self.loops == 1 && self.walk != Walk::Elements
    }

    fn apply<'k>(self, a: Value<'k, F32>, b: Value<'k, F32>) -> Value<'k, F32> {
        match self.function {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
        }
    }

    /// y's `width` elements at `i`, from those of a and b at their own places.
    fn put<'k>(self, y: Floats<'k>, [a, b]: [Floats<'k>; 2], width: u32) {
        let load = |(x, step): (Floats<'k>, Step)| match step {
            Step::Moves => x.load_span(width),
            Step::Repeats => vec![x.load(); width as usize],
        };
        let [a, b] = match self.walk {
            Walk::Elements => [a, b].map(|x| vec![x.load()]),
            Walk::Chunks {
                a: first,
                b: second,
            } => [(a, first), (b, second)].map(load),
        };
        let pairs = a.into_iter().zip(b);
        let results: Vec<_> = pairs.map(|(a, b)| self.apply(a, b)).collect();
        y.put_span(self.accum, &results);
    }
}

impl Variant for Forward {
    const KERNEL: &'static str = "binary/forward";

    fn all() -> Vec<Forward> {
        let mut all = vec![];
        for function in Binary::ALL {
            for storage in Storage::ALL {
                for accum in Accum::ALL {
                    for walk in Walk::ALL {
                        all.extend(LOOPS.map(|loops| Forward {
                            function,
                            storage,
                            accum,
                            walk,
                            loops: loops as u32,
                        }));
                    }
                }
            }
        }
        all
    }

    fn label(&self) -> String {
        format!(
            "{}_{}_{}_loops{}_{}",
            self.function.name(),
            self.storage.name(),
            self.walk.name(),
            self.loops,
            self.accum.name()
        )
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let width = self.walk.width(self.storage);
        k.contract(&format!(
            "y {} {}(a, b), a and b broadcast to y, {}.\n\
             Grid: ceil(elements / {}) CTAs, {width} elements a thread. Reads a and b and writes y once.",
            self.accum.symbol(),
            self.function.name(),
            self.storage.name(),
            THREADS * width
        ));
        let y = k.floats(self.storage, "y");
        let a = k.floats(self.storage, "a").read_only();
        let b = k.floats(self.storage, "b").read_only();
        if let (
            true,
            Walk::Chunks {
                a: first,
                b: second,
            },
        ) = (self.is_flat(), self.walk)
        {
            let n = k.parameter::<U32>("n");
            for_each_chunk(k, self.storage, n, |i, width| {
                let operands = [(a, first), (b, second)].map(|(x, step)| match step {
                    Step::Moves => x.at(i),
                    Step::Repeats => x,
                });
                self.put(y.at(i), operands, width);
            });
            return;
        }
        let spans = k.parameter::<U32>("spans");
        let strides: Vec<[Value<U32>; 2]> = (0..self.loops)
            .map(|l| ["a", "b"].map(|side| k.parameter(&format!("{side}_stride_{l}"))))
            .collect();
        let [a_strides, b_strides]: [Vec<_>; 2] =
            [0, 1].map(|side| strides.iter().map(|pair| pair[side]).collect());
        let extents: Vec<_> = (1..self.loops)
            .map(|l| Division::parameter(k, &format!("extent_{l}")))
            .collect();
        for_each_span(k, spans, |i| {
            k.comment("where the operands' elements lie");
            let at = place(i, &extents, &[&a_strides, &b_strides]);
            let steps = match self.walk {
                Walk::Elements => [Step::Repeats; 2],
                Walk::Chunks { a, b } => [a, b],
            };
            let operands = [(a, at[0], steps[0]), (b, at[1], steps[1])];
            let operands = operands.map(|(x, at, step)| match step {
                Step::Moves => x.at(at * width),
                Step::Repeats => x.at(at),
            });
            self.put(y.at(i * width), operands, width);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::binary::{self, Strided};
    use crate::testing::gpu::{self, assert_moves, assert_same_bits, encode, stored_values};

    /// Row-major strides of `shape`, which broadcasts to more dimensions or to larger ones.
    fn broadcast(shape: &[usize], dims: &[usize]) -> Vec<usize> {
        let mut strides = vec![0; dims.len()];
        let mut stride = 1;
        for (to, &extent) in strides.iter_mut().rev().zip(shape.iter().rev()) {
            *to = if extent == 1 { 0 } else { stride };
            stride *= extent;
        }
        strides
    }

    #[test]
    fn it_is_that_of_cpus() {
        let cases: [(&[usize], &[usize], &[usize]); 19] = [
            (&[], &[], &[]),
            (&[1], &[1], &[1]),
            (&[7], &[7], &[7]),
            (&[4101], &[4101], &[1]),
            (&[4101], &[1], &[4101]),
            (&[4096], &[4096], &[4096]),
            (&[9, 3], &[9, 3], &[3]),
            (&[9, 40], &[40], &[9, 40]),
            (&[9, 40], &[9, 40], &[9, 1]),
            (&[9, 41], &[9, 1], &[9, 41]),
            (&[9, 40], &[9, 1], &[40]),
            (&[3, 5, 16], &[3, 5, 16], &[3, 1, 16]),
            (&[3, 5, 6], &[3, 5, 6], &[3, 1, 6]),
            (&[3, 4, 2, 8], &[3, 1, 2, 8], &[4, 1, 8]),
            (&[3, 4, 2, 3], &[3, 1, 2, 1], &[4, 1, 3]),
            (&[2, 3, 2, 3, 2, 8], &[2, 1, 2, 1, 2, 1], &[3, 1, 3, 1, 8]),
            (&[2, 3, 2, 3, 2, 8], &[2, 3, 1, 1, 2, 8], &[3, 1, 8]),
            (&[1, 17, 1, 256], &[1, 17, 1, 256], &[256]),
            // Both repeat along the innermost dimension.
            (&[5, 16], &[5, 1], &[1]),
        ];
        for storage in Storage::ALL {
            for (function, accum) in Binary::ALL
                .into_iter()
                .flat_map(|f| Accum::ALL.map(|accum| (f, accum)))
            {
                for (dims, a_shape, b_shape) in cases {
                    let case = format!("{} {dims:?} {a_shape:?} {b_shape:?}", function.name());
                    let strides = [a_shape, b_shape].map(|shape| broadcast(shape, dims));
                    let [a, b] = [(a_shape, 1), (b_shape, 2)]
                        .map(|(shape, seed)| stored_values(storage, shape.iter().product(), seed));
                    let call =
                        Forward::config(function, storage, accum, dims, [&strides[0], &strides[1]]);
                    let call = call.expect("few elements");
                    let cpu = |y: &mut [f32]| {
                        let [a, b] = [(&a, &strides[0]), (&b, &strides[1])]
                            .map(|(data, strides)| Strided { data, strides });
                        binary::forward(function, y, accum, dims, a, b)
                    };
                    let [a_bytes, b_bytes] = [&a, &b].map(|x| encode(storage, x));
                    let kernel = |y: Argument<'_>| {
                        let read = [&a_bytes, &b_bytes].map(|x| Argument::Read(x));
                        gpu::run(&call, [y].into_iter().chain(read).collect())
                    };
                    let n = dims.iter().product();
                    let profile = assert_same_bits(&case, storage, accum, n, cpu, kernel);
                    if a.len() == 4096 && accum == Accum::Replace {
                        let least = 3 * n * storage.bytes() as usize;
                        assert_moves(&case, &profile, least);
                    }
                }
            }
        }
    }

    #[test]
    fn rows_of_whole_chunks_move_in_chunks() {
        let walk = |dims: &[usize], a: &[usize], b: &[usize]| {
            Forward::config(Binary::Add, Storage::Bf16, Accum::Replace, dims, [a, b])
                .expect("few elements")
                .plan
                .variant
        };
        let (both, one) = ((Step::Moves, Step::Moves), (Step::Moves, Step::Repeats));
        let chunks = |(a, b)| Walk::Chunks { a, b };
        for (dims, a, b, expected, loops) in [
            (&[7, 9][..], &[9, 1][..], &[9, 1][..], chunks(both), 1),
            (&[7, 16], &[16, 1], &[0, 1], chunks(both), 2),
            (&[7, 16], &[16, 1], &[1, 0], chunks(one), 2),
            (&[7, 12], &[12, 1], &[0, 1], Walk::Elements, 2),
            (&[2, 7, 16], &[112, 16, 1], &[16, 0, 1], chunks(both), 3),
            (
                &[2, 3, 7, 16],
                &[3, 1, 0, 0],
                &[0, 0, 16, 1],
                Walk::Chunks {
                    a: Step::Repeats,
                    b: Step::Moves,
                },
                2,
            ),
        ] {
            let variant = walk(dims, a, b);
            assert_eq!((variant.walk, variant.loops), (expected, loops), "{dims:?}");
        }
        let seven = [2; 7];
        let strides = [1, 0, 2, 0, 4, 0, 8];
        let other = [0, 1, 0, 2, 0, 4, 0];
        let refused = Forward::config(
            Binary::Add,
            Storage::F32,
            Accum::Replace,
            &seven,
            [&strides, &other],
        );
        assert!(refused.is_err());
    }
}
