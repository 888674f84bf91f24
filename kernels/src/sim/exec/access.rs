//! What every access to memory goes through: addresses, bounds and alignment, who may touch what, and what is counted.

use super::super::error::{Outcome, Rule};
use super::super::memory::global::{self, Location};
use super::super::memory::shared;
use super::super::profile::SECTOR;
use super::super::program::SHARED_WINDOW;
use super::super::program::op::{Address, MemorySpace};
use super::integer::map;
use super::{Machine, Warp};

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// CTA of the team, and offset.
    Shared(usize, usize),
    Global(Location),
}

pub fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let lane = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        Some(lane)
    })
}

impl Machine<'_> {
    /// Every lane's address.
    ///
    /// # Errors
    /// Lanes of `mask` whose base nobody wrote.
    #[inline]
    pub(super) fn addresses(&self, warp: &Warp, address: Address, mask: u32) -> Outcome<[u64; 32]> {
        let r = &warp.registers;
        let (addresses, valid) = if address.wide {
            let offset = address.offset as u64;
            (
                map(r.get64(address.base), |a| a.wrapping_add(offset)),
                r.valid64(address.base),
            )
        } else {
            let offset = address.offset as u32;
            (
                map(r.get(address.base), |a| u64::from(a.wrapping_add(offset))),
                r.valid(address.base),
            )
        };
        if mask & !valid != 0 {
            return Err(self.uninitialised(warp, mask & !valid, "the address"));
        }
        Ok(addresses)
    }

    /// Where `bytes` at `address` in `space` are, aligned to `align`.
    ///
    /// # Errors
    /// Addresses outside, misaligned, or in memory that must not be written.
    #[inline]
    #[allow(clippy::too_many_arguments)] // one access, spelled out
    pub(super) fn target(
        &self,
        warp: &Warp,
        lane: usize,
        space: MemorySpace,
        address: u64,
        bytes: u64,
        align: u64,
        write: bool,
    ) -> Outcome<Target> {
        if address & (align - 1) != 0 {
            let why = format!("address 0x{address:x} is not a multiple of {align}");
            return Err(self.fault(warp, Rule::Alignment, 1 << lane, why));
        }
        let in_window = address >> 36 == SHARED_WINDOW >> 36;
        let shared = match space {
            MemorySpace::Shared | MemorySpace::Cluster => true,
            MemorySpace::Generic => in_window,
            MemorySpace::Global | MemorySpace::Const => false,
        };
        if !shared {
            return match self.context.global.locate(address, bytes, write) {
                Ok(location) => Ok(Target::Global(location)),
                Err((rule, why)) => Err(self.fault(warp, rule, 1 << lane, why)),
            };
        }
        self.shared_target(warp, lane, space, address, bytes)
    }

    #[inline]
    fn shared_target(
        &self,
        warp: &Warp,
        lane: usize,
        space: MemorySpace,
        address: u64,
        bytes: u64,
    ) -> Outcome<Target> {
        let generic = address >> 36 == SHARED_WINDOW >> 36;
        let (window, offset) = (address as u32 >> 24, address as u32 & 0x00FF_FFFF);
        let cta = match window {
            0 => warp.cta,
            rank => rank as usize - 1,
        };
        let local = space == MemorySpace::Shared && window != 0;
        let odd = !generic && address >> 32 != 0;
        let found = self.ctas.get(cta).filter(|_| !local && !odd);
        let located = found.and_then(|cta| cta.shared.locate(offset, bytes as u32));
        match (found, located) {
            (Some(other), Some(_)) if other.alive == 0 => {
                let why = "the CTA whose shared memory is accessed has exited";
                Err(self.fault(warp, Rule::Bounds, 1 << lane, why))
            }
            (_, Some(offset)) => Ok(Target::Shared(cta, offset)),
            (found, None) => {
                let size = found.map_or(0, |cta| cta.shared.len());
                let begin = super::super::program::SHARED_BASE;
                let why = format!(
                    "access of {bytes} bytes at shared address 0x{address:x}; the CTA's {size} bytes begin at 0x{begin:x}"
                );
                Err(self.fault(warp, Rule::Bounds, 1 << lane, why))
            }
        }
    }

    /// Checks and notes a read; returns whether the bytes are valid.
    #[inline]
    pub(super) fn note_read(
        &mut self,
        warp: &Warp,
        lane: usize,
        target: Target,
        bytes: usize,
        atomic: bool,
        proxy: bool,
    ) -> Outcome<bool> {
        let (thread, pc) = (Self::thread(warp, lane), warp.pc);
        let (now, clock) = (warp.clocks.now, warp.clocks.of(lane));
        let result = match target {
            Target::Shared(cta, offset) => {
                let who = shared::Who {
                    thread,
                    now,
                    clock,
                    pc,
                    proxy,
                    atomic,
                };
                self.ctas[cta].shared.read(offset, bytes, &who)
            }
            Target::Global(at) => {
                let who = global::Who {
                    team: self.team,
                    thread,
                    now,
                    clock,
                    pc,
                    atomic,
                };
                self.context.global.read(at, bytes, &who)
            }
        };
        match result {
            Ok(valid) => Ok(valid),
            Err(conflict) => {
                let what = self.describe(target, bytes);
                Err(self.conflict(warp, lane, &what, false, conflict))
            }
        }
    }

    /// Checks and notes a write of bytes that are `valid`. `same` says whether a lane of this very instruction that got
    /// there first wrote the same.
    #[inline]
    #[allow(clippy::too_many_arguments)] // one access, spelled out
    pub(super) fn note_write(
        &mut self,
        warp: &Warp,
        lane: usize,
        target: Target,
        bytes: usize,
        valid: bool,
        atomic: bool,
        same: impl Fn(&Self) -> bool,
    ) -> Outcome {
        let (thread, pc) = (Self::thread(warp, lane), warp.pc);
        let (now, clock) = (warp.clocks.now, warp.clocks.of(lane));
        let result = match target {
            Target::Shared(cta, offset) => {
                let who = shared::Who {
                    thread,
                    now,
                    clock,
                    pc,
                    proxy: false,
                    atomic,
                };
                self.ctas[cta]
                    .shared
                    .write(offset, bytes, &who, valid, false)
            }
            Target::Global(at) => {
                let who = global::Who {
                    team: self.team,
                    thread,
                    now,
                    clock,
                    pc,
                    atomic,
                };
                self.context.global.write(at, bytes, &who)
            }
        };
        match result {
            Ok(()) => Ok(()),
            Err(conflict)
                if conflict.was_write
                    && conflict.pc == pc
                    && conflict.cta.is_none()
                    && conflict.thread / 32 == warp.number as u32
                    && same(self) =>
            {
                Ok(())
            }
            Err(conflict) => {
                let what = self.describe(target, bytes);
                Err(self.conflict(warp, lane, &what, true, conflict))
            }
        }
    }

    pub(super) fn describe(&self, target: Target, bytes: usize) -> String {
        match target {
            Target::Shared(_, offset) => {
                let address = offset as u32 + super::super::program::SHARED_BASE;
                format!("{bytes} shared bytes at 0x{address:x}")
            }
            Target::Global(at) => format!(
                "{bytes} bytes at offset {} of {}",
                at.offset,
                self.context.global.name(at.object)
            ),
        }
    }

    #[inline]
    pub(super) fn fetch(&self, target: Target, bytes: u32) -> u64 {
        match target {
            Target::Shared(cta, offset) => self.ctas[cta].shared.load(offset, bytes),
            Target::Global(at) => self.context.global.load(at, bytes),
        }
    }

    #[inline]
    pub(super) fn put(&mut self, target: Target, bytes: u32, value: u64) {
        match target {
            Target::Shared(cta, offset) => self.ctas[cta].shared.store(offset, bytes, value),
            Target::Global(at) => self.context.global.store(at, bytes, value),
        }
    }

    /// Copies bytes out of global memory in units that are aligned at both ends.
    pub(super) fn read_global(&self, at: Location, out: &mut [u8]) {
        let unit = unit_of(at.offset, out.len());
        for (i, part) in out.chunks_exact_mut(unit).enumerate() {
            let place = Location {
                offset: at.offset + i * unit,
                ..at
            };
            let value = self.context.global.load(place, unit as u32);
            part.copy_from_slice(&value.to_le_bytes()[..unit]);
        }
    }

    pub(super) fn write_global(&self, at: Location, bytes: &[u8]) {
        let unit = unit_of(at.offset, bytes.len());
        for (i, part) in bytes.chunks_exact(unit).enumerate() {
            let place = Location {
                offset: at.offset + i * unit,
                ..at
            };
            let mut value = [0; 8];
            value[..unit].copy_from_slice(part);
            self.context
                .global
                .store(place, unit as u32, u64::from_le_bytes(value));
        }
    }

    /// Counts a warp's request of `bytes` per lane.
    #[inline]
    pub(super) fn count_access(
        &mut self,
        warp: &Warp,
        addresses: &[u64; 32],
        bytes: u32,
        mask: u32,
        shared: bool,
    ) {
        let counts = &mut self.counts[warp.pc as usize];
        counts.requests += 1;
        counts.bytes += u64::from(bytes) * u64::from(mask.count_ones());
        if shared {
            let (passes, least) = wavefronts(addresses, bytes, mask);
            counts.wavefronts += passes;
            counts.least_wavefronts += least;
        } else {
            let (sectors, least) = sectors(addresses, bytes, mask);
            counts.sectors += sectors;
            counts.least_sectors += least;
        }
    }
}

