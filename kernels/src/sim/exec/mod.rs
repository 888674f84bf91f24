//! Execution of decoded instructions by one warp at a time, in the machine that its team shares.
//!
//! Lanes of a warp run together; where they part, those at the smallest program counter go first, so that they meet
//! again at the first instruction that all of them reach. A warp runs until it must wait or its turn ends; who is next,
//! the team decides.

// A lane indexes several registers at once.
#![allow(clippy::needless_range_loop)]

mod access;
mod approximate;
mod barrier;
mod bulk;
mod convert;
mod copy;
mod float;
mod integer;
mod lanes;
mod leveled;
mod matrix;
mod mbarrier;
mod memory;
mod registers;
mod wgmma;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::error::{Fault, Outcome, Rule, Threads};
use super::memory::global::{Global, Location};
use super::memory::shared::SharedMemory;
use super::memory::{Conflict, ConflictKind};
use super::profile::Counts;
use super::program::op::{Op, Slot};
use super::program::{Program, WRITTEN};
use super::race::{Clock, Stamp, SyncClock, Thread, WarpClocks};
use super::{Completion, Grid};
use barrier::{Barrier, ClusterBarrier};
pub use bulk::ResolvedMap;
use bulk::{PendingLoad, PendingStore};
use copy::PendingCopy;
pub use float::NAN32;
use mbarrier::Mbarrier;
use registers::Registers;
use wgmma::PendingWgmma;

/// Lanes of clock that stand for asynchronous engines, 32 each: mbarriers share them round-robin.
pub const ENGINE_WARPS: usize = 4;

/// What a launch's teams have in common.
pub struct Context<'a> {
    pub program: &'a Program,
    pub global: &'a Global<'a>,
    pub grid: &'a Grid,
    /// The parameter block.
    pub params: Vec<u8>,
    /// Tensor maps by their offset in the parameter block.
    pub maps: HashMap<u32, ResolvedMap>,
    pub completion: Completion,
    /// Warp instructions that one warp may issue.
    pub budget: u64,
}

/// Synchronisation through global memory, shared by teams that run on one host thread.
pub type GlobalSync = Rc<RefCell<HashMap<Location, SyncClock>>>;

/// One CTA's part of the machine.
pub struct Cta {
    pub index: [u32; 3],
    pub shared: SharedMemory,
    barriers: Vec<Barrier>,
    mbarriers: BTreeMap<usize, Mbarrier>,
    sync: HashMap<usize, SyncClock>,
    /// Warps that have not exited.
    pub alive: u32,
}

/// The CTAs that run together (one, or a cluster), without their warps.
pub struct Machine<'a> {
    pub context: &'a Context<'a>,
    /// Linear index of the cluster, or of the CTA where there are no clusters.
    pub team: u32,
    pub ctas: Vec<Cta>,
    cluster: ClusterBarrier,
    global_sync: GlobalSync,
    stamp: Stamp,
    engines: u32,
    loads: Vec<PendingLoad>,
    /// `cp.async` in flight, by warp of the team.
    copies: Vec<Vec<PendingCopy>>,
    /// `cp.async` issued so far.
    copy_serial: u64,
    /// Changes whenever something happens that a polling warp may have waited for.
    pub version: u64,
    /// Warps of the team that something has woken, and what they now know.
    pub woken: Vec<(usize, Rc<Clock>)>,
    pub counts: Vec<Counts>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    /// At a barrier of its CTA or cluster, until woken.
    Blocked,
    /// Found an mbarrier's phase incomplete when the machine's version was this.
    Polling(u64),
    Done,
}

pub struct Warp {
    /// Within the team, and within the CTA.
    pub number: usize,
    pub index: u32,
    pub cta: usize,
    pub state: State,
    registers: Registers,
    pub clocks: WarpClocks,
    /// Of the lanes in `active`.
    pc: u32,
    active: u32,
    /// Lanes that have not exited.
    alive: u32,
    /// Of lanes not in `active`.
    lane_pcs: [u32; 32],
    /// Smallest of those, or none.
    next_other: u32,
    executed: u64,
    copy_groups: [u32; 32],
    stores: Vec<PendingStore>,
    store_groups: [u32; 32],
    wgmmas: Vec<PendingWgmma>,
    wgmma_groups: u32,
    /// By register: operations in flight that own it.
    owned: Vec<u32>,
    /// By register: whether an ordinary instruction wrote it since the last `wgmma.fence`.
    unfenced: Vec<bool>,
    /// The next `barrier.cluster.wait` is for this many completed phases.
    cluster_phase: u64,
}

