//! Shared memory of one CTA.

use super::super::program::SHARED_BASE;
use super::super::race::{Clock, Stamp, Thread};
use super::{Conflict, ConflictKind};

/// The last write of a granule. All zero: never written.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    stamp: Stamp,
    pc: u32,
    thread: u16,
    flags: u16,
}

/// The value was poison.
const POISON: u16 = 1;
/// Not yet complete.
const PENDING: u16 = 2;
/// By an atomic: other atomics need no order.
const ATOMIC: u16 = 4;
/// By the asynchronous proxy.
const ASYNC: u16 = 8;

/// Who wrote a granule last, when, and by which instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastWrite {
    stamp: Stamp,
    thread: u16,
    pub pc: u32,
}

/// The last reads of a granule by one warp.
#[derive(Clone, Copy, Debug, Default)]
struct Read {
    stamp: Stamp,
    lanes: u32,
    /// With [`ATOMIC_READ`] where all of them were atomic.
    pc: u32,
}

/// Flag of [`Read::pc`]: other atomics need no order.
const ATOMIC_READ: u32 = 1 << 31;

/// Who accesses, with what knowledge, at which instruction.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    pub thread: Thread,
    pub now: Stamp,
    pub clock: &'a Clock,
    pub pc: u32,
    /// Through the asynchronous proxy.
    pub proxy: bool,
    pub atomic: bool,
}

pub struct SharedMemory {
    bytes: Vec<u8>,
    /// Bytes of a granule as a power of two.
    shift: u32,
    written: Vec<Written>,
    /// Of each granule, one per warp of the team.
    reads: Vec<Read>,
    warps: usize,
}

impl SharedMemory {
    /// `bytes` that nobody has written, for a team of `warps` warps and engines.
    pub fn new(bytes: usize, granule: u32, warps: usize) -> SharedMemory {
        let shift = granule.trailing_zeros();
        let cells = bytes.div_ceil(1 << shift);
        SharedMemory {
            bytes: vec![0; cells << shift],
            shift,
            written: vec![Written::default(); cells],
            reads: vec![Read::default(); cells * warps],
            warps,
        }
    }

    /// As new, for another CTA of the same kernel.
    pub fn clear(&mut self) {
        self.written.fill(Written::default());
        self.reads.fill(Read::default());
    }

