//! Table look-up on GPUs.

use crate::Accum;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::{Call, Division, Divisor, linear_grid};
use crate::ops::spans::{Access, for_each_span};
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, B32, F32, IntoValue, Pointer, S32, Shared, Storage, U32, Value};

/// `y[i] = table[ids[i]]`, rows of c elements, every id being a row of the table. Launch with
/// `Write(y), Read(table), Read(ids)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    pub access: Access,
}

/// `dtable[v] (+)= Σ dy[i]` over all i with ids[i] = v, every id being a row of the table. Launch with `Write(dtable)`, or
/// `Update(dtable)` under [`Accum::Add`], then `Read(dy), Read(ids)` and the call's numbers.
///
/// A CTA has some rows of the table and some of their columns to itself. Its warps walk through the ids in a fixed order and
/// add what belongs to these rows into sums of their own, which are added in the order of the warps: so the bits are always
/// the same, though a padding token may stand at most positions, and no two CTAs meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backward {
    pub access: Access,
    pub accum: Accum,
}

/// Rows of the table that a CTA of [`Backward`] sums: more would read the ids fewer times, and take more shared memory.
const ROWS: u32 = 16;
const WARPS: u32 = THREADS / 32;
/// Positions with an id of the CTA's rows whose gradients a warp asks for at once.
const AT_ONCE: u32 = 4;

impl Forward {
    /// For a table of `v` rows of `c` elements, and `n` ids.
    ///
    /// # Errors
    /// If the table or y has more elements than kernels count.
    pub fn config(storage: Storage, [v, c]: [usize; 2], n: usize) -> Result<Call<Self>, Refused> {
        count(v.saturating_mul(c), "the size of the table")?;
        let access = Access::widest(storage, &[c]);
        let (spans, grid) = access.cover(n.saturating_mul(c), "the number of elements")?;
        let row = Divisor::new((c as u32 / access.span).max(1));
        let numbers = [vec![spans], row.numbers().to_vec()].concat();
        Ok(Call::new(Forward { access }, grid, numbers))
    }
}

impl Backward {
    /// For a table of `v` rows of `c` elements, and `n` ids.
    ///
    /// # Errors
    /// If the table or dy has more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        [v, c]: [usize; 2],
        n: usize,
    ) -> Result<Call<Self>, Refused> {
        count(v.saturating_mul(c), "the size of the table")?;
        count(n.saturating_mul(c), "the number of elements")?;
        // Four columns a lane at most: the sums of eight would take all shared memory.
        let widest = Access::widest(storage, &[c]);
        let access = Access {
            span: widest.span.min(4),
            ..widest
        };
        let spans = c as u32 / access.span;
        let tiles = spans.div_ceil(32).max(1);
        let grid = linear_grid(v.div_ceil(ROWS as usize) * tiles as usize)?;
        let mut numbers = vec![v as u32, n as u32, spans];
        numbers.extend(Divisor::new(tiles).numbers());
        Ok(Call::new(Backward { access, accum }, grid, numbers))
    }
}

impl Variant for Forward {
    const KERNEL: &'static str = "embedding/forward";

    fn all() -> Vec<Forward> {
        let all = Access::all().into_iter();
        all.map(|access| Forward { access }).collect()
    }

    fn label(&self) -> String {
        self.access.name()
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let Access { storage, span } = self.access;
        k.contract(&format!(
            "y[i] = table[ids[i]], {}.\n\
             Grid: ceil(elements of y / {}) CTAs, {span} elements a thread. Reads the rows that it copies and writes y once.",
            storage.name(),
            THREADS * span
        ));
        let y = k.floats(storage, "y");
        let table = k.floats(storage, "table").read_only();
        let ids = k.buffer::<S32>("ids").read_only();
        let spans = k.parameter::<U32>("spans");
        let row = Division::parameter(k, "row_spans");
        for_each_span(k, spans, |i| {
            let [position, column] = row.split(i);
            let id = ids.at(position).load().cast::<U32>();
            let table = table.at(id.mul_add(row.divisor(), column) * span);
            y.at(i * span).store_span(&table.load_span(span));
        });
    }
}

/// Where the sum of a warp for a row, in this lane's first column, lies in shared memory. Those of its other columns follow
/// 32 elements apart, so that lanes access different banks.
fn place<'k>(
    k: &'k Assembler,
    span: u32,
    warp: impl IntoValue<'k, U32>,
    row: impl IntoValue<'k, U32>,
) -> Value<'k, U32> {
    let first = warp.into_value() * ROWS + row;
    first * (32 * span) + k.lane()
}

impl Variant for Backward {
    const KERNEL: &'static str = "embedding/backward";

    fn all() -> Vec<Backward> {
        let all = Access::all().into_iter().filter(|access| access.span <= 4);
        all.flat_map(|access| Accum::ALL.map(|accum| Backward { access, accum }))
            .collect()
    }