/// Where a warp goes after an instruction.
enum Flow {
    Next,
    /// These of the active lanes branch.
    Jump(u32, u32),
    Exit(u32),
    /// Goes on after the instruction once it is woken.
    Block,
    /// Goes on after the instruction, when others have had their turn.
    Poll,
}

impl Warp {
    pub fn new(machine: &Machine<'_>, cta: usize, index: u32, lanes: u32) -> Warp {
        let grid = machine.context.grid;
        let program = machine.context.program;
        let number = cta * grid.warps as usize + index as usize;
        let asynchronous = if program.async_proxy {
            program.slots
        } else {
            0
        };
        let mut warp = Warp {
            number,
            index,
            cta,
            state: State::Ready,
            registers: Registers::new(program.slots, program.preds),
            clocks: WarpClocks::new(number, machine.clock_warps()),
            pc: 0,
            active: lanes,
            alive: lanes,
            lane_pcs: [u32::MAX; 32],
            next_other: u32::MAX,
            executed: 0,
            copy_groups: [0; 32],
            stores: Vec::new(),
            store_groups: [0; 32],
            wgmmas: Vec::new(),
            wgmma_groups: 0,
            owned: vec![0; asynchronous],
            unfenced: vec![false; asynchronous],
            cluster_phase: 0,
        };
        for &(slot, preset) in &program.presets {
            machine.preset(&mut warp, slot, preset);
        }
        warp
    }

    /// Puts every lane where it belongs after the active ones moved to `pc`.
    #[inline(always)]
    fn regroup(&mut self) {
        for lane in 0..32 {
            if self.active >> lane & 1 != 0 {
                self.lane_pcs[lane] = self.pc;
            }
        }
        self.select(self.alive);
    }

    /// Makes those of `among` active that are at the smallest program counter.
    fn select(&mut self, among: u32) {
        let pcs = self.lane_pcs;
        let of = |mask: u32| (0..32usize).filter(move |lane| mask >> lane & 1 != 0);
        self.pc = of(among).map(|lane| pcs[lane]).min().unwrap_or(u32::MAX);
        self.active = of(among)
            .filter(|&lane| pcs[lane] == self.pc)
            .fold(0, |m, lane| m | 1 << lane);
        self.next_other = of(self.alive & !self.active)
            .map(|lane| pcs[lane])
            .min()
            .unwrap_or(u32::MAX);
    }

    /// Lets lanes go on that are not those that poll now; false if there are none.
    pub fn switch(&mut self) -> bool {
        let others = self.alive & !self.active;
        if others == 0 {
            return false;
        }
        for lane in 0..32 {
            if self.active >> lane & 1 != 0 {
                self.lane_pcs[lane] = self.pc;
            }
        }
        self.select(others);
        // The lanes left behind must not be met by accident of order: they join at the next branch.
        true
    }

    pub fn pc(&self) -> u32 {
        self.pc
    }

    /// Lanes that are alive but not in the active group.
    fn parted(&self) -> u32 {
        self.alive & !self.active
    }
}

