//! What the gradient of a softmax subtracts: a sum over each query's elements.

use crate::ops::variants::Variant;
use crate::ptx::{Assembler, F32, Storage, U32};

/// Threads of a CTA, and lanes that share a query and head.
const THREADS: u32 = 256;
const LANES: u32 = 8;

/// Queries and heads of a CTA.
pub(super) const ROWS: u32 = THREADS / LANES;

/// delta = Σ dout · out over the elements of each query and head, [n, heads, queries] in f32.
///
/// Launch with `Write(delta), Read(dout), Read(out)` and the call's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta {
    pub storage: Storage,
    /// Whether heads have whole chunks of 16 bytes.
    pub aligned: bool,
}

impl Variant for Delta {
    const KERNEL: &'static str = "attention/delta";

    fn all() -> Vec<Delta> {
        let of = |storage| [true, false].map(|aligned| Delta { storage, aligned });
        Storage::ALL.into_iter().flat_map(of).collect()
    }

    fn label(&self) -> String {
        let alignment = if self.aligned { "" } else { "_any" };
        format!("{}{alignment}", self.storage.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "delta[n, heads, queries] = sum of dout * out over a query's elements, {}.\n\
             Grid: ceil(n * queries * heads / {ROWS}) CTAs of {THREADS} threads, {LANES} lanes a query and head.\n\
             Reads dout and out and writes delta once.",
            self.storage.name()
        ));
        let delta = k.buffer::<F32>("delta");
        let dout = k.floats(self.storage, "dout").read_only();
        let out = k.floats(self.storage, "out").read_only();
        let [count, heads, queries] =
            ["count", "heads", "queries"].map(|name| k.parameter::<U32>(name));
        let chunk = match self.aligned {
            true => self.storage.chunk(),
            false => 1,
        };
        let head_dim = k.parameter::<U32>("head_dim");
        // What `config` has checked.
        head_dim.assume_multiple_of(chunk.into());
        let row = k.cta_x() * ROWS + k.thread_x() / LANES;
        let lane = k.lane() % LANES;
        let sum = k.variable(0.0f32);
        k.if_(row.lt(count), || {
            k.for_(lane * chunk, head_dim, LANES * chunk, |element| {
                let at = row * head_dim + element;
                let (dout, out) = (dout.at(at).load_span(chunk), out.at(at).load_span(chunk));
                for (dout, out) in dout.into_iter().zip(out) {
                    sum.set(dout.mul_add(out, sum));
                }
            });
        });
        let total = [4, 2, 1]
            .into_iter()
            .fold(sum.get(), |total, mask| total + k.shuffle_xor(total, mask));
        k.comment("rows are [n, queries, heads]");
        let (token, head) = (row / heads, row % heads);
        let (image, query) = (token / queries, token % queries);
        k.when(row.lt(count) & lane.eq(0), || {
            delta
                .at((image * heads + head) * queries + query)
                .store(total);
        });
    }
}
