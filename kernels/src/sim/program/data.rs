//! Decoding of moves, loads, stores, atomics and what lanes exchange.

use super::super::error::Outcome;
use super::super::parse::Operand;
use super::super::parse::types::Type;
use super::Class;
use super::decode::{Decoder, Place, width_of};
use super::modifiers::Modifiers;
use super::op::{
    AtomicOp, Int2, MemorySpace, Op, Order, SINK, ShflMode, Slot, Transfer, VoteMode, Width,
};

type Found = Outcome<Option<(Op, Class)>>;

const SPACES: [(&str, MemorySpace); 5] = [
    ("global", MemorySpace::Global),
    ("shared", MemorySpace::Shared),
    ("shared::cta", MemorySpace::Shared),
    ("shared::cluster", MemorySpace::Cluster),
    ("const", MemorySpace::Const),
];

impl<'t> Decoder<'_, 't> {
    pub(super) fn data(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Found {
        let found = match opcode {
            "mov" => self.mov(m, operands)?,
            "ld" | "ldu" => self.load(m, operands)?,
            "st" => self.store(m, operands)?,
            "atom" | "red" => self.atomic(opcode == "atom", m, operands)?,
            "prefetch" | "prefetchu" | "discard" | "applypriority" => {
                // Hints: the operands are read for their form, and nothing happens.
                m.any(&SPACES);
                m.cache_hints();
                m.take("tensormap");
                m.any(&[("param", ()), ("L1", ()), ("L2", ())]);
                let address = self.operand(operands, 0)?;
                self.address(address, MemorySpace::Generic)?;
                (Op::Nop, Class::Move)
            }
            "createpolicy" => {
                return self.unsupported("cache policies are not supported: leave them out");
            }
            "isspacep" => {
                self.count::<2>(operands)?;
                let space = m.need("a state space", &SPACES)?;
                let op = Op::IsSpace {
                    d: self.pred_dest(&operands[0])?,
                    a: self.source(&operands[1], Type::U64)?,
                    space,
                };
                (op, Class::Predicate)
            }
            "mapa" | "getctarank" => self.ranks(opcode == "mapa", m, operands)?,
            "shfl" | "vote" | "activemask" | "redux" | "match" | "elect" => {
                (self.lanes(opcode, m, operands)?, Class::Shuffle)
            }
            _ => return Ok(None),
        };
        Ok(Some(found))
    }

    fn mov(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<(Op, Class)> {
        self.count::<2>(operands)?;
        let kind = m.kind()?;
        if kind == Type::Pred {
            let op = Op::MovePred {
                d: self.pred_dest(&operands[0])?,
                a: self.pred(&operands[1])?,
            };
            return Ok((op, Class::Predicate));
        }
        if kind.bytes() < 2 || kind.bytes() > 8 {
            return self.unsupported("mov is supported for 16, 32 and 64 bits");
        }
        let op = match (&operands[0], &operands[1]) {
            (Operand::Vector(parts), whole) => match (kind.bytes(), parts.len()) {
                (4, 2) => Op::Unpack16 {
                    a: self.source(whole, kind)?,
                    d: [
                        self.dest_or_sink(&parts[0], Type::B16)?,
                        self.dest_or_sink(&parts[1], Type::B16)?,
                    ],
                },
                (8, 2) => Op::Unpack32 {
                    a: self.source(whole, kind)?,
                    d: [
                        self.dest_or_sink(&parts[0], Type::B32)?,
                        self.dest_or_sink(&parts[1], Type::B32)?,
                    ],
                },
                (8, 4) => {
                    let a = self.source(whole, kind)?;
                    let mut d = [SINK; 4];
                    for (d, part) in d.iter_mut().zip(parts) {
                        *d = self.dest_or_sink(part, Type::B16)?;
                    }
                    Op::Unpack4x16 { d, a }
                }
                _ => return self.syntax("these parts do not make up the operand"),
            },
            (whole, Operand::Vector(parts)) => match (kind.bytes(), parts.len()) {
                (4, 2) => Op::Pack16 {
                    d: self.dest(whole, kind)?,
                    a: [
                        self.source(&parts[0], Type::B16)?,
                        self.source(&parts[1], Type::B16)?,
                    ],
                },
                (8, 2) => Op::Pack32 {
                    d: self.dest(whole, kind)?,
                    a: [
                        self.source(&parts[0], Type::B32)?,
                        self.source(&parts[1], Type::B32)?,
                    ],
                },
                (8, 4) => {
                    let d = self.dest(whole, kind)?;
                    let mut a = [0; 4];
                    for (a, part) in a.iter_mut().zip(parts) {
                        *a = self.source(part, Type::B16)?;
                    }
                    Op::Pack4x16 { d, a }
                }
                _ => return self.syntax("these parts do not make up the operand"),
            },
            (d, Operand::Name(name, None)) if self.place(name).is_some() => {
                let d = self.dest(d, kind)?;
                let address = match self.place(name) {
                    Some(Place::Shared(address)) => u64::from(address),
                    Some(Place::Global(address) | Place::Const(address)) => address,
                    // Of the parameters' own space, as of the others: `cvta.param` makes it generic.
                    Some(Place::Param(offset, _)) => u64::from(offset),
                    None => 0,
                };
                let wide = kind.bytes() == 8;
                if !wide && (kind.bytes() != 4 || address > u64::from(u32::MAX)) {
                    return self.syntax(format!("the address of {name} has 64 bits"));
                }
                Op::Move {
                    width: width_of(kind),
                    d,
                    a: self.constant(address, wide)?,
                }
            }
            (d, a) => Op::Move {
                width: width_of(kind),
                d: self.dest(d, kind)?,
                a: self.source(a, kind)?,
            },
        };
        Ok((op, Class::Move))
    }

    /// Ordering, scope and space of a memory access.
    fn access(&mut self, m: &mut Modifiers<'t>) -> Outcome<(Order, MemorySpace)> {
        let order = m.any(&[
            ("weak", Order::Weak),
            ("relaxed", Order::Relaxed),
            ("volatile", Order::Relaxed),
            ("acquire", Order::Acquire),
            ("release", Order::Release),
            ("acq_rel", Order::AcquireRelease),
        ]);
        let scoped = m.scope().is_some();
        let order = order.unwrap_or(Order::Weak);
        let space = m.any(&SPACES).unwrap_or(MemorySpace::Generic);
        if space == MemorySpace::Cluster {
            self.hopper("shared::cluster")?;
        }
        if order == Order::Weak && scoped {
            return self.syntax("a scope goes with .relaxed, .acquire or .release");
        }
        if order != Order::Weak && matches!(space, MemorySpace::Global | MemorySpace::Generic) {
            self.cross_cta = true;
        }
        m.cache_hints();
        Ok((order, space))
    }

    /// The registers of `{a, b, c, d}` or one.
    fn transfer(
        &mut self,
        m: &mut Modifiers<'t>,
        operand: &Operand<'t>,
        load: bool,
    ) -> Outcome<Transfer> {
        let count = m.any(&[("v2", 2u8), ("v4", 4), ("v8", 8)]).unwrap_or(1);
        let kind = m.kind()?;
        if kind == Type::Pred || kind == Type::B128 || count == 8 {
            return self.unsupported("accesses are supported for 8 to 64 bits, up to .v4");
        }
        if kind.bytes() * u32::from(count) > 16 {
            return self.syntax("a thread accesses at most 16 bytes");
        }
        let items = self.items(operand);
        if items.len() != usize::from(count) {
            return self.syntax(format!(
                "{count} registers are needed, {} are given",
                items.len()
            ));
        }
        let mut registers = [SINK; 4];
        let mut width = width_of(kind);
        for (register, item) in registers.iter_mut().zip(items) {
            match item {
                Operand::Sink if load => {}
                Operand::Register(_) => {
                    let found;
                    (*register, found) = if load {
                        self.relaxed_dest(item, kind)?
                    } else {
                        self.relaxed(item, kind)?
                    };
                    if count > 1 && found != width_of(kind) {
                        return self.syntax("registers of a vector must have the element's size");
                    }
                    width = found;
                }
                _ if load => return self.syntax("the destination must be a register"),
                _ => (*register, width) = self.relaxed(item, kind)?,
            }
        }
        Ok(Transfer {
            kind,
            count,
            registers,
            width,
        })
    }

    fn load(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<(Op, Class)> {
        self.count::<2>(operands)?;
        if m.take("param") || m.take("param::entry") {
            return self.load_param(m, operands);
        }
        let (order, space) = self.access(m)?;
        let transfer = self.transfer(m, &operands[0], true)?;
        if matches!(order, Order::Release | Order::AcquireRelease) {
            return self.syntax("a load does not release");
        }
        self.note_access(space, transfer.kind.bytes());
        let op = Op::Load {
            address: self.address(&operands[1], space)?,
            transfer,
            order,
        };
        let class = match space {
            MemorySpace::Shared | MemorySpace::Cluster => Class::SharedLoad,
            _ => Class::GlobalLoad,
        };
        Ok((op, class))
    }

    fn load_param(
        &mut self,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<(Op, Class)> {
        let count = m.any(&[("v2", 2u32), ("v4", 4)]).unwrap_or(1);
        let kind = m.kind()?;
        let Operand::Address { base, offset, .. } = &operands[1] else {
            return self.syntax("an address such as [name+8] is needed");
        };
        let Operand::Name(name, None) = &**base else {
            return self.unsupported("parameters are loaded by name: [name+8]");
        };
        let Some(Place::Param(start, bytes)) = self.place(name) else {
            return self.syntax(format!("{name} is no parameter"));
        };
        let size = kind.bytes();
        let end = offset.checked_add(i64::from(size) * i64::from(count));
        let inside = *offset >= 0 && end.is_some_and(|end| end <= i64::from(bytes));
        if size == 0 || !inside {
            return self.syntax(format!("{name} has {bytes} bytes, the load leaves it"));
        }
        if count > 1 {
            return self.unsupported("load parameters one by one");
        }
        let at = start + *offset as u32;
        if !at.is_multiple_of(size) {
            return self.syntax(format!("offset {offset} of {name} is misaligned"));
        }
        let (d, width) = self.relaxed_dest(&operands[0], kind)?;
        let op = Op::Move {
            width,
            d,
            a: self.param(at, kind, width == Width::W64)?,
        };
        Ok((op, Class::ParamLoad))
    }

    fn store(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<(Op, Class)> {
        if m.take("async") {
            return self.unsupported("st.async is not supported");
        }
        self.count::<2>(operands)?;
        let (order, space) = self.access(m)?;
        let transfer = self.transfer(m, &operands[1], false)?;
        if matches!(order, Order::Acquire | Order::AcquireRelease) {
            return self.syntax("a store does not acquire");
        }
        if space == MemorySpace::Const {
            return self.syntax("constant memory cannot be written");
        }
        self.note_access(space, transfer.kind.bytes());
        let op = Op::Store {
            address: self.address(&operands[0], space)?,
            transfer,
            order,
        };
        let class = match space {
            MemorySpace::Shared | MemorySpace::Cluster => Class::SharedStore,
            _ => Class::GlobalStore,
        };
        Ok((op, class))
    }

    fn atomic(
        &mut self,
        returns: bool,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<(Op, Class)> {
        let (order, space) = self.access(m)?;
        let order = match order {
            Order::Weak => Order::Relaxed,
            order => order,
        };
        m.scope();
        if m.any(&[("v2", ()), ("v4", ()), ("v8", ())]).is_some() {
            return self.unsupported("vector atomics are not supported");
        }
        let op = m.need(
            "an operation",
            &[
                ("add", AtomicOp::Add),
                ("min", AtomicOp::Min),
                ("max", AtomicOp::Max),
                ("and", AtomicOp::And),
                ("or", AtomicOp::Or),
                ("xor", AtomicOp::Xor),
                ("inc", AtomicOp::Inc),
                ("dec", AtomicOp::Dec),
                ("exch", AtomicOp::Exchange),
                ("cas", AtomicOp::CompareSwap),
            ],
        )?;
        let kind = m.kind()?;
        let swap = matches!(op, AtomicOp::Exchange | AtomicOp::CompareSwap);
        let fits = match kind {
            Type::F32 => op == AtomicOp::Add,
            Type::B32 | Type::B64 => {
                swap || matches!(op, AtomicOp::And | AtomicOp::Or | AtomicOp::Xor)
            }
            Type::U32 => !matches!(op, AtomicOp::And | AtomicOp::Or | AtomicOp::Xor) && !swap,
            Type::S32 | Type::U64 | Type::S64 => {
                matches!(op, AtomicOp::Add | AtomicOp::Min | AtomicOp::Max)
            }
            _ => false,
        };
        if !fits {
            return self.unsupported("this atomic has no form of this type");
        }
        let mut rest = operands.iter();
        let d = match (returns, rest.next()) {
            (true, Some(d)) => self.dest_or_sink(d, kind)?,
            (false, Some(_)) => {
                rest = operands.iter();
                SINK
            }
            (_, None) => return self.syntax("operands are missing"),
        };
        let wanted = 2 + usize::from(op == AtomicOp::CompareSwap);
        let rest = rest.as_slice();
        if rest.len() != wanted {
            return self.syntax(format!("an address and {} operands are needed", wanted - 1));
        }
        if matches!(space, MemorySpace::Global | MemorySpace::Generic) {
            self.cross_cta = true;
        }
        self.note_access(space, kind.bytes());
        let a = self.source(&rest[1], kind)?;
        let b = match rest.get(2) {
            Some(operand) => self.source(operand, kind)?,
            None => a,
        };
        let op = Op::Atomic {
            op,
            kind,
            address: self.address(&rest[0], space)?,
            order,
            d,
            a,
            b,
        };
        Ok((op, Class::Atomic))
    }

    fn ranks(
        &mut self,
        map: bool,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<(Op, Class)> {
        self.hopper("shared::cluster")?;
        if !m.take("shared::cluster") {
            return self.unsupported("mapa and getctarank are supported with .shared::cluster");
        }
        let kind = m.kind()?;
        if !matches!(kind, Type::U32 | Type::U64) {
            return self.syntax("mapa and getctarank work on .u32 and .u64");
        }
        let wide = kind == Type::U64;
        let op = if map {
            self.count::<3>(operands)?;
            let a = match &operands[1] {
                Operand::Name(name, None) => match self.place(name) {
                    Some(Place::Shared(address)) => self.constant(u64::from(address), wide)?,
                    _ => return self.syntax(format!("{name} is no shared variable")),
                },
                operand => self.source(operand, kind)?,
            };
            Op::MapRank {
                d: self.dest(&operands[0], kind)?,
                a,
                wide,
                rank: self.source(&operands[2], Type::U32)?,
            }
        } else {
            self.count::<2>(operands)?;
            Op::GetRank {
                d: self.dest(&operands[0], Type::U32)?,
                a: self.source(&operands[1], kind)?,
                wide,
            }
        };
        Ok((op, Class::Integer))
    }

    fn lanes(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<Op> {
        if opcode != "activemask" && !m.take("sync") {
            return self.unsupported(format!("{opcode} without .sync is not supported"));
        }
        // `d|p`, or `d` alone.
        let first = self.operand(operands, 0)?;
        let (first, second) = match first {
            Operand::Pair(d, p) => (&**d, Some(&**p)),
            d => (d, None),
        };
        let members = |this: &mut Self, i: usize| -> Outcome<Slot> {
            let operand = this.operand(operands, i)?;
            this.source(operand, Type::B32)
        };
        match opcode {
            "shfl" => {
                self.count::<5>(operands)?;
                let mode = m.need(
                    "a mode",
                    &[
                        ("up", ShflMode::Up),
                        ("down", ShflMode::Down),
                        ("bfly", ShflMode::Bfly),
                        ("idx", ShflMode::Idx),
                    ],
                )?;
                if m.kind()? != Type::B32 {
                    return self.syntax("shfl moves .b32");
                }
                Ok(Op::Shfl {
                    mode,
                    d: self.dest(first, Type::B32)?,
                    p: match second {
                        Some(Operand::Sink) | None => None,
                        Some(p) => Some(self.pred_dest(p)?),
                    },
                    a: self.source(&operands[1], Type::B32)?,
                    b: self.source(&operands[2], Type::B32)?,
                    c: self.source(&operands[3], Type::B32)?,
                    members: members(self, 4)?,
                })
            }
            "vote" => {
                self.count::<3>(operands)?;
                let mode = m.need(
                    "a mode",
                    &[
                        ("all", VoteMode::All),
                        ("any", VoteMode::Any),
                        ("uni", VoteMode::Uni),
                        ("ballot", VoteMode::Ballot),
                    ],
                )?;
                m.kind()?;
                Ok(Op::Vote {
                    mode,
                    d: match mode {
                        VoteMode::Ballot => self.dest(first, Type::B32)?,
                        _ => self.pred_dest(first)?,
                    },
                    a: self.pred(&operands[1])?,
                    members: members(self, 2)?,
                })
            }
            "activemask" => {
                self.count::<1>(operands)?;
                m.kind()?;
                Ok(Op::ActiveMask {
                    d: self.dest(first, Type::B32)?,
                })
            }
            "redux" => {
                self.count::<3>(operands)?;
                let name = m.need(
                    "an operation",
                    &[
                        ("add", [Int2::Add, Int2::Add]),
                        ("min", [Int2::MinUnsigned, Int2::MinSigned]),
                        ("max", [Int2::MaxUnsigned, Int2::MaxSigned]),
                        ("and", [Int2::And; 2]),
                        ("or", [Int2::Or; 2]),
                        ("xor", [Int2::Xor; 2]),
                    ],
                )?;
                let kind = m.kind()?;
                if kind.bytes() != 4 || kind.is_float() {
                    return self.unsupported("redux works on 32-bit integers");
                }
                Ok(Op::Redux {
                    op: name[usize::from(kind.is_signed())],
                    d: self.dest(first, kind)?,
                    a: self.source(&operands[1], kind)?,
                    members: members(self, 2)?,
                })
            }
            "match" => {
                self.count::<3>(operands)?;
                let all = m.need("a mode", &[("all", true), ("any", false)])?;
                let kind = m.kind()?;
                if !matches!(kind, Type::B32 | Type::B64) {
                    return self.syntax("match compares .b32 or .b64");
                }
                Ok(Op::Match {
                    all,
                    width: width_of(kind),
                    d: self.dest(first, Type::B32)?,
                    p: match second {
                        Some(Operand::Sink) | None => None,
                        Some(p) => Some(self.pred_dest(p)?),
                    },
                    a: self.source(&operands[1], kind)?,
                    members: members(self, 2)?,
                })
            }
            _ => {
                self.hopper("elect.sync")?;
                self.count::<2>(operands)?;
                let Some(p) = second else {
                    return self.syntax("elect.sync writes d|p");
                };
                Ok(Op::Elect {
                    d: self.dest_or_sink(first, Type::B32)?,
                    p: self.pred_dest(p)?,
                    members: members(self, 1)?,
                })
            }
        }
    }
}
