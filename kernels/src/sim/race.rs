//! Happens-before: what each thread knows to have completed.
//!
//! Time is a counter of a team (the CTAs that run together), stepped whenever a warp publishes what it did: every
//! access carries the time of its warp, and is ordered before another thread's present if that thread's [`Clock`] has
//! seen its author at that time or later. Barriers, mbarriers, fences with atomics and `bar.warp.sync` move clocks from
//! thread to thread; nothing else does, so that lanes of one warp race with each other too.

use std::collections::BTreeMap;
use std::rc::Rc;

/// Lane `thread % 32` of the team's warp `thread / 32`. After the warps come engines, one lane per mbarrier, to which
/// asynchronous copies belong.
pub type Thread = u32;
/// Time within a team; 0 is before everything.
pub type Stamp = u32;

/// What is known to have completed, by thread.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    seen: Vec<[Stamp; 32]>,
    /// Least of each warp's lanes in `seen`: answers most questions alone.
    floors: Vec<Stamp>,
    /// What of it a proxy fence made visible to the asynchronous proxy.
    fenced: Vec<[Stamp; 32]>,
    /// What is known of other teams, by their number.
    foreign: BTreeMap<u32, Rc<Clock>>,
}

fn merge(into: &mut [[Stamp; 32]], from: &[[Stamp; 32]]) {
    for (into, from) in into.iter_mut().zip(from) {
        for (into, from) in into.iter_mut().zip(from) {
            *into = (*into).max(*from);
        }
    }
}

impl Clock {
    /// Of a team with this many warps and engines, knowing nothing.
    pub fn new(warps: usize) -> Clock {
        Clock {
            seen: vec![[0; 32]; warps],
            floors: vec![0; warps],
            fenced: vec![[0; 32]; warps],
            foreign: BTreeMap::new(),
        }
    }

    #[inline(always)]
    pub fn knows(&self, thread: Thread, stamp: Stamp) -> bool {
        let warp = (thread / 32) as usize;
        stamp <= self.floors[warp] || stamp <= self.seen[warp][(thread % 32) as usize]
    }

    /// Whether all of `lanes` are known at `stamp`.
    #[inline(always)]
    pub fn knows_lanes(&self, warp: usize, lanes: u32, stamp: Stamp) -> bool {
        stamp <= self.floors[warp]
            || (0..32).all(|lane| lanes >> lane & 1 == 0 || stamp <= self.seen[warp][lane])
    }

    /// Whether the asynchronous proxy sees it.
    #[inline(always)]
    pub fn fenced(&self, thread: Thread, stamp: Stamp) -> bool {
        stamp <= self.fenced[(thread / 32) as usize][(thread % 32) as usize]
    }

    /// Whether a thread of another team is known at a time of that team.
    pub fn knows_foreign(&self, team: u32, thread: Thread, stamp: Stamp) -> bool {
        let clock = self.foreign.get(&team);
        clock.is_some_and(|clock| clock.knows(thread, stamp))
    }

    pub fn join(&mut self, other: &Clock) {
        merge(&mut self.seen, &other.seen);
        merge(&mut self.fenced, &other.fenced);
        for (floor, other) in self.floors.iter_mut().zip(&other.floors) {
            *floor = (*floor).max(*other);
        }
        for (&team, clock) in &other.foreign {
            self.learn(team, clock);
        }
    }

    fn learn(&mut self, team: u32, clock: &Rc<Clock>) {
        match self.foreign.get_mut(&team) {
            None => {
                self.foreign.insert(team, Rc::clone(clock));
            }
            Some(known) if Rc::ptr_eq(known, clock) => {}
            Some(known) => Rc::make_mut(known).join(clock),
        }
    }

