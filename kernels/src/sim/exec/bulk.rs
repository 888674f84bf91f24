//! The bulk engine: `cp.async.bulk` and tensor-map copies, which complete on mbarriers or in groups.

use super::super::Completion;
use super::super::error::{Fault, Outcome, Rule};
use super::super::memory::global::Location;
use super::super::memory::shared;
use super::super::program::PARAM_WINDOW;
use super::super::program::op::{Address, Bulk, MemorySpace, Slot};
use super::access::{Target, lanes_of};
use super::mbarrier::Place;
use super::{Machine, Warp};
use crate::launch::Swizzle;

/// A tensor map whose buffer is known.
#[derive(Clone, Debug)]
pub struct ResolvedMap {
    /// The tensor's first byte.
    pub base: Location,
    /// Bytes of an element.
    pub element: u64,
    pub dims: Vec<u64>,
    /// Bytes from one index to the next, along every dimension.
    pub strides: Vec<u64>,
    pub tile: Vec<u32>,
    pub swizzle: Swizzle,
}

impl ResolvedMap {
    fn bytes(&self) -> usize {
        self.tile.iter().map(|&t| t as usize).product::<usize>() * self.element as usize
    }

    /// Calls `f(where in the unswizzled box, where in global memory, bytes)` for every run of elements along the
    /// innermost dimension that lies inside the tensor.
    fn runs(
        &self,
        coordinates: &[i64],
        mut f: impl FnMut(usize, Location, usize) -> Outcome,
    ) -> Outcome {
        let inner = self.tile[0] as usize * self.element as usize;
        let first = coordinates[0].clamp(0, self.dims[0] as i64);
        let last = (coordinates[0] + i64::from(self.tile[0])).clamp(first, self.dims[0] as i64);
        let rows = self.bytes() / inner.max(1);
        for row in 0..rows {
            let (mut rest, mut at, mut inside) = (row, 0u64, first < last);
            for (dim, &start) in coordinates.iter().enumerate().skip(1) {
                let index = start + (rest % self.tile[dim] as usize) as i64;
                rest /= self.tile[dim] as usize;
                inside &= index >= 0 && (index as u64) < self.dims[dim];
                at += self.strides[dim].wrapping_mul(index as u64) * u64::from(inside);
            }
            if !inside {
                continue;
            }
            let skipped = (first - coordinates[0]) as usize * self.element as usize;
            let offset = self.base.offset + at as usize + first as usize * self.element as usize;
            let location = Location {
                offset,
                ..self.base
            };
            f(
                row * inner + skipped,
                location,
                (last - first) as usize * self.element as usize,
            )?;
        }
        Ok(())
    }

    /// Where byte `i` of the unswizzled box lies, for a box at shared offset `offset` (address `address`).
    fn place(&self, offset: usize, address: u32, i: usize) -> usize {
        let swizzled = self.swizzle.apply(address + i as u32);
        offset + (swizzled - address) as usize
    }
}

/// A copy to shared memory that has not completed.
pub struct PendingLoad {
    cta: usize,
    offset: usize,
    data: Vec<u8>,
    barrier: Place,
}

/// A copy from shared memory that has not completed.
pub struct PendingStore {
    pub pc: u32,
    lane: u8,
    group: u32,
    /// Whether shared memory has been read.
    pub read: bool,
    source: (usize, usize),
    /// The box as it lies in shared memory, once read.
    data: Vec<u8>,
    to: Destination,
}

enum Destination {
    Plain(Location),
    Tensor(Box<ResolvedMap>, Vec<i64>),
}

