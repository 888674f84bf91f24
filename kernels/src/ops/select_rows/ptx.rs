//! Selection between two sources on GPUs.

use crate::Accum;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::{Call, Division, Divisor};
use crate::ops::spans::{Access, for_each_span};
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, Global, Pointer, Pred, Storage, U8, U32, Value};

/// `y[i] = keep[i] ? a[i] : b[i]` for rows of a; or `b[0]`, where b has one row for all. Launch with
/// `Write(y), Read(keep), Read(a), Read(b)`, keep having a byte a row, and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub access: Access,
    pub shared: bool,
}

/// `dst[i] (+)= keep[i] = side ? dy[i] : 0`: the gradient of a (`side` true), or of a full b (`side` false). Launch with
/// `Write(dst)`, or `Update(dst)` under [`Accum::Add`], then `Read(keep), Read(dy)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    pub access: Access,
    pub accum: Accum,
    pub side: bool,
}

/// `db (+)= Σ dy[i]` over all i that were not kept, in order of i: the gradient of a b of one row. Launch with `Write(db)`,
/// or `Update(db)` under [`Accum::Add`], then `Read(keep), Read(dy)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackwardShared {
    pub access: Access,
    pub accum: Accum,
}

/// Rows of which [`BackwardShared`] asks for at once, to have more loads under way than one.
const ROWS_AT_ONCE: u32 = 4;

/// The numbers of the elementwise kernels, and their grid.
fn elementwise(access: Access, [n, row]: [usize; 2]) -> Result<(Vec<u32>, [u32; 3]), Refused> {
    let (spans, grid) = access.cover(n.saturating_mul(row), "the number of elements")?;
    let row = Divisor::new((row as u32 / access.span).max(1));
    Ok(([vec![spans], row.numbers().to_vec()].concat(), grid))
}

impl Forward {
    /// For `n` rows of `row` elements; `shared` if b has one.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(
        storage: Storage,
        [n, row]: [usize; 2],
        shared: bool,
    ) -> Result<Call<Self>, Refused> {
        let access = Access::widest(storage, &[row]);
        let (numbers, grid) = elementwise(access, [n, row])?;
        Ok(Call::new(Forward { access, shared }, grid, numbers))
    }
}

impl Backward {
    /// For `n` rows of `row` elements.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        [n, row]: [usize; 2],
        side: bool,
    ) -> Result<Call<Self>, Refused> {
        let access = Access::widest(storage, &[row]);
        let (numbers, grid) = elementwise(access, [n, row])?;
        let variant = Backward {
            access,
            accum,
            side,
        };
        Ok(Call::new(variant, grid, numbers))
    }
}

impl BackwardShared {
    /// For `n` rows of `row` elements.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        [n, row]: [usize; 2],
    ) -> Result<Call<Self>, Refused> {
        count(n.saturating_mul(row), "the number of elements")?;
        let access = Access::widest(storage, &[row]);
        let (spans, grid) = access.cover(row, "the number of elements")?;
        let variant = BackwardShared { access, accum };
        Ok(Call::new(variant, grid, vec![spans, n as u32]))
    }
}

/// Whether row `i` is kept.
fn is_kept<'k>(keep: Pointer<'k, Global, U8>, i: Value<'k, U32>) -> Value<'k, Pred> {
    keep.at(i).load().cast::<U32>().ne(0)
}

impl Variant for Forward {
    const KERNEL: &'static str = "select_rows/forward";

    fn all() -> Vec<Forward> {
        let pair = |access| [false, true].map(|shared| Forward { access, shared });
        Access::all().into_iter().flat_map(pair).collect()
    }

