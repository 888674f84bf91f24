//! What elementwise GPU kernels share: how threads are dealt out over a contiguous output.

use crate::ops::variants::{Refused, count};
use crate::ptx::{Assembler, Storage, U32, Value};

/// Threads of a CTA. Nothing is shared between them, so that any number would do; with 256 registers are handed out in
/// small enough portions to fill a multiprocessor.
pub const THREADS: u32 = 256;

/// The CTAs that cover `n` elements.
///
/// # Errors
/// If there are more than kernels count.
pub fn grid(storage: Storage, n: usize) -> Result<[u32; 3], Refused> {
    let chunks = count(n, "the number of elements")?.div_ceil(storage.chunk());
    Ok([chunks.div_ceil(THREADS), 1, 1])
}

/// Calls `body(i, width)` for the chunk of elements that this thread treats, `i` being a multiple of its width; where the
/// last chunk is incomplete, for each of its elements with width 1.
pub fn for_each_chunk<'k>(
    k: &'k Assembler,
    storage: Storage,
    n: Value<'k, U32>,
    body: impl Fn(Value<'k, U32>, u32),
) {
    let width = storage.chunk();
    k.comment("this thread's chunk");
    let first = (k.cta_x() * THREADS + k.thread_x()) * width;
    let end = first + width;
    k.if_else(
        end.le(n),
        || body(first, width),
        || {
            k.comment("the last elements, one by one");
            k.for_(first, n, 1, |i| body(i, 1));
        },
    );
}