impl Machine<'_> {
    pub(super) fn bulk(&mut self, warp: &mut Warp, bulk: &Bulk, mask: u32) -> Outcome {
        for lane in lanes_of(mask) {
            match bulk {
                Bulk::GlobalToShared {
                    to,
                    from,
                    bytes,
                    barrier,
                    multicast,
                } => {
                    let size = self.size(warp, lane, *bytes)?;
                    let at = self.addresses(warp, *from, 1 << lane)?[lane];
                    let source = self.target(warp, lane, from.space, at, size, 16, false)?;
                    let Target::Global(at) = source else {
                        return Err(Fault::new(Rule::Bounds, "the source lies in global memory"));
                    };
                    let mut data = vec![0; size as usize];
                    self.read_source(warp, lane, at, &mut data)?;
                    self.begin_load(warp, lane, *to, *barrier, *multicast, data, 16)?;
                }
                Bulk::TensorLoad {
                    to,
                    map,
                    coordinates,
                    barrier,
                    multicast,
                } => {
                    let (map, coordinates) = self.map(warp, lane, *map, coordinates)?;
                    let at = self.addresses(warp, *to, 1 << lane)?[lane];
                    let address = at as u32 & 0x00FF_FFFF;
                    let mut data = vec![0; map.bytes()];
                    map.runs(&coordinates, |i, location, bytes| {
                        // Swizzling moves chunks of 16 bytes; runs are cut where chunks end.
                        let (mut done, start) = (0, i);
                        let mut run = vec![0; bytes];
                        self.read_source(warp, lane, location, &mut run)?;
                        while done < bytes {
                            let i = start + done;
                            let part = (16 - i % 16).min(bytes - done);
                            let place = map.place(0, address, i);
                            data[place..place + part].copy_from_slice(&run[done..done + part]);
                            done += part;
                        }
                        Ok(())
                    })?;
                    self.begin_load(warp, lane, *to, *barrier, *multicast, data, 128)?;
                }
                Bulk::SharedToCluster {
                    to,
                    from,
                    bytes,
                    barrier,
                } => {
                    let size = self.size(warp, lane, *bytes)?;
                    let source = self.shared_source(warp, lane, *from, size, 16)?;
                    let data = self.read_shared(warp, lane, source, size as usize)?;
                    self.begin_load(warp, lane, *to, *barrier, None, data, 16)?;
                }
                Bulk::SharedToGlobal { to, from, bytes } => {
                    let size = self.size(warp, lane, *bytes)?;
                    let at = self.addresses(warp, *to, 1 << lane)?[lane];
                    let target = self.target(warp, lane, to.space, at, size, 16, true)?;
                    let Target::Global(at) = target else {
                        return Err(Fault::new(Rule::Bounds, "the target lies in global memory"));
                    };
                    let source = self.shared_source(warp, lane, *from, size, 16)?;
                    self.begin_store(warp, lane, source, size as usize, Destination::Plain(at))?;
                }
                Bulk::TensorStore {
                    map,
                    coordinates,
                    from,
                } => {
                    let (map, coordinates) = self.map(warp, lane, *map, coordinates)?;
                    let size = map.bytes();
                    let source = self.shared_source(warp, lane, *from, size as u64, 128)?;
                    let to = Destination::Tensor(Box::new(map), coordinates);
                    self.begin_store(warp, lane, source, size, to)?;
                }
            }
        }
        Ok(())
    }

    fn size(&self, warp: &Warp, lane: usize, slot: Slot) -> Outcome<u64> {
        if warp.registers.valid(slot) >> lane & 1 == 0 {
            return Err(self.uninitialised(warp, 1 << lane, "the copy's size"));
        }
        let size = warp.registers.get(slot)[lane];
        if size == 0 || !size.is_multiple_of(16) {
            let why = format!("a bulk copy of {size} bytes: a multiple of 16 is needed");
            return Err(self.fault(warp, Rule::Alignment, 1 << lane, why));
        }
        Ok(size.into())
    }

    fn map(
        &self,
        warp: &Warp,
        lane: usize,
        map: Address,
        coordinates: &[Slot],
    ) -> Outcome<(ResolvedMap, Vec<i64>)> {
        let address = self.addresses(warp, map, 1 << lane)?[lane];
        let offset = address.wrapping_sub(PARAM_WINDOW);
        let map = u32::try_from(offset)
            .ok()
            .and_then(|offset| self.context.maps.get(&offset))
            .cloned();
        let Some(map) = map.filter(|map| map.dims.len() == coordinates.len()) else {
            let why = format!(
                "there is no tensor map of rank {} at 0x{address:x}",
                coordinates.len()
            );
            return Err(self.fault(warp, Rule::Protocol, 1 << lane, why));
        };
        let mut at = Vec::new();
        for &slot in coordinates {
            if warp.registers.valid(slot) >> lane & 1 == 0 {
                return Err(self.uninitialised(warp, 1 << lane, "a coordinate"));
            }
            at.push(i64::from(warp.registers.get(slot)[lane] as i32));
        }
        Ok((map, at))
    }

    fn read_source(&self, warp: &Warp, lane: usize, at: Location, data: &mut [u8]) -> Outcome {
        let who = super::super::memory::global::Who {
            team: self.team,
            thread: Self::thread(warp, lane),
            now: warp.clocks.now,
            clock: warp.clocks.of(lane),
            pc: warp.pc,
            atomic: false,
        };
        match self.context.global.read(at, data.len(), &who) {
            Ok(true) => {
                self.read_global(at, data);
                Ok(())
            }
            Ok(false) => Err(self.uninitialised(warp, 1 << lane, "the copy's source")),
            Err(conflict) => {
                let what = self.describe(Target::Global(at), data.len());
                Err(self.conflict(warp, lane, &what, false, conflict))
            }
        }
    }

    /// Begins to write `data` to shared memory, in every CTA that the copy goes to.
    #[allow(clippy::too_many_arguments)] // one copy, spelled out
    fn begin_load(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        to: Address,
        barrier: Address,
        multicast: Option<Slot>,
        data: Vec<u8>,
        align: u64,
    ) -> Outcome {
        let at = self.addresses(warp, to, 1 << lane)?[lane];
        let barrier_at = self.addresses(warp, barrier, 1 << lane)?[lane];
        let windows: Vec<Option<u64>> = match multicast {
            None => vec![None],
            Some(slot) => {
                let ranks = warp.registers.get(slot)[lane];
                let all = self.context.grid.cluster_ctas();
                if warp.registers.valid(slot) >> lane & 1 == 0 {
                    return Err(self.uninitialised(warp, 1 << lane, "the multicast mask"));
                }
                if ranks & 0xFFFF == 0 || (ranks & 0xFFFF) >> all != 0 {
                    let why = format!("multicast mask 0x{ranks:x} in a cluster of {all}");
                    return Err(self.fault(warp, Rule::Protocol, 1 << lane, why));
                }
                (0..16)
                    .filter(|rank| ranks >> rank & 1 != 0)
                    .map(|rank| Some((rank + 1) << 24))
                    .collect()
            }
        };
        let bytes = data.len();
        for window in windows {
            let moved = |address: u64| match window {
                None => address,
                Some(window) => address & 0x00FF_FFFF | window,
            };
            let space = if window.is_some() {
                MemorySpace::Cluster
            } else {
                to.space
            };
            let target = self.target(warp, lane, space, moved(at), bytes as u64, align, true)?;
            let place = self.target(warp, lane, space, moved(barrier_at), 8, 8, false)?;
            let (Target::Shared(cta, offset), Target::Shared(bcta, boffset)) = (target, place)
            else {
                return Err(Fault::new(
                    Rule::Bounds,
                    "bulk copies arrive in shared memory",
                ));
            };
            // The engine itself signals the mbarrier: its initialisation must be visible to it.
            self.note_read(warp, lane, place, 8, true, true)?;
            self.existing(warp, lane, (bcta, boffset))?;
            let who = shared::Who {
                thread: Self::thread(warp, lane),
                now: warp.clocks.now,
                clock: warp.clocks.of(lane),
                pc: warp.pc,
                proxy: true,
                atomic: false,
            };
            if let Err(conflict) = self.ctas[cta].shared.write(offset, bytes, &who, true, true) {
                let what = self.describe(target, bytes);
                return Err(self.conflict(warp, lane, &what, true, conflict));
            }
            self.loads.push(PendingLoad {
                cta,
                offset,
                data: data.clone(),
                barrier: (bcta, boffset),
            });
            let counts = &mut self.counts[warp.pc as usize];
            counts.requests += 1;
            counts.bytes += bytes as u64;
            let sectors = (bytes as u64).div_ceil(super::super::profile::SECTOR);
            counts.sectors += sectors;
            counts.least_sectors += sectors;
            if self.context.completion == Completion::Early {
                self.deliver_loads((bcta, boffset));
            }
        }
        Ok(())
    }

    /// Completes the loads that signal `place`.
    pub(super) fn deliver_loads(&mut self, place: Place) {
        let Some(barrier) = self.ctas[place.0].mbarriers.get(&place.1) else {
            return;
        };
        let engine = barrier.engine;
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.loads)
            .into_iter()
            .partition(|load| load.barrier == place);
        self.loads = later;
        for load in now {
            let stamp = self.next_stamp();
            let shared = &mut self.ctas[load.cta].shared;
            shared
                .slice_mut(load.offset, load.data.len())
                .copy_from_slice(&load.data);
            shared.complete(load.offset, load.data.len(), engine, stamp);
            self.author(place, stamp);
            self.add_bytes(place, -(load.data.len() as i64));
        }
    }

    fn shared_source(
        &self,
        warp: &Warp,
        lane: usize,
        from: Address,
        bytes: u64,
        align: u64,
    ) -> Outcome<(usize, usize)> {
        let at = self.addresses(warp, from, 1 << lane)?[lane];
        match self.target(warp, lane, MemorySpace::Shared, at, bytes, align, false)? {
            Target::Shared(cta, offset) => Ok((cta, offset)),
            Target::Global(_) => Err(Fault::new(Rule::Bounds, "the source lies in shared memory")),
        }
    }

    /// Shared bytes as the asynchronous proxy sees them.
    fn read_shared(
        &mut self,
        warp: &Warp,
        lane: usize,
        (cta, offset): (usize, usize),
        bytes: usize,
    ) -> Outcome<Vec<u8>> {
        let target = Target::Shared(cta, offset);
        if !self.note_read(warp, lane, target, bytes, false, true)? {
            return Err(self.uninitialised(warp, 1 << lane, "the copy's source"));
        }
        Ok(self.ctas[cta].shared.slice(offset, bytes).to_vec())
    }

    fn begin_store(
        &mut self,
        warp: &mut Warp,
        lane: usize,
        source: (usize, usize),
        bytes: usize,
        to: Destination,
    ) -> Outcome {
        // What is there when the copy begins must be final; it is read when the copy is waited for.
        let data = self.read_shared(warp, lane, source, bytes)?;
        let counts = &mut self.counts[warp.pc as usize];
        counts.requests += 1;
        counts.bytes += bytes as u64;
        let sectors = (bytes as u64).div_ceil(super::super::profile::SECTOR);
        counts.sectors += sectors;
        counts.least_sectors += sectors;
        warp.stores.push(PendingStore {
            pc: warp.pc,
            lane: lane as u8,
            group: warp.store_groups[lane],
            read: false,
            source,
            data,
            to,
        });
        Ok(())
    }

    pub(super) fn bulk_wait(
        &mut self,
        warp: &mut Warp,
        pending: u32,
        read: bool,
        mask: u32,
    ) -> Outcome {
        let groups = warp.store_groups;
        let mut stores = std::mem::take(&mut warp.stores);
        let mut kept = Vec::new();
        for mut store in stores.drain(..) {
            let lane = usize::from(store.lane);
            let due = mask >> lane & 1 != 0 && store.group.saturating_add(pending) < groups[lane];
            if due && !store.read {
                let late = self.read_shared(warp, lane, store.source, store.data.len())?;
                if self.context.completion == Completion::Late {
                    store.data = late;
                }
                store.read = true;
            }
            if due && !read {
                self.finish_store(warp, store)?;
            } else {
                kept.push(store);
            }
        }
        warp.stores = kept;
        Ok(())
    }

    /// Writes global memory: at a full wait, or when the thread exits.
    pub(super) fn finish_store(&mut self, warp: &Warp, store: PendingStore) -> Outcome {
        let lane = usize::from(store.lane);
        match store.to {
            Destination::Plain(at) => self.write_out(warp, lane, at, &store.data),
            Destination::Tensor(map, coordinates) => {
                let address = store.source.1 as u32 + super::super::program::SHARED_BASE;
                map.runs(&coordinates, |i, location, bytes| {
                    let mut run = vec![0; bytes];
                    for (k, byte) in run.iter_mut().enumerate() {
                        *byte = store.data[map.place(0, address, i + k)];
                    }
                    self.write_out(warp, lane, location, &run)
                })
            }
        }
    }

    fn write_out(&mut self, warp: &Warp, lane: usize, at: Location, data: &[u8]) -> Outcome {
        if let Err((rule, why)) = self.context.global.writable(at) {
            return Err(self.fault(warp, rule, 1 << lane, why));
        }
        self.note_write(
            warp,
            lane,
            Target::Global(at),
            data.len(),
            true,
            false,
            |_| false,
        )?;
        self.write_global(at, data);
        Ok(())
    }
}
