//! Layouts of tiles in shared memory.
//!
//! A layout says where an element lies, proves that it lies inside the tile, and places 16-byte chunks so that the eight
//! rows that one phase of `ldmatrix` (or of a 16-byte load) reads come from different banks.

use std::marker::PhantomData;

use super::assembler::Assembler;
use super::memory::{Pointer, Shared};
use super::types::{Type, U32};
use super::value::{IntoValue, Value};
use crate::launch::Swizzle;

/// Bytes of a chunk: what `ldmatrix` reads of one row, and the widest access of a thread.
pub const CHUNK_BYTES: u32 = 16;

/// Bytes that all banks together deliver at once.
const BANKS_BYTES: u32 = 128;

/// A tile of `rows` × `columns` elements of type `E`, row after row.
#[derive(Debug)]
pub struct Layout<E> {
    rows: u32,
    columns: u32,
    /// Bytes from one row to the next.
    pitch: u32,
    /// The chunk of a row is XORed with `(row >> shift) & mask`.
    mask: u32,
    shift: u32,
    element: PhantomData<E>,
}

impl<E> Clone for Layout<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Layout<E> {}

impl<E: Type> Layout<E> {
    /// Rows without gaps, whose chunks are permuted by the row: as TMA's swizzles do in rows of 32, 64 and 128 bytes, and
    /// likewise with three bits in longer ones.
    ///
    /// # Panics
    /// If a row is not a power of two of at least 32 bytes.
    pub fn swizzled(rows: u32, columns: u32) -> Layout<E> {
        let pitch = columns * E::SIZE;
        assert!(
            pitch.is_power_of_two() && pitch >= 2 * CHUNK_BYTES,
            "a swizzled row has a power of two of bytes, at least 32; this one has {pitch}"
        );
        // Rows that share a line of all banks need no permutation against each other.
        let rows_per_line = (BANKS_BYTES / pitch).max(1);
        Layout {
            rows,
            columns,
            pitch,
            mask: (pitch / CHUNK_BYTES).min(8) - 1,
            shift: rows_per_line.trailing_zeros(),
            element: PhantomData,
        }
    }

    /// Rows with `padding` unused elements between them.
    pub fn padded(rows: u32, columns: u32, padding: u32) -> Layout<E> {
        Layout {
            rows,
            columns,
            pitch: (columns + padding) * E::SIZE,
            mask: 0,
            shift: 0,
            element: PhantomData,
        }
    }

    pub fn rows(self) -> u32 {
        self.rows
    }

    pub fn columns(self) -> u32 {
        self.columns
    }

    pub fn bytes(self) -> u32 {
        self.rows * self.pitch
    }

    /// Elements of a chunk.
    pub fn chunk_elements(self) -> u32 {
        CHUNK_BYTES / E::SIZE
    }

    /// Chunks of a row.
    pub fn chunks(self) -> u32 {
        self.columns / self.chunk_elements()
    }

    /// What of a TMA box lands where this layout expects it; none for rows that no swizzle spans.
    pub fn swizzle(self) -> Option<Swizzle> {
        match (self.mask, self.pitch) {
            (1, 32) => Some(Swizzle::B32),
            (3, 64) => Some(Swizzle::B64),
            (7, 128) => Some(Swizzle::B128),
            (0, _) => Some(Swizzle::None),
            _ => None,
        }
    }

    /// Where a chunk lies, in bytes from the tile's start.
    ///
    /// The row and the chunk must be known to lie inside the tile; that a thread's place in its CTA has bounds is known.
    #[track_caller]
    pub fn chunk<'k>(
        self,
        row: impl IntoValue<'k, U32>,
        chunk: impl IntoValue<'k, U32>,
    ) -> Position<'k, E> {
        let (row, chunk) = (row.into_value(), chunk.into_value());
        prove_below(row, self.rows, "row");
        prove_below(chunk, self.chunks(), "chunk");
        let permuted = match self.mask {
            0 => chunk,
            mask => chunk ^ ((row >> self.shift) & mask),
        };
        let offset = row * self.pitch + permuted * CHUNK_BYTES;
        Position {
            layout: self,
            offset,
            constant: 0,
            chunk_bits: chunk.facts().bits,
        }
    }

    /// Where an element lies, in bytes from the tile's start.
    #[track_caller]
    pub fn element<'k>(
        self,
        row: impl IntoValue<'k, U32>,
        column: impl IntoValue<'k, U32>,
    ) -> Position<'k, E> {
        let (row, column) = (row.into_value(), column.into_value());
        prove_below(row, self.rows, "row");
        prove_below(column, self.columns, "column");
        let offset = if self.mask == 0 {
            row * self.pitch + column * E::SIZE
        } else {
            let (per_chunk, mask) = (self.chunk_elements(), self.mask);
            let chunk = (column / per_chunk) ^ ((row >> self.shift) & mask);
            row * self.pitch + chunk * CHUNK_BYTES + column % per_chunk * E::SIZE
        };
        Position {
            layout: self,
            offset,
            constant: 0,
            chunk_bits: u64::MAX,
        }
    }
}