    fn label(&self) -> String {
        let b = if self.shared { "shared" } else { "full" };
        format!("{}_{b}", self.access.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let Access { storage, span } = self.access;
        k.contract(&format!(
            "y[i] = keep[i] ? a[i] : b[{}] for rows of a, {}.\n\
             Grid: ceil(elements of y / {}) CTAs, {span} elements a thread. Reads what it copies and writes y once.",
            if self.shared { "0" } else { "i" },
            storage.name(),
            THREADS * span
        ));
        let y = k.floats(storage, "y");
        let keep = k.buffer::<U8>("keep").read_only();
        let a = k.floats(storage, "a").read_only();
        let b = k.floats(storage, "b").read_only();
        let spans = k.parameter::<U32>("spans");
        let row = Division::parameter(k, "row_spans");
        for_each_span(k, spans, |i| {
            let [sample, column] = row.split(i);
            let at = if self.shared { column } else { i };
            k.if_else(
                is_kept(keep, sample),
                || y.at(i * span).store_span(&a.at(i * span).load_span(span)),
                || y.at(i * span).store_span(&b.at(at * span).load_span(span)),
            );
        });
    }
}

impl Variant for Backward {
    const KERNEL: &'static str = "select_rows/backward";

    fn all() -> Vec<Backward> {
        let mut all = vec![];
        for access in Access::all() {
            for accum in Accum::ALL {
                all.extend([true, false].map(|side| Backward {
                    access,
                    accum,
                    side,
                }));
            }
        }
        all
    }

    fn label(&self) -> String {
        let operand = if self.side { "a" } else { "b" };
        format!("{operand}_{}_{}", self.access.name(), self.accum.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let Access { storage, span } = self.access;
        let symbol = self.accum.symbol();
        let [chosen, other] = match self.side {
            true => ["dy[i]", "0"],
            false => ["0", "dy[i]"],
        };
        k.contract(&format!(
            "dst[i] {symbol} keep[i] ? {chosen} : {other}, {}.\n\
             Grid: ceil(elements of dst / {}) CTAs, {span} elements a thread. Reads the rows of dy that count, and writes dst \
             once; += leaves the other rows alone.",
            storage.name(),
            THREADS * span
        ));
        let dst = k.floats(storage, "dst");
        let keep = k.buffer::<U8>("keep").read_only();
        let dy = k.floats(storage, "dy").read_only();
        let spans = k.parameter::<U32>("spans");
        let row = Division::parameter(k, "row_spans");
        for_each_span(k, spans, |i| {
            let counts = keep.at(row.quotient(i)).load().cast::<U32>();
            let counts = match self.side {
                true => counts.ne(0),
                false => counts.eq(0),
            };
            let dst = dst.at(i * span);
            let put = || dst.put_span(self.accum, &dy.at(i * span).load_span(span));
            match self.accum {
                Accum::Add => k.if_(counts, put),
                Accum::Replace => k.if_else(counts, put, || {
                    dst.store_span(&vec![Value::from_bits(0); span as usize]);
                }),
            }
        });
    }
}

impl Variant for BackwardShared {
    const KERNEL: &'static str = "select_rows/backward_shared";

    fn all() -> Vec<BackwardShared> {
        let pair = |access| Accum::ALL.map(|accum| BackwardShared { access, accum });
        Access::all().into_iter().flat_map(pair).collect()
    }

