//! One head of one image: where its tokens lie in memory, how they come into shared memory, and which keys a query sees.

use crate::ptx::{
    Assembler, F32, Global, Layout, Pointer, Position, Pred, Tile, Type, U8, U32, U64, Value,
};

/// What the rows of a CTA are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsAre {
    Queries,
    /// Those of the context first.
    Keys,
}

/// The head that a CTA treats, and the sizes of all of them.
#[derive(Clone, Copy)]
pub struct Head<'k> {
    pub k: &'k Assembler,
    pub head_dim: u32,
    pub heads: Value<'k, U32>,
    pub queries: Value<'k, U32>,
    /// Own keys.
    pub keys: Value<'k, U32>,
    /// Context keys, which come first.
    pub context: Value<'k, U32>,
    /// Both.
    pub total: Value<'k, U32>,
    pub causal: Value<'k, Pred>,
    /// [n, context + keys], or null.
    mask: Pointer<'k, Global, U8>,
    masked: Value<'k, Pred>,
    pub image: Value<'k, U32>,
    pub head: Value<'k, U32>,
}

impl<'k> Head<'k> {
    /// Declares the mask and the sizes, which follow the kernel's buffers, and deals out CTAs to heads: one for each
    /// `rows_per_cta` tokens. Also gives the CTA's number within its head, and the number of those.
    pub fn of_cta(
        k: &'k Assembler,
        head_dim: u32,
        rows: RowsAre,
        rows_per_cta: u32,
    ) -> (Head<'k>, Value<'k, U32>, Value<'k, U32>) {
        let mask = k.buffer::<U8>("mask").read_only();
        let sizes = ["heads", "queries", "keys", "context"].map(|name| k.parameter::<U32>(name));
        let [heads, queries, keys, context] = sizes;
        let causal = k.parameter::<U32>("causal").ne(0);
        let total = context + keys;
        k.comment("which part of which head");
        let rows = match rows {
            RowsAre::Queries => queries,
            RowsAre::Keys => total,
        };
        let parts = (rows + (rows_per_cta - 1)) / rows_per_cta;
        let (index, part) = (k.cta_x() / parts, k.cta_x() % parts);
        let head = Head {
            k,
            head_dim,
            heads,
            queries,
            keys,
            context,
            total,
            causal,
            mask,
            masked: mask.is_present(),
            image: index / heads,
            head: index % heads,
        };
        (head, part, parts)
    }

    /// Elements from one token to the next.
    pub fn pitch(&self) -> Value<'k, U32> {
        self.heads * self.head_dim
    }

    /// The head's part of token 0 in a tensor [n, tokens, heads, head_dim].
    pub fn first_token<E: Type>(
        &self,
        tensor: Pointer<'k, Global, E>,
        tokens: Value<'k, U32>,
    ) -> Pointer<'k, Global, E> {
        let token = self.image * tokens * self.heads + self.head;
        tensor.at(token * self.head_dim)
    }

    /// The head's first query in a tensor [n, heads, queries].
    pub fn first_query(&self, tensor: Pointer<'k, Global, F32>) -> Pointer<'k, Global, F32> {
        tensor.at((self.image * self.heads + self.head) * self.queries)
    }

    /// Number of leading keys that a query may see.
    pub fn visible(&self, query: Value<'k, U32>) -> Value<'k, U32> {
        let causal = (self.context + query + 1).min(self.total);
        self.causal.select(causal, self.total)
    }

    /// Whether a key, of which it must be known that it exists, may be attended.
    pub fn allows(&self, key: Value<'k, U32>) -> Value<'k, Pred> {
        let k = self.k;
        let allowed = k.variable::<U32>(1);
        k.if_(self.masked, || {
            let place = self.mask.at(self.image * self.total + key);
            allowed.set(place.load().cast::<U32>());
        });
        allowed.ne(0)
    }

    /// Calls `hide(word)` under a key mask, for every 32 keys from `first` on: bit i of the word says whether key i of
    /// them may be attended. All lanes of the warp must be there.
    pub fn under_mask(&self, first: Value<'k, U32>, keys: u32, hide: impl Fn(u32, Value<'k, U32>)) {
        let k = self.k;
        k.if_(self.masked, || {
            k.comment("the key mask, a bit a key");
            for word in 0..keys / 32 {
                let key = first + 32 * word + k.lane();
                let allowed = k.variable::<U32>(0);
                k.when(key.lt(self.total), || {
                    let place = self.mask.at(self.image * self.total + key);
                    allowed.set(place.load().cast::<U32>());
                });
                hide(word, k.ballot(allowed.ne(0)).cast());
            }
        });
    }
}

/// How tiles of tokens lie in shared memory: free of bank conflicts for eight rows at one chunk, as `ldmatrix` reads them,
/// and for eight chunks in the order in which [`Tokens`] writes them.
pub fn layout<E: Type>(tokens: u32, head_dim: u32) -> Layout<E> {
    let chunk = 16 / E::SIZE;
    if lanes::<E>(head_dim) < 8 {
        // Eight lanes write more than one row: gaps between rows would let the second one meet the first.
        Layout::swizzled(tokens, head_dim)
    } else {
        // An odd number of chunks from row to row visits all banks, and every place is a constant away.
        Layout::padded(tokens, head_dim, chunk)
    }
}

/// Lanes that share a row, one chunk each; where their number is no power of two, the last ones idle.
fn lanes<E: Type>(head_dim: u32) -> u32 {
    (head_dim * E::SIZE / 16).next_power_of_two()
}

/// Rows of a tensor [n, tokens, heads, head_dim] and how a CTA copies tiles of them.
pub struct Tokens<'k, E: Type> {
    head: Head<'k>,
    layout: Layout<E>,
    /// The row before which all others are counted, so that own rows continue those of the context.
    own: Value<'k, U64>,
    /// The context's rows, and how many.
    context: Option<(Value<'k, U64>, Value<'k, U32>)>,
    count: Value<'k, U32>,
    pitch: Value<'k, U32>,
    /// This thread's place in a tile, whether it has one, and the rows from one of its chunks to the next.
    row: Value<'k, U32>,
    position: Position<'k, E>,
    active: Option<Value<'k, Pred>>,
    rows_apart: u32,
}

