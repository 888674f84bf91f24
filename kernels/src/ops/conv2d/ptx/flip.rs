//! Weights as the gradient of x needs them: mirrored, and their channels exchanged.

use super::Conv2d;
use crate::ops::variants::{Plan, Variant};
use crate::ptx::{Assembler, F32, Layout, Storage, U32};

/// Rows and columns of a tile.
const TILE: u32 = 32;
/// Rows that a CTA's threads move at a time.
const ROWS: u32 = 8;

/// flipped[c, kernel_h − 1 − u, kernel_w − 1 − v, o] = weight[o, u, v, c].
///
/// Launch with `Write(flipped), Read(weight)`, and `U32` of each of [`Flip::sizes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flip {
    pub storage: Storage,
}

impl Flip {
    /// c_out, taps and c_in.
    pub fn sizes(d: &Conv2d) -> [u32; 3] {
        [d.c_out, d.kernel_h * d.kernel_w, d.c_in].map(|size| size as u32)
    }

    /// For sizes that have been counted.
    pub(super) fn plan(d: &Conv2d, storage: Storage) -> Plan<Flip> {
        let [c_out, taps, c_in] = Flip::sizes(d);
        Plan {
            variant: Flip { storage },
            grid: [taps * c_out.div_ceil(TILE) * c_in.div_ceil(TILE), 1, 1],
        }
    }
}

impl Variant for Flip {
    const KERNEL: &'static str = "conv2d/flip";

    fn all() -> Vec<Flip> {
        Storage::ALL.map(|storage| Flip { storage }).to_vec()
    }

    fn label(&self) -> String {
        self.storage.name().to_string()
    }

    fn block(&self) -> [u32; 3] {
        [TILE * ROWS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "flipped[c, taps - 1 - t, o] = weight[o, t, c], {}.\n\
             Grid: taps * ceil(c_out / {TILE}) * ceil(c_in / {TILE}) CTAs, a tile of {TILE} x {TILE} of one tap each.\n\
             Reads and writes rows of {TILE} elements, once.",
            self.storage.name()
        ));
        let flipped = k.floats(self.storage, "flipped");
        let weight = k.floats(self.storage, "weight").read_only();
        let [c_out, taps, c_in] = ["c_out", "taps", "c_in"].map(|name| k.parameter::<U32>(name));
        // One more float a row: a column's elements lie in different banks.
        let layout = Layout::<F32>::padded(TILE, TILE, 1);
        let tile = k.shared_tile(layout);

        k.comment("which tile of which tap");
        let across = (c_in + (TILE - 1)) / TILE;
        let down = (c_out + (TILE - 1)) / TILE;
        let first_c = k.cta_x() % across * TILE;
        let first_o = k.cta_x() / across % down * TILE;
        let tap = k.cta_x() / across / down;
        let (row, column) = (k.thread_x() / TILE, k.thread_x() % TILE);
        for i in (0..TILE).step_by(ROWS as usize) {
            let (o, c) = (first_o + row + i, first_c + column);
            k.if_(o.lt(c_out) & c.lt(c_in), || {
                let weight = weight.at((o * taps + tap) * c_in + c).load();
                tile.at(layout.element(row, column).down(i)).store(weight);
            });
        }
        k.barrier();
        k.comment("its columns are rows of the other one");
        let mirrored = taps - 1 - tap;
        for i in (0..TILE).step_by(ROWS as usize) {
            let (o, c) = (first_o + column, first_c + row + i);
            k.if_(o.lt(c_out) & c.lt(c_in), || {
                let place = layout.element(column, row).across(i);
                let to = flipped.at((c * taps + mirrored) * c_out + o);
                to.store(tile.at(place).load());
            });
        }
    }
}