/// The largest unit of up to 8 bytes that `offset` and `len` are multiples of.
fn unit_of(offset: usize, len: usize) -> usize {
    1 << (offset | len | 8).trailing_zeros()
}

/// Passes through the 32 four-byte banks that a warp's access takes, and the fewest that its width allows: a warp's
/// 8-byte accesses go by halves, its 16-byte ones by quarters.
pub fn wavefronts(addresses: &[u64; 32], bytes: u32, mask: u32) -> (u64, u64) {
    let group = match bytes {
        16 => 8,
        8 => 16,
        _ => 32,
    };
    let words = (bytes as usize).div_ceil(4);
    let (mut passes, mut least) = (0, 0);
    for first in (0..32).step_by(group) {
        let part = mask >> first & (u32::MAX >> (32 - group as u32));
        if part == 0 {
            continue;
        }
        least += 1;
        let mut heads = [u64::MAX; 32];
        let mut depth = [0u8; 32];
        let mut more: Vec<u64> = Vec::new();
        let mut deepest = 1;
        for lane in lanes_of(part) {
            for i in 0..words {
                let word = addresses[first + lane] / 4 + i as u64;
                let bank = (word % 32) as usize;
                if heads[bank] == u64::MAX {
                    heads[bank] = word;
                    depth[bank] = 1;
                } else if heads[bank] != word && !more.contains(&word) {
                    more.push(word);
                    depth[bank] += 1;
                    deepest = deepest.max(depth[bank]);
                }
            }
        }
        passes += u64::from(deepest);
    }
    (passes, least)
}