#[track_caller]
fn prove_below(value: Value<'_, U32>, bound: u32, what: &str) {
    let below = value.facts().below;
    if below > bound.into() {
        let message = format!(
            "a {what} of a shared tile that has {bound} is only known to be below {below} \
             (assume_below() adds what else is known)"
        );
        match value.assembler() {
            Some(k) => k.misuse(message),
            None => panic!("{message}"),
        }
    }
}

/// A place in every tile of one layout, computed once and used in many of them.
#[derive(Debug)]
pub struct Position<'k, E> {
    layout: Layout<E>,
    offset: Value<'k, U32>,
    constant: u32,
    /// Bits of the chunk that may be set.
    chunk_bits: u64,
}

impl<E> Clone for Position<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Position<'_, E> {}

impl<'k, E: Type> Position<'k, E> {
    /// `rows` rows further down, for nothing. A swizzle repeats every eight rows at most, and only whole repetitions keep
    /// the chunk where it is.
    pub fn down(self, rows: u32) -> Self {
        let period = (self.layout.mask + 1) << self.layout.shift;
        assert!(
            rows.is_multiple_of(period),
            "{rows} rows down in a layout that repeats every {period}"
        );
        Position {
            constant: self.constant + rows * self.layout.pitch,
            ..self
        }
    }

    /// `elements` elements further right, for nothing, in a layout without a swizzle.
    pub fn across(self, elements: u32) -> Self {
        assert!(self.layout.mask == 0, "a swizzled row is not contiguous");
        Position {
            constant: self.constant + elements * E::SIZE,
            ..self
        }
    }

    /// `chunks` chunks further right: one XOR under a swizzle, nothing without one.
    #[track_caller]
    pub fn right(self, chunks: u32) -> Self {
        let bytes = chunks * CHUNK_BYTES;
        if self.layout.mask == 0 {
            return Position {
                constant: self.constant + bytes,
                ..self
            };
        }
        // Only bits that the first chunk cannot have set add like they XOR.
        assert!(
            u64::from(chunks) & self.chunk_bits == 0 && chunks < self.layout.chunks(),
            "{chunks} chunks right of one that may have the bits {:#b} set",
            self.chunk_bits
        );
        Position {
            offset: self.offset ^ bytes,
            ..self
        }
    }
}

/// Tiles of one layout, one after the other: the stages of a pipeline.
#[derive(Debug)]
pub struct Tiles<'k, E: Type> {
    layout: Layout<E>,
    count: u32,
    base: Pointer<'k, Shared, E>,
}

impl<E: Type> Clone for Tiles<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E: Type> Copy for Tiles<'_, E> {}

/// One tile.
#[derive(Debug)]
pub struct Tile<'k, E: Type> {
    base: Pointer<'k, Shared, E>,
}

impl<E: Type> Clone for Tile<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E: Type> Copy for Tile<'_, E> {}

