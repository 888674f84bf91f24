//! What kernels share that treat a tensor in spans: consecutive elements that one thread moves by one instruction.

use crate::ops::elementwise::THREADS;
use crate::ops::geometry::linear_grid;
use crate::ops::variants::{Refused, count};
use crate::ptx::{Assembler, Storage, U32, Value};

/// How a kernel accesses its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    pub storage: Storage,
    /// Elements of one load or store: a power of two, 16 bytes at most.
    pub span: u32,
}

impl Access {
    /// Every access of both storages.
    pub fn all() -> Vec<Access> {
        let spans = |storage: Storage| {
            let widths = [1, 2, 4, 8].into_iter();
            let spans = widths.filter(move |&span| span <= storage.chunk());
            spans.map(move |span| Access { storage, span })
        };
        Storage::ALL.into_iter().flat_map(spans).collect()
    }

    /// The widest that never straddles what begins at multiples of all these numbers of elements.
    pub fn widest(storage: Storage, multiples: &[usize]) -> Access {
        let power = multiples
            .iter()
            .map(|m| m.trailing_zeros())
            .min()
            .unwrap_or(u32::MAX)
            .min(storage.chunk().trailing_zeros());
        Access {
            storage,
            span: 1 << power,
        }
    }

    /// A part of a kernel's name: `bf16x8`.
    pub fn name(self) -> String {
        format!("{}x{}", self.storage.name(), self.span)
    }

    /// Spans of `n` elements, and the CTAs that cover them with one a thread.
    ///
    /// # Errors
    /// If there are more elements than kernels count.
    pub fn cover(self, n: usize, what: &str) -> Result<(u32, [u32; 3]), Refused> {
        let spans = count(n, what)?.div_ceil(self.span);
        Ok((spans, linear_grid(spans.div_ceil(THREADS) as usize)?))
    }
}

/// Calls `body` with the number of this thread's span, which is less than `spans`.
pub fn for_each_span<'k>(
    k: &'k Assembler,
    spans: Value<'k, U32>,
    body: impl FnOnce(Value<'k, U32>),
) {
    k.comment("this thread's span");
    let i = k.cta_x() * THREADS + k.thread_x();
    k.if_(i.lt(spans), || body(i));
}