    fn label(&self) -> String {
        format!("{}_{}", self.access.name(), self.accum.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let Access { storage, span } = self.access;
        let columns = 32 * span;
        k.contract(&format!(
            "dtable[v] {} the sum of dy[i] over all i with ids[i] = v, {}.\n\
             Grid: a CTA for {ROWS} rows and {columns} columns of the table, the columns first. Warp w takes the ids of block \
             w, w + {WARPS}, ... of 32; the sums of the {WARPS} warps are added in their order.\n\
             Shared memory: the sums of each warp. Reads dy and writes dtable once, and reads ids once a CTA.",
            self.accum.symbol(),
            storage.name(),
        ));
        let dtable = k.floats(storage, "dtable");
        let dy = k.floats(storage, "dy").read_only();
        let ids = k.buffer::<S32>("ids").read_only();
        let v = k.parameter::<U32>("v");
        let n = k.parameter::<U32>("n");
        let spans = k.parameter::<U32>("row_spans");
        let tiles = Division::parameter(k, "tiles");

        let (lane, warp) = (k.lane(), k.warp());
        let [group, tile] = tiles.split(k.cta_x());
        let first_row = group * ROWS;
        let column = tile * 32 + lane;
        let inside = column.lt(spans);
        let sums: Pointer<Shared, F32> = k.shared_array(WARPS * ROWS * columns);
        k.comment("this warp's sums start at zero");
        for row in 0..ROWS {
            for e in 0..span {
                let at = place(k, span, warp, row);
                sums.at(at + e * 32).store(0.0f32);
            }
        }
        k.for_(warp * 32, n, THREADS, |block| {
            let position = block + lane;
            let row = k.variable::<U32>(ROWS);
            k.when(position.lt(n), || {
                row.set(ids.at(position).load().cast::<U32>() - first_row);
            });
            let row = row.get();
            let mine = k.variable::<B32>(k.ballot(row.lt(ROWS)));
            k.while_(
                || mine.get().cast::<U32>().ne(0),
                || {
                    k.comment("the lowest lanes whose ids are of these rows");
                    let mut found = vec![];
                    for _ in 0..AT_ONCE {
                        let bits = mine.get().cast::<U32>();
                        let some = bits.ne(0);
                        let lowest = bits & (Value::<U32>::from_bits(0) - bits);
                        let source = Value::<U32>::from_bits(31) - k.clz(lowest.cast());
                        let source = source & 31;
                        mine.set((bits ^ lowest).cast::<B32>());
                        let row = k.shuffle_index(row, source);
                        let terms: Vec<_> = (0..span).map(|_| k.variable(0.0f32)).collect();
                        k.if_(some & inside, || {
                            let at = (block + source).mul_add(spans, column) * span;
                            for (term, dy) in terms.iter().zip(dy.at(at).load_span(span)) {
                                term.set(dy);
                            }
                        });
                        found.push((some, row, terms));
                    }
                    for (some, row, terms) in found {
                        k.if_(some, || {
                            let at = place(k, span, warp, row);
                            for (e, term) in (0..).zip(terms) {
                                let sum = sums.at(at + e * 32);
                                sum.store(sum.load() + term);
                            }
                        });
                    }
                },
            );
        });
        k.barrier();
        k.comment("warp w adds up rows w, w + 8, ...");
        k.if_(inside, || {
            for row in (0..ROWS).step_by(WARPS as usize) {
                let row = warp + row;
                let at = first_row + row;
                k.if_(at.lt(v), || {
                    let totals: Vec<_> = (0..span)
                        .map(|e| {
                            let sum = |w: u32| {
                                let at = place(k, span, w, row);
                                sums.at(at + e * 32).load()
                            };
                            (1..WARPS).fold(sum(0), |total, w| total + sum(w))
                        })
                        .collect();
                    let dtable = dtable.at(at.mul_add(spans, column) * span);
                    dtable.put_span(self.accum, &totals);
                });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::embedding;
    use crate::testing::gpu::{
        self, assert_close, assert_moves, assert_same_bits, encode, stored_values,
    };
    use crate::testing::to_f64;

    fn ids(v: usize, n: usize) -> Vec<i32> {
        // Every other position is the padding token.
        (0..n)
            .map(|i| if i % 2 == 0 { v - 1 } else { i * 7919 % v } as i32)
            .collect()
    }

    #[test]
    fn rows_are_those_of_the_table() {
        for storage in Storage::ALL {
            for (v, c, n) in [(1, 1, 1), (5, 7, 33), (40, 12, 9), (100, 256, 70)] {
                let (table, ids) = (stored_values(storage, v * c, 1), ids(v, n));
                let cpu = |y: &mut [f32]| embedding::forward(y, &table, &ids, c);
                let kernel = |y: Argument<'_>| {
                    let call = Forward::config(storage, [v, c], n).expect("few elements");
                    let table = encode(storage, &table);
                    let ids = Argument::Read(bytemuck::cast_slice(&ids));
                    gpu::run(&call, vec![y, Argument::Read(&table), ids])
                };
                let case = format!("{v} x {c}, {n} ids");
                let profile = assert_same_bits(&case, storage, Accum::Replace, n * c, cpu, kernel);
                if c == 256 {
                    assert_moves(&case, &profile, 2 * n * c * storage.bytes() as usize);
                }
            }
        }
    }

    #[test]
    fn gradients_are_summed_by_id() {
        for storage in Storage::ALL {
            for (v, c, n) in [(1, 1, 1), (5, 7, 33), (40, 12, 300), (70, 264, 700)] {
                let (dy, ids) = (stored_values(storage, n * c, 1), ids(v, n));
                for accum in Accum::ALL {
                    let kernel = |dtable: Argument<'_>| {
                        let call = Backward::config(storage, accum, [v, c], n);
                        let dy = encode(storage, &dy);
                        let ids = Argument::Read(bytemuck::cast_slice(&ids));
                        let operands = vec![dtable, Argument::Read(&dy), ids];
                        gpu::run(&call.expect("few elements"), operands)
                    };
                    let case = format!("{v} x {c}, {n} ids");
                    assert_close(
                        &case,
                        storage,
                        accum,
                        v * c,
                        |dtable: &mut [f32]| embedding::backward(dtable, accum, &dy, &ids, c),
                        |dtable: &mut [f64]| {
                            embedding::backward(dtable, accum, &to_f64(&dy), &ids, c)
                        },
                        kernel,
                    );
                }
            }
        }
    }
}
