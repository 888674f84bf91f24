//! A warp's registers: 32 lanes of values, and for every lane's halves whether somebody has written them.
//!
//! Validity is kept per 16 bits, the smallest float that kernels compute with, so that one valid half of a pair can be
//! used while the other is poison.

use bytemuck::{Pod, Zeroable};

use super::super::program::op::{Pred, PredSource, Slot};

/// One 32-bit register in all lanes.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Lanes(pub [u32; 32]);

/// Low halves of the lanes in the low word, high halves in the high word.
pub type Validity = u64;

/// Both halves of the lanes of `mask`.
#[inline(always)]
pub fn halves(mask: u32) -> Validity {
    u64::from(mask) | u64::from(mask) << 32
}

/// Lanes with both halves valid.
#[inline(always)]
pub fn whole(validity: Validity) -> u32 {
    validity as u32 & (validity >> 32) as u32
}

pub struct Registers {
    values: Vec<Lanes>,
    valid: Vec<Validity>,
    preds: Vec<u32>,
    preds_valid: Vec<u32>,
    /// The condition code, by lane.
    pub carry: u32,
}

impl Registers {
    /// `slots` registers and `preds` predicates that nobody has written; predicate 0 holds.
    pub fn new(slots: usize, preds: usize) -> Registers {
        let mut registers = Registers {
            values: vec![Lanes([0; 32]); slots],
            valid: vec![0; slots],
            preds: vec![0; preds],
            preds_valid: vec![0; preds],
            carry: 0,
        };
        registers.set_pred(0, !0, !0, !0);
        registers
    }

    #[inline(always)]
    pub fn get(&self, slot: Slot) -> &[u32; 32] {
        &self.values[slot as usize].0
    }

    #[inline(always)]
    pub fn get64(&self, slot: Slot) -> &[u64; 32] {
        let pair = &self.values[slot as usize..slot as usize + 2];
        bytemuck::from_bytes(bytemuck::cast_slice(pair))
    }

    #[inline(always)]
    pub fn validity(&self, slot: Slot) -> Validity {
        self.valid[slot as usize]
    }

    /// Lanes in which all 32 bits are valid.
    #[inline(always)]
    pub fn valid(&self, slot: Slot) -> u32 {
        whole(self.valid[slot as usize])
    }

    /// Lanes in which all 64 bits are valid.
    #[inline(always)]
    pub fn valid64(&self, slot: Slot) -> u32 {
        whole(self.valid[slot as usize] & self.valid[slot as usize + 1])
    }

    /// Writes the lanes of `mask`.
    #[inline(always)]
    pub fn set(&mut self, slot: Slot, value: &[u32; 32], validity: Validity, mask: u32) {
        let register = &mut self.values[slot as usize].0;
        if mask == !0 {
            *register = *value;
            self.valid[slot as usize] = validity;
            return;
        }
        for lane in 0..32 {
            let keep = (mask >> lane & 1).wrapping_neg();
            register[lane] = value[lane] & keep | register[lane] & !keep;
        }
        let mask = halves(mask);
        let valid = &mut self.valid[slot as usize];
        *valid = validity & mask | *valid & !mask;
    }

    /// Writes the lanes of `mask`; `valid` are lanes.
    #[inline(always)]
    pub fn set64(&mut self, slot: Slot, value: &[u64; 32], valid: u32, mask: u32) {
        let pair = &mut self.values[slot as usize..slot as usize + 2];
        let register: &mut [u64; 32] = bytemuck::from_bytes_mut(bytemuck::cast_slice_mut(pair));
        for lane in 0..32 {
            let keep = u64::from(mask >> lane & 1).wrapping_neg();
            register[lane] = value[lane] & keep | register[lane] & !keep;
        }
        let (mask, validity) = (halves(mask), halves(valid));
        for valid in &mut self.valid[slot as usize..slot as usize + 2] {
            *valid = validity & mask | *valid & !mask;
        }
    }

    #[inline(always)]
    pub fn set_pred(&mut self, pred: Pred, value: u32, valid: u32, mask: u32) {
        let register = &mut self.preds[pred as usize];
        *register = value & mask | *register & !mask;
        let register = &mut self.preds_valid[pred as usize];
        *register = valid & mask | *register & !mask;
    }

    /// Lanes in which it holds, and lanes in which it is valid.
    #[inline(always)]
    pub fn pred(&self, source: PredSource) -> (u32, u32) {
        let value = self.preds[source.pred as usize];
        let value = if source.negate { !value } else { value };
        (value, self.preds_valid[source.pred as usize])
    }
}
