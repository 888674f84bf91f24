//! The decoder: places registers and variables, types operands, and hands each opcode to the file of its class.

use std::collections::HashMap;

use super::super::error::{Fault, Outcome, Rule};
use super::super::parse::types::Type;
use super::super::parse::{self, Entry, Module, Operand, Space};
use super::modifiers::Modifiers;
use super::op::{Address, MemorySpace, Op, Pred, PredSource, SINK, Slot, Width};
use super::{
    Class, GLOBAL_SHIFT, GlobalVariable, Instruction, MAX_SLOTS, ParamPlace, Preset, Program,
    SHARED_BASE, Special, WRITTEN,
};
use crate::launch::{Arch, BUFFER_ALIGNMENT};

/// What a name that is no register stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// Address in the shared window.
    Shared(u32),
    /// Offset in the parameter block, and bytes.
    Param(u32, u32),
    /// Generic address.
    Global(u64),
    Const(u64),
}

/// A predicate that always holds.
pub(super) const TRUE: PredSource = PredSource {
    pred: 0,
    negate: false,
};

pub(super) struct Decoder<'m, 't> {
    pub entry: &'m Entry<'t>,
    pub arch: Arch,
    pub line: u32,
    places: HashMap<&'t str, Place>,
    slots: Vec<Option<u32>>,
    presets: Vec<(Slot, Preset)>,
    preset_slots: HashMap<PresetKey, Slot>,
    next_slot: u32,
    next_pred: u32,
    touched: Vec<Slot>,
    pub shared_granule: u32,
    pub global_granule: u32,
    pub cross_cta: bool,
    pub async_proxy: bool,
}

#[derive(PartialEq, Eq, Hash)]
enum PresetKey {
    Constant(u64, bool),
    Special(Special),
    Param(u32, Type, bool),
}

/// Decodes `entry` of `module` for `arch`. `buffers` is the number of buffer arguments: module variables follow them in
/// global memory.
///
/// # Errors
/// Instructions that do not exist, that the arch does not have, or whose operands do not fit.
pub fn decode(
    module: &Module<'_>,
    entry: &Entry<'_>,
    arch: Arch,
    buffers: usize,
) -> Outcome<Program> {
    let target = module.target.first().copied().unwrap_or("");
    let generation = |name: &str| -> Option<u32> {
        name.strip_prefix("sm_")?.trim_end_matches('a').parse().ok()
    };
    let fits = match (arch, generation(target)) {
        (Arch::Sm80, Some(n)) => n <= 80 && !target.ends_with('a'),
        (Arch::Sm90a, Some(n)) => n <= 80 || target == "sm_90" || target == "sm_90a",
        _ => false,
    };
    if !fits {
        let why = format!("the text is for {target:?}, which {arch} does not run");
        return Err(Fault::new(Rule::Unsupported, why));
    }
    let oldest = match arch {
        Arch::Sm80 => (7, 0),
        Arch::Sm90a => (8, 0),
    };
    if module.version < oldest {
        let why = format!(
            "PTX ISA {}.{} does not know {arch}: .version {}.{} does",
            module.version.0, module.version.1, oldest.0, oldest.1
        );
        return Err(Fault::new(Rule::Unsupported, why));
    }
    let mut decoder = Decoder {
        entry,
        arch,
        line: entry.line,
        places: HashMap::new(),
        slots: vec![None; entry.registers.len()],
        presets: Vec::new(),
        preset_slots: HashMap::new(),
        next_slot: 0,
        next_pred: 1,
        touched: Vec::new(),
        shared_granule: 16,
        global_granule: 16,
        cross_cta: false,
        async_proxy: false,
    };
    let (globals, shared_end) = decoder.place_variables(module, buffers)?;
    let (params, param_bytes) = decoder.place_params()?;
    let mut instructions = Vec::with_capacity(entry.body.len() + 1);
    for source in &entry.body {
        let first = decoder.touched.len() as u32;
        let (op, class, guard) = decoder.instruction(source)?;
        instructions.push(Instruction {
            op,
            guard,
            class,
            line: source.line,
            touched: (first, decoder.touched.len() as u32 - first),
        });
    }
    // Falling off the end is an exit, which also gives labels at the end a place.
    instructions.push(Instruction {
        op: Op::Exit,
        guard: None,
        class: Class::Control,
        line: entry.body.last().map_or(entry.line, |i| i.line),
        touched: (0, 0),
    });
    Ok(Program {
        instructions,
        touched: decoder.touched,
        slots: decoder.next_slot as usize,
        preds: decoder.next_pred as usize,
        presets: decoder.presets,
        params,
        param_bytes,
        globals,
        shared_end,
        max_threads: entry.max_threads,
        required_threads: entry.required_threads,
        cluster: entry.cluster,
        shared_granule: decoder.shared_granule,
        global_granule: decoder.global_granule,
        cross_cta: decoder.cross_cta,
        async_proxy: decoder.async_proxy,
    })
}

