//! 2×2 repetition on GPUs.

use crate::Accum;
use crate::ops::elementwise::THREADS;
use crate::ops::geometry::{Call, Division, Divisor};
use crate::ops::spans::{Access, for_each_span};
use crate::ops::variants::{Refused, Variant, count};
use crate::ptx::{Assembler, F32, Storage, U32, Value};

/// `dst (+)= scale · src`, each pixel repeated over a 2×2 block, for src [n, h, w, c] and dst [n, 2h, 2w, c]. Launch with
/// `Write(dst)`, or `Update(dst)` under [`Accum::Add`], then `Read(src), F32(scale)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepeatBlocks {
    pub access: Access,
    pub accum: Accum,
}

impl RepeatBlocks {
    /// For `n` images of `h` × `w` pixels, as they are in src.
    ///
    /// # Errors
    /// If dst has more elements than kernels count.
    pub fn config(
        storage: Storage,
        accum: Accum,
        [n, h, w, c]: [usize; 4],
    ) -> Result<Call<Self>, Refused> {
        let (access, numbers, grid) = Blocks::config(storage, [n, h, w, c])?;
        Ok(Call::new(RepeatBlocks { access, accum }, grid, numbers))
    }
}

impl Variant for RepeatBlocks {
    const KERNEL: &'static str = "nearest_up2/repeat_blocks";

    fn all() -> Vec<RepeatBlocks> {
        let pair = |access| Accum::ALL.map(|accum| RepeatBlocks { access, accum });
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
            "dst {} scale * src, each pixel repeated over 2 x 2, for src [n, h, w, c], {}.\n\
             Grid: ceil(elements of src / {}) CTAs, {span} elements a thread. Reads src and writes dst once.",
            self.accum.symbol(),
            storage.name(),
            THREADS * span
        ));
        let dst = k.floats(storage, "dst");
        let src = k.floats(storage, "src").read_only();
        let scale = k.parameter::<F32>("scale");
        let blocks = Blocks::parameters(k, span);
        for_each_span(k, blocks.spans, |i| {
            let values = src.at(i * span).load_span(span);
            let scaled: Vec<_> = values.into_iter().map(|x| x * scale).collect();
            for element in blocks.elements(i) {
                dst.at(element).put_span(self.accum, &scaled);
            }
        });
    }
}

/// Where the 2×2 block of each pixel of a small image [n, h, w, c] lies in the large one [n, 2h, 2w, c].
#[derive(Clone, Copy)]
pub(crate) struct Blocks<'k> {
    span: u32,
    /// Spans of the small images.
    pub spans: Value<'k, U32>,
    /// By the spans of a pixel.
    pixel: Division<'k>,
    /// By the spans of a row of pixels.
    row: Division<'k>,
}

impl<'k> Blocks<'k> {
    /// How to access images of which the small ones are `n` of `h` × `w` pixels, the numbers of the launch, and its grid.
    pub fn config(
        storage: Storage,
        [n, h, w, c]: [usize; 4],
    ) -> Result<(Access, Vec<u32>, [u32; 3]), Refused> {
        let elements = n * h * w * c;
        count(elements.saturating_mul(4), "the number of elements")?;
        // A span lies in one pixel: in the large images its neighbour's copy comes between.
        let access = Access::widest(storage, &[c]);
        let (spans, grid) = access.cover(elements, "the number of elements")?;
        let divisor = |elements: usize| Divisor::new((elements as u32 / access.span).max(1));
        let mut numbers = vec![spans];
        numbers.extend(divisor(c).numbers());
        numbers.extend(divisor(w * c).numbers());
        Ok((access, numbers, grid))
    }

    /// The parameters that `config` gives numbers to.
    pub fn parameters(k: &'k Assembler, span: u32) -> Blocks<'k> {
        Blocks {
            span,
            spans: k.parameter("spans"),
            pixel: Division::parameter(k, "pixel_spans"),
            row: Division::parameter(k, "row_spans"),
        }
    }

    /// The elements of the large images that correspond to span `i` of the small ones: above left, right, below left, right.
    pub fn elements(self, i: Value<'k, U32>) -> [Value<'k, U32>; 4] {
        let [_, channel] = self.pixel.split(i);
        let row = self.row.quotient(i);
        // Twice as many pixels, and one more row for each row above.
        let above = (row * self.row.divisor() + i) * 2 - channel;
        let below = above + self.row.divisor() * 2;
        let pixel = self.pixel.divisor();
        [above, above + pixel, below, below + pixel].map(|span| span * self.span)
    }
}
