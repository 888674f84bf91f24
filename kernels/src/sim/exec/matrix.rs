//! `mma.sync`, and the instructions that bring its fragments from and to shared memory.

use super::super::error::{Fault, Outcome, Rule};
use super::super::matrix::{Parts, multiply_add};
use super::super::program::op::{Address, MatrixElement, Op, Slot};
use super::access::{Target, lanes_of, wavefronts};
use super::registers::{Validity, halves};
use super::{Machine, Warp};

impl Machine<'_> {
    pub(super) fn matrix(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Outcome {
        match *op {
            Op::Mma {
                element,
                k,
                d,
                a,
                b,
                c,
            } => {
                self.together(warp, mask, "mma")?;
                self.mma(warp, element, usize::from(k), d, a, b, c);
            }
            Op::LoadMatrix {
                d,
                count,
                transpose,
                address,
            } => {
                self.together(warp, mask, "ldmatrix")?;
                self.load_matrix(warp, &d[..usize::from(count)], transpose, address)?;
            }
            Op::StoreMatrix {
                a,
                count,
                transpose,
                address,
            } => {
                self.together(warp, mask, "stmatrix")?;
                self.store_matrix(warp, &a[..usize::from(count)], transpose, address)?;
            }
            Op::MoveMatrix { d, a } => {
                self.together(warp, mask, "movmatrix")?;
                let (matrix, valid) = fragment(warp, a);
                set_fragment(warp, d, |row, column| {
                    (matrix[column][row], valid[column][row])
                });
            }
            _ => {}
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // one instruction, spelled out
    fn mma(
        &mut self,
        warp: &mut Warp,
        element: MatrixElement,
        k: usize,
        d: [Slot; 4],
        a: [Slot; 4],
        b: [Slot; 2],
        c: [Slot; 4],
    ) {
        let r = &warp.registers;
        let (mut av, mut bv, mut cv) = ([0u16; 256], [0u16; 128], [0f32; 128]);
        let mut known: Validity = !0;
        let (mut rows, mut columns) = ([true; 16], [true; 8]);
        for (i, &slot) in a[..k / 4].iter().enumerate() {
            let (values, validity) = (r.get(slot), r.validity(slot));
            known &= validity;
            for lane in 0..32 {
                let row = lane / 4 + 8 * (i % 2);
                let at = row * k + lane % 4 * 2 + 8 * (i / 2);
                av[at] = values[lane] as u16;
                av[at + 1] = (values[lane] >> 16) as u16;
            }
        }
        for (i, &slot) in b[..k / 8].iter().enumerate() {
            let (values, validity) = (r.get(slot), r.validity(slot));
            known &= validity;
            for lane in 0..32 {
                let at = (lane % 4 * 2 + 8 * i) * 8 + lane / 4;
                bv[at] = values[lane] as u16;
                bv[at + 8] = (values[lane] >> 16) as u16;
            }
        }
        for (i, &slot) in c.iter().enumerate() {
            let values = r.get(slot);
            for lane in 0..32 {
                let row = lane / 4 + 8 * (i / 2);
                cv[row * 8 + lane % 4 * 2 + i % 2] = f32::from_bits(values[lane]);
            }
        }
        let poisoned = known != !0;
        if poisoned {
            // One invalid value spoils its row of A or its column of B.
            for (i, &slot) in a[..k / 4].iter().enumerate() {
                let valid = r.valid(slot);
                for lane in 0..32 {
                    rows[lane / 4 + 8 * (i % 2)] &= valid >> lane & 1 != 0;
                }
            }
            for &slot in &b[..k / 8] {
                let valid = r.valid(slot);
                for lane in 0..32 {
                    columns[lane / 4] &= valid >> lane & 1 != 0;
                }
            }
        }
        let parts = (
            Parts::new(element, &av[..16 * k], k, false),
            Parts::new(element, &bv[..8 * k], 8, true),
        );
        let arch = self.context.grid.arch;
        multiply_add(arch, element, &parts.0, &parts.1, &mut cv, [16, 8, k]);
        let counts = &mut self.counts[warp.pc as usize];
        counts.matrix_flops += 2 * 16 * 8 * k as u64;
        for i in 0..4 {
            let mut value = [0; 32];
            let mut valid = warp.registers.valid(c[i]);
            for (lane, value) in value.iter_mut().enumerate() {
                let (row, column) = (lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2);
                *value = cv[row * 8 + column].to_bits();
                if poisoned && !(rows[row] && columns[column]) {
                    valid &= !(1 << lane);
                }
            }
            warp.registers.set(d[i], &value, halves(valid), !0);
        }
    }

    /// Shared offsets of the rows of `count` matrices, whose addresses lanes 8i to 8i+7 give.
    fn rows(
        &mut self,
        warp: &Warp,
        count: usize,
        address: Address,
        write: bool,
    ) -> Outcome<[usize; 32]> {
        let lanes = u32::MAX >> (32 - 8 * count as u32);
        let addresses = self.addresses(warp, address, lanes)?;
        let mut offsets = [0; 32];
        for lane in lanes_of(lanes) {
            let target = self.target(warp, lane, address.space, addresses[lane], 16, 16, write)?;
            let Target::Shared(_, offset) = target else {
                return Err(Fault::new(Rule::Bounds, "matrices lie in shared memory"));
            };
            offsets[lane] = offset;
        }
        let counts = &mut self.counts[warp.pc as usize];
        counts.requests += 1;
        counts.bytes += 128 * count as u64;
        for i in 0..count {
            let (passes, least) = wavefronts(&addresses, 16, 0xFF << (8 * i));
            counts.wavefronts += passes;
            counts.least_wavefronts += least;
        }
        Ok(offsets)
    }

    fn load_matrix(
        &mut self,
        warp: &mut Warp,
        d: &[Slot],
        transpose: bool,
        address: Address,
    ) -> Outcome {
        let offsets = self.rows(warp, d.len(), address, false)?;
        for (i, &slot) in d.iter().enumerate() {
            let (mut matrix, mut valid) = ([[0u16; 8]; 8], [[true; 8]; 8]);
            for row in 0..8 {
                let lane = 8 * i + row;
                let offset = offsets[lane];
                let target = Target::Shared(warp.cta, offset);
                let all = self.note_read(warp, lane, target, 16, false, false)?;
                for column in 0..8 {
                    let at = offset + 2 * column;
                    matrix[row][column] = self.ctas[warp.cta].shared.load(at, 2) as u16;
                    if !all {
                        let element = Target::Shared(warp.cta, at);
                        valid[row][column] =
                            self.note_read(warp, lane, element, 2, false, false)?;
                    }
                }
            }
            set_fragment(warp, slot, |row, column| match transpose {
                false => (matrix[row][column], valid[row][column]),
                true => (matrix[column][row], valid[column][row]),
            });
        }
        Ok(())
    }

    fn store_matrix(
        &mut self,
        warp: &mut Warp,
        a: &[Slot],
        transpose: bool,
        address: Address,
    ) -> Outcome {
        let offsets = self.rows(warp, a.len(), address, true)?;
        for (i, &slot) in a.iter().enumerate() {
            let (matrix, valid) = fragment(warp, slot);
            for row in 0..8 {
                let lane = 8 * i + row;
                let target = Target::Shared(warp.cta, offsets[lane]);
                let mut known = true;
                let mut bytes = [0u8; 16];
                for column in 0..8 {
                    let (r, c) = if transpose {
                        (column, row)
                    } else {
                        (row, column)
                    };
                    bytes[2 * column..2 * column + 2].copy_from_slice(&matrix[r][c].to_le_bytes());
                    known &= valid[r][c];
                }
                self.note_write(warp, lane, target, 16, known, false, |_| false)?;
                let shared = &mut self.ctas[warp.cta].shared;
                shared.slice_mut(offsets[lane], 16).copy_from_slice(&bytes);
            }
        }
        Ok(())
    }
}

/// An 8×8 matrix held as a fragment: lane 4r + c/2 has row r's elements c and c + 1.
fn fragment(warp: &Warp, slot: Slot) -> ([[u16; 8]; 8], [[bool; 8]; 8]) {
    let (values, validity) = (warp.registers.get(slot), warp.registers.validity(slot));
    let (mut matrix, mut valid) = ([[0; 8]; 8], [[false; 8]; 8]);
    for lane in 0..32 {
        let (row, column) = (lane / 4, lane % 4 * 2);
        matrix[row][column] = values[lane] as u16;
        matrix[row][column + 1] = (values[lane] >> 16) as u16;
        valid[row][column] = validity >> lane & 1 != 0;
        valid[row][column + 1] = validity >> (lane + 32) & 1 != 0;
    }
    (matrix, valid)
}

fn set_fragment(warp: &mut Warp, slot: Slot, at: impl Fn(usize, usize) -> (u16, bool)) {
    let (mut value, mut validity) = ([0; 32], 0u64);
    for (lane, value) in value.iter_mut().enumerate() {
        let (row, column) = (lane / 4, lane % 4 * 2);
        let ((low, low_valid), (high, high_valid)) = (at(row, column), at(row, column + 1));
        *value = u32::from(high) << 16 | u32::from(low);
        validity |= u64::from(low_valid) << lane | u64::from(high_valid) << (lane + 32);
    }
    warp.registers.set(slot, &value, validity, !0);
}
