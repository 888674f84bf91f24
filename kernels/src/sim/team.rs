//! The CTAs that run together, and in which order their warps do: seeded and random, so that a kernel which relies on
//! an order that nothing promises meets the other one.

use std::rc::Rc;

use super::error::{Fault, Outcome, Rule, Threads};
use super::exec::{Context, GlobalSync, Machine, State, Warp};
use super::memory::shared::SharedMemory;
use super::profile::Counts;

/// Rounds in which every warp that can run only finds an mbarrier's phase incomplete, until that counts as a deadlock.
const IDLE_ROUNDS: u32 = 1000;

/// A small generator for the order of warps; what it draws never reaches a kernel's results unless it is wrong.
pub struct Order(u64);

impl Order {
    pub fn new(seed: u64, stream: u64) -> Order {
        Order(seed ^ stream.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// SplitMix64 (Steele, Lea, Flood, 2014), reduced to below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

pub struct Team<'a> {
    machine: Machine<'a>,
    warps: Vec<Warp>,
    order: Order,
    idle: u32,
    seen_version: u64,
    /// Reused between turns.
    ready: Vec<usize>,
}

impl<'a> Team<'a> {
    pub fn new(
        context: &'a Context<'a>,
        number: u32,
        seed: u64,
        sync: GlobalSync,
        shared: impl FnMut() -> SharedMemory,
    ) -> Team<'a> {
        let machine = Machine::new(context, number, sync, shared);
        let grid = context.grid;
        let mut warps = Vec::with_capacity(grid.team_warps());
        for cta in 0..grid.cluster_ctas() as usize {
            for index in 0..grid.warps {
                let rest = grid.threads - 32 * index;
                let lanes = u32::MAX >> (32 - rest.min(32));
                warps.push(Warp::new(&machine, cta, index, lanes));
            }
        }
        Team {
            machine,
            warps,
            order: Order::new(seed, u64::from(number) + 1),
            idle: 0,
            seen_version: 0,
            ready: Vec::new(),
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// What the kernel did wrong.
    pub fn finish(&mut self) -> Outcome {
        while self.turn()? {}
        Ok(())
    }

    /// Gives one warp its turn; false when all have exited.
    ///
    /// # Errors
    /// What the kernel did wrong.
    pub fn turn(&mut self) -> Outcome<bool> {
        let version = self.machine.version;
        self.ready.clear();
        for (i, warp) in self.warps.iter().enumerate() {
            let runs = match warp.state {
                State::Ready => true,
                State::Polling(seen) => seen != version,
                State::Blocked | State::Done => false,
            };
            if runs {
                self.ready.push(i);
            }
        }
        if self.ready.is_empty() {
            return self.idle_turn();
        }
        let chosen = self.ready[self.order.below(self.ready.len())];
        let turn = 1 + self.order.below(256) as u32;
        let warp = &mut self.warps[chosen];
        warp.state = State::Ready;
        self.machine.run(warp, turn)?;
        for (number, clock) in self.machine.woken.drain(..) {
            let warp = &mut self.warps[number];
            warp.clocks.replace(!0, &Rc::clone(&clock));
            warp.state = State::Ready;
        }
        Ok(true)
    }

    /// Nobody can go on by itself: lets those that poll look again, and lanes beside them pass.
    fn idle_turn(&mut self) -> Outcome<bool> {
        if self.warps.iter().all(|w| w.state == State::Done) {
            return Ok(false);
        }
        if self.machine.version != self.seen_version {
            self.seen_version = self.machine.version;
            self.idle = 0;
        }
        self.idle += 1;
        let mut polls = false;
        for warp in &mut self.warps {
            if let State::Polling(_) = warp.state {
                polls = true;
                warp.switch();
                warp.state = State::Ready;
            }
        }
        if polls && self.idle <= IDLE_ROUNDS {
            return Ok(true);
        }
        Err(self.deadlock())
    }

    fn deadlock(&self) -> Box<Fault> {
        let program = self.machine.context.program;
        let mut lines: Vec<(u32, &str, Vec<String>)> = Vec::new();
        let mut first = None;
        for warp in &self.warps {
            let what = match warp.state {
                State::Blocked => "a barrier",
                State::Done => continue,
                _ => "an mbarrier's phase",
            };
            // Warps that wait have moved past the instruction.
            let at = warp.pc().saturating_sub(1) as usize;
            let line = program.instructions.get(at).map_or(0, |i| i.line);
            first.get_or_insert((line, warp));
            let name = format!("{}", warp.index);
            match lines.iter_mut().find(|(l, w, _)| *l == line && *w == what) {
                Some((.., names)) => names.push(name),
                None => lines.push((line, what, vec![name])),
            }
        }
        let waits: Vec<String> = lines
            .iter()
            .map(|(line, what, warps)| {
                format!("warps {} for {what} at line {line}", warps.join(", "))
            })
            .collect();
        let mut fault = Fault::new(
            Rule::Deadlock,
            format!("every warp waits: {}", waits.join("; ")),
        );
        if let Some((line, warp)) = first {
            fault.line = Some(line);
            fault.threads = Some(Threads {
                cta: self.machine.ctas[warp.cta].index,
                warp: warp.index,
                lanes: !0,
            });
        }
        fault
    }

    /// What was counted, and shared memory for the next team.
    pub fn into_parts(self) -> (Vec<Counts>, Vec<SharedMemory>) {
        let shared = self.machine.ctas.into_iter().map(|cta| cta.shared);
        (self.machine.counts, shared.collect())
    }
}