    /// Adds that `lanes` of `warp` have completed everything up to `stamp`.
    pub fn advance(&mut self, warp: usize, lanes: u32, stamp: Stamp) {
        for lane in 0..32 {
            if lanes >> lane & 1 != 0 {
                self.seen[warp][lane] = self.seen[warp][lane].max(stamp);
            }
        }
        self.floors[warp] = self.seen[warp].iter().copied().min().unwrap_or(0);
    }

    /// Makes everything known visible to the asynchronous proxy.
    fn fence(&mut self) {
        merge(&mut self.fenced, &self.seen);
    }
}

/// The clocks of a warp's lanes; one for all of them most of the time.
#[derive(Debug)]
pub struct WarpClocks {
    warp: usize,
    /// Time of the warp's accesses now.
    pub now: Stamp,
    common: Rc<Clock>,
    apart: Option<Box<[Option<Rc<Clock>>; 32]>>,
    /// What each lane's next relaxed write or atomic publishes, since its last fence.
    published: Option<Box<[Option<Rc<Clock>>; 32]>>,
    /// What each lane's relaxed reads found published, for its next fence.
    found: Option<Box<[Option<SyncClock>; 32]>>,
}

fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 != 0)
}

impl WarpClocks {
    pub fn new(warp: usize, warps: usize) -> WarpClocks {
        WarpClocks {
            warp,
            now: 1,
            common: Rc::new(Clock::new(warps)),
            apart: None,
            published: None,
            found: None,
        }
    }

    #[inline(always)]
    pub fn of(&self, lane: usize) -> &Clock {
        match &self.apart {
            None => &self.common,
            Some(apart) => apart[lane].as_ref().unwrap_or(&self.common),
        }
    }

    fn set(&mut self, mask: u32, clock: Rc<Clock>) {
        if mask == !0 {
            self.common = clock;
            self.apart = None;
            return;
        }
        let apart = self.apart.get_or_insert_with(Default::default);
        for lane in lanes_of(mask) {
            apart[lane] = Some(Rc::clone(&clock));
        }
    }

    /// The lanes of `mask` in groups that share a clock.
    fn groups(&self, mask: u32) -> Vec<(u32, Rc<Clock>)> {
        let Some(apart) = &self.apart else {
            return vec![(mask, Rc::clone(&self.common))];
        };
        let mut groups: Vec<(u32, Rc<Clock>)> = Vec::new();
        for lane in lanes_of(mask) {
            let clock = apart[lane].as_ref().unwrap_or(&self.common);
            match groups.iter_mut().find(|(_, c)| Rc::ptr_eq(c, clock)) {
                Some((lanes, _)) => *lanes |= 1 << lane,
                None => groups.push((1 << lane, Rc::clone(clock))),
            }
        }
        groups
    }

    /// Adds what `mask` knows and has done to `into`. Later accesses must get a later time.
    pub fn release(&self, mask: u32, into: &mut Clock) {
        for (_, clock) in self.groups(mask) {
            into.join(&clock);
        }
        into.advance(self.warp, mask, self.now);
    }

    /// Lets `mask` know what `clock` does.
    pub fn acquire(&mut self, mask: u32, clock: &Clock) {
        for (lanes, known) in self.groups(mask) {
            let mut known = (*known).clone();
            known.join(clock);
            self.set(lanes, Rc::new(known));
        }
    }

    /// Gives all of `mask` the clock that was joined from all of them and others.
    pub fn replace(&mut self, mask: u32, clock: &Rc<Clock>) {
        self.set(mask, Rc::clone(clock));
    }

    /// `fence.proxy.async` by `mask`.
    ///
    /// Lanes go on sharing a clock in which each has fenced its own writes: whoever relies on a neighbour's fence must
    /// know of the neighbour's write first, and learns of the fence with it.
    pub fn fence_proxy(&mut self, mask: u32) {
        for (lanes, known) in self.groups(mask) {
            let mut known = (*known).clone();
            known.fence();
            for lane in lanes_of(lanes) {
                known.fenced[self.warp][lane] = self.now;
            }
            self.set(lanes, Rc::new(known));
        }
    }

