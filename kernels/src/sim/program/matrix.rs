//! Decoding of asynchronous copies and matrix instructions.

use super::super::error::Outcome;
use super::super::parse::Operand;
use super::super::parse::types::Type;
use super::Class;
use super::decode::{Decoder, Place};
use super::modifiers::Modifiers;
use super::op::{
    Address, Bulk, MatrixElement, MbarrierOp, MemorySpace, Op, SINK, Slot, Wgmma, WgmmaA,
};

type Found = Outcome<Option<(Op, Class)>>;

impl<'t> Decoder<'_, 't> {
    pub(super) fn matrix(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Found {
        let found = match opcode {
            "cp" => {
                if !m.take("async") {
                    return self.unsupported("only cp.async is known");
                }
                if m.take("bulk") {
                    (self.bulk(m, operands)?, Class::AsyncCopy)
                } else {
                    (self.copy_async(m, operands)?, Class::AsyncCopy)
                }
            }
            "ldmatrix" | "stmatrix" => {
                let op = self.move_matrices(opcode == "ldmatrix", m, operands)?;
                (op, Class::MatrixMove)
            }
            "movmatrix" => {
                self.count::<2>(operands)?;
                if !(m.take("sync") && m.take("aligned") && m.take("m8n8") && m.take("trans")) {
                    return self.syntax("the form is movmatrix.sync.aligned.m8n8.trans.b16");
                }
                m.kind()?;
                let op = Op::MoveMatrix {
                    d: self.dest(&operands[0], Type::B32)?,
                    a: self.source(&operands[1], Type::B32)?,
                };
                (op, Class::MatrixMove)
            }
            "mma" => (self.mma(m, operands)?, Class::Matrix),
            "wgmma" => self.wgmma(m, operands)?,
            _ => return Ok(None),
        };
        Ok(Some(found))
    }

    fn copy_async(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<Op> {
        if m.take("commit_group") {
            self.count::<0>(operands)?;
            return Ok(Op::CopyCommit);
        }
        if m.take("wait_group") {
            self.count::<1>(operands)?;
            let pending = self.immediate(&operands[0])?.min(u64::from(u32::MAX)) as u32;
            return Ok(Op::CopyWait { pending });
        }
        if m.take("wait_all") {
            self.count::<0>(operands)?;
            return Ok(Op::CopyWaitAll);
        }
        if m.take("mbarrier") {
            self.count::<1>(operands)?;
            let no_increment = m.take("noinc");
            if !m.take("arrive") || m.any(&[("shared", ()), ("shared::cta", ())]).is_none() {
                return self.syntax("the form is cp.async.mbarrier.arrive.noinc.shared.b64");
            }
            m.kind()?;
            self.note_access(MemorySpace::Shared, 8);
            return Ok(Op::Mbarrier {
                op: MbarrierOp::CopyArrive { no_increment },
                address: self.address(&operands[0], MemorySpace::Shared)?,
            });
        }
        let around = m.need("a cache level", &[("ca", false), ("cg", true)])?;
        m.cache_hints();
        if m.any(&[("shared", ()), ("shared::cta", ())]).is_none() || !m.take("global") {
            return self.syntax("cp.async copies .shared.global");
        }
        if !(3..=5).contains(&operands.len()) {
            return self.syntax("cp.async takes [shared], [global], bytes[, source bytes]");
        }
        let bytes = self.immediate(&operands[2])?;
        if !matches!(bytes, 4 | 8 | 16) || around && bytes != 16 {
            return self.syntax(format!(
                "cp.async copies 4, 8 or 16 bytes (.cg: 16), not {bytes}"
            ));
        }
        self.note_access(MemorySpace::Shared, bytes as u32);
        // The source may end anywhere within the copy.
        let partial = operands.len() > 3;
        let unit = match operands.get(3) {
            Some(Operand::Int(n)) => 1u32 << (n | bytes).trailing_zeros(),
            Some(_) => 2,
            None => bytes as u32,
        };
        self.note_access(MemorySpace::Global, unit);
        let (mut source_bytes, mut ignore) = (None, None);
        if partial {
            let is_pred = |operand: &Operand<'t>| match operand {
                Operand::Register(r) => self.entry.registers[*r as usize] == Type::Pred,
                Operand::Not(_) => true,
                _ => false,
            };
            if is_pred(&operands[3]) {
                ignore = Some(self.pred(&operands[3])?);
            } else {
                source_bytes = Some(self.source(&operands[3], Type::U32)?);
                if let Some(operand) = operands.get(4) {
                    ignore = Some(self.pred(operand)?);
                }
            }
        }
        Ok(Op::CopyAsync {
            to: self.address(&operands[0], MemorySpace::Shared)?,
            from: self.address(&operands[1], MemorySpace::Global)?,
            bytes: bytes as u32,
            source_bytes,
            ignore,
        })
    }

    fn bulk(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<Op> {
        self.hopper("cp.async.bulk")?;
        self.async_proxy = true;
        if m.take("commit_group") {
            self.count::<0>(operands)?;
            return Ok(Op::BulkCommit);
        }
        if m.take("wait_group") {
            self.count::<1>(operands)?;
            return Ok(Op::BulkWait {
                pending: self.immediate(&operands[0])?.min(u64::from(u32::MAX)) as u32,
                read: m.take("read"),
            });
        }
        if m.take("prefetch") {
            return self.unsupported("bulk prefetches are not supported: leave them out");
        }
        let tensor = m.take("tensor");
        let rank = m.any(&[("1d", 1usize), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)]);
        if tensor != rank.is_some() {
            return self.syntax("cp.async.bulk.tensor needs a rank from .1d to .5d");
        }
        if m.take("im2col") {
            return self.unsupported("im2col tensor maps are not supported: use .tile");
        }
        m.take("tile");
        let spaces = [
            ("shared::cluster", MemorySpace::Cluster),
            ("shared::cta", MemorySpace::Shared),
            ("global", MemorySpace::Global),
        ];
        let (Some(to), Some(from)) = (m.earliest(&spaces), m.earliest(&spaces)) else {
            return self.syntax("cp.async.bulk needs the spaces that it copies to and from");
        };
        let completion = m.need(
            "a way to complete",
            &[
                ("mbarrier::complete_tx::bytes", true),
                ("bulk_group", false),
            ],
        )?;
        let multicast = m.take("multicast::cluster");
        if m.take("L2::cache_hint") {
            return self.unsupported("cache policies are not supported: leave them out");
        }
        let (mask_at, bulk) = match (tensor, to, from, completion) {
            (true, MemorySpace::Cluster | MemorySpace::Shared, MemorySpace::Global, true) => {
                let (map, coordinates) = self.tensor(self.operand(operands, 1)?, rank)?;
                let barrier = self.operand(operands, 2)?;
                let bulk = Bulk::TensorLoad {
                    to: self.address(&operands[0], to)?,
                    map,
                    coordinates,
                    barrier: self.address(barrier, to)?,
                    multicast: None,
                };
                (3, bulk)
            }
            (true, MemorySpace::Global, MemorySpace::Shared, false) => {
                let (map, coordinates) = self.tensor(self.operand(operands, 0)?, rank)?;
                let from = self.operand(operands, 1)?;
                let bulk = Bulk::TensorStore {
                    map,
                    coordinates,
                    from: self.address(from, MemorySpace::Shared)?,
                };
                (2, bulk)
            }
            (false, MemorySpace::Cluster | MemorySpace::Shared, MemorySpace::Global, true) => {
                let (from, bytes, barrier) = (
                    self.operand(operands, 1)?,
                    self.operand(operands, 2)?,
                    self.operand(operands, 3)?,
                );
                let bulk = Bulk::GlobalToShared {
                    to: self.address(&operands[0], to)?,
                    from: self.address(from, MemorySpace::Global)?,
                    bytes: self.source(bytes, Type::U32)?,
                    barrier: self.address(barrier, to)?,
                    multicast: None,
                };
                (4, bulk)
            }
            (false, MemorySpace::Cluster, MemorySpace::Shared, true) => {
                let (from, bytes, barrier) = (
                    self.operand(operands, 1)?,
                    self.operand(operands, 2)?,
                    self.operand(operands, 3)?,
                );
                let bulk = Bulk::SharedToCluster {
                    to: self.address(&operands[0], to)?,
                    from: self.address(from, MemorySpace::Shared)?,
                    bytes: self.source(bytes, Type::U32)?,
                    barrier: self.address(barrier, to)?,
                };
                (4, bulk)
            }
            (false, MemorySpace::Global, MemorySpace::Shared, false) => {
                let (from, bytes) = (self.operand(operands, 1)?, self.operand(operands, 2)?);
                let bulk = Bulk::SharedToGlobal {
                    to: self.address(&operands[0], MemorySpace::Global)?,
                    from: self.address(from, MemorySpace::Shared)?,
                    bytes: self.source(bytes, Type::U32)?,
                };
                (3, bulk)
            }
            _ => return self.syntax("cp.async.bulk does not copy this way"),
        };
        let bulk = match (multicast, bulk) {
            (false, bulk) => bulk,
            (
                true,
                Bulk::TensorLoad {
                    to,
                    map,
                    coordinates,
                    barrier,
                    ..
                },
            ) => {
                let mask = self.operand(operands, mask_at)?;
                Bulk::TensorLoad {
                    to,
                    map,
                    coordinates,
                    barrier,
                    multicast: Some(self.source(mask, Type::U16)?),
                }
            }
            (
                true,
                Bulk::GlobalToShared {
                    to,
                    from,
                    bytes,
                    barrier,
                    ..
                },
            ) => {
                let mask = self.operand(operands, mask_at)?;
                Bulk::GlobalToShared {
                    to,
                    from,
                    bytes,
                    barrier,
                    multicast: Some(self.source(mask, Type::U16)?),
                }
            }
            (true, _) => return self.syntax("this copy has no .multicast::cluster"),
        };
        if operands.len() != mask_at + usize::from(multicast) {
            return self.syntax("this form of cp.async.bulk takes another number of operands");
        }
        Ok(Op::Bulk(Box::new(bulk)))
    }

    /// `[map, {coordinates}]`.
    fn tensor(
        &mut self,
        operand: &Operand<'t>,
        rank: Option<usize>,
    ) -> Outcome<(Address, Vec<Slot>)> {
        let Operand::Address {
            base, coordinates, ..
        } = operand
        else {
            return self.syntax("a tensor is given as [map, {coordinates}]");
        };
        if Some(coordinates.len()) != rank {
            return self.syntax("the tensor's rank and its coordinates do not agree");
        }
        let map = match &**base {
            Operand::Name(name, None) => match self.place(name) {
                Some(Place::Param(offset, _)) => Address {
                    space: MemorySpace::Generic,
                    base: self.constant(super::PARAM_WINDOW + u64::from(offset), true)?,
                    wide: true,
                    offset: 0,
                },
                _ => return self.syntax(format!("{name} is no parameter")),
            },
            _ => self.address(operand, MemorySpace::Generic)?,
        };
        let coordinates = coordinates
            .iter()
            .map(|c| self.source(c, Type::S32))
            .collect::<Outcome<Vec<Slot>>>()?;
        Ok((map, coordinates))
    }

    fn move_matrices(
        &mut self,
        load: bool,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<Op> {
        self.count::<2>(operands)?;
        if !load {
            self.hopper("stmatrix")?;
        }
        if !(m.take("sync") && m.take("aligned") && m.take("m8n8")) {
            return self.syntax("the form is ldmatrix.sync.aligned.m8n8.x4.shared.b16");
        }
        let count = m.need("a count", &[("x1", 1u8), ("x2", 2), ("x4", 4)])?;
        let transpose = m.take("trans");
        if m.any(&[("shared", ()), ("shared::cta", ())]).is_none() {
            return self.unsupported("ldmatrix and stmatrix are supported with .shared");
        }
        if m.kind()? != Type::B16 {
            return self.syntax("the matrices' type is .b16");
        }
        let (registers, address) = match load {
            true => (&operands[0], &operands[1]),
            false => (&operands[1], &operands[0]),
        };
        let items = self.items(registers);
        if items.len() != usize::from(count) {
            return self.syntax(format!("{count} registers are needed"));
        }
        let mut slots = [SINK; 4];
        for (slot, item) in slots.iter_mut().zip(items) {
            *slot = self.dest(item, Type::B32)?;
        }
        self.note_access(MemorySpace::Shared, if load { 16 } else { 4 });
        let address = self.address(address, MemorySpace::Shared)?;
        Ok(if load {
            Op::LoadMatrix {
                d: slots,
                count,
                transpose,
                address,
            }
        } else {
            Op::StoreMatrix {
                a: slots,
                count,
                transpose,
                address,
            }
        })
    }

    fn element(&self, kind: Type) -> Outcome<MatrixElement> {
        match kind {
            Type::Bf16 => Ok(MatrixElement::Bf16),
            Type::F16 => Ok(MatrixElement::F16),
            _ => self.unsupported("matrix instructions are supported for bf16 and f16 into f32"),
        }
    }

    /// `.f32.bf16.bf16[.f32]`.
    fn matrix_types(&mut self, m: &mut Modifiers<'t>, with_c: bool) -> Outcome<MatrixElement> {
        let (d, a, b) = (m.kind()?, m.kind()?, m.kind()?);
        let c = if with_c { m.kind()? } else { Type::F32 };
        if d != Type::F32 || c != Type::F32 || a != b {
            return self.unsupported("matrix instructions are supported for bf16 and f16 into f32");
        }
        self.element(a)
    }

    /// The registers of one operand; sources may be zero constants.
    fn fragment<const N: usize>(
        &mut self,
        operand: &Operand<'t>,
        used: usize,
        kind: Type,
    ) -> Outcome<[Slot; N]> {
        let items = self.items(operand);
        if items.len() != used {
            return self.syntax(format!("an operand of {used} registers is needed"));
        }
        let mut slots = [SINK; N];
        for (slot, item) in slots.iter_mut().zip(items) {
            *slot = self.source(item, kind)?;
        }
        Ok(slots)
    }

    fn mma(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<Op> {
        self.count::<4>(operands)?;
        if !(m.take("sync") && m.take("aligned")) {
            return self.syntax("mma needs .sync.aligned");
        }
        let k = m.any(&[("m16n8k16", 16u8), ("m16n8k8", 8)]);
        let Some(k) = k else {
            return self.unsupported("mma is supported for m16n8k16 and m16n8k8");
        };
        if !(m.take("row") && m.take("col")) {
            return self.syntax("mma needs .row.col");
        }
        let element = self.matrix_types(m, true)?;
        let half = usize::from(k / 8);
        for item in self.items(&operands[0]) {
            if !matches!(item, Operand::Register(_)) {
                return self.syntax("the destination must be registers");
            }
        }
        Ok(Op::Mma {
            element,
            k,
            d: self.fragment(&operands[0], 4, Type::F32)?,
            a: self.fragment(&operands[1], 2 * half, Type::B32)?,
            b: self.fragment(&operands[2], half, Type::B32)?,
            c: self.fragment(&operands[3], 4, Type::F32)?,
        })
    }

    fn wgmma(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<(Op, Class)> {
        self.hopper("wgmma")?;
        self.async_proxy = true;
        let action = m.need(
            "an action",
            &[
                ("mma_async", 0),
                ("fence", 1),
                ("commit_group", 2),
                ("wait_group", 3),
            ],
        )?;
        if !(m.take("sync") && m.take("aligned")) {
            return self.syntax("wgmma needs .sync.aligned");
        }
        match action {
            1 => {
                self.count::<0>(operands)?;
                return Ok((Op::WgmmaFence, Class::Barrier));
            }
            2 => {
                self.count::<0>(operands)?;
                return Ok((Op::WgmmaCommit, Class::Barrier));
            }
            3 => {
                self.count::<1>(operands)?;
                let pending = self.immediate(&operands[0])?.min(u64::from(u32::MAX)) as u32;
                return Ok((Op::WgmmaWait { pending }, Class::Barrier));
            }
            _ => {}
        }
        let shapes: Vec<(String, u32)> = (1..=32)
            .map(|i| (format!("m64n{}k16", 8 * i), 8 * i))
            .collect();
        let shapes: Vec<(&str, u32)> = shapes.iter().map(|(s, n)| (s.as_str(), *n)).collect();
        let n = m.need("a shape", &shapes)?;
        let element = self.matrix_types(m, false)?;
        let registers = matches!(operands.get(1), Some(Operand::Vector(_)));
        let wanted = if registers { 7 } else { 8 };
        if operands.len() != wanted {
            return self.syntax(format!("this form of wgmma takes {wanted} operands"));
        }
        let items = self.items(&operands[0]);
        if items.len() as u32 != n / 2 {
            return self.syntax(format!("D has {} registers, not {}", n / 2, items.len()));
        }
        let d = items
            .iter()
            .map(|item| self.dest(item, Type::F32))
            .collect::<Outcome<Vec<Slot>>>()?;
        let a = if registers {
            WgmmaA::Registers(self.fragment(&operands[1], 4, Type::B32)?)
        } else {
            WgmmaA::Descriptor(self.source(&operands[1], Type::B64)?)
        };
        let b = self.source(&operands[2], Type::B64)?;
        let scale_d = self.pred(&operands[3])?;
        let mut signs = [false; 2];
        for (sign, operand) in signs.iter_mut().zip(&operands[4..6]) {
            *sign = match self.immediate(operand)? as i64 {
                1 => false,
                -1 => true,
                other => return self.syntax(format!("a scale is 1 or -1, not {other}")),
            };
        }
        let mut transposes = [false; 2];
        let given = &operands[6..];
        let skip = usize::from(registers);
        for (transpose, operand) in transposes[skip..].iter_mut().zip(given) {
            *transpose = match self.immediate(operand)? {
                0 => false,
                1 => true,
                other => return self.syntax(format!("a transpose is 0 or 1, not {other}")),
            };
        }
        let wgmma = Wgmma {
            element,
            n,
            d,
            a,
            b,
            scale_d,
            negate_a: signs[0],
            negate_b: signs[1],
            transpose_a: transposes[0],
            transpose_b: transposes[1],
        };
        Ok((Op::Wgmma(Box::new(wgmma)), Class::Matrix))
    }
}
