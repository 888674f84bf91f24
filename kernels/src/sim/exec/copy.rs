//! `cp.async`: copies of 4 to 16 bytes per thread from global to shared memory, waited for in groups.

use super::super::Completion;
use super::super::error::{Fault, Outcome, Rule};
use super::super::memory::shared;
use super::super::program::op::{Address, Op, PredSource, Slot};
use super::access::{Target, lanes_of, wavefronts};
use super::{Machine, Warp};

/// A `cp.async` that nobody has waited for.
pub struct PendingCopy {
    /// Counts copies in the order of issue.
    serial: u64,
    pub pc: u32,
    pub lane: u8,
    bytes: u8,
    /// Of the lane's groups, counted from 0.
    group: u32,
    offset: u32,
    data: [u8; 16],
}

impl Machine<'_> {
    pub(super) fn copy(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Outcome {
        match *op {
            Op::CopyAsync {
                to,
                from,
                bytes,
                source_bytes,
                ignore,
            } => {
                self.copy_async(warp, to, from, bytes, source_bytes, ignore, mask)?;
            }
            Op::CopyCommit => {
                for lane in lanes_of(mask) {
                    warp.copy_groups[lane] += 1;
                }
            }
            Op::CopyWait { pending } => {
                let groups = warp.copy_groups;
                let done = |copy: &PendingCopy| {
                    mask >> copy.lane & 1 != 0
                        && copy.group.saturating_add(pending) < groups[copy.lane as usize]
                };
                self.complete_copies(warp, done);
            }
            _ => self.complete_copies(warp, |copy| mask >> copy.lane & 1 != 0),
        }
        Ok(())
    }

    /// Completes the copies that `done` chooses, as their own threads' writes.
    fn complete_copies(&mut self, warp: &Warp, done: impl Fn(&PendingCopy) -> bool) {
        let (cta, number, now) = (warp.cta, warp.number, warp.clocks.now);
        let shared = &mut self.ctas[cta].shared;
        self.copies[warp.number].retain(|copy| {
            if !done(copy) {
                return true;
            }
            let (offset, bytes) = (copy.offset as usize, copy.bytes as usize);
            shared
                .slice_mut(offset, bytes)
                .copy_from_slice(&copy.data[..bytes]);
            let thread = number as u32 * 32 + u32::from(copy.lane);
            shared.complete(offset, bytes, thread, now);
            false
        });
    }

    #[allow(clippy::too_many_arguments)] // one instruction, spelled out
    fn copy_async(
        &mut self,
        warp: &mut Warp,
        to: Address,
        from: Address,
        bytes: u32,
        source_bytes: Option<Slot>,
        ignore: Option<PredSource>,
        mask: u32,
    ) -> Outcome {
        let mut sizes = [bytes; 32];
        if let Some(slot) = source_bytes {
            let poisoned = mask & !warp.registers.valid(slot);
            if poisoned != 0 {
                return Err(self.uninitialised(warp, poisoned, "the copy's size"));
            }
            sizes = *warp.registers.get(slot);
        }
        if let Some(ignore) = ignore {
            let (value, valid) = warp.registers.pred(ignore);
            if mask & !valid != 0 {
                return Err(self.uninitialised(warp, mask & !valid, "the copy's predicate"));
            }
            for lane in lanes_of(value) {
                sizes[lane] = 0;
            }
        }
        let sources = self.addresses(warp, from, mask)?;
        let targets = self.addresses(warp, to, mask)?;
        for lane in lanes_of(mask) {
            let size = sizes[lane];
            if size > bytes {
                let why = format!("the copy is told to read {size} of {bytes} bytes");
                return Err(self.fault(warp, Rule::Protocol, 1 << lane, why));
            }
            let target = self.target(
                warp,
                lane,
                to.space,
                targets[lane],
                bytes.into(),
                bytes.into(),
                true,
            )?;
            let Target::Shared(cta, offset) = target else {
                return Err(Fault::new(Rule::Bounds, "cp.async writes shared memory"));
            };
            let mut data = [0u8; 16];
            if size > 0 {
                let source = self.target(
                    warp,
                    lane,
                    from.space,
                    sources[lane],
                    size.into(),
                    bytes.into(),
                    false,
                )?;
                if !self.note_read(warp, lane, source, size as usize, false, false)? {
                    return Err(self.uninitialised(warp, 1 << lane, "the copy's source"));
                }
                let Target::Global(at) = source else {
                    return Err(Fault::new(Rule::Bounds, "cp.async reads global memory"));
                };
                self.read_global(at, &mut data[..size as usize]);
            }
            let who = shared::Who {
                thread: Self::thread(warp, lane),
                now: warp.clocks.now,
                clock: warp.clocks.of(lane),
                pc: warp.pc,
                proxy: false,
                atomic: false,
            };
            let noted = self.ctas[cta]
                .shared
                .write(offset, bytes as usize, &who, true, true);
            if let Err(conflict) = noted {
                let what = self.describe(target, bytes as usize);
                return Err(self.conflict(warp, lane, &what, true, conflict));
            }
            if self.context.completion == Completion::Early {
                let early = self.ctas[cta].shared.slice_mut(offset, bytes as usize);
                early.copy_from_slice(&data[..bytes as usize]);
            }
            self.copy_serial += 1;
            self.copies[warp.number].push(PendingCopy {
                serial: self.copy_serial,
                pc: warp.pc,
                lane: lane as u8,
                bytes: bytes as u8,
                group: warp.copy_groups[lane],
                offset: offset as u32,
                data,
            });
        }
        let read = lanes_of(mask)
            .filter(|&lane| sizes[lane] > 0)
            .fold(0, |m, lane| m | 1 << lane);
        if read != 0 {
            self.count_access(warp, &sources, bytes, read, false);
        }
        let counts = &mut self.counts[warp.pc as usize];
        let (passes, least) = wavefronts(&targets, bytes, mask);
        counts.wavefronts += passes;
        counts.least_wavefronts += least;
        Ok(())
    }

    /// Completes the copies that `lane` of warp `number` had issued up to `serial`, as an engine's writes.
    pub(super) fn complete_copies_for(
        &mut self,
        (number, lane, serial): (usize, usize, u64),
        thread: u32,
        stamp: u32,
    ) {
        let cta = number / self.context.grid.warps as usize;
        let shared = &mut self.ctas[cta].shared;
        self.copies[number].retain(|copy| {
            if usize::from(copy.lane) != lane || copy.serial > serial {
                return true;
            }
            let (offset, bytes) = (copy.offset as usize, copy.bytes as usize);
            shared
                .slice_mut(offset, bytes)
                .copy_from_slice(&copy.data[..bytes]);
            shared.complete(offset, bytes, thread, stamp);
            false
        });
    }
}
