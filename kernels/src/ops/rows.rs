//! What kernels share that treat a tensor row by row: softmax, cross-entropy, norms along rows.
//!
//! A row is read once where a warp or a CTA can keep it in registers. Longer ones are read again for each use, mostly from
//! the second cache.

use crate::ops::geometry::{Call, linear_grid};
use crate::ops::reduction::{Fold, over_cta, over_warp};
use crate::ops::spans::Access;
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, F32, Fast, Floats, Storage, U32, Value, Variable};
use crate::real::Real;

/// Threads of a CTA.
pub const THREADS: u32 = 256;

/// Who treats a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Team {
    /// A warp, each lane keeping this many spans.
    Warp(u32),
    /// A CTA, each thread keeping this many spans.
    Cta(u32),
    /// A CTA that reads the row again for each use.
    Streaming,
}

impl Team {
    pub const ALL: [Team; 4] = [Team::Warp(1), Team::Warp(4), Team::Cta(4), Team::Streaming];

    /// For rows of so many spans.
    fn of(spans: u32) -> Team {
        match spans {
            // One load a lane: nothing is left idle by rows of 16 to 512 bytes, which are attention-sized.
            0..=32 => Team::Warp(1),
            // Four loads under way hide as much latency as there is; no barrier is needed yet.
            33..=128 => Team::Warp(4),
            // 16 KiB: all registers that two operands leave, at 32 floats a thread each.
            129..=1024 => Team::Cta(4),
            _ => Team::Streaming,
        }
    }

    fn name(self) -> String {
        match self {
            Team::Warp(spans) => format!("warp{spans}"),
            Team::Cta(spans) => format!("cta{spans}"),
            Team::Streaming => "streaming".to_string(),
        }
    }

    fn threads(self) -> u32 {
        match self {
            Team::Warp(_) => 32,
            Team::Cta(_) | Team::Streaming => THREADS,
        }
    }

    /// How a contract describes the grid.
    fn describe(self) -> String {
        match self {
            Team::Warp(spans) => format!(
                "Grid: ceil(rows / {}) CTAs, a warp a row, which it keeps in {spans} spans a lane.",
                THREADS / 32
            ),
            Team::Cta(spans) => {
                format!("Grid: a CTA a row, which it keeps in {spans} spans a thread.")
            }
            Team::Streaming => {
                "Grid: a CTA a row. Reads the row again for each sum over it.".to_string()
            }
        }
    }
}

/// How a kernel treats rows: a part of its variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    pub access: Access,
    pub team: Team,
}

impl Rows {
    /// Every way that [`Rows::call`] may choose.
    pub fn all() -> Vec<Rows> {
        let mut all = vec![];
        for storage in Storage::ALL {
            for span in [1, storage.chunk()] {
                let access = Access { storage, span };
                all.extend(Team::ALL.map(|team| Rows { access, team }));
            }
        }
        all
    }

    /// The call of a kernel for `n` rows of `c` elements. Its numbers are the rows and the spans of a row.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn call<V: Variant>(
        storage: Storage,
        [n, c]: [usize; 2],
        variant: impl FnOnce(Rows) -> V,
    ) -> Result<Call<V>, Refused> {
        count(n.saturating_mul(c), "the number of elements")?;
        // Whole chunks or single elements: rows in between are rare, and each width would be another set of variants.
        let span = match c.is_multiple_of(storage.chunk() as usize) {
            true => storage.chunk(),
            false => 1,
        };
        let spans = c as u32 / span;
        let team = Team::of(spans);
        let rows_of_cta = THREADS / team.threads();
        let grid = linear_grid(n.div_ceil(rows_of_cta as usize))?;
        let access = Access { storage, span };
        let variant = variant(Rows { access, team });
        Ok(Call::new(variant, grid, vec![n as u32, spans]))
    }

    /// A part of a kernel's name.
    pub fn name(self) -> String {
        format!("{}_{}", self.access.name(), self.team.name())
    }

    /// What a contract says of grid and memory.
    pub fn describe(self) -> String {
        self.team.describe()
    }

    /// Declares the numbers, and calls `body` with this thread's row if there is one.
    pub fn for_each<'k>(self, k: &'k Assembler, body: impl FnOnce(Row<'k>)) {
        let n = k.parameter::<U32>("rows");
        let spans = k.parameter::<U32>("row_spans");
        let (index, thread) = match self.team {
            Team::Warp(_) => (k.cta_x() * (THREADS / 32) + k.warp(), k.lane()),
            Team::Cta(_) | Team::Streaming => (k.cta_x(), k.thread_x()),
        };
        let row = Row {
            k,
            rows: self,
            index,
            spans,
            thread,
        };
        // Whole warps, or whole CTAs.
        k.if_(index.lt(n), || body(row));
    }
}

/// A thread's row.
#[derive(Clone, Copy)]
pub struct Row<'k> {
    k: &'k Assembler,
    rows: Rows,
    index: Value<'k, U32>,
    spans: Value<'k, U32>,
    thread: Value<'k, U32>,
}

/// A function of each element.
type Map<'k> = Box<dyn Fn(Value<'k, F32>) -> Value<'k, F32> + 'k>;

