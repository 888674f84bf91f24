//! Loads, stores and atomics, and how threads synchronise through them.

use std::rc::Rc;

use super::super::error::Outcome;
use super::super::parse::types::Type;
use super::super::program::op::{Address, AtomicOp, Op, Order, SINK, Slot, Transfer, Width};
use super::super::race::{Clock, SyncClock};
use super::access::{Target, lanes_of, shifted};
use super::integer::map;
use super::registers::{halves, whole};
use super::{Machine, Warp};

impl Machine<'_> {
    pub(super) fn memory(&mut self, warp: &mut Warp, op: &Op, mask: u32) -> Outcome {
        match *op {
            Op::Load {
                address,
                transfer,
                order,
            } => self.load(warp, address, transfer, order, mask),
            Op::Store {
                address,
                transfer,
                order,
            } => self.store(warp, address, transfer, order, mask),
            Op::Atomic {
                op,
                kind,
                address,
                order,
                d,
                a,
                b,
            } => self.atomic(warp, op, kind, address, order, [d, a, b], mask),
            _ => Ok(()),
        }
    }

    fn load(
        &mut self,
        warp: &mut Warp,
        address: Address,
        transfer: Transfer,
        order: Order,
        mask: u32,
    ) -> Outcome {
        let addresses = self.addresses(warp, address, mask)?;
        let each = transfer.kind.bytes();
        let bytes = each * u32::from(transfer.count);
        let mut values = [[0u64; 32]; 4];
        let mut valid = [0u32; 4];
        let strong = order != Order::Weak;
        let mut shared = false;
        for lane in lanes_of(mask) {
            let at = addresses[lane];
            let target = self.target(
                warp,
                lane,
                address.space,
                at,
                bytes.into(),
                bytes.into(),
                false,
            )?;
            shared = matches!(target, Target::Shared(..));
            // Elements may differ in validity; all valid is the rule.
            let all = self.note_read(warp, lane, target, bytes as usize, strong, false)?;
            for i in 0..usize::from(transfer.count) {
                let element = shifted(target, i * each as usize);
                values[i][lane] = self.fetch(element, each);
                let known = all
                    || transfer.count > 1
                        && self.note_read(warp, lane, element, each as usize, strong, false)?;
                valid[i] |= u32::from(known) << lane;
            }
            if strong {
                self.observe(warp, lane, target, order);
            }
        }
        self.count_access(warp, &addresses, bytes, mask, shared);
        for i in 0..usize::from(transfer.count) {
            let slot = transfer.registers[i];
            if slot == SINK {
                continue;
            }
            let unused = 64 - 8 * each;
            if transfer.kind.is_signed() {
                for value in &mut values[i] {
                    *value = ((*value << unused) as i64 >> unused) as u64;
                }
            }
            write_register(warp, slot, transfer.width, &values[i], valid[i], mask);
        }
        Ok(())
    }

    fn store(
        &mut self,
        warp: &mut Warp,
        address: Address,
        transfer: Transfer,
        order: Order,
        mask: u32,
    ) -> Outcome {
        let addresses = self.addresses(warp, address, mask)?;
        let each = transfer.kind.bytes();
        let bytes = each * u32::from(transfer.count);
        let count = usize::from(transfer.count);
        let mut values = [[0u64; 32]; 4];
        let mut valid = [0u32; 4];
        for i in 0..count {
            let slot = transfer.registers[i];
            (values[i], valid[i]) = read_register(warp, slot, transfer.width, each);
        }
        let strong = order != Order::Weak;
        let mut shared = false;
        for lane in lanes_of(mask) {
            let at = addresses[lane];
            let target = self.target(
                warp,
                lane,
                address.space,
                at,
                bytes.into(),
                bytes.into(),
                true,
            )?;
            shared = matches!(target, Target::Shared(..));
            for i in 0..count {
                let element = shifted(target, i * each as usize);
                let known = valid[i] >> lane & 1 != 0;
                if !known && !shared {
                    return Err(self.uninitialised(warp, 1 << lane, "the value stored"));
                }
                let value = values[i][lane];
                let low = value & (!0 >> (64 - 8 * each));
                self.note_write(
                    warp,
                    lane,
                    element,
                    each as usize,
                    known,
                    strong,
                    |machine| machine.fetch(element, each) == low,
                )?;
                self.put(element, each, value);
            }
            self.publish(warp, lane, target, order, false);
        }
        if order.releases() {
            warp.clocks.now = self.next_stamp();
        }
        if strong {
            self.version += 1;
        }
        self.count_access(warp, &addresses, bytes, mask, shared);
        Ok(())
    }

    /// What a strong read finds published at `target`.
    fn observe(&mut self, warp: &mut Warp, lane: usize, target: Target, order: Order) {
        let found = match target {
            Target::Shared(cta, offset) => self.ctas[cta].sync.get(&offset).cloned(),
            Target::Global(at) => self.global_sync.borrow().get(&at).cloned(),
        };
        let Some(found) = found else { return };
        if order.acquires() {
            warp.clocks.acquire_sync(1 << lane, &found, self.team);
        } else {
            warp.clocks.find(lane, &found);
        }
    }

    /// What a write leaves at `target` for later reads to find; an atomic adds to it, a store replaces it.
    fn publish(&mut self, warp: &Warp, lane: usize, target: Target, order: Order, atomic: bool) {
        let released = if order.releases() {
            let mut clock = Clock::new(self.clock_warps());
            warp.clocks.release(1 << lane, &mut clock);
            Some(Rc::new(clock))
        } else if order == Order::Weak {
            None
        } else {
            warp.clocks.published(lane).cloned()
        };
        let team = self.team;
        let change = |entry: &mut SyncClock| {
            if !atomic {
                *entry = SyncClock::default();
            }
            if let Some(clock) = &released {
                entry.add(team, clock);
            }
        };
        match target {
            Target::Shared(cta, offset) => {
                let sync = &mut self.ctas[cta].sync;
                if released.is_some() || sync.contains_key(&offset) {
                    change(sync.entry(offset).or_default());
                }
            }
            Target::Global(at) => {
                let mut sync = self.global_sync.borrow_mut();
                if released.is_some() || sync.contains_key(&at) {
                    change(sync.entry(at).or_default());
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // one instruction, spelled out
    fn atomic(
        &mut self,
        warp: &mut Warp,
        op: AtomicOp,
        kind: Type,
        address: Address,
        order: Order,
        [d, a, b]: [Slot; 3],
        mask: u32,
    ) -> Outcome {
        let addresses = self.addresses(warp, address, mask)?;
        let bytes = kind.bytes();
        let width = if bytes == 8 { Width::W64 } else { Width::W32 };
        let (av, a_valid) = read_register(warp, a, width, bytes);
        let (bv, b_valid) = read_register(warp, b, width, bytes);
        let poisoned = mask & !(a_valid & b_valid);
        if poisoned != 0 {
            return Err(self.uninitialised(warp, poisoned, "the atomic's operand"));
        }
        let mut old = [0u64; 32];
        let mut shared = false;
        for lane in lanes_of(mask) {
            let at = addresses[lane];
            let target = self.target(
                warp,
                lane,
                address.space,
                at,
                bytes.into(),
                bytes.into(),
                true,
            )?;
            shared = matches!(target, Target::Shared(..));
            if !self.note_read(warp, lane, target, bytes as usize, true, false)? {
                return Err(self.uninitialised(warp, 1 << lane, "the atomic's memory"));
            }
            self.observe(warp, lane, target, order);
            self.note_write(warp, lane, target, bytes as usize, true, true, |_| true)?;
            old[lane] = self.fetch(target, bytes);
            let new = combine(op, kind, old[lane], av[lane], bv[lane]);
            self.put(target, bytes, new);
            self.publish(warp, lane, target, order, true);
        }
        if order.releases() {
            warp.clocks.now = self.next_stamp();
        }
        self.version += 1;
        self.count_access(warp, &addresses, bytes, mask, shared);
        if d != SINK {
            write_register(warp, d, width, &old, !0, mask);
        }
        Ok(())
    }
}

#[inline]
fn write_register(
    warp: &mut Warp,
    slot: Slot,
    width: Width,
    values: &[u64; 32],
    valid: u32,
    mask: u32,
) {
    match width {
        Width::W64 => warp.registers.set64(slot, values, valid, mask),
        _ => warp
            .registers
            .set(slot, &map(values, |v| v as u32), halves(valid), mask),
    }
}

/// Values, and lanes in which the low `bytes` are valid.
#[inline]
fn read_register(warp: &Warp, slot: Slot, width: Width, bytes: u32) -> ([u64; 32], u32) {
    let r = &warp.registers;
    match width {
        Width::W64 => (*r.get64(slot), r.valid64(slot)),
        _ => {
            let validity = r.validity(slot);
            let valid = if bytes > 2 {
                whole(validity)
            } else {
                validity as u32
            };
            (map(r.get(slot), u64::from), valid)
        }
    }
}

fn combine(op: AtomicOp, kind: Type, old: u64, a: u64, b: u64) -> u64 {
    let bits = 8 * kind.bytes();
    let mask = !0u64 >> (64 - bits);
    let signed = |v: u64| (v << (64 - bits)) as i64 >> (64 - bits);
    match op {
        AtomicOp::Add if kind == Type::F32 => {
            let sum = f32::from_bits(old as u32) + f32::from_bits(a as u32);
            u64::from(sum.to_bits())
        }
        AtomicOp::Add => old.wrapping_add(a) & mask,
        AtomicOp::Min if kind.is_signed() => signed(old).min(signed(a)) as u64 & mask,
        AtomicOp::Max if kind.is_signed() => signed(old).max(signed(a)) as u64 & mask,
        AtomicOp::Min => old.min(a),
        AtomicOp::Max => old.max(a),
        AtomicOp::And => old & a,
        AtomicOp::Or => old | a,
        AtomicOp::Xor => old ^ a,
        AtomicOp::Inc => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        AtomicOp::Dec => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
        AtomicOp::Exchange => a,
        AtomicOp::CompareSwap => {
            if old == a {
                b
            } else {
                old
            }
        }
    }
}
