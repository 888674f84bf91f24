//! Barriers of a CTA and of a cluster, and fences.

use std::rc::Rc;

use super::super::error::{Outcome, Rule};
use super::super::program::op::{Fence, Op, Slot};
use super::super::race::Clock;
use super::{Flow, Machine, Warp};

/// One of a CTA's sixteen barriers.
#[derive(Default)]
pub struct Barrier {
    /// Threads that complete it; none where it is the whole CTA's.
    expected: Option<u32>,
    arrived: u32,
    /// What those that arrived know; none before the first.
    clock: Option<Clock>,
    waiting: Vec<usize>,
}

/// The cluster's barrier.
#[derive(Default)]
pub struct ClusterBarrier {
    phase: u64,
    arrived: u32,
    clock: Option<Clock>,
    /// What the last phase's arrivals knew.
    done: Option<Rc<Clock>>,
    waiting: Vec<usize>,
}

impl Machine<'_> {
    /// A register that must hold the same in all lanes of `mask`.
    pub(super) fn uniform(&self, warp: &Warp, slot: Slot, mask: u32, what: &str) -> Outcome<u32> {
        let poisoned = mask & !warp.registers.valid(slot);
        if poisoned != 0 {
            return Err(self.uninitialised(warp, poisoned, what));
        }
        let values = warp.registers.get(slot);
        let first = values[mask.trailing_zeros() as usize];
        match (0..32).find(|&lane| mask >> lane & 1 != 0 && values[lane] != first) {
            None => Ok(first),
            Some(lane) => {
                let why = format!(
                    "{what} is {first} in one lane and {} in another",
                    values[lane]
                );
                Err(self.fault(warp, Rule::Divergence, 1 << lane, why))
            }
        }
    }

    pub(super) fn barrier(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Outcome<Flow> {
        match *op {
            Op::Barrier {
                id, threads, wait, ..
            } => {
                let what = if wait { "bar.sync" } else { "bar.arrive" };
                self.together(warp, mask, what)?;
                let id = self.uniform(warp, id, mask, "the barrier's number")?;
                let expected = match threads {
                    None => None,
                    Some(slot) => Some(self.uniform(warp, slot, mask, "the count of threads")?),
                };
                self.arrive(warp, id, expected, wait)
            }
            Op::ClusterArrive { release } => {
                self.together(warp, mask, "barrier.cluster.arrive")?;
                if self.cluster.phase < warp.cluster_phase {
                    let why =
                        "the warp arrives at the cluster's barrier again before it has waited";
                    return Err(self.fault(warp, Rule::Protocol, mask, why));
                }
                warp.cluster_phase += 1;
                let warps = self.clock_warps();
                let clock = self.cluster.clock.get_or_insert_with(|| Clock::new(warps));
                if release {
                    warp.clocks.release(!0, clock);
                }
                self.cluster.arrived += 1;
                warp.clocks.now = self.next_stamp();
                self.cluster_check();
                Ok(Flow::Next)
            }
            _ => {
                self.together(warp, mask, "barrier.cluster.wait")?;
                if self.cluster.phase >= warp.cluster_phase {
                    if let Some(done) = self.cluster.done.clone() {
                        warp.clocks.acquire(!0, &done);
                    }
                    return Ok(Flow::Next);
                }
                self.cluster.waiting.push(warp.number);
                Ok(Flow::Block)
            }
        }
    }

    fn arrive(
        &mut self,
        warp: &mut Warp,
        id: u32,
        expected: Option<u32>,
        wait: bool,
    ) -> Outcome<Flow> {
        let threads = self.context.grid.warps * 32;
        let bad = match expected {
            _ if id > 15 => Some(format!("barrier {id}: a CTA has 16, from 0 to 15")),
            Some(n) if n == 0 || n % 32 != 0 => {
                Some(format!("a barrier of {n} threads: whole warps are needed"))
            }
            Some(n) if n > threads => {
                Some(format!("a barrier of {n} threads in a CTA of {threads}"))
            }
            _ => None,
        };
        let warps = self.clock_warps();
        let stamp = self.next_stamp();
        if let Some(why) = bad {
            return Err(self.fault(warp, Rule::Protocol, !0, why));
        }
        let barrier = &mut self.ctas[warp.cta].barriers[id as usize];
        if barrier.arrived > 0 && barrier.expected != expected {
            let count = |n: Option<u32>| n.unwrap_or(threads);
            if count(barrier.expected) != count(expected) {
                let why = format!(
                    "barrier {id} is waited on by {} threads and {} arrives with {}",
                    count(barrier.expected),
                    "this warp",
                    count(expected)
                );
                return Err(self.fault(warp, Rule::Protocol, !0, why));
            }
        }
        barrier.expected = expected;
        barrier.arrived += 32;
        let clock = barrier.clock.get_or_insert_with(|| Clock::new(warps));
        warp.clocks.release(!0, clock);
        warp.clocks.now = stamp;
        if wait {
            barrier.waiting.push(warp.number);
        }
        self.barrier_check(warp.cta, id as usize);
        Ok(if wait { Flow::Block } else { Flow::Next })
    }

    /// Wakes the warps at a barrier that all have reached.
    fn barrier_check(&mut self, cta: usize, id: usize) {
        let cta = &mut self.ctas[cta];
        let barrier = &mut cta.barriers[id];
        let needed = barrier.expected.unwrap_or(cta.alive * 32);
        if barrier.arrived == 0 || barrier.arrived < needed {
            return;
        }
        let done = std::mem::take(barrier);
        let clock = Rc::new(done.clock.unwrap_or_default());
        for number in done.waiting {
            self.woken.push((number, Rc::clone(&clock)));
        }
    }

    /// Barriers of all of a CTA's warps complete without those that exit.
    pub(super) fn barriers_after_exit(&mut self, cta: usize) {
        for id in 0..16 {
            if self.ctas[cta].barriers[id].expected.is_none() {
                self.barrier_check(cta, id);
            }
        }
        self.cluster_check();
    }

    fn cluster_check(&mut self) {
        let alive: u32 = self.ctas.iter().map(|cta| cta.alive).sum();
        if self.cluster.arrived == 0 || self.cluster.arrived < alive {
            return;
        }
        self.cluster.phase += 1;
        self.cluster.arrived = 0;
        let clock = Rc::new(self.cluster.clock.take().unwrap_or_default());
        for number in std::mem::take(&mut self.cluster.waiting) {
            self.woken.push((number, Rc::clone(&clock)));
        }
        self.cluster.done = Some(clock);
    }

    pub(super) fn fence(&mut self, warp: &mut Warp, fence: Fence, mask: u32) {
        match fence {
            Fence::Memory => warp.clocks.fence(mask, self.team),
            // Both make generic writes (of an mbarrier, in the second case) visible to the asynchronous proxy.
            Fence::AsyncProxy | Fence::MbarrierInit => warp.clocks.fence_proxy(mask),
        }
        warp.clocks.now = self.next_stamp();
    }
}