/// Sectors that a request touches, and the fewest that its distinct bytes would fit in.
fn sectors(addresses: &[u64; 32], bytes: u32, mask: u32) -> (u64, u64) {
    let mut sorted = [0u64; 32];
    let mut count = 0;
    let mut ascending = true;
    for lane in lanes_of(mask) {
        sorted[count] = addresses[lane];
        ascending &= count == 0 || sorted[count - 1] <= sorted[count];
        count += 1;
    }
    let sorted = &mut sorted[..count];
    if !ascending {
        sorted.sort_unstable();
    }
    let (mut sectors, mut last, mut distinct, mut before) = (0, u64::MAX, 0u64, u64::MAX);
    for &address in sorted.iter() {
        distinct += u64::from(address != before);
        before = address;
        for sector in address / SECTOR..=(address + u64::from(bytes) - 1) / SECTOR {
            if last == u64::MAX || sector > last {
                sectors += 1;
                last = sector;
            }
        }
    }
    (sectors, (distinct * u64::from(bytes)).div_ceil(SECTOR))
}

#[inline]
pub fn shifted(target: Target, by: usize) -> Target {
    match target {
        Target::Shared(cta, offset) => Target::Shared(cta, offset + by),
        Target::Global(at) => Target::Global(Location {
            offset: at.offset + by,
            ..at
        }),
    }
}
