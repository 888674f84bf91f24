//! How a warp reads the operands of `mma` from shared memory, 16 by 16 elements at a time.

use super::matmul::ptx::operand::Side;
use crate::ptx::{Assembler, Bf16, Bf16x2, Layout, Position, Tile, U32, Value};

/// The fragments of an operand in tiles of one layout.
pub struct Fragments<'k> {
    k: &'k Assembler,
    k_major: bool,
    /// Where a lane's row begins: under a swizzle, once for every fragment that it moves right.
    at: Vec<Position<'k, Bf16>>,
}

impl<'k> Fragments<'k> {
    /// Of rows of the output (of b: columns) from `first` on. `right` fragments lie side by side: along k where it is
    /// `k_major`, along the output where it is not.
    pub fn new(
        k: &'k Assembler,
        side: Side,
        k_major: bool,
        layout: Layout<Bf16>,
        first: Value<'k, U32>,
        right: u32,
    ) -> Fragments<'k> {
        let lane = k.lane();
        // `ldmatrix` takes the rows of four matrices from lanes 0-7, 8-15, 16-23 and 24-31. They are the quarters of the
        // fragment, in the order of its registers: a's run down first, b's along k first; and where k does not run along
        // the rows, the two directions change places.
        let (row, chunk) = match (side, k_major) {
            (Side::A, true) | (Side::B, false) => (lane & 15, lane >> 4),
            (Side::A, false) | (Side::B, true) => ((lane & 7) + (lane >> 4) * 8, (lane >> 3) & 1),
        };
        let start = match k_major {
            true => layout.chunk(first + row, chunk),
            false => layout.chunk(row, first / 8 + chunk),
        };
        Fragments {
            k,
            k_major,
            at: (0..right).map(|i| start.right(2 * i)).collect(),
        }
    }

    /// Number `along` along the output, `step` along k.
    pub fn load(&self, tile: Tile<'k, Bf16>, along: u32, step: u32) -> [Value<'k, Bf16x2>; 4] {
        match self.k_major {
            true => {
                let row = self.at[step as usize].down(16 * along);
                self.k.ldmatrix(tile.at(row))
            }
            false => {
                let row = self.at[along as usize].down(16 * step);
                self.k.ldmatrix_transposed(tile.at(row))
            }
        }
    }

    /// The first `count` along the output.
    pub fn load_all(
        &self,
        tile: Tile<'k, Bf16>,
        count: u32,
        step: u32,
    ) -> Vec<[Value<'k, Bf16x2>; 4]> {
        (0..count).map(|i| self.load(tile, i, step)).collect()
    }
}