    /// Offset of `bytes` at `address`, if they lie inside.
    #[inline]
    pub fn locate(&self, address: u32, bytes: u32) -> Option<usize> {
        let offset = address.checked_sub(SHARED_BASE)? as usize;
        (offset + bytes as usize <= self.bytes.len()).then_some(offset)
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    #[inline]
    pub fn load(&self, offset: usize, bytes: u32) -> u64 {
        let at = &self.bytes[offset..offset + bytes as usize];
        match *at {
            [a] => u64::from(a),
            [a, b] => u64::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => 0,
        }
    }

    #[inline]
    pub fn store(&mut self, offset: usize, bytes: u32, value: u64) {
        let bytes = bytes as usize;
        self.bytes[offset..offset + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }

    #[inline]
    pub fn slice(&self, offset: usize, bytes: usize) -> &[u8] {
        &self.bytes[offset..offset + bytes]
    }

    #[inline]
    pub fn slice_mut(&mut self, offset: usize, bytes: usize) -> &mut [u8] {
        &mut self.bytes[offset..offset + bytes]
    }

    #[inline]
    fn cells(&self, offset: usize, bytes: usize) -> std::ops::Range<usize> {
        offset >> self.shift..((offset + bytes - 1) >> self.shift) + 1
    }

    /// The last write of each granule.
    pub fn last_writes(&self, offset: usize, bytes: usize) -> impl Iterator<Item = LastWrite> {
        let written = &self.written[self.cells(offset, bytes)];
        written.iter().map(|written| LastWrite {
            stamp: written.stamp,
            thread: written.thread,
            pc: written.pc,
        })
    }

    #[inline]
    fn after_write(&self, cell: usize, who: &Who<'_>) -> Result<Written, Conflict> {
        let written = self.written[cell];
        if written.stamp == 0 {
            return Ok(written);
        }
        let thread = Thread::from(written.thread);
        let conflict = |kind| Conflict {
            kind,
            pc: written.pc,
            thread,
            cta: None,
            was_write: true,
        };
        if written.flags & PENDING != 0 {
            return Err(conflict(ConflictKind::InFlight));
        }
        if thread != who.thread && !who.clock.knows(thread, written.stamp) {
            if who.atomic && written.flags & ATOMIC != 0 {
                return Ok(written);
            }
            return Err(conflict(ConflictKind::Race));
        }
        if who.proxy && written.flags & ASYNC == 0 && !who.clock.fenced(thread, written.stamp) {
            return Err(conflict(ConflictKind::Proxy));
        }
        Ok(written)
    }

    /// Checks and notes a read; returns whether every byte is valid.
    ///
    /// # Errors
    /// A write that is not ordered before, or not complete.
    #[inline]
    pub fn read(&mut self, offset: usize, bytes: usize, who: &Who<'_>) -> Result<bool, Conflict> {
        let mut valid = true;
        let (warp, lane) = ((who.thread / 32) as usize, who.thread % 32);
        for cell in self.cells(offset, bytes) {
            let written = self.after_write(cell, who)?;
            valid &= written.stamp != 0 && written.flags & POISON == 0;
            let read = &mut self.reads[cell * self.warps + warp];
            // Reads by other lanes before are kept, under the new time, unless the warp has met since.
            let others = read.lanes & !(1 << lane);
            let met = read.stamp == 0
                || read.stamp != who.now && who.clock.knows_lanes(warp, others, read.stamp);
            let kept = if met { 0 } else { read.lanes };
            let atomic = who.atomic && (kept == 0 || read.pc & ATOMIC_READ != 0);
            *read = Read {
                stamp: who.now,
                lanes: kept | 1 << lane,
                pc: who.pc | if atomic { ATOMIC_READ } else { 0 },
            };
        }
        Ok(valid)
    }

    /// Checks that `who` may write, and notes it; `pending` where it completes later.
    ///
    /// # Errors
    /// A read or a write that is not ordered before, or not complete.
    #[inline]
    pub fn write(
        &mut self,
        offset: usize,
        bytes: usize,
        who: &Who<'_>,
        valid: bool,
        pending: bool,
    ) -> Result<(), Conflict> {
        for cell in self.cells(offset, bytes) {
            self.after_write(cell, who)?;
            let reads = &self.reads[cell * self.warps..(cell + 1) * self.warps];
            for (warp, read) in reads.iter().enumerate() {
                if read.stamp == 0 || who.atomic && read.pc & ATOMIC_READ != 0 {
                    continue;
                }
                let mut lanes = read.lanes;
                if warp as u32 == who.thread / 32 {
                    lanes &= !(1 << (who.thread % 32));
                }
                if lanes != 0 && !who.clock.knows_lanes(warp, lanes, read.stamp) {
                    return Err(Conflict {
                        kind: ConflictKind::Race,
                        pc: read.pc & !ATOMIC_READ,
                        thread: warp as u32 * 32 + lanes.trailing_zeros(),
                        cta: None,
                        was_write: false,
                    });
                }
            }
            let flag = |on, flag| if on { flag } else { 0 };
            self.written[cell] = Written {
                stamp: who.now,
                pc: who.pc,
                thread: who.thread as u16,
                flags: flag(!valid, POISON)
                    | flag(pending, PENDING)
                    | flag(who.atomic, ATOMIC)
                    | flag(who.proxy, ASYNC),
            };
        }
        Ok(())
    }

    /// Completes a pending write, as `thread`'s at `stamp`.
    pub fn complete(&mut self, offset: usize, bytes: usize, thread: Thread, stamp: Stamp) {
        for cell in self.cells(offset, bytes) {
            let written = &mut self.written[cell];
            written.flags &= !PENDING;
            written.thread = thread as u16;
            written.stamp = stamp;
        }
    }
}
