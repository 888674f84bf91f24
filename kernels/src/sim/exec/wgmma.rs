//! `wgmma`: asynchronous matrix products of a warpgroup, whose operands lie in shared memory.
//!
//! Each warp of the group computes its own sixteen rows. A product is carried out when it is waited for, from what
//! shared memory holds then; that nobody has written there since the issue is checked.

use super::super::Completion;
use super::super::error::{Fault, Outcome, Rule};
use super::super::matrix::{Parts, multiply_add};
use super::super::memory::shared::LastWrite;
use super::super::program::SHARED_BASE;
use super::super::program::op::{Op, Slot, Wgmma, WgmmaA};
use super::access::Target;
use super::registers::halves;
use super::{Machine, Warp};
use crate::launch::{Arch, Swizzle};

pub struct PendingWgmma {
    pub line: u32,
    pc: u32,
    group: u32,
    registers: Vec<Slot>,
    a: Option<u64>,
    b: u64,
    scale_d: bool,
    /// Already carried out, where completion is early.
    done: bool,
    /// What brought the operands to shared memory, as of the issue.
    writes: Vec<LastWrite>,
}

/// What a warp's part of a product reads.
struct Operands {
    /// A's sixteen rows of this warp, row-major, and which of them are valid.
    a: Vec<u16>,
    a_valid: Vec<bool>,
    /// B by k, and which columns are valid.
    b: Vec<u16>,
    b_valid: Vec<bool>,
    writes: Vec<LastWrite>,
}

impl PendingWgmma {
    pub fn owns(&self, slot: Slot) -> bool {
        self.registers.contains(&slot)
    }
}

/// A matrix in shared memory, as its 64-bit descriptor gives it.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
}

impl Descriptor {
    fn new(bits: u64) -> Result<Descriptor, String> {
        let field = |at: u32| (bits >> at & 0x3FFF) as u32 * 16;
        if bits >> 49 & 7 != 0 {
            return Err("a matrix descriptor with a base offset is not supported".to_string());
        }
        Ok(Descriptor {
            start: field(0),
            leading: field(16),
            stride: field(32),
            swizzle: match bits >> 62 {
                0 => Swizzle::None,
                1 => Swizzle::B128,
                2 => Swizzle::B64,
                _ => Swizzle::B32,
            },
        })
    }

    /// Address of the 16-byte chunk that holds element (`row`, `k`), and the element within it. `transpose`: rows are
    /// next to each other instead of k.
    fn locate(&self, row: u32, k: u32, transpose: bool) -> (u32, u32) {
        let pitch = self.swizzle.span().unwrap_or(16);
        let across = pitch / 2;
        let at = match (self.swizzle, transpose) {
            (Swizzle::None, false) => {
                row / 8 * self.stride + k / 8 * self.leading + row % 8 * 16 + k % 8 * 2
            }
            (Swizzle::None, true) => {
                row / 8 * self.stride + k / 8 * self.leading + k % 8 * 16 + row % 8 * 2
            }
            (_, false) => row / 8 * self.stride + row % 8 * pitch + k * 2,
            (_, true) => {
                row / across * self.leading + k / 8 * self.stride + k % 8 * pitch + row % across * 2
            }
        };
        let address = self.swizzle.apply(self.start.wrapping_add(at));
        (address & !15, address % 16 / 2)
    }
}