impl<'k, E: Type> Tokens<'k, E> {
    /// `count` tokens of `own`; or, with the context's tensor, all of the context and then `count` own ones.
    pub fn new(
        head: Head<'k>,
        layout: Layout<E>,
        own: Pointer<'k, Global, E>,
        count: Value<'k, U32>,
        context: Option<Pointer<'k, Global, E>>,
    ) -> Self {
        let k = head.k;
        let (lanes, chunks) = (lanes::<E>(head.head_dim), layout.chunks());
        let rows_apart = k.block()[0] / lanes;
        assert!(
            layout.rows().is_multiple_of(rows_apart),
            "{rows_apart} rows at a time, of {}",
            layout.rows()
        );
        let thread = k.thread_x();
        let (row, lane) = (thread / lanes, thread % lanes);
        let (chunk, active) = if chunks == lanes {
            (lane, None)
        } else {
            (lane.min(chunks - 1), Some(lane.lt(chunks)))
        };
        let pitch = head.pitch();
        let column = |tensor: Pointer<'k, Global, E>| {
            let column = tensor.at(chunk * layout.chunk_elements());
            column.address()
        };
        let own = column(head.first_token(own, count));
        let (own, count, context) = match context {
            None => (own, count, None),
            Some(context) => {
                let before = head.context.mul_wide(pitch) * u64::from(E::SIZE);
                let context = column(head.first_token(context, head.context));
                let total = head.context + count;
                (own - before, total, Some((context, head.context)))
            }
        };
        Tokens {
            head,
            layout,
            own,
            context,
            count,
            pitch,
            row,
            position: layout.chunk(row, chunk),
            active,
            rows_apart,
        }
    }

    /// Starts to copy the rows from `first` on; zeros stand for those that do not exist.
    pub fn copy(&self, tile: Tile<'k, E>, first: Value<'k, U32>) {
        let k = self.head.k;
        for down in (0..self.layout.rows()).step_by(self.rows_apart as usize) {
            let row = first + self.row + down;
            let base = match self.context {
                None => self.own,
                Some((context, rows)) => row.lt(rows).select(context, self.own),
            };
            let from = Pointer::<Global, E>::new(base).at(row * self.pitch);
            let to = tile.at(self.position.down(down));
            let valid = row.lt(self.count).select::<U32>(16, 0);
            match self.active {
                None => k.cp_async_16(to, from, Some(valid)),
                Some(active) => k.when(active, || k.cp_async_16(to, from, Some(valid))),
            }
        }
    }
}
