//! Decoding of branches, barriers, fences and mbarriers.

use super::super::error::Outcome;
use super::super::parse::Operand;
use super::super::parse::types::Type;
use super::Class;
use super::decode::Decoder;
use super::modifiers::Modifiers;
use super::op::{Fence, MbarrierOp, MemorySpace, Op, SINK};

type Found = Outcome<Option<(Op, Class)>>;

impl<'t> Decoder<'_, 't> {
    pub(super) fn control(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Found {
        let found = match opcode {
            "bra" => {
                self.count::<1>(operands)?;
                let Operand::Name(label, None) = operands[0] else {
                    return self.syntax("bra needs a label");
                };
                let Some(&target) = self.entry.labels.get(label) else {
                    return self.syntax(format!("label {label} does not exist"));
                };
                let op = Op::Branch {
                    target: target as u32,
                    uniform: m.take("uni"),
                };
                (op, Class::Control)
            }
            "exit" | "ret" => {
                self.count::<0>(operands)?;
                m.take("uni");
                (Op::Exit, Class::Control)
            }
            "trap" => (Op::Trap, Class::Control),
            "nanosleep" => {
                m.kind()?;
                let time = self.operand(operands, 0)?;
                self.source(time, Type::U32)?;
                (Op::Nop, Class::Control)
            }
            "call" | "brx" => {
                return self.unsupported(format!("{opcode} is not supported: inline it"));
            }
            "griddepcontrol" => {
                self.hopper("griddepcontrol")?;
                m.need("an action", &[("wait", ()), ("launch_dependents", ())])?;
                (Op::Nop, Class::Control)
            }
            "setmaxnreg" => self.setmaxnreg(m, operands)?,
            "bar" | "barrier" => (self.barrier(opcode, m, operands)?, Class::Barrier),
            "membar" => {
                m.need("a scope", &[("cta", ()), ("gl", ()), ("sys", ())])?;
                (Op::Fence(Fence::Memory), Class::Barrier)
            }
            "fence" => (self.fence(m)?, Class::Barrier),
            "mbarrier" => (self.mbarrier(m, operands)?, Class::Barrier),
            _ => return Ok(None),
        };
        Ok(Some(found))
    }

    fn setmaxnreg(
        &mut self,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<(Op, Class)> {
        self.hopper("setmaxnreg")?;
        self.count::<1>(operands)?;
        m.need("a direction", &[("inc", ()), ("dec", ())])?;
        if !m.take("sync") || !m.take("aligned") || m.kind()? != Type::U32 {
            return self.syntax("the form is setmaxnreg.inc.sync.aligned.u32");
        }
        let registers = self.immediate(&operands[0])?;
        if !(24..=256).contains(&registers) || registers % 8 != 0 {
            return self.syntax(format!(
                "setmaxnreg takes a multiple of 8 from 24 to 256, not {registers}"
            ));
        }
        if !self.entry.register_cap {
            return self.syntax(
                "setmaxnreg is ignored (ptxas C7508) unless the entry has .minnctapersm or .maxnreg",
            );
        }
        Ok((Op::SetMaxRegisters, Class::Control))
    }

    fn barrier(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<Op> {
        if m.take("warp") {
            if !m.take("sync") {
                return self.syntax("the form is bar.warp.sync");
            }
            self.count::<1>(operands)?;
            return Ok(Op::WarpSync {
                members: self.source(&operands[0], Type::B32)?,
            });
        }
        if m.take("cluster") {
            self.hopper("barrier.cluster")?;
            self.count::<0>(operands)?;
            let wait = m.need("an action", &[("arrive", false), ("wait", true)])?;
            let relaxed = m.take("relaxed");
            m.any(&[("release", ()), ("acquire", ())]);
            m.take("aligned");
            return Ok(if wait {
                Op::ClusterWait
            } else {
                Op::ClusterArrive { release: !relaxed }
            });
        }
        m.take("cta");
        if m.take("red") {
            return self.unsupported("bar.red is not supported: use redux.sync and shared memory");
        }
        let action = m.need("an action", &[("sync", "sync"), ("arrive", "arrive")])?;
        let aligned = m.take("aligned") || opcode == "bar";
        let id = self.operand(operands, 0)?;
        let wait = action == "sync";
        if operands.len() > 2 || !wait && operands.len() != 2 {
            return self.syntax(format!(
                "{opcode}.{action} takes an id and a count of threads"
            ));
        }
        Ok(Op::Barrier {
            id: self.source(id, Type::U32)?,
            threads: match operands.get(1) {
                Some(threads) => Some(self.source(threads, Type::U32)?),
                None => None,
            },
            wait,
            aligned,
        })
    }

    fn fence(&mut self, m: &mut Modifiers<'t>) -> Outcome<Op> {
        if m.take("proxy") {
            if !m.take("async") && !m.take("async::generic") {
                let space = m.any(&[
                    ("async.global", ()),
                    ("async::shared::cta", ()),
                    ("async::global", ()),
                ]);
                if space.is_none() {
                    return self.unsupported("of proxy fences, fence.proxy.async is supported");
                }
            }
            m.any(&[("global", ()), ("shared::cta", ()), ("shared::cluster", ())]);
            self.hopper("fence.proxy.async")?;
            return Ok(Op::Fence(Fence::AsyncProxy));
        }
        if m.take("mbarrier_init") {
            self.hopper("fence.mbarrier_init")?;
            m.take("release");
            m.take("cluster");
            return Ok(Op::Fence(Fence::MbarrierInit));
        }
        m.any(&[
            ("acq_rel", ()),
            ("sc", ()),
            ("acquire", ()),
            ("release", ()),
        ]);
        if m.scope().is_none() {
            return self.syntax("a fence needs a scope: .cta, .cluster, .gpu or .sys");
        }
        Ok(Op::Fence(Fence::Memory))
    }

    fn mbarrier(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<Op> {
        let action = m.need(
            "an action",
            &[
                ("init", "init"),
                ("inval", "inval"),
                ("arrive_drop", "arrive_drop"),
                ("arrive", "arrive"),
                ("expect_tx", "expect_tx"),
                ("complete_tx", "complete_tx"),
                ("test_wait", "test_wait"),
                ("try_wait", "try_wait"),
            ],
        )?;
        // `arrive.expect_tx` has two of the names.
        let (action, expects) = match action {
            "expect_tx" if m.take("arrive") => ("arrive", true),
            "arrive" => ("arrive", m.take("expect_tx")),
            "arrive_drop" => ("arrive_drop", m.take("expect_tx")),
            action => (action, false),
        };
        let parity = m.take("parity");
        let no_complete = m.take("noComplete");
        m.any(&[("release", ()), ("acquire", ()), ("relaxed", ())]);
        let scope = m.scope().is_some();
        let cluster = m.take("shared::cluster");
        if !cluster && m.any(&[("shared", ()), ("shared::cta", ())]).is_none() {
            return self.unsupported("mbarriers are supported with .shared");
        }
        if m.kind()? != Type::B64 {
            return self.syntax("an mbarrier is .b64");
        }
        let newer = expects
            || cluster
            || scope
            || matches!(action, "expect_tx" | "complete_tx" | "try_wait");
        if newer {
            self.hopper(&format!("this form of mbarrier.{action}"))?;
        }
        let space = if cluster {
            MemorySpace::Cluster
        } else {
            MemorySpace::Shared
        };
        self.note_access(space, 8);
        let (op, address) = match action {
            "init" => {
                self.count::<2>(operands)?;
                let count = self.source(&operands[1], Type::U32)?;
                (MbarrierOp::Init { count }, &operands[0])
            }
            "inval" => {
                self.count::<1>(operands)?;
                (MbarrierOp::Invalidate, &operands[0])
            }
            "arrive" | "arrive_drop" => {
                // `state, [address][, count or bytes]`; without a state where the barrier is remote.
                let has_state = !matches!(operands.first(), Some(Operand::Address { .. }));
                let state = match operands.first() {
                    Some(state) if has_state => self.dest_or_sink(state, Type::B64)?,
                    _ => SINK,
                };
                let rest = &operands[usize::from(has_state)..];
                let last = match rest.get(1) {
                    Some(operand) => Some(self.source(operand, Type::U32)?),
                    None => None,
                };
                if expects != (expects && last.is_some()) || rest.len() > 2 {
                    return self
                        .syntax("mbarrier.arrive takes state, [address] and a count or bytes");
                }
                let op = MbarrierOp::Arrive {
                    state,
                    count: if expects { None } else { last },
                    expect: if expects { last } else { None },
                    drop: action == "arrive_drop",
                    no_complete,
                };
                (op, self.operand(rest, 0)?)
            }
            "expect_tx" | "complete_tx" => {
                self.count::<2>(operands)?;
                let bytes = self.source(&operands[1], Type::U32)?;
                let op = match action {
                    "expect_tx" => MbarrierOp::ExpectTx { bytes },
                    _ => MbarrierOp::CompleteTx { bytes },
                };
                (op, &operands[0])
            }
            _ => {
                let blocking = action == "try_wait";
                // A time limit may follow; no wait of the simulator needs one.
                if operands.len() != 3 && !(blocking && operands.len() == 4) {
                    return self.syntax(format!("mbarrier.{action} takes p, [address], phase"));
                }
                if let Some(limit) = operands.get(3) {
                    self.source(limit, Type::U32)?;
                }
                let kind = if parity { Type::U32 } else { Type::B64 };
                let op = MbarrierOp::Wait {
                    done: self.pred_dest(&operands[0])?,
                    phase: self.source(&operands[2], kind)?,
                    parity,
                    blocking,
                };
                (op, &operands[1])
            }
        };
        let address = self.address(address, space)?;
        Ok(Op::Mbarrier { op, address })
    }
}
