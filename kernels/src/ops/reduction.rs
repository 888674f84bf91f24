//! Sums and maxima over the threads of a warp or a CTA, always in the same order.

use crate::ptx::{Assembler, F32, F64, Value};

/// What is done with the numbers of all threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    Sum,
    /// The largest that is not NaN.
    Max,
}

impl Fold {
    /// What changes no result.
    pub fn neutral(self) -> f32 {
        match self {
            Fold::Sum => 0.0,
            Fold::Max => f32::NEG_INFINITY,
        }
    }

    #[track_caller]
    pub fn apply<'k>(self, a: Value<'k, F32>, b: Value<'k, F32>) -> Value<'k, F32> {
        match self {
            Fold::Sum => a + b,
            Fold::Max => a.max(b),
        }
    }
}

/// Over the lanes of a warp, which must all be there; every lane gets the result.
pub fn over_warp<'k>(k: &'k Assembler, fold: Fold, x: Value<'k, F32>) -> Value<'k, F32> {
    [16, 8, 4, 2, 1]
        .into_iter()
        .fold(x, |x, distance| fold.apply(x, k.shuffle_xor(x, distance)))
}

/// Over the threads of a CTA of whole warps along x, which must all be there; every thread gets the result.
///
/// Each call takes shared memory of its own, so that the next one need not wait until this one's was read.
pub fn over_cta<'k>(k: &'k Assembler, fold: Fold, x: Value<'k, F32>) -> Value<'k, F32> {
    let warps = k.block()[0] / 32;
    let results = k.shared_array::<F32>(warps);
    let result = over_warp(k, fold, x);
    k.if_(k.lane().eq(0), || results.at(k.warp()).store(result));
    k.barrier();
    let first = results.load();
    (1..warps).fold(first, |total, warp| {
        fold.apply(total, results.at(warp).load())
    })
}

/// The sum over the threads of a CTA of whole warps along x, which must all be there; thread 0 gets it, the others
/// something else.
pub fn sum_f64_over_cta<'k>(k: &'k Assembler, x: Value<'k, F64>) -> Value<'k, F64> {
    let threads = k.block()[0];
    let shared = k.shared_array::<F64>(threads);
    let own = shared.at(k.thread_x());
    own.store(x);
    k.barrier();
    k.comment("every 32nd number, then the lanes' sums");
    let sum = k.variable(x);
    k.if_(k.warp().eq(0), || {
        for i in (32..threads).step_by(32) {
            sum.set(sum + own.at(i).load());
        }
        own.store(sum);
        k.warp_barrier();
        k.if_(k.lane().eq(0), || {
            for i in 1..32u32 {
                sum.set(sum + shared.at(i).load());
            }
        });
    });
    sum.get()
}
