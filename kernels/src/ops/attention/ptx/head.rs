//! One head of one image: where its tokens lie in memory, how they come into shared memory, and which keys a query sees.

use crate::ops::matmul::ptx::operand::Element;
use crate::ptx::{
    Assembler, B32, F32, Global, Layout, Pointer, Position, Pred, Storage, Tile, Type, U8, U32,
    U64, Value,
};

/// How the elements of a head fill a kernel's tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadDim {
    /// Elements of a row of a tile: a head's own ones, and zeros behind them.
    pub padded: u32,
    /// Whether heads have whole chunks of 16 bytes. Where they have not, elements are copied one by one.
    pub aligned: bool,
}

/// The widest head that kernels take.
pub const LARGEST_HEAD_DIM: usize = 128;

impl HeadDim {
    /// Rows of tiles, where heads have whole chunks: every number of steps of an `mma` from two on.
    pub const ALIGNED: [u32; 7] = [32, 48, 64, 80, 96, 112, 128];
    /// Where they have not: a few, since copies cost more than the zeros.
    const UNALIGNED: [u32; 3] = [32, 64, 128];

    /// The tiles for heads of `elements` elements; none where they have none, or too many.
    pub fn of(elements: usize, storage: Storage) -> Option<HeadDim> {
        let aligned = elements.is_multiple_of(storage.chunk() as usize);
        let fits = |dim: &HeadDim| dim.aligned == aligned && dim.padded as usize >= elements;
        HeadDim::all().find(fits).filter(|_| elements > 0)
    }

    /// All that kernels are written for.
    pub fn all() -> impl Iterator<Item = HeadDim> {
        let of = |aligned| move |padded| HeadDim { padded, aligned };
        let aligned = HeadDim::ALIGNED.into_iter().map(of(true));
        aligned.chain(HeadDim::UNALIGNED.into_iter().map(of(false)))
    }

    /// A part of a kernel's name.
    pub fn label(self) -> String {
        let alignment = if self.aligned { "" } else { "_any" };
        format!("d{}{alignment}", self.padded)
    }
}

/// For a kernel's contract.
impl std::fmt::Display for HeadDim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.aligned { "whole chunks" } else { "any" };
        write!(f, "head_dim {kind} up to {}", self.padded)
    }
}

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
    /// Elements of a row of a tile.
    pub head_dim: u32,
    /// Those that the head has in memory.
    width: Value<'k, U32>,
    aligned: bool,
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
    pub fn of_cta<E: Type>(
        k: &'k Assembler,
        head_dim: HeadDim,
        rows: RowsAre,
        rows_per_cta: u32,
    ) -> (Head<'k>, Value<'k, U32>, Value<'k, U32>) {
        let mask = k.buffer::<U8>("mask").read_only();
        let sizes = ["heads", "head_dim", "queries", "keys", "context"];
        let [heads, width, queries, keys, context] = sizes.map(|name| k.parameter::<U32>(name));
        if head_dim.aligned {
            // What `config` has checked.
            width.assume_multiple_of((16 / E::SIZE).into());
        }
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
            head_dim: head_dim.padded,
            width,
            aligned: head_dim.aligned,
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
        self.heads * self.width
    }

    /// The first element of row `row` in a tensor [rows, head_dim].
    pub fn row(&self, row: Value<'k, U32>) -> Value<'k, U32> {
        row * self.width
    }

    /// The head's part of token 0 in a tensor [n, tokens, heads, head_dim].
    pub fn first_token<E: Type>(
        &self,
        tensor: Pointer<'k, Global, E>,
        tokens: Value<'k, U32>,
    ) -> Pointer<'k, Global, E> {
        let token = self.image * tokens * self.heads + self.head;
        tensor.at(self.row(token))
    }

    /// The number of the head's first query in a tensor [n, heads, queries].
    pub fn first_row(&self) -> Value<'k, U32> {
        (self.image * self.heads + self.head) * self.queries
    }

    /// The head's first query in a tensor [n, heads, queries].
    pub fn first_query(&self, tensor: Pointer<'k, Global, F32>) -> Pointer<'k, Global, F32> {
        tensor.at(self.first_row())
    }

    /// Calls `body(element, values)` for those of a chunk's values, of which the first is element `element`, that the head
    /// has: for all at once where rows consist of whole chunks, else one by one.
    pub fn for_each_span(
        &self,
        element: Value<'k, U32>,
        values: &[Value<'k, F32>],
        body: impl Fn(Value<'k, U32>, &[Value<'k, F32>]),
    ) {
        let width = if self.aligned { values.len() } else { 1 };
        for (span, i) in values.chunks(width).zip(0u32..) {
            let element = if i == 0 { element } else { element + i };
            self.k.if_(element.lt(self.width), || body(element, span));
        }
    }

    /// How many of a chunk's `count` elements, of which the first is element `element`, the head has.
    pub fn elements_from(&self, element: Value<'k, U32>, count: u32) -> Value<'k, U32> {
        (self.width - element.min(self.width)).min(count)
    }

    /// Whether rows in memory consist of whole chunks of 16 bytes.
    pub fn is_aligned(&self) -> bool {
        self.aligned
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
pub struct Tokens<'k, E: Element> {
    head: Head<'k>,
    layout: Layout<E>,
    /// The row before which all others are counted, so that own rows continue those of the context.
    own: Value<'k, U64>,
    /// The context's rows, and how many.
    context: Option<(Value<'k, U64>, Value<'k, U32>)>,
    count: Value<'k, U32>,
    pitch: Value<'k, U32>,
    /// What of this thread's chunks the head has: bytes of whole chunks, or elements.
    valid: Value<'k, U32>,
    /// This thread's place in a tile, whether it has one, and the rows from one of its chunks to the next.
    row: Value<'k, U32>,
    position: Position<'k, E>,
    active: Option<Value<'k, Pred>>,
    rows_apart: u32,
}

impl<'k, E: Element> Tokens<'k, E> {
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
        let first_element = chunk * layout.chunk_elements();
        let column = |tensor: Pointer<'k, Global, E>| tensor.at(first_element).address();
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
            valid: match head.aligned {
                true => first_element.lt(head.width).select(16, 0),
                false => head.elements_from(first_element, layout.chunk_elements()),
            },
            row,
            position: layout.chunk(row, chunk),
            active,
            rows_apart,
        }
    }

    /// Starts to copy the rows from `first` on; zeros stand for rows and elements that do not exist.
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
            let valid = row.lt(self.count).select(self.valid, 0);
            if !self.head.aligned {
                let words = self.load_elements(from, valid);
                to.cast::<B32>()
                    .store_vector([0, 1, 2, 3].map(|i: usize| words[i]));
                continue;
            }
            match self.active {
                None => k.cp_async_16(to, from, Some(valid)),
                Some(active) => k.when(active, || k.cp_async_16(to, from, Some(valid))),
            }
        }
    }

    /// The words of a chunk whose first `count` elements exist.
    fn load_elements(
        &self,
        from: Pointer<'k, Global, E>,
        count: Value<'k, U32>,
    ) -> Vec<Value<'k, B32>> {
        let k = self.head.k;
        let element = |i: u32| {
            let element = k.variable::<E>(Value::from_bits(0));
            k.when(count.gt(i), || element.set(from.at(i).load()));
            element.get()
        };
        let elements: Vec<_> = (0..self.layout.chunk_elements()).map(element).collect();
        E::words(k, &elements)
    }
}