impl<'a> Machine<'a> {
    pub fn new(
        context: &'a Context<'a>,
        team: u32,
        global_sync: GlobalSync,
        shared: impl FnMut() -> SharedMemory,
    ) -> Machine<'a> {
        let mut shared = shared;
        let grid = context.grid;
        let ctas = (0..grid.cluster_ctas())
            .map(|rank| Cta {
                index: grid.cta(team, rank),
                shared: shared(),
                barriers: (0..16).map(|_| Barrier::default()).collect(),
                mbarriers: BTreeMap::new(),
                sync: HashMap::new(),
                alive: grid.warps,
            })
            .collect();
        Machine {
            context,
            team,
            ctas,
            cluster: ClusterBarrier::default(),
            global_sync,
            stamp: 1,
            engines: 0,
            loads: Vec::new(),
            copies: (0..grid.team_warps()).map(|_| Vec::new()).collect(),
            copy_serial: 0,
            version: 0,
            woken: Vec::new(),
            counts: vec![Counts::default(); context.program.instructions.len()],
        }
    }

    /// Warps and engines of the team.
    pub fn clock_warps(&self) -> usize {
        self.context.grid.team_clock_warps()
    }

    fn next_stamp(&mut self) -> Stamp {
        self.stamp += 1;
        self.stamp
    }

    /// Runs `warp` for at most `turn` instructions.
    ///
    /// # Errors
    /// What the kernel did wrong, with the instruction and the threads.
    pub fn run(&mut self, warp: &mut Warp, turn: u32) -> Outcome {
        let program = self.context.program;
        for _ in 0..turn {
            let pc = warp.pc;
            let instruction = &program.instructions[pc as usize];
            let mut mask = warp.active;
            let step = self.guard(warp, instruction.guard).and_then(|guard| {
                mask &= guard;
                warp.executed += 1;
                if warp.executed > self.context.budget {
                    let why = format!("the warp issued {} instructions", self.context.budget);
                    return Err(Fault::new(Rule::Budget, why));
                }
                if mask == 0 {
                    return Ok(Flow::Next);
                }
                let counts = &mut self.counts[pc as usize];
                counts.warps += 1;
                counts.lanes += u64::from(mask.count_ones());
                if !warp.owned.is_empty() {
                    self.check_owned(warp, instruction.touched, &instruction.op)?;
                }
                self.execute(warp, &instruction.op, mask)
            });
            let flow = match step {
                Ok(flow) => flow,
                Err(mut fault) => {
                    fault.line = fault.line.or(Some(instruction.line));
                    fault.threads = fault.threads.or(Some(Threads {
                        cta: self.ctas[warp.cta].index,
                        warp: warp.index,
                        lanes: mask,
                    }));
                    return Err(fault);
                }
            };
            warp.pc += 1;
            match flow {
                Flow::Next => {}
                Flow::Jump(taken, target) => {
                    if taken == warp.active {
                        warp.pc = target;
                    } else {
                        for lane in 0..32 {
                            if taken >> lane & 1 != 0 {
                                warp.lane_pcs[lane] = target;
                            }
                        }
                        warp.active &= !taken;
                        warp.regroup();
                        continue;
                    }
                }
                Flow::Exit(lanes) => {
                    warp.alive &= !lanes;
                    warp.active &= !lanes;
                    if warp.alive == 0 {
                        warp.state = State::Done;
                        return self.warp_exited(warp);
                    }
                    warp.regroup();
                    continue;
                }
                Flow::Block => {
                    warp.state = State::Blocked;
                }
                Flow::Poll => {
                    warp.state = State::Polling(self.version);
                }
            }
            if warp.pc >= warp.next_other {
                warp.regroup();
            }
            if warp.state != State::Ready {
                return Ok(());
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn guard(&self, warp: &Warp, guard: Option<super::program::op::PredSource>) -> Outcome<u32> {
        let Some(guard) = guard else { return Ok(!0) };
        let (value, valid) = warp.registers.pred(guard);
        let poisoned = warp.active & !valid;
        if poisoned != 0 {
            return Err(self.uninitialised(warp, poisoned, "the guard"));
        }
        Ok(value)
    }

    #[cold]
    fn uninitialised(&self, warp: &Warp, lanes: u32, what: &str) -> Box<Fault> {
        let why = format!("{what} depends on a value that nobody wrote");
        self.fault(warp, Rule::Uninitialised, lanes, why)
    }

    #[cold]
    fn fault(&self, warp: &Warp, rule: Rule, lanes: u32, why: impl Into<String>) -> Box<Fault> {
        let mut fault = Fault::new(rule, why);
        fault.threads = Some(Threads {
            cta: self.ctas[warp.cta].index,
            warp: warp.index,
            lanes,
        });
        fault
    }

    /// An error about an earlier access to `what`.
    #[cold]
    fn conflict(
        &self,
        warp: &Warp,
        lane: usize,
        what: &str,
        write: bool,
        conflict: Conflict,
    ) -> Box<Fault> {
        let program = self.context.program;
        let line = program
            .instructions
            .get(conflict.pc as usize)
            .map_or(0, |i| i.line);
        let earlier = if conflict.was_write {
            "written"
        } else {
            "read"
        };
        let warps = self.context.grid.warps;
        let number = conflict.thread / 32;
        let team_warps = warps * self.context.grid.cluster_ctas();
        let who = match conflict.cta {
            Some(team) => {
                let [x, y, z] = self.context.grid.cta(team, number / warps);
                let warp = number % warps;
                format!(
                    "CTA ({x}, {y}, {z}), warp {warp}, lane {}",
                    conflict.thread % 32
                )
            }
            None if number >= team_warps => "an asynchronous copy".to_string(),
            None if number / warps != warp.cta as u32 => format!(
                "CTA {} of the cluster, warp {}, lane {}",
                number / warps,
                number % warps,
                conflict.thread % 32
            ),
            None => format!("warp {}, lane {}", number % warps, conflict.thread % 32),
        };
        let now = if write { "write" } else { "read" };
        let (rule, why) = match conflict.kind {
            ConflictKind::Race => (
                Rule::Race,
                format!(
                    "{now} of {what}, which was {earlier} at line {line} by {who}, and nothing orders the two"
                ),
            ),
            ConflictKind::InFlight => (
                Rule::InFlight,
                format!("{now} of {what}, which the copy of line {line} has not finished writing"),
            ),
            ConflictKind::Proxy => (
                Rule::ProxyFence,
                format!(
                    "the asynchronous proxy touches {what}, which was written at line {line} by {who}, and no \
                     fence.proxy.async followed"
                ),
            ),
        };
        self.fault(warp, rule, 1 << lane, why)
    }

    /// Refuses instructions that touch registers of asynchronous operations, and notes what is written.
    fn check_owned(&self, warp: &mut Warp, touched: (u32, u32), op: &Op) -> Outcome {
        let (first, count) = touched;
        let touched = &self.context.program.touched[first as usize..(first + count) as usize];
        let wgmma = matches!(op, Op::Wgmma(_));
        for &entry in touched {
            let slot = (entry & !WRITTEN) as usize;
            if warp.owned[slot] > 0 && !wgmma {
                let line = warp
                    .wgmmas
                    .iter()
                    .find(|p| p.owns(slot as Slot))
                    .map_or(0, |p| p.line);
                return Err(self.fault(
                    warp,
                    Rule::InFlight,
                    warp.active,
                    format!(
                        "a register of the wgmma of line {line} is touched before wgmma.wait_group"
                    ),
                ));
            }
            if entry & WRITTEN != 0 && !wgmma {
                warp.unfenced[slot] = true;
            }
        }
        Ok(())
    }

    /// # Errors
    /// Active lanes that are not all of the warp's.
    fn together(&self, warp: &Warp, mask: u32, what: &str) -> Outcome {
        let missing = warp.alive & !mask;
        if missing == 0 {
            return Ok(());
        }
        let away = warp.parted();
        let why = if away == 0 {
            format!("{what} needs all lanes of the warp, but a predicate keeps some from it")
        } else {
            format!("{what} needs all lanes of the warp, but some are elsewhere")
        };
        Err(self.fault(warp, Rule::Divergence, missing, why))
    }

    fn execute(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Outcome<Flow> {
        match op {
            Op::Nop => return Ok(Flow::Next),
            Op::Exit => return Ok(Flow::Exit(mask)),
            Op::Trap => return Err(Fault::new(Rule::Trap, "the kernel trapped")),
            Op::Branch { target, uniform } => {
                if *uniform && mask != warp.active {
                    return Err(self.fault(
                        warp,
                        Rule::Divergence,
                        warp.active & !mask,
                        "bra.uni is not taken by all active lanes",
                    ));
                }
                return Ok(Flow::Jump(mask, *target));
            }
            Op::Load { .. } | Op::Store { .. } | Op::Atomic { .. } => {
                self.memory(warp, op, mask)?;
            }
            Op::Mma { .. }
            | Op::LoadMatrix { .. }
            | Op::StoreMatrix { .. }
            | Op::MoveMatrix { .. } => {
                self.matrix(warp, op, mask)?;
            }
            Op::CopyAsync { .. } | Op::CopyCommit | Op::CopyWait { .. } | Op::CopyWaitAll => {
                self.copy(warp, op, mask)?;
            }
            Op::Shfl { .. }
            | Op::Vote { .. }
            | Op::ActiveMask { .. }
            | Op::Redux { .. }
            | Op::Match { .. }
            | Op::Elect { .. }
            | Op::WarpSync { .. } => self.lanes(warp, op, mask)?,
            Op::Barrier { .. } | Op::ClusterArrive { .. } | Op::ClusterWait => {
                return self.barrier(warp, op, mask);
            }
            Op::Fence(fence) => self.fence(warp, *fence, mask),
            Op::MapRank { .. } | Op::GetRank { .. } | Op::IsSpace { .. } => {
                self.ranks(warp, op, mask)?;
            }
            Op::Mbarrier { op, address } => return self.mbarrier(warp, *op, *address, mask),
            Op::Bulk(bulk) => self.bulk(warp, bulk, mask)?,
            Op::BulkCommit => {
                for lane in (0..32).filter(|lane| mask >> lane & 1 != 0) {
                    warp.store_groups[lane] += 1;
                }
            }
            Op::BulkWait { pending, read } => self.bulk_wait(warp, *pending, *read, mask)?,
            Op::Wgmma(wgmma) => self.wgmma(warp, wgmma, mask)?,
            Op::WgmmaFence => {
                self.together(warp, mask, "wgmma.fence")?;
                warp.unfenced.fill(false);
            }
            Op::WgmmaCommit => {
                self.together(warp, mask, "wgmma.commit_group")?;
                warp.wgmma_groups += 1;
            }
            Op::WgmmaWait { pending } => self.wgmma_wait(warp, *pending, mask)?,
            Op::SetMaxRegisters => self.together(warp, mask, "setmaxnreg")?,
            op => {
                let r = &mut warp.registers;
                let done = float::execute(r, op, mask)
                    || integer::execute(r, op, mask)
                    || convert::execute(r, op, mask)
                    || float::execute_other(r, op, mask);
                debug_assert!(done, "{op:?} is executed nowhere");
            }
        }
        Ok(Flow::Next)
    }

    /// What a warp's last exit leaves behind.
    fn warp_exited(&mut self, warp: &mut Warp) -> Outcome {
        if let Some(copy) = self.copies[warp.number].first() {
            // A copy that nobody waited for dies with the CTA: harmless to memory, but never meant.
            let why = format!(
                "the warp exits while cp.async of line {} is in flight",
                self.line(copy.pc)
            );
            return Err(self.exit_fault(warp, why));
        }
        if let Some(store) = warp.stores.first().filter(|s| !s.read) {
            let why = format!(
                "the warp exits while the bulk store of line {} may still read shared memory",
                self.line(store.pc)
            );
            return Err(self.exit_fault(warp, why));
        }
        if let Some(wgmma) = warp.wgmmas.first() {
            let why = format!(
                "the warp exits while the wgmma of line {} is in flight",
                wgmma.line
            );
            return Err(self.exit_fault(warp, why));
        }
        for store in std::mem::take(&mut warp.stores) {
            self.finish_store(warp, store)?;
        }
        self.ctas[warp.cta].alive -= 1;
        self.barriers_after_exit(warp.cta);
        Ok(())
    }

    fn exit_fault(&self, warp: &Warp, why: String) -> Box<Fault> {
        let pc = warp.pc.saturating_sub(1);
        let mut fault = self.fault(warp, Rule::InFlight, !0, why);
        fault.line = Some(self.line(pc));
        fault
    }

    pub fn line(&self, pc: u32) -> u32 {
        let instructions = &self.context.program.instructions;
        instructions.get(pc as usize).map_or(0, |i| i.line)
    }

    /// The thread that lane `lane` of `warp` is.
    #[inline(always)]
    fn thread(warp: &Warp, lane: usize) -> Thread {
        (warp.number * 32 + lane) as Thread
    }
}