    /// A memory fence by `mask`: what the lanes know becomes what their next relaxed writes publish, and what their
    /// relaxed reads found becomes known. `team` is this team's number.
    pub fn fence(&mut self, mask: u32, team: u32) {
        if let Some(found) = &mut self.found {
            let taken: Vec<(usize, SyncClock)> = lanes_of(mask)
                .filter_map(|lane| found[lane].take().map(|clock| (lane, clock)))
                .collect();
            for (lane, clock) in taken {
                self.acquire_sync(1 << lane, &clock, team);
            }
        }
        let mut published = self.published.take().unwrap_or_default();
        for (lanes, clock) in self.groups(mask) {
            for lane in lanes_of(lanes) {
                let mut clock = (*clock).clone();
                clock.advance(self.warp, 1 << lane, self.now);
                published[lane] = Some(Rc::new(clock));
            }
        }
        self.published = Some(published);
    }

    /// What a relaxed write by `lane` publishes.
    pub fn published(&self, lane: usize) -> Option<&Rc<Clock>> {
        self.published.as_ref()?[lane].as_ref()
    }

    /// A relaxed read by `lane` found `clock`.
    pub fn find(&mut self, lane: usize, clock: &SyncClock) {
        let found = self.found.get_or_insert_with(Default::default);
        match &mut found[lane] {
            Some(known) => known.join(clock),
            none => *none = Some(clock.clone()),
        }
    }

    /// An acquiring read by `mask` found `clock`.
    pub fn acquire_sync(&mut self, mask: u32, clock: &SyncClock, team: u32) {
        for (lanes, known) in self.groups(mask) {
            let mut known = (*known).clone();
            for (&from, clock) in &clock.by_team {
                if from == team {
                    known.join(clock);
                } else {
                    for (&other, clock) in &clock.foreign {
                        if other != team {
                            known.learn(other, clock);
                        }
                    }
                    known.learn(from, clock);
                }
            }
            self.set(lanes, Rc::new(known));
        }
    }
}

/// What a location that threads synchronise through carries: clocks of the teams that released to it.
#[derive(Clone, Debug, Default)]
pub struct SyncClock {
    by_team: BTreeMap<u32, Rc<Clock>>,
}

impl SyncClock {
    pub fn add(&mut self, team: u32, clock: &Rc<Clock>) {
        match self.by_team.get_mut(&team) {
            None => {
                self.by_team.insert(team, Rc::clone(clock));
            }
            Some(known) => Rc::make_mut(known).join(clock),
        }
    }

    fn join(&mut self, other: &SyncClock) {
        for (&team, clock) in &other.by_team {
            self.add(team, clock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_released_is_known_and_nothing_else() {
        let mut clocks = [WarpClocks::new(0, 2), WarpClocks::new(1, 2)];
        clocks[0].now = 5;
        let mut released = Clock::new(2);
        clocks[0].release(0b1, &mut released);
        clocks[1].acquire(0b10, &released);
        assert!(clocks[1].of(1).knows(0, 5));
        assert!(!clocks[1].of(0).knows(0, 5));
        assert!(!clocks[1].of(1).knows(0, 6));
        assert!(!clocks[1].of(1).knows(1, 5));
    }

    #[test]
    fn the_asynchronous_proxy_sees_what_was_fenced() {
        let mut clocks = [WarpClocks::new(0, 2), WarpClocks::new(1, 2)];
        clocks[0].now = 3;
        clocks[0].fence_proxy(1);
        clocks[0].now = 4;
        let mut released = Clock::new(2);
        clocks[0].release(!0, &mut released);
        clocks[1].acquire(!0, &released);
        assert!(clocks[1].of(0).fenced(0, 3) && !clocks[1].of(0).fenced(0, 4));
        assert!(clocks[1].of(0).knows(1, 4) && !clocks[1].of(0).fenced(1, 3));
    }
}
