//! Row blocks on GPUs.

use crate::Accum;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::{Call, Division, Divisor};
use crate::ops::spans::{Access, for_each_span};
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, Storage, U32};

/// Row `i` of dst `(+)=` elements `start..start + width` of row `i` of src. Launch with `Write(dst)`, or `Update(dst)` under
/// [`Accum::Add`], then `Read(src)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Narrow {
    pub access: Access,
    pub accum: Accum,
}

impl Narrow {
    /// For `rows` rows, which have `row` elements in src.
    ///
    /// # Errors
    /// If src has more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        [rows, row, start, width]: [usize; 4],
    ) -> Result<Call<Narrow>, Refused> {
        count(rows.saturating_mul(row), "the number of elements")?;
        let access = Access::widest(storage, &[row, start, width]);
        let (spans, grid) = access.cover(rows * width, "the number of elements")?;
        let in_spans = |elements: usize| elements as u32 / access.span;
        let mut numbers = vec![spans];
        numbers.extend(Divisor::new(in_spans(width).max(1)).numbers());
        numbers.extend([in_spans(row), in_spans(start)]);
        Ok(Call::new(Narrow { access, accum }, grid, numbers))
    }
}

impl Variant for Narrow {
    const KERNEL: &'static str = "split/narrow";

    fn all() -> Vec<Narrow> {
        let pair = |access| Accum::ALL.map(|accum| Narrow { access, accum });
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
            "Row i of dst {} elements start to start + width of row i of src, {}.\n\
             Grid: ceil(elements of dst / {}) CTAs, {span} elements a thread. Reads what it copies and writes dst once.",
            self.accum.symbol(),
            storage.name(),
            THREADS * span
        ));
        let dst = k.floats(storage, "dst");
        let src = k.floats(storage, "src").read_only();
        let spans = k.parameter::<U32>("spans");
        let width = Division::parameter(k, "width_spans");
        let row_spans = k.parameter::<U32>("row_spans");
        let start = k.parameter::<U32>("start_span");
        for_each_span(k, spans, |i| {
            let [row, column] = width.split(i);
            let src = src.at((row.mul_add(row_spans, column) + start) * span);
            dst.at(i * span).put_span(self.accum, &src.load_span(span));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Argument;
    use crate::ops::split;
    use crate::testing::gpu::{self, assert_moves, assert_same_bits, encode, stored_values};

    #[test]
    fn it_cuts_what_cpus_cut() {
        let cases = [
            [1, 1, 0, 1],
            [5, 9, 2, 6],
            [7, 12, 8, 4],
            [67, 6, 3, 3],
            [33, 7, 1, 1],
            [20, 384, 128, 128],
        ];
        for storage in Storage::ALL {
            for accum in Accum::ALL {
                for case in cases {
                    let [rows, row, start, width] = case;
                    let src = stored_values(storage, rows * row, 1);
                    let cpu = |dst: &mut [f32]| split::narrow(dst, accum, &src, row, start, width);
                    let kernel = |dst: Argument<'_>| {
                        let call = Narrow::config(storage, accum, case).expect("few elements");
                        let src = encode(storage, &src);
                        gpu::run(&call, vec![dst, Argument::Read(&src)])
                    };
                    let name = format!("{case:?}");
                    let n = rows * width;
                    let profile = assert_same_bits(&name, storage, accum, n, cpu, kernel);
                    if width == 128 {
                        let tensors = 2 + usize::from(accum == Accum::Add);
                        assert_moves(&name, &profile, tensors * n * storage.bytes() as usize);
                    }
                }
            }
        }
    }
}
