//! Interleaving of row blocks on GPUs.

use crate::Accum;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::{Call, Division, Divisor};
use crate::ops::spans::{Access, for_each_span};
use crate::ops::variants::{Refused, Variant};
use crate::ptx::{Assembler, Floats, Storage, U32, Value};

/// Row `i` of dst `(+)=` row `i` of every part, one after the other; an absent part stands for zeros. Launch with
/// `Write(dst)`, or `Update(dst)` under [`Accum::Add`], then `Read` of each part or `Null`, `Null` up to as many as `parts`,
/// and the call's numbers.
///
/// One kernel writes whole rows, so that sectors which two narrow parts share are written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    pub access: Access,
    pub accum: Accum,
    /// The most parts that it takes.
    pub parts: u32,
}

/// How many parts variants take: two are joined in every U-Net block, four and eight bound the sequences of the priors.
const PARTS: [u32; 3] = [2, 4, 8];

impl Join {
    /// For `rows` rows of parts of these widths, each with whether it is present.
    ///
    /// # Errors
    /// If there are more than eight parts, or more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        rows: usize,
        widths: &[(usize, bool)],
    ) -> Result<Call<Join>, Refused> {
        let Some(parts) = PARTS.into_iter().find(|&p| widths.len() <= p as usize) else {
            return Err(Refused(format!(
                "there are {} parts, and one kernel joins at most 8",
                widths.len()
            )));
        };
        let extents: Vec<usize> = widths.iter().map(|&(width, _)| width).collect();
        let row: usize = extents.iter().sum();
        let access = Access::widest(storage, &extents);
        let (spans, grid) = access.cover(rows * row, "the number of elements")?;
        let in_spans = |elements: usize| elements as u32 / access.span;
        let mut numbers = vec![spans];
        numbers.extend(Divisor::new(in_spans(row).max(1)).numbers());
        let present = (0..).zip(widths).filter(|(_, (_, present))| *present);
        numbers.push(present.map(|(i, _)| 1 << i).sum());
        numbers.extend(extents.iter().map(|&width| in_spans(width)));
        numbers.resize(5 + parts as usize, 0);
        let variant = Join {
            access,
            accum,
            parts,
        };
        Ok(Call::new(variant, grid, numbers))
    }
}

impl Variant for Join {
    const KERNEL: &'static str = "concat/join";

    fn all() -> Vec<Join> {
        let mut all = vec![];
        for access in Access::all() {
            for accum in Accum::ALL {
                all.extend(PARTS.map(|parts| Join {
                    access,
                    accum,
                    parts,
                }));
            }
        }
        all
    }

    fn label(&self) -> String {
        let (access, accum) = (self.access.name(), self.accum.name());
        format!("{access}_{accum}_{}", self.parts)
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let Access { storage, span } = self.access;
        k.contract(&format!(
            "Row i of dst {} row i of every part, one after the other, absent parts being zeros; {}.\n\
             Grid: ceil(elements of dst / {}) CTAs, {span} elements a thread. Reads the parts and writes dst once.",
            self.accum.symbol(),
            storage.name(),
            THREADS * span
        ));
        let dst = k.floats(storage, "dst");
        let parts: Vec<Floats> = (0..self.parts)
            .map(|p| k.floats(storage, &format!("part_{p}")).read_only())
            .collect();
        let spans = k.parameter::<U32>("spans");
        let row = Division::parameter(k, "row_spans");
        let present = k.parameter::<U32>("present");
        let widths: Vec<_> = (0..self.parts)
            .map(|p| k.parameter::<U32>(&format!("width_{p}")))
            .collect();
        for_each_span(k, spans, |i| {
            let [row, column] = row.split(i);
            let mut start: Value<U32> = Value::from_bits(0);
            for (p, (&part, &width)) in parts.iter().zip(&widths).enumerate() {
                // Before the part's start the difference wraps to more than any width.
                let inside = column - start;
                start = start + width;
                k.comment(format!("part {p}"));
                k.if_(inside.lt(width), || {
                    let dst = dst.at(i * span);
                    let is_present = (present & (1 << p)).ne(0);
                    let copy = || {
                        let src = part.at(row.mul_add(width, inside) * span);
                        dst.put_span(self.accum, &src.load_span(span));
                    };
                    match self.accum {
                        Accum::Add => k.if_(is_present, copy),
                        Accum::Replace => k.if_else(is_present, copy, || {
                            dst.store_span(&vec![Value::from_bits(0); span as usize]);
                        }),
                    }
                });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::concat;
    use crate::testing::gpu::{self, assert_moves, assert_same_bits, encode, stored_values};

    #[test]
    fn it_joins_what_cpus_join() {
        let cases: [(usize, &[(usize, bool)]); 8] = [
            (1, &[(1, true)]),
            (5, &[(3, true), (0, true), (4, true)]),
            (7, &[(8, true), (24, false)]),
            (4, &[(6, false), (2, true), (10, false)]),
            (3, &[(77, true), (1, true), (1, true), (1, true), (1, true)]),
            (33, &[(3, true), (3, true)]),
            (9, &[(64, true), (128, true)]),
            (2, &[(40, true), (4, true), (4, true), (4, true)]),
        ];
        for storage in Storage::ALL {
            for accum in Accum::ALL {
                for (rows, widths) in cases {
                    let parts: Vec<Option<Vec<f32>>> = (0..)
                        .zip(widths)
                        .map(|(i, &(width, present))| {
                            present.then(|| stored_values(storage, rows * width, i))
                        })
                        .collect();
                    let row: usize = widths.iter().map(|(width, _)| width).sum();
                    let cpu = |dst: &mut [f32]| {
                        let parts = widths.iter().zip(&parts);
                        let parts: Vec<_> = parts.map(|(w, p)| (w.0, p.as_deref())).collect();
                        concat::join(dst, accum, &parts);
                    };
                    let kernel = |dst: Argument<'_>| {
                        let call =
                            Join::config(storage, accum, rows, widths).expect("few elements");
                        let parts: Vec<Option<Vec<u8>>> = parts
                            .iter()
                            .map(|p| p.as_ref().map(|p| encode(storage, p)))
                            .collect();
                        let mut operands = vec![dst];
                        for p in 0..call.plan.variant.parts as usize {
                            operands.push(match parts.get(p) {
                                Some(Some(part)) => Argument::Read(part),
                                _ => Argument::Null,
                            });
                        }
                        gpu::run(&call, operands)
                    };
                    let case = format!("{rows} x {widths:?}");
                    let profile = assert_same_bits(&case, storage, accum, rows * row, cpu, kernel);
                    if rows == 9 {
                        let tensors = 2 + usize::from(accum == Accum::Add);
                        let least = tensors * rows * row * storage.bytes() as usize;
                        assert_moves(&case, &profile, least);
                    }
                }
            }
        }
    }

    #[test]
    fn more_parts_than_eight_are_refused() {
        let refused = Join::config(Storage::F32, Accum::Replace, 1, &[(1, true); 9]);
        let refused = refused.expect_err("nine parts");
        assert!(refused.to_string().contains("9 parts"), "{refused}");
    }
}