/// The thread's part of a row of numbers, kept or computed anew.
pub enum Numbers<'k> {
    /// One list for each span.
    Kept(Vec<Vec<Variable<'k, F32>>>),
    Streaming {
        tensor: Floats<'k>,
        maps: Vec<Map<'k>>,
    },
}

impl<'k> Row<'k> {
    pub fn index(self) -> Value<'k, U32> {
        self.index
    }

    /// Its first element in the whole tensor.
    pub fn first(self) -> Value<'k, U32> {
        self.element(Value::from_bits(0))
    }

    fn is_kept(self) -> bool {
        self.rows.team != Team::Streaming
    }

    /// The element with which span `i` of the row begins.
    fn element(self, i: Value<'k, U32>) -> Value<'k, U32> {
        self.index.mul_add(self.spans, i) * self.rows.access.span
    }

    /// Calls `body` with the number of each kept span, and its place in the row, where it is in the row.
    fn for_each_kept(self, mut body: impl FnMut(usize, Value<'k, U32>)) {
        let spans = match self.rows.team {
            Team::Warp(spans) | Team::Cta(spans) => spans,
            Team::Streaming => 0,
        };
        for s in 0..spans {
            let i = self.thread + s * self.rows.team.threads();
            self.k.if_(i.lt(self.spans), || body(s as usize, i));
        }
    }

    /// Reads a tensor's row.
    pub fn read(self, tensor: Floats<'k>) -> Numbers<'k> {
        if !self.is_kept() {
            return Numbers::Streaming {
                tensor,
                maps: vec![],
            };
        }
        let (Team::Warp(spans) | Team::Cta(spans)) = self.rows.team else {
            unreachable!("a row that is kept")
        };
        let width = self.rows.access.span;
        let span = || (0..width).map(|_| self.k.variable(0.0f32)).collect();
        let kept: Vec<Vec<_>> = (0..spans).map(|_| span()).collect();
        self.for_each_kept(|s, i| {
            let values = tensor.at(self.element(i)).load_span(width);
            for (kept, value) in kept[s].iter().zip(values) {
                kept.set(value);
            }
        });
        Numbers::Kept(kept)
    }

    /// Applies `f` to every number: at once to those that are kept, else whenever they are read again.
    pub fn map(
        self,
        numbers: Numbers<'k>,
        f: impl Fn(Value<'k, F32>) -> Value<'k, F32> + 'k,
    ) -> Numbers<'k> {
        match numbers {
            Numbers::Kept(kept) => {
                self.for_each_kept(|s, _| kept[s].iter().for_each(|x| x.set(f(x.get()))));
                Numbers::Kept(kept)
            }
            Numbers::Streaming { tensor, mut maps } => {
                maps.push(Box::new(f));
                Numbers::Streaming { tensor, maps }
            }
        }
    }

    /// Calls `body` with this thread's spans: where each begins in the whole tensor, and the numbers of each operand there.
    pub fn for_each_span(
        self,
        operands: &[&Numbers<'k>],
        mut body: impl FnMut(Value<'k, U32>, Vec<Vec<Value<'k, F32>>>),
    ) {
        if self.is_kept() {
            self.for_each_kept(|s, i| {
                let kept = operands.iter().map(|numbers| match numbers {
                    Numbers::Kept(kept) => kept[s].iter().map(|x| x.get()).collect(),
                    Numbers::Streaming { .. } => unreachable!("operands of one row are alike"),
                });
                let kept = kept.collect();
                body(self.element(i), kept);
            });
            return;
        }
        self.k.for_(self.thread, self.spans, THREADS, |i| {
            let at = self.element(i);
            let read = operands.iter().map(|numbers| match numbers {
                Numbers::Kept(_) => unreachable!("operands of one row are alike"),
                Numbers::Streaming { tensor, maps } => {
                    let values = tensor.at(at).load_span(self.rows.access.span).into_iter();
                    let mapped = values.map(|x| maps.iter().fold(x, |x, map| map(x)));
                    mapped.collect()
                }
            });
            let read = read.collect();
            body(at, read);
        });
    }

    /// Folds over the row: `step` takes the thread's result so far and one number of each operand.
    pub fn fold(
        self,
        fold: Fold,
        operands: &[&Numbers<'k>],
        step: impl Fn(Value<'k, F32>, &[Value<'k, F32>]) -> Value<'k, F32>,
    ) -> Value<'k, F32> {
        let result = self.k.variable(fold.neutral());
        self.for_each_span(operands, |_, spans| {
            for e in 0..self.rows.access.span as usize {
                let numbers: Vec<_> = spans.iter().map(|span| span[e]).collect();
                result.set(step(result.get(), &numbers));
            }
        });
        match self.rows.team {
            Team::Warp(_) => over_warp(self.k, fold, result.get()),
            Team::Cta(_) | Team::Streaming => over_cta(self.k, fold, result.get()),
        }
    }

    /// Calls `body` in one thread of the row.
    pub fn once(self, body: impl FnOnce()) {
        self.k.if_(self.thread.eq(0), body);
    }
}

/// eˣ, as exactly as the storage can tell.
pub fn exp(storage: Storage, x: Value<'_, F32>) -> Value<'_, F32> {
    match storage {
        Storage::F32 => Real::exp(x),
        Storage::Bf16 => Fast(x).exp().0,
    }
}