    fn label(&self) -> String {
        format!("{}_{}", self.access.name(), self.accum.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let Access { storage, span } = self.access;
        k.contract(&format!(
            "db {} the sum of dy[i] over all i that are not kept, in order of i, {}.\n\
             Grid: ceil(elements of db / {}) CTAs, {span} columns a thread. Reads the rows of dy that count, and writes db \
             once.",
            self.accum.symbol(),
            storage.name(),
            THREADS * span
        ));
        let db = k.floats(storage, "db");
        let keep = k.buffer::<U8>("keep").read_only();
        let dy = k.floats(storage, "dy").read_only();
        let spans = k.parameter::<U32>("spans");
        let n = k.parameter::<U32>("n");
        for_each_span(k, spans, |column| {
            let db = db.at(column * span);
            let sums: Vec<_> = match self.accum {
                Accum::Replace => (0..span).map(|_| k.variable(0.0)).collect(),
                Accum::Add => {
                    let old = db.load_span(span).into_iter();
                    old.map(|old| k.variable(old)).collect()
                }
            };
            let add = |i: Value<U32>, rows: u32| {
                // Zeros stand for rows that are kept: adding one changes no sum, which is never −0.
                let terms: Vec<Vec<_>> = (0..rows)
                    .map(|_| (0..span).map(|_| k.variable(0.0)).collect())
                    .collect();
                for (r, terms) in (0..rows).zip(&terms) {
                    let kept = is_kept(keep, i + r);
                    k.if_(!kept, || {
                        let at = (i + r).mul_add(spans, column) * span;
                        for (term, dy) in terms.iter().zip(dy.at(at).load_span(span)) {
                            term.set(dy);
                        }
                    });
                }
                for terms in terms {
                    for (sum, term) in sums.iter().zip(terms) {
                        sum.set(*sum + term);
                    }
                }
            };
            let whole = n - n % ROWS_AT_ONCE;
            k.for_(0, whole, ROWS_AT_ONCE, |i| add(i, ROWS_AT_ONCE));
            k.comment("the last rows");
            k.for_(whole, n, 1, |i| add(i, 1));
            db.store_span(&sums.iter().map(|sum| sum.get()).collect::<Vec<_>>());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::select_rows;
    use crate::testing::gpu::{self, assert_moves, assert_same_bits, encode, stored_values};

    #[test]
    fn they_choose_what_cpus_choose() {
        for storage in Storage::ALL {
            for shape in [[1, 1], [5, 7], [13, 12], [6, 1024]] {
                let [n, row] = shape;
                let keep: Vec<u8> = (0..n).map(|i| u8::from(i % 3 == 1)).collect();
                let a = stored_values(storage, n * row, 1);
                let case = format!("{shape:?}");
                let keep_operand = || Argument::Read(&keep);
                for shared in [false, true] {
                    let b = stored_values(storage, if shared { row } else { n * row }, 2);
                    let cpu = |y: &mut [f32]| select_rows::forward(y, &keep, &a, &b, row);
                    let kernel = |y: Argument<'_>| {
                        let call = Forward::config(storage, shape, shared).expect("few elements");
                        let (a, b) = (encode(storage, &a), encode(storage, &b));
                        let sources = [Argument::Read(&a), Argument::Read(&b)];
                        let [a, b] = sources;
                        gpu::run(&call, vec![y, keep_operand(), a, b])
                    };
                    let profile =
                        assert_same_bits(&case, storage, Accum::Replace, n * row, cpu, kernel);
                    if row == 1024 {
                        let least = 2 * n * row * storage.bytes() as usize;
                        assert_moves(&case, &profile, least);
                    }
                }
                let dy = a;
                for accum in Accum::ALL {
                    for side in [true, false] {
                        let cpu = |dst: &mut [f32]| {
                            select_rows::backward(dst, accum, &dy, &keep, side, row)
                        };
                        let kernel = |dst: Argument<'_>| {
                            let call = Backward::config(storage, accum, shape, side);
                            let dy = encode(storage, &dy);
                            let operands = vec![dst, keep_operand(), Argument::Read(&dy)];
                            gpu::run(&call.expect("few elements"), operands)
                        };
                        assert_same_bits(&case, storage, accum, n * row, cpu, kernel);
                    }
                    let cpu = |db: &mut [f32]| select_rows::backward_shared(db, accum, &dy, &keep);
                    let kernel = |db: Argument<'_>| {
                        let call = BackwardShared::config(storage, accum, shape);
                        let dy = encode(storage, &dy);
                        let operands = vec![db, keep_operand(), Argument::Read(&dy)];
                        gpu::run(&call.expect("few elements"), operands)
                    };
                    assert_same_bits(&case, storage, accum, row, cpu, kernel);
                }
            }
        }
    }
}
