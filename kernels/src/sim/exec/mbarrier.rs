//! mbarriers: phases completed by arrivals of threads and by bytes that asynchronous copies bring.

use std::rc::Rc;

use super::super::Completion;
use super::super::error::{Outcome, Rule};
use super::super::program::op::{Address, MbarrierOp, SINK};
use super::super::race::{Clock, Thread};
use super::access::{Target, lanes_of};
use super::{ENGINE_WARPS, Flow, Machine, Warp};

pub struct Mbarrier {
    /// Arrivals of a phase.
    count: u32,
    pending: u32,
    /// Bytes expected and not yet brought; may be negative while bytes come before they are announced.
    bytes: i64,
    phase: u64,
    clock: Clock,
    /// What the arrivals of completed phases knew.
    done: Rc<Clock>,
    /// Author of what copies bring.
    pub engine: Thread,
    /// `cp.async.mbarrier.arrive`: warp, lane and last copy.
    deferred: Vec<(usize, usize, u64)>,
}

/// CTA of the team, and offset.
pub type Place = (usize, usize);

/// Most arrivals that an mbarrier counts.
const MAX_COUNT: u32 = (1 << 20) - 1;

impl Machine<'_> {
    pub(super) fn mbarrier(
        &mut self,
        warp: &mut Warp,
        op: MbarrierOp,
        address: Address,
        mask: u32,
    ) -> Outcome<Flow> {
        let addresses = self.addresses(warp, address, mask)?;
        let mut done = 0;
        let mut acts = false;
        for lane in lanes_of(mask) {
            let at = addresses[lane];
            let write = matches!(op, MbarrierOp::Init { .. } | MbarrierOp::Invalidate);
            let target = self.target(warp, lane, address.space, at, 8, 8, write)?;
            let Target::Shared(cta, offset) = target else {
                return Err(self.fault(
                    warp,
                    Rule::Bounds,
                    1 << lane,
                    "an mbarrier lies in shared memory",
                ));
            };
            let place = (cta, offset);
            if write {
                self.note_write(warp, lane, target, 8, true, false, |_| false)?;
                self.set_up(warp, op, place, lane)?;
                continue;
            }
            self.note_read(warp, lane, target, 8, true, false)?;
            self.existing(warp, lane, place)?;
            match op {
                MbarrierOp::Wait { phase, parity, .. } => {
                    if self.completed(warp, lane, place, phase, parity)? {
                        done |= 1 << lane;
                        if let Some(barrier) = self.ctas[cta].mbarriers.get(&offset) {
                            let clock = Rc::clone(&barrier.done);
                            warp.clocks.acquire(1 << lane, &clock);
                        }
                    }
                }
                op => {
                    acts = true;
                    self.act(warp, op, place, lane)?;
                }
            }
        }
        if acts {
            warp.clocks.now = self.next_stamp();
        }
        if let MbarrierOp::Wait { done: pred, .. } = op {
            warp.registers.set_pred(pred, done, !0, mask);
            if done != mask {
                return Ok(Flow::Poll);
            }
        }
        Ok(Flow::Next)
    }

    /// A source of one lane.
    fn value(&self, warp: &Warp, lane: usize, slot: u32, what: &str) -> Outcome<u32> {
        if warp.registers.valid(slot) >> lane & 1 == 0 {
            return Err(self.uninitialised(warp, 1 << lane, what));
        }
        Ok(warp.registers.get(slot)[lane])
    }

    fn set_up(
        &mut self,
        warp: &Warp,
        op: MbarrierOp,
        (cta, offset): Place,
        lane: usize,
    ) -> Outcome {
        let MbarrierOp::Init { count } = op else {
            if self.ctas[cta].mbarriers.remove(&offset).is_none() {
                let why = "mbarrier.inval of what is no mbarrier";
                return Err(self.fault(warp, Rule::Protocol, 1 << lane, why));
            }
            return Ok(());
        };
        let count = self.value(warp, lane, count, "the count of arrivals")?;
        if count == 0 || count > MAX_COUNT {
            let why = format!("an mbarrier of {count} arrivals; 1 to {MAX_COUNT} are possible");
            return Err(self.fault(warp, Rule::Protocol, 1 << lane, why));
        }
        let engines = (ENGINE_WARPS * 32) as u32;
        let first = (self.clock_warps() - ENGINE_WARPS) as u32 * 32;
        let engine = first + self.engines % engines;
        self.engines += 1;
        let warps = self.clock_warps();
        let barrier = Mbarrier {
            count,
            pending: count,
            bytes: 0,
            phase: 0,
            clock: Clock::new(warps),
            done: Rc::new(Clock::new(warps)),
            engine,
            deferred: Vec::new(),
        };
        if self.ctas[cta].mbarriers.insert(offset, barrier).is_some() {
            let why = "mbarrier.init of an mbarrier that is in use; mbarrier.inval comes first";
            return Err(self.fault(warp, Rule::Protocol, 1 << lane, why));
        }
        Ok(())
    }

    /// # Errors
    /// No mbarrier there.
    pub(super) fn existing(&self, warp: &Warp, lane: usize, (cta, offset): Place) -> Outcome {
        if self.ctas[cta].mbarriers.contains_key(&offset) {
            return Ok(());
        }
        let address = offset as u32 + super::super::program::SHARED_BASE;
        let why = format!("there is no initialised mbarrier at shared address 0x{address:x}");
        Err(self.fault(warp, Rule::Protocol, 1 << lane, why))
    }

    fn act(&mut self, warp: &mut Warp, op: MbarrierOp, place: Place, lane: usize) -> Outcome {
        let (cta, offset) = place;
        match op {
            MbarrierOp::Arrive {
                state,
                count,
                expect,
                drop,
                no_complete,
            } => {
                let count = match count {
                    None => 1,
                    Some(slot) => self.value(warp, lane, slot, "the count of arrivals")?,
                };
                let expect = match expect {
                    None => 0,
                    Some(slot) => self.value(warp, lane, slot, "the bytes expected")?,
                };
                let Some(barrier) = self.ctas[cta].mbarriers.get_mut(&offset) else {
                    return Ok(());
                };
                let phase = barrier.phase;
                barrier.bytes += i64::from(expect);
                if drop {
                    barrier.count = barrier.count.saturating_sub(count);
                }
                warp.clocks.release(1 << lane, &mut barrier.clock);
                if no_complete && barrier.pending <= count {
                    let why = "mbarrier.arrive.noComplete completes the phase";
                    return Err(self.fault(warp, Rule::Protocol, 1 << lane, why));
                }
                self.arrivals(warp, lane, place, count)?;
                if state != SINK {
                    // A token names the phase that the arrival belongs to.
                    warp.registers.set64(state, &[phase; 32], !0, 1 << lane);
                }
            }
            MbarrierOp::ExpectTx { bytes } => {
                let bytes = self.value(warp, lane, bytes, "the bytes expected")?;
                self.add_bytes(place, i64::from(bytes));
            }
            MbarrierOp::CompleteTx { bytes } => {
                let bytes = self.value(warp, lane, bytes, "the bytes completed")?;
                self.add_bytes(place, -i64::from(bytes));
            }
            MbarrierOp::CopyArrive { no_increment } => {
                let serial = self.copy_serial;
                if let Some(barrier) = self.ctas[cta].mbarriers.get_mut(&offset) {
                    if !no_increment {
                        barrier.pending += 1;
                    }
                    barrier.deferred.push((warp.number, lane, serial));
                }
                if self.context.completion == Completion::Early {
                    self.deliver(warp, lane, place)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn arrivals(&mut self, warp: &Warp, lane: usize, place: Place, count: u32) -> Outcome {
        let Some(barrier) = self.ctas[place.0].mbarriers.get_mut(&place.1) else {
            return Ok(());
        };
        if count == 0 || count > barrier.pending {
            let why = format!(
                "{count} arrivals at an mbarrier whose phase needs {} more of {}",
                barrier.pending, barrier.count
            );
            return Err(self.fault(warp, Rule::Protocol, 1 << lane, why));
        }
        barrier.pending -= count;
        self.mbarrier_check(place);
        Ok(())
    }

    /// Announces bytes (positive) or counts them as brought (negative).
    pub(super) fn add_bytes(&mut self, place: Place, bytes: i64) {
        if let Some(barrier) = self.ctas[place.0].mbarriers.get_mut(&place.1) {
            barrier.bytes += bytes;
        }
        self.mbarrier_check(place);
    }

    /// Completes the phase if nothing is missing.
    fn mbarrier_check(&mut self, place: Place) {
        let Some(barrier) = self.ctas[place.0].mbarriers.get_mut(&place.1) else {
            return;
        };
        if barrier.pending == 0 && barrier.bytes == 0 {
            barrier.phase += 1;
            barrier.pending = barrier.count;
            barrier.done = Rc::new(barrier.clock.clone());
            self.version += 1;
        }
    }

    fn completed(
        &mut self,
        warp: &Warp,
        lane: usize,
        place: Place,
        phase: u32,
        parity: bool,
    ) -> Outcome<bool> {
        let wanted = if parity {
            let parity = self.value(warp, lane, phase, "the parity")?;
            if parity > 1 {
                let why = format!("the parity of an mbarrier's phase is 0 or 1, not {parity}");
                return Err(self.fault(warp, Rule::Protocol, 1 << lane, why));
            }
            u64::from(parity)
        } else {
            if warp.registers.valid64(phase) >> lane & 1 == 0 {
                return Err(self.uninitialised(warp, 1 << lane, "the phase's token"));
            }
            warp.registers.get64(phase)[lane]
        };
        let over = |machine: &Self| {
            let barrier = machine.ctas[place.0].mbarriers.get(&place.1);
            barrier.is_some_and(|b| match parity {
                true => b.phase & 1 != wanted,
                false => b.phase > wanted,
            })
        };
        if !over(self) {
            // As late as possible: asynchronous work completes when somebody has to wait for it.
            self.deliver(warp, lane, place)?;
        }
        Ok(over(self))
    }

    /// Completes the asynchronous work that arrives at `place`.
    pub(super) fn deliver(&mut self, warp: &Warp, lane: usize, place: Place) -> Outcome {
        self.deliver_loads(place);
        let Some(barrier) = self.ctas[place.0].mbarriers.get_mut(&place.1) else {
            return Ok(());
        };
        let engine = barrier.engine;
        for copies in std::mem::take(&mut barrier.deferred) {
            let stamp = self.next_stamp();
            self.complete_copies_for(copies, engine, stamp);
            self.author(place, stamp);
            self.arrivals(warp, lane, place, 1)?;
        }
        Ok(())
    }

    /// Lets those who wait at `place` know what its engine wrote up to `stamp`.
    pub(super) fn author(&mut self, place: Place, stamp: u32) {
        if let Some(barrier) = self.ctas[place.0].mbarriers.get_mut(&place.1) {
            let engine = barrier.engine;
            barrier
                .clock
                .advance((engine / 32) as usize, 1 << (engine % 32), stamp);
        }
    }
}