impl Machine<'_> {
    pub(super) fn wgmma(&mut self, warp: &mut Warp, wgmma: &Wgmma, mask: u32) -> Outcome {
        self.together(warp, mask, "wgmma")?;
        if warp.index / 4 * 4 + 4 > self.context.grid.warps {
            let why = "wgmma needs a whole warpgroup: four warps from a multiple of four on";
            return Err(Fault::new(Rule::Protocol, why));
        }
        let descriptor = |slot: Slot| -> Outcome<u64> {
            if warp.registers.valid64(slot) & mask != mask {
                return Err(self.uninitialised(warp, mask, "the matrix descriptor"));
            }
            let values = warp.registers.get64(slot);
            let first = values[mask.trailing_zeros() as usize];
            match (0..32).find(|&l| mask >> l & 1 != 0 && values[l] != first) {
                None => Ok(first),
                Some(lane) => Err(self.fault(
                    warp,
                    Rule::Divergence,
                    1 << lane,
                    "lanes give different descriptors",
                )),
            }
        };
        let mut registers = wgmma.d.clone();
        let a = match wgmma.a {
            WgmmaA::Descriptor(slot) => Some(descriptor(slot)?),
            WgmmaA::Registers(slots) => {
                registers.extend(slots);
                None
            }
        };
        let b = descriptor(wgmma.b)?;
        let (scale, scale_valid) = warp.registers.pred(wgmma.scale_d);
        if scale_valid & mask != mask || scale & mask != 0 && scale & mask != mask {
            let why = "scale-d must be valid and the same in all lanes";
            return Err(self.fault(warp, Rule::Uninitialised, mask, why));
        }
        let line = self.line(warp.pc);
        for &slot in &registers {
            if warp.unfenced[slot as usize] {
                let why = "a register of the wgmma was written after the last wgmma.fence";
                return Err(self.fault(warp, Rule::Protocol, mask, why));
            }
        }
        for &slot in &registers {
            warp.owned[slot as usize] += 1;
        }
        let mut pending = PendingWgmma {
            line,
            pc: warp.pc,
            group: warp.wgmma_groups,
            registers,
            a,
            b,
            scale_d: scale & mask != 0,
            done: false,
            writes: Vec::new(),
        };
        pending.writes = self.operands(warp, wgmma, &pending)?.writes;
        if self.context.completion == Completion::Early {
            self.carry_out(warp, wgmma, &pending)?;
            pending.done = true;
        }
        let flops = 2 * 16 * 16 * u64::from(wgmma.n);
        self.counts[warp.pc as usize].matrix_flops += flops;
        warp.wgmmas.push(pending);
        Ok(())
    }

    pub(super) fn wgmma_wait(&mut self, warp: &mut Warp, pending: u32, mask: u32) -> Outcome {
        self.together(warp, mask, "wgmma.wait_group")?;
        let groups = warp.wgmma_groups;
        let mut kept = Vec::new();
        for product in std::mem::take(&mut warp.wgmmas) {
            if product.group.saturating_add(pending) >= groups {
                kept.push(product);
                continue;
            }
            let program = self.context.program;
            let Op::Wgmma(wgmma) = &program.instructions[product.pc as usize].op else {
                continue;
            };
            if product.done {
                let operands = self.operands(warp, wgmma, &product)?;
                self.unwritten(warp, &product, &operands)?;
            } else {
                self.carry_out(warp, wgmma, &product)?;
            }
            for &slot in &product.registers {
                warp.owned[slot as usize] -= 1;
            }
        }
        warp.wgmmas = kept;
        Ok(())
    }

    /// Refuses operands that were written again since the issue: whoever wrote knew of the issue, not of its end.
    fn unwritten(&self, warp: &Warp, pending: &PendingWgmma, operands: &Operands) -> Outcome {
        let mut pairs = pending.writes.iter().zip(&operands.writes);
        match pairs.find(|(before, now)| before != now) {
            None => Ok(()),
            Some((_, now)) => {
                let why = format!(
                    "line {} wrote shared memory that the wgmma at line {} reads, before that one was waited for",
                    self.line(now.pc),
                    pending.line
                );
                Err(self.fault(warp, Rule::Race, !0, why))
            }
        }
    }

    fn operands(
        &mut self,
        warp: &mut Warp,
        wgmma: &Wgmma,
        pending: &PendingWgmma,
    ) -> Outcome<Operands> {
        let n = wgmma.n as usize;
        let mut writes = Vec::new();
        let (a, a_valid) = match (wgmma.a, pending.a) {
            (WgmmaA::Registers(slots), _) => {
                let (mut a, mut valid) = (vec![0; 256], vec![true; 16]);
                for (i, slot) in slots.into_iter().enumerate() {
                    let (values, validity) = (warp.registers.get(slot), warp.registers.valid(slot));
                    for lane in 0..32 {
                        let row = lane / 4 + 8 * (i % 2);
                        let k = lane % 4 * 2 + 8 * (i / 2);
                        a[row * 16 + k] = values[lane] as u16;
                        a[row * 16 + k + 1] = (values[lane] >> 16) as u16;
                        valid[row] &= validity >> lane & 1 != 0;
                    }
                }
                (a, valid)
            }
            (WgmmaA::Descriptor(_), bits) => {
                let first = warp.index % 4 * 16;
                let bits = bits.unwrap_or(0);
                self.gather(
                    warp,
                    bits,
                    first..first + 16,
                    wgmma.transpose_a,
                    &mut writes,
                )?
            }
        };
        let transpose = wgmma.transpose_b;
        let (b_rows, b_valid) = self.gather(warp, pending.b, 0..wgmma.n, transpose, &mut writes)?;
        let mut b = vec![0; 16 * n];
        for j in 0..n {
            for k in 0..16 {
                b[k * n + j] = b_rows[j * 16 + k];
            }
        }
        Ok(Operands {
            a,
            a_valid,
            b,
            b_valid,
            writes,
        })
    }

    /// Rows of 16 elements each; adds what wrote them to `writes`.
    fn gather(
        &mut self,
        warp: &Warp,
        bits: u64,
        rows: std::ops::Range<u32>,
        transpose: bool,
        writes: &mut Vec<LastWrite>,
    ) -> Outcome<(Vec<u16>, Vec<bool>)> {
        let (first, count) = (rows.start, rows.len() as u32);
        let descriptor = match Descriptor::new(bits) {
            Ok(descriptor) => descriptor,
            Err(why) => return Err(self.fault(warp, Rule::Protocol, !0, why)),
        };
        let mut values = vec![0u16; count as usize * 16];
        let mut valid = vec![true; count as usize];
        let mut checked: std::collections::HashMap<u32, bool> = std::collections::HashMap::new();
        for row in 0..count {
            for k in 0..16 {
                let (chunk, element) = descriptor.locate(first + row, k, transpose);
                let Some(offset) = self.ctas[warp.cta].shared.locate(chunk, 16) else {
                    let why = format!(
                        "the matrix descriptor leads to shared address 0x{chunk:x}; the CTA's {} bytes begin at 0x{SHARED_BASE:x}",
                        self.ctas[warp.cta].shared.len()
                    );
                    return Err(self.fault(warp, Rule::Bounds, !0, why));
                };
                let known = match checked.get(&chunk) {
                    Some(&known) => known,
                    None => {
                        let lane = warp.active.trailing_zeros() as usize % 32;
                        let target = Target::Shared(warp.cta, offset);
                        let known = self.note_read(warp, lane, target, 16, false, true)?;
                        writes.extend(self.ctas[warp.cta].shared.last_writes(offset, 16));
                        checked.insert(chunk, known);
                        known
                    }
                };
                let at = offset + element as usize * 2;
                values[(row * 16 + k) as usize] = self.ctas[warp.cta].shared.load(at, 2) as u16;
                valid[row as usize] &= known;
            }
        }
        Ok((values, valid))
    }

    fn carry_out(&mut self, warp: &mut Warp, wgmma: &Wgmma, pending: &PendingWgmma) -> Outcome {
        let operands = self.operands(warp, wgmma, pending)?;
        self.unwritten(warp, pending, &operands)?;
        let Operands {
            mut a,
            a_valid,
            mut b,
            b_valid,
            ..
        } = operands;
        let n = wgmma.n as usize;
        for (negate, values) in [(wgmma.negate_a, &mut a), (wgmma.negate_b, &mut b)] {
            if negate {
                values.iter_mut().for_each(|v| *v ^= 0x8000);
            }
        }
        let mut c = vec![0.0f32; 16 * n];
        let place = |lane: usize, i: usize| {
            let row = lane / 4 + 8 * (i / 2 % 2);
            (row, i / 4 * 8 + lane % 4 * 2 + i % 2)
        };
        let mut valid = vec![!0u32; wgmma.d.len()];
        if pending.scale_d {
            for (i, &slot) in wgmma.d.iter().enumerate() {
                valid[i] = warp.registers.valid(slot);
                for (lane, &bits) in warp.registers.get(slot).iter().enumerate() {
                    let (row, column) = place(lane, i);
                    c[row * n + column] = f32::from_bits(bits);
                }
            }
        }
        let a = Parts::new(wgmma.element, &a, 16, false);
        let b = Parts::new(wgmma.element, &b, n, true);
        multiply_add(Arch::Sm90a, wgmma.element, &a, &b, &mut c, [16, n, 16]);
        for (i, &slot) in wgmma.d.iter().enumerate() {
            let mut value = [0; 32];
            for (lane, value) in value.iter_mut().enumerate() {
                let (row, column) = place(lane, i);
                *value = c[row * n + column].to_bits();
                let known = a_valid[row] && b_valid[column];
                valid[i] &= !(u32::from(!known) << lane);
            }
            warp.registers.set(slot, &value, halves(valid[i]), !0);
        }
        Ok(())
    }
}