impl<'k, E: Type> Tiles<'k, E> {
    /// Tile number `index`, of which it must be known that it exists.
    #[track_caller]
    pub fn tile(self, index: impl IntoValue<'k, U32>) -> Tile<'k, E> {
        let index = index.into_value();
        prove_below(index, self.count, "tile");
        Tile {
            base: self.base.plus_bytes(index * self.layout.bytes()),
        }
    }
}

impl<'k, E: Type> Tile<'k, E> {
    /// The address of a position.
    #[track_caller]
    pub fn at(self, position: Position<'k, E>) -> Pointer<'k, Shared, E> {
        let Position {
            offset, constant, ..
        } = position;
        self.base.plus_bytes(offset).byte_offset(constant.into())
    }

    /// Its first element, for whole-tile copies and matrix descriptors.
    pub fn base(self) -> Pointer<'k, Shared, E> {
        self.base
    }
}

impl Assembler {
    /// Shared memory for `count` tiles of one layout.
    pub fn shared_tiles<E: Type>(&self, layout: Layout<E>, count: u32) -> Tiles<'_, E> {
        // A swizzle permutes by address bits, so that its pattern must start where the tile does.
        let align = if layout.mask == 0 { 128 } else { 1024 };
        let offset = self.reserve_shared(layout.bytes() * count, align);
        Tiles {
            layout,
            count,
            base: self.shared_base(offset),
        }
    }

    /// The shared memory that was handed out so far once more, for other tiles: once nobody needs what is there, and
    /// after a barrier.
    pub fn shared_tiles_again<E: Type>(&self, layout: Layout<E>, count: u32) -> Tiles<'_, E> {
        let needed = layout.bytes() * count;
        let there = self.shared_bytes();
        if needed > there {
            self.misuse(format_args!(
                "{needed} bytes of shared memory in the place of {there}"
            ));
        }
        Tiles {
            layout,
            count,
            base: self.shared_base(0),
        }
    }

    /// Shared memory for one tile.
    pub fn shared_tile<E: Type>(&self, layout: Layout<E>) -> Tile<'_, E> {
        self.shared_tiles(layout, 1).tile(0)
    }

    /// Shared memory for `count` elements.
    pub fn shared_array<E: Type>(&self, count: u32) -> Pointer<'_, Shared, E> {
        let align = E::SIZE.max(CHUNK_BYTES);
        self.shared_base(self.reserve_shared(count * E::SIZE, align))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Bf16, F32};
    use super::*;

    fn offset<E: Type>(layout: Layout<E>, row: u32, chunk: u32) -> u32 {
        layout
            .chunk(row, chunk)
            .offset
            .constant()
            .expect("constants fold") as u32
    }

    /// The eight rows that one phase reads, at any chunk, lie in different banks; no two chunks share a place.
    #[test]
    fn swizzled_rows_have_no_bank_conflicts() {
        for columns in [16, 32, 64, 128, 256] {
            let layout = Layout::<Bf16>::swizzled(32, columns);
            let mut seen = std::collections::HashSet::new();
            for chunk in 0..layout.chunks() {
                for first in (0..32).step_by(8) {
                    let banks: std::collections::HashSet<u32> = (first..first + 8)
                        .map(|row| offset(layout, row, chunk) % 128 / 16)
                        .collect();
                    assert_eq!(banks.len(), 8, "{columns} columns, chunk {chunk}");
                }
                seen.extend((0..32).map(|row| offset(layout, row, chunk)));
            }
            assert_eq!(seen.len() as u32, 32 * layout.chunks());
            assert!(seen.iter().all(|&o| o < layout.bytes()));
        }
    }

    #[test]
    fn swizzles_are_those_of_tensor_maps() {
        for (columns, swizzle) in [(16, Swizzle::B32), (32, Swizzle::B64), (64, Swizzle::B128)] {
            let layout = Layout::<Bf16>::swizzled(64, columns);
            assert_eq!(layout.swizzle(), Some(swizzle));
            for row in 0..64 {
                for chunk in 0..layout.chunks() {
                    let plain = row * columns * 2 + chunk * 16;
                    assert_eq!(offset(layout, row, chunk), swizzle.apply(plain));
                }
            }
        }
    }

    #[test]
    fn positions_move_as_if_computed_anew() {
        let layout = Layout::<F32>::swizzled(64, 32);
        for row in 0..8 {
            for chunk in 0..2 {
                for right in [0, 2, 4, 6] {
                    let moved = layout.chunk(row, chunk).right(right).down(16);
                    let moved = moved.offset.constant().map(|o| o as u32 + moved.constant);
                    assert_eq!(moved, Some(offset(layout, row + 16, chunk + right)));
                }
            }
        }
    }
}
