//! What kernels share that treat a tensor row by row: softmax, cross-entropy, norms along rows.
//!
//! A row is read once where a warp or a CTA can keep it in registers. Longer ones are read again for each use, mostly from
//! the second cache. A team treats one row ([`Rows::for_each`]), or a block of rows with what they share ([`Rows::block`]).

use crate::ops::geometry::{Call, linear_grid};
use crate::ops::reduction::{Fold, over_cta, over_warp};
use crate::ops::spans::Access;
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{
    Assembler, F32, Fast, Floats, Global, Pointer, Pred, Shared, Storage, U32, Value, Variable,
};
use crate::real::Real;

pub use crate::ops::elementwise::THREADS;

/// The most blocks of rows: two for each multiprocessor of the largest GPUs.
const MOST_BLOCKS: usize = 264;

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

/// What is alike in every [`Variant`] of this module's kernels: one variant for each value of a field that has `all` and
/// `name`, such as [`Rows`], and where they accumulate for each [`Accum`](crate::Accum).
macro_rules! variants {
    ($field:ident: $kind:ty) => {
        fn all() -> Vec<Self> {
            let all = <$kind>::all().into_iter();
            all.map(|$field| Self { $field }).collect()
        }

        fn label(&self) -> String {
            self.$field.name()
        }

        $crate::ops::rows::variants!();
    };
    ($field:ident: $kind:ty, accum) => {
        fn all() -> Vec<Self> {
            let pair = |$field| $crate::Accum::ALL.map(|accum| Self { $field, accum });
            <$kind>::all().into_iter().flat_map(pair).collect()
        }

        fn label(&self) -> String {
            format!("{}_{}", self.$field.name(), self.accum.name())
        }

        $crate::ops::rows::variants!();
    };
    () => {
        fn block(&self) -> [u32; 3] {
            [$crate::ops::rows::THREADS, 1, 1]
        }
    };
}
pub(crate) use variants;

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
        let (rows, spans) = Rows::of(storage, [n, c])?;
        let grid = linear_grid(n.div_ceil(rows.at_once() as usize))?;
        Ok(Call::new(variant(rows), grid, vec![n as u32, spans]))
    }

    /// The call of a kernel whose CTAs each treat a [`Block`] of `least` consecutive rows or more, and the number of blocks.
    /// Its numbers are the rows, the spans of a row, and the rows of a block.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn call_blocks<V: Variant>(
        storage: Storage,
        [n, c]: [usize; 2],
        least: usize,
        variant: impl FnOnce(Rows) -> V,
    ) -> Result<(Call<V>, usize), Refused> {
        let (rows, spans) = Rows::of(storage, [n, c])?;
        let block = n.div_ceil(MOST_BLOCKS).max(least);
        let blocks = n.div_ceil(block);
        let numbers = vec![n as u32, spans, block as u32];
        let call = Call::new(variant(rows), linear_grid(blocks)?, numbers);
        Ok((call, blocks))
    }

    /// How `n` rows of `c` elements are treated, and the spans of each.
    fn of(storage: Storage, [n, c]: [usize; 2]) -> Result<(Rows, u32), Refused> {
        count(n.saturating_mul(c), "the number of elements")?;
        // Whole chunks or single elements: rows in between are rare, and each width would be another set of variants.
        let span = match c.is_multiple_of(storage.chunk() as usize) {
            true => storage.chunk(),
            false => 1,
        };
        let spans = c as u32 / span;
        let access = Access { storage, span };
        let team = Team::of(spans);
        Ok((Rows { access, team }, spans))
    }

    /// Rows that a CTA treats side by side.
    fn at_once(self) -> u32 {
        THREADS / self.team.threads()
    }

    /// A part of a kernel's name.
    pub fn name(self) -> String {
        format!("{}_{}", self.access.name(), self.team.name())
    }

    /// What a contract says of grid and memory.
    pub fn describe(self) -> String {
        self.team.describe()
    }

    /// The same of blocks.
    pub fn describe_blocks(self) -> String {
        let kept = match self.team {
            Team::Warp(spans) => format!("a warp a row, which it keeps in {spans} spans a lane"),
            Team::Cta(spans) => format!("row after row, which it keeps in {spans} spans a thread"),
            Team::Streaming => "row after row, which it reads again for each use".to_string(),
        };
        format!("Grid: a CTA a block of rows, {kept}.")
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

    /// Declares the numbers of [`Rows::call_blocks`], and gives this thread's block.
    pub fn block<'k>(self, k: &'k Assembler) -> Block<'k> {
        let n = k.parameter::<U32>("rows");
        let spans = k.parameter::<U32>("row_spans");
        let rows = k.parameter::<U32>("block_rows");
        let start = k.cta_x() * rows;
        let (side, thread) = match self.team {
            Team::Warp(_) => (k.warp(), k.lane()),
            Team::Cta(_) | Team::Streaming => (Value::from_bits(0), k.thread_x()),
        };
        Block {
            rows: self,
            start,
            end: n.min(start + rows),
            side,
            shared: Row {
                k,
                rows: self,
                index: Value::from_bits(0),
                spans,
                thread,
            },
        }
    }
}

