//! One operand's way from global to shared memory, a slice along k at a time.

use super::{STAGES, Tiling};
use crate::ptx::{
    Assembler, B32, Bf16, F32, Global, Layout, Pointer, Position, Shared, Tile, Tiles, Type, U32,
    U64, Value, Variable,
};

/// What operands are made of.
pub trait Element: Type {
    /// The words in memory of a chunk's elements.
    fn words<'k>(k: &'k Assembler, elements: &[Value<'k, Self>]) -> Vec<Value<'k, B32>>;
}

impl Element for Bf16 {
    fn words<'k>(k: &'k Assembler, elements: &[Value<'k, Self>]) -> Vec<Value<'k, B32>> {
        let pairs = elements.chunks_exact(2);
        pairs.map(|pair| k.pack(pair[0], pair[1])).collect()
    }
}

impl Element for F32 {
    fn words<'k>(_: &'k Assembler, elements: &[Value<'k, Self>]) -> Vec<Value<'k, B32>> {
        elements.iter().map(|x| x.to_bits().cast()).collect()
    }
}

/// Which operand it is: a has rows of the output, b its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

/// Where an operand lies in global memory, and which part of it the CTA needs.
pub struct Dimension<'k, E: Element> {
    pub matrix: Pointer<'k, Global, E>,
    /// Elements from one matrix to the next, and the number of the one that is needed.
    pub stride: Value<'k, U32>,
    pub batch: Value<'k, U32>,
    /// The first row of the output (for b: column) that the CTA treats, and how many there are in all.
    pub first: Value<'k, U32>,
    pub extent: Value<'k, U32>,
    /// k, and where the part of it that the CTA needs begins and ends.
    pub depth: Value<'k, U32>,
    pub part: [Value<'k, U32>; 2],
    /// Whether k runs along the rows in memory.
    pub k_major: bool,
}

/// An operand's slices in shared memory, and how the CTA's threads share their copying.
///
/// A slice has the order that it has in global memory: rows of 64 bytes along k, or rows along the output's dimension.
#[derive(Clone, Copy)]
pub struct Slices<'k, E: Type> {
    pub k: &'k Assembler,
    pub side: Side,
    pub k_major: bool,
    pub layout: Layout<E>,
    tiles: Tiles<'k, E>,
    /// The row and the first column of this thread's first chunk, how many rows further down the next ones lie, and how
    /// many there are.
    pub row: Value<'k, U32>,
    pub column: Value<'k, U32>,
    pub rows_apart: u32,
    pub chunks: u32,
    position: Position<'k, E>,
}

impl<'k, E: Type> Slices<'k, E> {
    pub fn new(k: &'k Assembler, side: Side, k_major: bool, tiling: Tiling) -> Slices<'k, E> {
        let outer = match side {
            Side::A => tiling.cta[0],
            Side::B => tiling.cta[1],
        };
        let layout = match (k_major, E::SIZE) {
            (true, _) => Layout::swizzled(outer, tiling.depth),
            (false, 2) => Layout::swizzled(tiling.depth, outer),
            // Nobody reads f32 down a column of chunks: nothing needs permuting, and every address is a constant away.
            (false, _) => Layout::padded(tiling.depth, outer, 0),
        };
        let tiles = k.shared_tiles(layout, STAGES);
        k.comment(format_args!("this thread's chunks of {side:?}'s slices"));
        let thread = k.thread_x();
        let row = thread / layout.chunks();
        let chunk = thread % layout.chunks();
        let rows_apart = tiling.threads() / layout.chunks();
        Slices {
            k,
            side,
            k_major,
            layout,
            tiles,
            row,
            column: chunk * layout.chunk_elements(),
            rows_apart,
            chunks: layout.rows() / rows_apart,
            position: layout.chunk(row, chunk),
        }
    }

    pub fn tile(self, stage: Value<'k, U32>) -> Tile<'k, E> {
        self.tiles.tile(stage)
    }

    /// Where this thread's chunk number `i` of a slice belongs.
    pub fn chunk(self, stage: Value<'k, U32>, i: u32) -> Pointer<'k, Shared, E> {
        let position = self.position.down(i * self.rows_apart);
        self.tile(stage).at(position)
    }
}

/// An operand of the CTA that is a matrix.
#[derive(Clone, Copy)]
pub struct Operand<'k, E: Element> {
    pub slices: Slices<'k, E>,
    aligned: bool,
    /// Where the first chunk of the next slice comes from, how far the next chunks are from it, and the next slice.
    source: Variable<'k, U64>,
    bytes_apart: Value<'k, U64>,
    bytes_on: Value<'k, U64>,
    /// Its place along the output, and the end.
    outer: Value<'k, U32>,
    outer_end: Value<'k, U32>,
    /// The same along k.
    depth: Variable<'k, U32>,
    depth_end: Value<'k, U32>,
    depth_on: u32,
}

impl<'k, E: Element> Operand<'k, E> {
    pub fn new(
        k: &'k Assembler,
        side: Side,
        aligned: bool,
        tiling: Tiling,
        d: Dimension<'k, E>,
    ) -> Operand<'k, E> {
        let slices = Slices::new(k, side, d.k_major, tiling);
        let Slices { row, column, .. } = slices;
        let [part_first, part_end] = d.part;
        let (outer_at, depth_at) = match d.k_major {
            true => (d.first + row, part_first + column),
            false => (d.first + column, part_first + row),
        };
        // Elements of a row in memory.
        let pitch = if d.k_major { d.depth } else { d.extent };
        let (memory_row, memory_column) = match d.k_major {
            true => (outer_at, depth_at),
            false => (depth_at, outer_at),
        };
        let element =
            d.batch.mul_wide(d.stride) + memory_row.mul_wide(pitch) + memory_column.widen();
        let source = d.matrix.address() + element * u64::from(E::SIZE);
        let row_bytes = pitch.widen() * u64::from(E::SIZE);
        let depth_bytes = match d.k_major {
            true => Value::from_bits((tiling.depth * E::SIZE).into()),
            false => row_bytes * u64::from(tiling.depth),
        };
        let alignment = if aligned { 16 } else { E::SIZE.into() };
        Operand {
            slices,
            aligned,
            source: k.variable_multiple_of(source, alignment),
            bytes_apart: row_bytes * u64::from(slices.rows_apart),
            bytes_on: depth_bytes,
            outer: outer_at,
            outer_end: d.extent,
            depth: k.variable(depth_at),
            depth_end: part_end,
            depth_on: tiling.depth,
        }
    }

    /// Starts to copy the next slice into stage `stage`; zeros stand for what lies outside of the matrix.
    pub fn load(self, stage: Value<'k, U32>) {
        let Slices {
            k, side, k_major, ..
        } = self.slices;
        k.comment(format_args!("the next slice of {side:?}"));
        let mut source = self.source.get();
        for i in 0..self.slices.chunks {
            if i > 0 {
                source = source + self.bytes_apart;
            }
            let apart = i * self.slices.rows_apart;
            let (outer, depth) = match k_major {
                true => (self.outer + apart, self.depth.get()),
                false => (self.outer, self.depth + apart),
            };
            let to = self.slices.chunk(stage, i);
            let from = Pointer::new(source);
            if self.aligned {
                // Chunks lie inside or outside as a whole.
                let inside = outer.lt(self.outer_end) & depth.lt(self.depth_end);
                k.cp_async_16(to, from, Some(inside.select(16, 0)));
            } else {
                let words = self.load_elements(from, outer, depth);
                to.cast::<B32>()
                    .store_vector([0, 1, 2, 3].map(|i: usize| words[i]));
            }
        }
        self.source.set(self.source + self.bytes_on);
        self.depth.set(self.depth + self.depth_on);
    }

    /// The words of a chunk, loaded element by element.
    fn load_elements(
        self,
        from: Pointer<'k, Global, E>,
        outer: Value<'k, U32>,
        depth: Value<'k, U32>,
    ) -> Vec<Value<'k, B32>> {
        let Slices { k, k_major, .. } = self.slices;
        let elements: Vec<_> = (0..self.slices.layout.chunk_elements())
            .map(|i| {
                let (outer, depth) = match k_major {
                    true => (outer, depth + i),
                    false => (outer + i, depth),
                };
                let inside = outer.lt(self.outer_end) & depth.lt(self.depth_end);
                let element = k.variable::<E>(Value::from_bits(0));
                k.when(inside, || element.set(from.at(i).load()));
                element.get()
            })
            .collect();
        E::words(k, &elements)
    }
}