impl<'t> Decoder<'_, 't> {
    pub fn fault<T>(&self, rule: Rule, why: impl Into<String>) -> Outcome<T> {
        Err(Fault::at(rule, self.line, why))
    }

    pub fn syntax<T>(&self, why: impl Into<String>) -> Outcome<T> {
        self.fault(Rule::Syntax, why)
    }

    pub fn unsupported<T>(&self, why: impl Into<String>) -> Outcome<T> {
        self.fault(Rule::Unsupported, why)
    }

    /// Refuses an instruction that Ampere does not have.
    pub fn hopper(&self, what: &str) -> Outcome {
        match self.arch {
            Arch::Sm90a => Ok(()),
            Arch::Sm80 => self.unsupported(format!("sm_80 has no {what}: it came with sm_90")),
        }
    }

    fn place_variables(
        &mut self,
        module: &Module<'t>,
        buffers: usize,
    ) -> Outcome<(Vec<GlobalVariable>, u32)> {
        let mut globals = Vec::new();
        let mut shared = u64::from(SHARED_BASE);
        let mut dynamic = Vec::new();
        let mut dynamic_align = 16;
        for variable in module.variables.iter().chain(&self.entry.variables) {
            let place = match variable.space {
                Space::Global | Space::Const => {
                    let index = (buffers + globals.len() + 1) as u64;
                    globals.push(GlobalVariable {
                        bytes: variable.bytes,
                        contents: variable.contents.clone(),
                        writable: variable.space == Space::Global,
                    });
                    let address = (index << GLOBAL_SHIFT) + BUFFER_ALIGNMENT;
                    match variable.space {
                        Space::Const => Place::Const(address),
                        _ => Place::Global(address),
                    }
                }
                Space::Shared if variable.dynamic => {
                    dynamic_align = dynamic_align.max(variable.align);
                    dynamic.push(variable);
                    continue;
                }
                Space::Shared => {
                    let at = shared.next_multiple_of(u64::from(variable.align.max(1)));
                    shared = at + variable.bytes;
                    if shared > 1 << 20 {
                        self.line = variable.line;
                        return self.fault(Rule::Launch, "shared variables take more than 1 MiB");
                    }
                    Place::Shared(at as u32)
                }
                Space::Local => {
                    self.line = variable.line;
                    return self.unsupported(
                        "local memory is not supported: kernels keep their state in registers",
                    );
                }
            };
            if self.places.insert(variable.name, place).is_some() {
                self.line = variable.line;
                return self.syntax(format!("{} is declared twice", variable.name));
            }
        }
        let end = shared.next_multiple_of(u64::from(dynamic_align)) as u32;
        for variable in dynamic {
            self.places.insert(variable.name, Place::Shared(end));
        }
        Ok((globals, end))
    }

    fn place_params(&mut self) -> Outcome<(Vec<ParamPlace>, u32)> {
        let mut params = Vec::new();
        let mut end = 0u64;
        for param in &self.entry.params {
            let bytes = u64::from(param.kind.bytes()) * u64::from(param.array.unwrap_or(1));
            let at = end.next_multiple_of(u64::from(param.align.max(param.kind.bytes())));
            end = at + bytes;
            if end > 4096 {
                return self.fault(Rule::Launch, "parameters take more than 4096 bytes");
            }
            let place = Place::Param(at as u32, bytes as u32);
            if self.places.insert(param.name, place).is_some() {
                return self.syntax(format!("{} is declared twice", param.name));
            }
            params.push(ParamPlace {
                name: param.name.to_string(),
                kind: param.kind,
                array: param.array.is_some(),
                offset: at as u32,
                bytes: bytes as u32,
            });
        }
        Ok((params, end as u32))
    }

    fn instruction(
        &mut self,
        source: &parse::Instruction<'t>,
    ) -> Outcome<(Op, Class, Option<PredSource>)> {
        self.line = source.line;
        let guard = match source.guard {
            None => None,
            Some((register, negate)) => Some(PredSource {
                pred: self.predicate(register)?,
                negate,
            }),
        };
        let mut modifiers = Modifiers::new(source.opcode, &source.modifiers, source.line);
        let operands = &source.operands[..];
        let m = &mut modifiers;
        let found = match self.arithmetic(source.opcode, m, operands)? {
            Some(found) => Some(found),
            None => match self.conversion(source.opcode, m, operands)? {
                Some(found) => Some(found),
                None => match self.data(source.opcode, m, operands)? {
                    Some(found) => Some(found),
                    None => match self.control(source.opcode, m, operands)? {
                        Some(found) => Some(found),
                        None => self.matrix(source.opcode, m, operands)?,
                    },
                },
            },
        };
        let Some((op, class)) = found else {
            return self.unsupported(format!("instruction {} is not known", source.opcode));
        };
        modifiers.finish()?;
        Ok((op, class, guard))
    }

    /// # Errors
    /// Another number of operands.
    pub fn count<const N: usize>(&self, operands: &[Operand<'t>]) -> Outcome<()> {
        if operands.len() == N {
            return Ok(());
        }
        self.syntax(format!(
            "the instruction takes {N} operands, {} are given",
            operands.len()
        ))
    }

    /// Operand `i`.
    pub fn operand<'o>(&self, operands: &'o [Operand<'t>], i: usize) -> Outcome<&'o Operand<'t>> {
        match operands.get(i) {
            Some(operand) => Ok(operand),
            None => self.syntax(format!("operand {} is missing", i + 1)),
        }
    }

    fn new_slot(&mut self, wide: bool) -> Outcome<Slot> {
        let slot = self.next_slot;
        self.next_slot += 1 + u32::from(wide);
        if self.next_slot as usize > MAX_SLOTS {
            return self.fault(
                Rule::Unsupported,
                format!("the kernel uses more than {MAX_SLOTS} registers and constants"),
            );
        }
        Ok(slot)
    }

    fn touch(&mut self, slot: Slot, wide: bool) -> Slot {
        self.touched.push(slot);
        if wide {
            self.touched.push(slot + 1);
        }
        slot
    }

    /// The place of a register that is no predicate.
    fn register(&mut self, register: parse::Register) -> Outcome<Slot> {
        let kind = self.entry.registers[register as usize];
        let wide = kind.bytes() == 8;
        let slot = match self.slots[register as usize] {
            Some(slot) => slot,
            None => {
                let slot = self.new_slot(wide)?;
                self.slots[register as usize] = Some(slot);
                slot
            }
        };
        Ok(self.touch(slot, wide))
    }

    fn predicate(&mut self, register: parse::Register) -> Outcome<Pred> {
        let kind = self.entry.registers[register as usize];
        if kind != Type::Pred {
            return self.syntax(format!("a predicate is needed, the register is .{kind:?}"));
        }
        let place = &mut self.slots[register as usize];
        Ok(*place.get_or_insert_with(|| {
            self.next_pred += 1;
            self.next_pred - 1
        }))
    }

    fn preset(&mut self, key: PresetKey, preset: Preset, wide: bool) -> Outcome<Slot> {
        if let Some(&slot) = self.preset_slots.get(&key) {
            return Ok(self.touch(slot, wide));
        }
        let slot = self.new_slot(wide)?;
        self.preset_slots.insert(key, slot);
        self.presets.push((slot, preset));
        Ok(self.touch(slot, wide))
    }

    pub fn constant(&mut self, value: u64, wide: bool) -> Outcome<Slot> {
        let value = if wide { value } else { value & 0xFFFF_FFFF };
        self.preset(
            PresetKey::Constant(value, wide),
            Preset::Constant { value, wide },
            wide,
        )
    }

    /// Bytes of the parameter block as a register.
    pub fn param(&mut self, offset: u32, kind: Type, wide: bool) -> Outcome<Slot> {
        self.preset(
            PresetKey::Param(offset, kind, wide),
            Preset::Param { offset, kind, wide },
            wide,
        )
    }

    /// A register type that is not the instruction's.
    fn mistyped<T>(&self, kind: Type, found: Type) -> Outcome<T> {
        self.syntax(format!(
            "an operand of .{} is needed, the register is .{}",
            format!("{kind:?}").to_lowercase(),
            format!("{found:?}").to_lowercase()
        ))
    }

    /// A source operand of type `kind`: a register that goes with it, or an immediate.
    pub fn source(&mut self, operand: &Operand<'t>, kind: Type) -> Outcome<Slot> {
        let wide = kind.bytes() == 8;
        match operand {
            Operand::Register(register) => {
                let found = self.entry.registers[*register as usize];
                if !kind.accepts(found) {
                    return self.mistyped(kind, found);
                }
                self.register(*register)
            }
            Operand::Int(value) if !kind.is_float() => {
                let value = match kind.bytes() {
                    2 => value & 0xFFFF,
                    _ => *value,
                };
                self.constant(value, wide)
            }
            Operand::Float32(bits) if matches!(kind, Type::F32 | Type::B32) => {
                self.constant(u64::from(*bits), false)
            }
            Operand::Float64(bits) if matches!(kind, Type::F64 | Type::B64) => {
                self.constant(*bits, true)
            }
            Operand::Float64(bits) if kind == Type::F32 => {
                let value = f64::from_bits(*bits) as f32;
                self.constant(u64::from(value.to_bits()), false)
            }
            Operand::Name(name, component) => {
                let special = self.special(name, *component)?;
                let found = match special {
                    Some(_) => Type::U32,
                    None => return self.syntax(format!("{name} is not a declared register")),
                };
                if !kind.accepts(found) {
                    return self.mistyped(kind, found);
                }
                match special {
                    Some(special) => {
                        self.preset(PresetKey::Special(special), Preset::Special(special), false)
                    }
                    None => self.syntax(format!("{name} is not a declared register")),
                }
            }
            _ => self.syntax(format!(
                "a register or a constant of .{} is needed",
                format!("{kind:?}").to_lowercase()
            )),
        }
    }

    /// A destination register of type `kind`.
    pub fn dest(&mut self, operand: &Operand<'t>, kind: Type) -> Outcome<Slot> {
        match operand {
            Operand::Register(_) => {
                let first = self.touched.len();
                let slot = self.source(operand, kind)?;
                self.mark_written(first);
                Ok(slot)
            }
            _ => self.syntax("the destination must be a register"),
        }
    }

    /// [`Self::relaxed`] for a destination.
    pub fn relaxed_dest(&mut self, operand: &Operand<'t>, kind: Type) -> Outcome<(Slot, Width)> {
        if !matches!(operand, Operand::Register(_)) {
            return self.syntax("the destination must be a register");
        }
        let first = self.touched.len();
        let found = self.relaxed(operand, kind)?;
        self.mark_written(first);
        Ok(found)
    }

    fn mark_written(&mut self, first: usize) {
        for entry in &mut self.touched[first..] {
            *entry |= WRITTEN;
        }
    }

    /// A destination register or `_`.
    pub fn dest_or_sink(&mut self, operand: &Operand<'t>, kind: Type) -> Outcome<Slot> {
        match operand {
            Operand::Sink => Ok(SINK),
            _ => self.dest(operand, kind),
        }
    }

    /// A register at least as wide as `kind`, as loads, stores and conversions take it; returns its width too.
    pub fn relaxed(&mut self, operand: &Operand<'t>, kind: Type) -> Outcome<(Slot, Width)> {
        let Operand::Register(register) = operand else {
            let width = width_of(kind);
            let slot = match kind.bytes() {
                1 => self.source(operand, Type::B16)?,
                _ => self.source(operand, kind)?,
            };
            return Ok((slot, width));
        };
        let found = self.entry.registers[*register as usize];
        let same_class = found.is_bits() || !found.is_float() && !kind.is_float();
        let fits = kind.accepts(found)
            || (found.bytes() > kind.bytes() && same_class)
            || (kind.is_bits() && found.bytes() == kind.bytes());
        if !fits || found == Type::Pred {
            return self.mistyped(kind, found);
        }
        let slot = self.register(*register)?;
        Ok((slot, width_of(found)))
    }

    pub fn pred(&mut self, operand: &Operand<'t>) -> Outcome<PredSource> {
        match operand {
            Operand::Register(register) => Ok(PredSource {
                pred: self.predicate(*register)?,
                negate: false,
            }),
            Operand::Not(register) => Ok(PredSource {
                pred: self.predicate(*register)?,
                negate: true,
            }),
            Operand::Int(value @ (0 | 1)) => Ok(PredSource {
                negate: *value == 0,
                ..TRUE
            }),
            _ => self.syntax("a predicate is needed"),
        }
    }

    pub fn pred_dest(&mut self, operand: &Operand<'t>) -> Outcome<Pred> {
        match operand {
            Operand::Register(register) => self.predicate(*register),
            _ => self.syntax("a predicate register is needed"),
        }
    }

    /// An immediate.
    pub fn immediate(&self, operand: &Operand<'t>) -> Outcome<u64> {
        match operand {
            Operand::Int(value) => Ok(*value),
            _ => self.syntax("an integer constant is needed"),
        }
    }

    /// The items of `{…}`, or the one operand.
    pub fn items<'o>(&self, operand: &'o Operand<'t>) -> &'o [Operand<'t>] {
        match operand {
            Operand::Vector(items) => items,
            other => std::slice::from_ref(other),
        }
    }

    pub fn place(&self, name: &str) -> Option<Place> {
        self.places.get(name).copied()
    }

    /// `[base + offset]` in `space`.
    pub fn address(&mut self, operand: &Operand<'t>, space: MemorySpace) -> Outcome<Address> {
        let Operand::Address { base, offset, .. } = operand else {
            return self.syntax("an address such as [%rd1+16] is needed");
        };
        let shared = matches!(space, MemorySpace::Shared | MemorySpace::Cluster);
        let (base, wide) = match &**base {
            Operand::Register(register) => match self.entry.registers[*register as usize] {
                kind if kind.is_float() || kind.bytes() < 4 => {
                    return self.syntax("an address must be an integer register");
                }
                kind => {
                    let wide = kind.bytes() == 8;
                    if !wide && !shared {
                        return self.syntax("an address outside shared memory has 64 bits");
                    }
                    (self.register(*register)?, wide)
                }
            },
            Operand::Int(_) => (self.constant(0, true)?, true),
            Operand::Name(name, None) => match (self.place(name), space) {
                (Some(Place::Shared(address)), MemorySpace::Shared | MemorySpace::Cluster) => {
                    (self.constant(u64::from(address), false)?, false)
                }
                (Some(Place::Global(address)), MemorySpace::Global | MemorySpace::Generic)
                | (Some(Place::Const(address)), MemorySpace::Const) => {
                    (self.constant(address, true)?, true)
                }
                (Some(_), _) => {
                    return self.syntax(format!("{name} lies in another state space"));
                }
                (None, _) => return self.syntax(format!("{name} is not declared")),
            },
            _ => return self.syntax("an address must begin with a register or a variable"),
        };
        Ok(Address {
            space,
            base,
            wide,
            offset: *offset,
        })
    }

    /// Notes that `bytes` are the unit of some access in `space`.
    pub fn note_access(&mut self, space: MemorySpace, bytes: u32) {
        let bytes = bytes.max(1);
        if space != MemorySpace::Global && space != MemorySpace::Const {
            self.shared_granule = self.shared_granule.min(bytes);
        }
        if !matches!(space, MemorySpace::Shared | MemorySpace::Cluster) {
            self.global_granule = self.global_granule.min(bytes);
        }
    }

    /// What `%name.component` is.
    pub fn special(&self, name: &str, component: Option<&str>) -> Outcome<Option<Special>> {
        let axis = match component {
            None => None,
            Some("x") => Some(0),
            Some("y") => Some(1),
            Some("z") => Some(2),
            Some(_) => return Ok(None),
        };
        let special = match (name, axis) {
            ("%tid", Some(axis)) => Special::Tid(axis),
            ("%ntid", Some(axis)) => Special::Ntid(axis),
            ("%ctaid", Some(axis)) => Special::Ctaid(axis),
            ("%nctaid", Some(axis)) => Special::Nctaid(axis),
            ("%clusterid", Some(axis)) => Special::ClusterId(axis),
            ("%nclusterid", Some(axis)) => Special::ClusterCount(axis),
            ("%cluster_ctaid", Some(axis)) => Special::ClusterCtaId(axis),
            ("%cluster_nctaid", Some(axis)) => Special::ClusterCtaCount(axis),
            ("%laneid", None) => Special::LaneId,
            ("%warpid", None) => Special::WarpId,
            ("%nwarpid", None) => Special::WarpCount,
            ("%lanemask_eq", None) => Special::LaneMaskEq,
            ("%lanemask_lt", None) => Special::LaneMaskLt,
            ("%lanemask_le", None) => Special::LaneMaskLe,
            ("%lanemask_gt", None) => Special::LaneMaskGt,
            ("%lanemask_ge", None) => Special::LaneMaskGe,
            ("%cluster_ctarank", None) => Special::ClusterCtaRank,
            ("%cluster_nctarank", None) => Special::ClusterCtas,
            ("%smid", None) => Special::SmId,
            ("%nsmid", None) => Special::SmCount,
            ("%dynamic_smem_size", None) => Special::DynamicSharedBytes,
            ("%total_smem_size", None) => Special::TotalSharedBytes,
            _ => return Ok(None),
        };
        let cluster = matches!(
            special,
            Special::ClusterId(_)
                | Special::ClusterCount(_)
                | Special::ClusterCtaId(_)
                | Special::ClusterCtaCount(_)
                | Special::ClusterCtaRank
                | Special::ClusterCtas
        );
        if cluster {
            self.hopper(name)?;
        }
        Ok(Some(special))
    }
}

/// The register width that holds a value of `kind`.
pub(super) fn width_of(kind: Type) -> Width {
    match kind.bytes() {
        1 | 2 => Width::W16,
        8 => Width::W64,
        _ => Width::W32,
    }
}