/// The rows that a CTA treats one after another, or a warp every eighth of.
#[derive(Clone, Copy)]
pub struct Block<'k> {
    rows: Rows,
    /// The first row, and the one behind the last.
    start: Value<'k, U32>,
    end: Value<'k, U32>,
    /// Which of the rows that are treated side by side is this thread's.
    side: Value<'k, U32>,
    shared: Row<'k>,
}

/// A number of every row in memory and, while the block treats it, on chip: so that memory moves whole sectors, of which one
/// row's number is an eighth.
#[derive(Clone, Copy)]
pub struct RowNumbers<'k> {
    /// The block's first row.
    start: Value<'k, U32>,
    in_memory: Pointer<'k, Global, F32>,
    on_chip: Pointer<'k, Shared, F32>,
    direction: Direction,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

impl<'k> RowNumbers<'k> {
    fn of(self, row: Row<'k>) -> Pointer<'k, Shared, F32> {
        self.on_chip.at((row.index - self.start) % THREADS)
    }

    /// That of a row.
    pub fn get(self, row: Row<'k>) -> Value<'k, F32> {
        self.of(row).load()
    }

    /// Writes that of a row, in one of its threads.
    pub fn set(self, row: Row<'k>, number: Value<'k, F32>) {
        row.once(|| self.of(row).store(number));
    }
}

impl<'k> Block<'k> {
    /// What all rows share, such as their gain: the only row of a tensor of its own.
    pub fn shared(self) -> Row<'k> {
        self.shared
    }

    /// Reads what all rows share, once for the CTA.
    pub fn read_shared(self, tensor: Floats<'k>) -> Numbers<'k> {
        let (row, k) = (self.shared, self.shared.k);
        // In other teams threads share no columns.
        let Team::Warp(spans) = self.rows.team else {
            return row.read(tensor);
        };
        let (width, apart) = (self.rows.access.span, spans * 32);
        let on_chip = k.shared_array::<F32>(width * apart);
        let i = k.thread_x();
        k.if_(i.lt(row.spans), || {
            let values = tensor.at(row.element(i)).load_span(width);
            // Element by element over the spans: lanes beside each other access different banks.
            for (e, value) in (0u32..).zip(values) {
                on_chip.at(i).at(e * apart).store(value);
            }
        });
        k.barrier();
        let kept = row.zeros();
        row.for_each_kept(|s, i| {
            for (e, kept) in (0u32..).zip(&kept[s]) {
                kept.set(on_chip.at(i).at(e * apart).load());
            }
        });
        Numbers::Kept(kept)
    }

    /// A number of each row that the kernel reads.
    pub fn numbers_read(self, in_memory: Pointer<'k, Global, F32>) -> RowNumbers<'k> {
        self.numbers(in_memory, Direction::Read)
    }

    /// A number of each row that the kernel writes.
    pub fn numbers_written(self, in_memory: Pointer<'k, Global, F32>) -> RowNumbers<'k> {
        self.numbers(in_memory, Direction::Write)
    }

    fn numbers(self, in_memory: Pointer<'k, Global, F32>, direction: Direction) -> RowNumbers<'k> {
        RowNumbers {
            start: self.start,
            in_memory,
            on_chip: self.shared.k.shared_array::<F32>(THREADS),
            direction,
        }
    }

    /// Calls `body` for each of this thread's rows, with their numbers at hand. A CTA's shared memory is used again by the
    /// next row: `body` must fold twice at least, so that the second one's barrier lies between.
    pub fn for_each_row(self, numbers: &[RowNumbers<'k>], body: impl FnOnce(Row<'k>)) {
        let k = self.shared.k;
        let with = |direction| numbers.iter().filter(move |n| n.direction == direction);
        k.comment("as many rows as numbers of them are kept on chip");
        k.for_(self.start, self.end, THREADS, |first| {
            let own = first + k.thread_x();
            let exists = own.lt(self.end);
            k.if_(exists, || {
                for numbers in with(Direction::Read) {
                    let number = numbers.in_memory.at(own).load();
                    numbers.on_chip.at(k.thread_x()).store(number);
                }
            });
            k.barrier();
            let end = self.end.min(first + THREADS);
            k.for_(first + self.side, end, self.rows.at_once(), |index| {
                body(Row {
                    index,
                    ..self.shared
                });
            });
            k.barrier();
            k.if_(exists, || {
                for numbers in with(Direction::Write) {
                    let number = numbers.on_chip.at(k.thread_x()).load();
                    numbers.in_memory.at(own).store(number);
                }
            });
        });
    }

    /// Sums over the block's rows, which start as zeros, for `partial` [blocks, c] or nothing if that is null. Where rows are
    /// not kept, they lie there from the start.
    pub fn sums(self, partial: Pointer<'k, Global, F32>) -> ColumnSums<'k> {
        let row = self.shared;
        let k = row.k;
        let wanted = partial.is_present();
        let partial = partial.at(k.cta_x() * row.spans * self.rows.access.span);
        if !row.is_kept() {
            k.if_(wanted, || {
                row.for_each_span(&[], |at, _| {
                    row.store(partial.at(at), |_| Value::from_bits(0));
                });
            });
        }
        ColumnSums {
            wanted,
            partial,
            kept: row.zeros(),
        }
    }

    /// Writes sums over the block's rows to its part of the partial sums.
    pub fn finish(self, sums: &[ColumnSums<'k>]) {
        let row = self.shared;
        let k = row.k;
        let width = self.rows.access.span;
        match self.rows.team {
            // They are there.
            Team::Streaming => {}
            // Each thread has columns of its own.
            Team::Cta(_) => {
                for sums in sums {
                    k.if_(sums.wanted, || {
                        row.for_each_kept(|s, i| {
                            row.store(sums.partial.at(i * width), |e| sums.kept[s][e].get());
                        });
                    });
                }
            }
            Team::Warp(spans) => {
                let warps = self.rows.at_once();
                let of_warp = spans * width * 32;
                let shared = k.shared_array::<F32>(of_warp * warps);
                for sums in sums {
                    k.comment("the warps' sums, added in their order");
                    k.barrier();
                    // Element by element over the lanes, which so access different banks.
                    let own = shared.at(k.warp() * of_warp + k.lane());
                    for (i, sum) in (0..).zip(sums.kept.iter().flatten()) {
                        own.at(i * 32).store(*sum);
                    }
                    k.barrier();
                    let i = k.thread_x();
                    k.if_(sums.wanted & i.lt(row.spans), || {
                        let first = shared.at((i / 32) * (width * 32) + i % 32);
                        row.store(sums.partial.at(i * width), |e| {
                            let of = |warp| first.at(warp * of_warp + e as u32 * 32).load();
                            (1..warps).fold(of(0), |sum, warp| sum + of(warp))
                        });
                    });
                }
            }
        }
    }
}

/// Sums of each column over rows, in f32.
pub struct ColumnSums<'k> {
    wanted: Value<'k, Pred>,
    /// Where the block's sums go, one for each column.
    partial: Pointer<'k, Global, F32>,
    /// The thread's part of them, while rows are kept.
    kept: Vec<Vec<Variable<'k, F32>>>,
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
        row: Row<'k>,
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

    fn kept_spans(self) -> u32 {
        match self.rows.team {
            Team::Warp(spans) | Team::Cta(spans) => spans,
            Team::Streaming => 0,
        }
    }

    /// The element with which span `i` of the row begins.
    fn element(self, i: Value<'k, U32>) -> Value<'k, U32> {
        let spans = match self.index.constant() {
            Some(0) => i,
            _ => self.index.mul_add(self.spans, i),
        };
        spans * self.rows.access.span
    }

    /// Its number of elements.
    pub fn length(self) -> Value<'k, U32> {
        self.spans * self.rows.access.span
    }

    /// Calls `body` with the number of each kept span, and its place in the row, where it is in the row.
    fn for_each_kept(self, mut body: impl FnMut(usize, Value<'k, U32>)) {
        for s in 0..self.kept_spans() {
            let i = self.thread + s * self.rows.team.threads();
            self.k.if_(i.lt(self.spans), || body(s as usize, i));
        }
    }

    /// A zero for each element that this thread keeps, span by span.
    fn zeros(self) -> Vec<Vec<Variable<'k, F32>>> {
        let span = |_| {
            let elements = 0..self.rows.access.span;
            elements.map(|_| self.k.variable(0.0f32)).collect()
        };
        (0..self.kept_spans()).map(span).collect()
    }

    /// Reads a tensor's row.
    pub fn read(self, tensor: Floats<'k>) -> Numbers<'k> {
        if !self.is_kept() {
            return Numbers::Streaming {
                row: self,
                tensor,
                maps: vec![],
            };
        }
        let width = self.rows.access.span;
        let kept = self.zeros();
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
            Numbers::Streaming {
                row,
                tensor,
                mut maps,
            } => {
                maps.push(Box::new(f));
                Numbers::Streaming { row, tensor, maps }
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
                body(self.element(i), kept_span(operands, s));
            });
            return;
        }
        self.k.for_(self.thread, self.spans, THREADS, |i| {
            let at = self.element(i);
            let read = operands.iter().map(|numbers| match numbers {
                Numbers::Kept(_) => unreachable!("operands of one row are alike"),
                Numbers::Streaming { row, tensor, maps } => {
                    let values = tensor.at(row.element(i)).load_span(self.rows.access.span);
                    let values = values.into_iter();
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

    /// Adds to sums of columns what `terms` makes of one number of each operand.
    pub fn add<const N: usize>(
        self,
        sums: [&ColumnSums<'k>; N],
        operands: &[&Numbers<'k>],
        terms: impl Fn(&[Value<'k, F32>]) -> [Value<'k, F32>; N],
    ) {
        let of = |spans: &[Vec<Value<'k, F32>>], e: usize| {
            terms(&spans.iter().map(|span| span[e]).collect::<Vec<_>>())
        };
        if self.is_kept() {
            self.for_each_kept(|s, _| {
                let spans = kept_span(operands, s);
                for e in 0..self.rows.access.span as usize {
                    for (sums, term) in sums.iter().zip(of(&spans, e)) {
                        let sum = sums.kept[s][e];
                        sum.set(sum + term);
                    }
                }
            });
            return;
        }
        self.for_each_span(operands, |at, spans| {
            let column = at - self.first();
            let width = self.rows.access.span as usize;
            let terms: Vec<_> = (0..width).map(|e| of(&spans, e)).collect();
            for (i, sums) in sums.iter().enumerate() {
                let to = sums.partial.at(column);
                self.k.if_(sums.wanted, || {
                    self.store(to, |e| to.at(e as u32).load() + terms[e][i]);
                });
            }
        });
    }

    /// Stores a span of f32.
    fn store(self, to: Pointer<'k, Global, F32>, value: impl Fn(usize) -> Value<'k, F32>) {
        let values: Vec<_> = (0..self.rows.access.span as usize).map(value).collect();
        let chunk = Storage::F32.chunk() as usize;
        for (i, values) in (0..).step_by(chunk).zip(values.chunks(chunk)) {
            Floats::F32(to.at(i)).store_span(values);
        }
    }

    /// Calls `body` in one thread of the row.
    pub fn once(self, body: impl FnOnce()) {
        self.k.if_(self.thread.eq(0), body);
    }
}

/// The numbers of each operand in span `s`.
fn kept_span<'k>(operands: &[&Numbers<'k>], s: usize) -> Vec<Vec<Value<'k, F32>>> {
    let span = |numbers: &&Numbers<'k>| match numbers {
        Numbers::Kept(kept) => kept[s].iter().map(|x| x.get()).collect(),
        Numbers::Streaming { .. } => unreachable!("operands of one row are alike"),
    };
    operands.iter().map(span).collect()
}

/// eˣ, as exactly as the storage can tell.
pub fn exp(storage: Storage, x: Value<'_, F32>) -> Value<'_, F32> {
    match storage {
        Storage::F32 => Real::exp(x),
        Storage::Bf16 => Fast(x).exp().0,
    }
}
