//! What lanes of a warp exchange, special registers, and warp barriers.

use super::super::error::{Fault, Outcome, Rule};
use super::super::program::op::{Int2, MemorySpace, Op, SINK, ShflMode, Slot, VoteMode, Width};
use super::super::program::{GLOBAL_SHIFT, Preset, SHARED_WINDOW, Special};
use super::super::race::Clock;
use super::integer::map;
use super::registers::{halves, whole};
use super::{Machine, Warp};
use std::rc::Rc;

impl Machine<'_> {
    /// Gives a register its value before the first instruction.
    pub(super) fn preset(&self, warp: &mut Warp, slot: Slot, preset: Preset) {
        let (values, wide): ([u64; 32], bool) = match preset {
            Preset::Constant { value, wide } => ([value; 32], wide),
            Preset::Special(special) => {
                let mut values = [0; 32];
                for (lane, value) in values.iter_mut().enumerate() {
                    *value = u64::from(self.special(warp, special, lane as u32));
                }
                (values, false)
            }
            Preset::Param { offset, kind, wide } => {
                let bytes = kind.bytes() as usize;
                let mut value = [0u8; 8];
                let at = offset as usize;
                value[..bytes].copy_from_slice(&self.context.params[at..at + bytes]);
                let value = u64::from_le_bytes(value);
                let unused = 64 - 8 * bytes as u32;
                let value = if kind.is_signed() {
                    ((value << unused) as i64 >> unused) as u64
                } else {
                    value
                };
                ([value; 32], wide)
            }
        };
        if wide {
            warp.registers.set64(slot, &values, !0, !0);
        } else {
            warp.registers
                .set(slot, &map(&values, |v| v as u32), !0, !0);
        }
    }

    fn special(&self, warp: &Warp, special: Special, lane: u32) -> u32 {
        let grid = self.context.grid;
        let cta = self.ctas[warp.cta].index;
        let [bx, by, _] = grid.block;
        let thread = warp.index * 32 + lane;
        let cluster = grid.cluster;
        let axis = |list: [u32; 3], axis: u8| list[usize::from(axis)];
        match special {
            Special::Tid(0) => thread % bx,
            Special::Tid(1) => thread / bx % by,
            Special::Tid(_) => thread / bx / by,
            Special::Ntid(a) => axis(grid.block, a),
            Special::Ctaid(a) => axis(cta, a),
            Special::Nctaid(a) => axis(grid.ctas, a),
            Special::LaneId => lane,
            Special::WarpId => warp.index,
            Special::WarpCount => grid.warps,
            Special::LaneMaskEq => 1 << lane,
            Special::LaneMaskLt => (1 << lane) - 1,
            Special::LaneMaskLe => u32::MAX >> (31 - lane),
            Special::LaneMaskGt => !(u32::MAX >> (31 - lane)),
            Special::LaneMaskGe => !((1 << lane) - 1),
            Special::ClusterId(a) => axis(cta, a) / axis(cluster, a),
            Special::ClusterCount(a) => axis(grid.ctas, a) / axis(cluster, a),
            Special::ClusterCtaId(a) => axis(cta, a) % axis(cluster, a),
            Special::ClusterCtaCount(a) => axis(cluster, a),
            Special::ClusterCtaRank => warp.cta as u32,
            Special::ClusterCtas => grid.cluster_ctas(),
            Special::SmId => self.team % super::super::SM_COUNT,
            Special::SmCount => super::super::SM_COUNT,
            Special::DynamicSharedBytes => grid.dynamic_shared,
            Special::TotalSharedBytes => grid.shared_bytes,
        }
    }

    /// The members that a `.sync` instruction names, which must be exactly the lanes that execute it.
    fn members(&self, warp: &Warp, slot: Slot, mask: u32, what: &str) -> Outcome<u32> {
        let poisoned = mask & !warp.registers.valid(slot);
        if poisoned != 0 {
            return Err(self.uninitialised(warp, poisoned, "the member mask"));
        }
        let masks = warp.registers.get(slot);
        let first = masks[mask.trailing_zeros() as usize];
        for lane in 0..32 {
            if mask >> lane & 1 != 0 && masks[lane] >> lane & 1 == 0 {
                let why = format!(
                    "{what}: a lane is not in its own member mask 0x{:08x}",
                    masks[lane]
                );
                return Err(self.fault(warp, Rule::Divergence, 1 << lane, why));
            }
            if mask >> lane & 1 != 0 && masks[lane] != first {
                let why = format!("{what}: lanes name different members");
                return Err(self.fault(warp, Rule::Divergence, mask, why));
            }
        }
        let missing = first & warp.alive & !mask;
        if missing != 0 {
            let why = format!("{what} names members 0x{first:08x}, but some of them are elsewhere");
            return Err(self.fault(warp, Rule::Divergence, missing, why));
        }
        Ok(first & mask)
    }

    pub(super) fn lanes(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Outcome {
        match *op {
            Op::Shfl {
                mode,
                d,
                p,
                a,
                b,
                c,
                members,
            } => {
                self.members(warp, members, mask, "shfl.sync")?;
                let control = mask & !(warp.registers.valid(b) & warp.registers.valid(c));
                if control != 0 {
                    return Err(self.uninitialised(warp, control, "the lane that shfl reads"));
                }
                let r = &mut warp.registers;
                let (av, bv, cv) = (r.get(a), r.get(b), r.get(c));
                let validity = r.validity(a);
                let (mut value, mut valid, mut inside) = (*av, 0u64, 0u32);
                for lane in 0..32u32 {
                    let (b, c) = (bv[lane as usize] & 31, cv[lane as usize]);
                    let (clamp, segment) = (c & 31, c >> 8 & 31);
                    let (low, high) = (lane & segment, (lane & segment) | (clamp & !segment));
                    let (from, within) = match mode {
                        ShflMode::Up => {
                            let from = lane as i32 - b as i32;
                            (from, from >= high as i32)
                        }
                        ShflMode::Down => ((lane + b) as i32, lane + b <= high),
                        ShflMode::Bfly => ((lane ^ b) as i32, lane ^ b <= high),
                        ShflMode::Idx => {
                            let from = low | b & !segment;
                            (from as i32, from <= high)
                        }
                    };
                    let from = if within {
                        from as usize & 31
                    } else {
                        lane as usize
                    };
                    inside |= u32::from(within) << lane;
                    value[lane as usize] = av[from];
                    let source = validity >> from;
                    // A lane that does not take part has nothing to give.
                    let given = mask >> from & 1 != 0;
                    if given {
                        valid |= (source & 1) << lane | (source >> 32 & 1) << (lane + 32);
                    }
                }
                r.set(d, &value, valid, mask);
                if let Some(p) = p {
                    r.set_pred(p, inside, !0, mask);
                }
            }
            Op::Vote {
                mode,
                d,
                a,
                members,
            } => {
                let members = self.members(warp, members, mask, "vote.sync")?;
                let (value, valid) = warp.registers.pred(a);
                let known = if valid & members == members { !0 } else { 0 };
                let yes = value & members;
                let holds = match mode {
                    VoteMode::All => yes == members,
                    VoteMode::Any => yes != 0,
                    VoteMode::Uni => yes == members || yes == 0,
                    VoteMode::Ballot => false,
                };
                if mode == VoteMode::Ballot {
                    warp.registers.set(d, &[yes; 32], halves(known), mask);
                } else {
                    let holds = if holds { !0 } else { 0 };
                    warp.registers.set_pred(d, holds, known, mask);
                }
            }
            Op::ActiveMask { d } => {
                warp.registers.set(d, &[mask; 32], !0, mask);
            }
            Op::Redux { op, d, a, members } => {
                let members = self.members(warp, members, mask, "redux.sync")?;
                let r = &mut warp.registers;
                let known = r.valid(a) & members == members;
                let values = r.get(a);
                let all = (0..32)
                    .filter(|lane| members >> lane & 1 != 0)
                    .map(|lane| values[lane])
                    .reduce(|x, y| match op {
                        Int2::MinUnsigned => x.min(y),
                        Int2::MaxUnsigned => x.max(y),
                        Int2::MinSigned => (x as i32).min(y as i32) as u32,
                        Int2::MaxSigned => (x as i32).max(y as i32) as u32,
                        Int2::And => x & y,
                        Int2::Or => x | y,
                        Int2::Xor => x ^ y,
                        _ => x.wrapping_add(y),
                    });
                let validity = if known { !0 } else { 0 };
                r.set(d, &[all.unwrap_or(0); 32], validity, mask);
            }
            Op::Match {
                all,
                width,
                d,
                p,
                a,
                members,
            } => {
                let members = self.members(warp, members, mask, "match.sync")?;
                let r = &mut warp.registers;
                let (values, valid) = match width {
                    Width::W64 => (*r.get64(a), r.valid64(a)),
                    _ => (map(r.get(a), u64::from), r.valid(a)),
                };
                let known = if valid & members == members { !0 } else { 0 };
                let mut same = [0u32; 32];
                for (lane, same) in same.iter_mut().enumerate() {
                    for other in (0..32).filter(|o| members >> o & 1 != 0) {
                        *same |= u32::from(values[other] == values[lane]) << other;
                    }
                    if all && *same != members {
                        *same = 0;
                    }
                }
                let agreed = same[mask.trailing_zeros() as usize] != 0;
                r.set(d, &same, halves(known), mask);
                if let Some(p) = p {
                    r.set_pred(p, if agreed { !0 } else { 0 }, known, mask);
                }
            }
            Op::Elect { d, p, members } => {
                let members = self.members(warp, members, mask, "elect.sync")?;
                let leader = members.trailing_zeros();
                if d != SINK {
                    warp.registers.set(d, &[leader; 32], !0, mask);
                }
                warp.registers.set_pred(p, 1 << leader, !0, mask);
            }
            Op::WarpSync { members } => {
                let members = self.members(warp, members, mask, "bar.warp.sync")?;
                let mut clock = Clock::new(self.clock_warps());
                warp.clocks.release(members, &mut clock);
                // Lanes that have exited or never were do nothing that could race.
                let members = if members == warp.alive { !0 } else { members };
                warp.clocks.replace(members, &Rc::new(clock));
                warp.clocks.now = self.next_stamp();
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn ranks(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Outcome {
        let ranks = self.context.grid.cluster_ctas();
        match *op {
            Op::MapRank { d, a, wide, rank } => {
                let r = &mut warp.registers;
                let known = r.valid(rank);
                let targets = r.get(rank);
                if let Some(lane) =
                    (0..32).find(|&lane| mask & known >> lane & 1 != 0 && targets[lane] >= ranks)
                {
                    let why = format!("mapa to rank {} of a cluster of {ranks}", targets[lane]);
                    return Err(Fault::new(Rule::Bounds, why));
                }
                // Rank r's window: r + 1 in the top byte, which no address of one's own has.
                let window = |rank: u32| (rank + 1) << 24;
                if wide {
                    let valid = r.valid64(a) & known;
                    let mut value = *r.get64(a);
                    for (value, rank) in value.iter_mut().zip(targets) {
                        *value = *value & !0xFF00_0000 | u64::from(window(*rank));
                    }
                    r.set64(d, &value, valid, mask);
                } else {
                    let valid = r.valid(a) & known;
                    let mut value = *r.get(a);
                    for (value, rank) in value.iter_mut().zip(targets) {
                        *value = *value & 0x00FF_FFFF | window(*rank);
                    }
                    r.set(d, &value, halves(valid), mask);
                }
            }
            Op::GetRank { d, a, wide } => {
                let own = warp.cta as u32;
                let r = &mut warp.registers;
                let (address, valid) = if wide {
                    (map(r.get64(a), |a| a as u32), r.valid64(a))
                } else {
                    (*r.get(a), whole(r.validity(a)))
                };
                let value = map(&address, |a| match a >> 24 {
                    0 => own,
                    window => window - 1,
                });
                r.set(d, &value, halves(valid), mask);
            }
            Op::IsSpace { d, a, space } => {
                let r = &mut warp.registers;
                let shared = |a: u64| a >> 36 == SHARED_WINDOW >> 36;
                let mut holds = 0;
                for (lane, &address) in r.get64(a).iter().enumerate() {
                    let inside = match space {
                        MemorySpace::Shared => shared(address) && address >> 24 & 0xFF == 0,
                        MemorySpace::Cluster => shared(address),
                        _ => address >> GLOBAL_SHIFT != 0,
                    };
                    holds |= u32::from(inside) << lane;
                }
                let valid = r.valid64(a);
                r.set_pred(d, holds, valid, mask);
            }
            _ => {}
        }
        Ok(())
    }
}
