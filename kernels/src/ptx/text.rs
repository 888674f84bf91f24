//! How a kernel's lines become text: one instruction a line, registers numbered in the order in which they appear.

use std::fmt::Write as _;

use super::assembler::{Parameter, SHARED_ALIGNMENT};
use super::types::Class;
use crate::launch::Arch;

/// The name under which the text knows the kernel's shared memory.
pub(super) const SHARED: &str = "shared_memory";

/// An operand of an instruction.
#[derive(Clone, Debug)]
pub(super) enum Operand {
    Register {
        id: usize,
        /// How many lines there were when it was read.
        read: usize,
    },
    /// A constant, a label, a name.
    Text(String),
    /// `{a, b}`
    Group(Vec<Operand>),
    /// `[base+offset]`
    Address { base: Box<Operand>, offset: i64 },
    /// `[map, {x, y}]`
    Bracket(Vec<Operand>),
    /// `_|register`
    Sink(Box<Operand>),
}

impl Operand {
    pub fn text(text: impl Into<String>) -> Operand {
        Operand::Text(text.into())
    }

    /// `_|register`: an instruction's second result, without its first.
    pub fn sink_and(second: Operand) -> Operand {
        Operand::Sink(Box::new(second))
    }

    /// Whether a destination is registers, not an address that is read.
    pub fn is_written(&self) -> bool {
        !matches!(self, Operand::Address { .. } | Operand::Bracket(_))
    }

    /// Calls `f(id, read)` for every register in it.
    pub fn for_each_register(&self, f: &mut impl FnMut(usize, usize)) {
        match self {
            Operand::Register { id, read } => f(*id, *read),
            Operand::Text(_) => {}
            Operand::Group(operands) | Operand::Bracket(operands) => {
                operands.iter().for_each(|o| o.for_each_register(f))
            }
            Operand::Address { base, .. } | Operand::Sink(base) => base.for_each_register(f),
        }
    }
}

/// A line of a kernel's body; `depth` blocks are open around it.
pub(super) enum Line {
    Instruction {
        /// A predicate, and whether its opposite is meant.
        guard: Option<(Operand, bool)>,
        opcode: String,
        destinations: Vec<Operand>,
        sources: Vec<Operand>,
        depth: usize,
    },
    Label(String),
    Comment(String, usize),
}

/// Everything that a module's text is made of.
pub(super) struct Text<'a> {
    pub name: &'a str,
    pub arch: Arch,
    pub block: [u32; 3],
    pub contract: &'a [String],
    pub directives: &'a [String],
    pub parameters: &'a [Parameter],
    pub uses_shared: bool,
    pub lines: &'a [Line],
    /// Of every register.
    pub classes: Vec<Class>,
}

impl Text<'_> {
    pub fn render(&self) -> String {
        let mut registers = Registers {
            classes: &self.classes,
            numbers: vec![None; self.classes.len()],
            counts: [0; Class::ALL.len()],
        };
        // The body first: what it uses must be declared above it.
        let mut body = String::new();
        for line in self.lines {
            registers.line(&mut body, line);
        }

        let mut out = String::new();
        let [x, y, z] = self.block;
        let version = self.arch.ptx_version();
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            ".version {version}\n.target {}\n.address_size 64\n\n",
            self.arch
        );
        if self.uses_shared {
            let _ = writeln!(
                out,
                ".extern .shared .align {SHARED_ALIGNMENT} .b8 {SHARED}[];\n"
            );
        }
        for line in self.contract {
            let _ = writeln!(out, "{}", format!("// {line}").trim_end());
        }
        let _ = writeln!(out, ".visible .entry {}(", self.name);
        for (i, parameter) in self.parameters.iter().enumerate() {
            let comma = if i + 1 < self.parameters.len() {
                ","
            } else {
                ""
            };
            let _ = writeln!(out, "    {}{comma}", parameter.declaration);
        }
        let _ = writeln!(out, ")\n.reqntid {x}, {y}, {z}");
        for directive in self.directives {
            let _ = writeln!(out, "{directive}");
        }
        out.push_str("{\n");
        for class in Class::ALL {
            let count = registers.counts[class as usize];
            if count > 0 {
                let (declared, prefix) = (class.declared(), class.prefix());
                let _ = writeln!(out, "    .reg .{declared} %{prefix}<{count}>;");
            }
        }
        out.push('\n');
        out.push_str(&body);
        out.push_str("}\n");
        out
    }
}

/// The numbers that registers have in the text.
struct Registers<'a> {
    classes: &'a [Class],
    numbers: Vec<Option<u32>>,
    counts: [u32; Class::ALL.len()],
}

impl Registers<'_> {
    fn line(&mut self, out: &mut String, line: &Line) {
        let indent = |depth: usize| "    ".repeat(depth);
        match line {
            Line::Label(label) => {
                let _ = writeln!(out, "{label}:");
            }
            Line::Comment(text, depth) => {
                let _ = writeln!(out, "{}// {text}", indent(*depth));
            }
            Line::Instruction {
                guard,
                opcode,
                destinations,
                sources,
                depth,
            } => {
                out.push_str(&indent(*depth));
                if let Some((predicate, negated)) = guard {
                    let not = if *negated { "!" } else { "" };
                    let _ = write!(out, "@{not}{} ", self.operand(predicate));
                }
                out.push_str(opcode);
                for (i, operand) in destinations.iter().chain(sources).enumerate() {
                    let separator = if i == 0 { " " } else { ", " };
                    let _ = write!(out, "{separator}{}", self.operand(operand));
                }
                out.push_str(";\n");
            }
        }
    }

    fn operand(&mut self, operand: &Operand) -> String {
        match operand {
            Operand::Register { id, .. } => {
                let class = self.classes[*id];
                let count = &mut self.counts[class as usize];
                let number = *self.numbers[*id].get_or_insert_with(|| {
                    *count += 1;
                    *count - 1
                });
                format!("%{}{number}", class.prefix())
            }
            Operand::Text(text) => text.clone(),
            Operand::Group(operands) => format!("{{{}}}", self.list(operands)),
            Operand::Bracket(operands) => format!("[{}]", self.list(operands)),
            Operand::Sink(second) => format!("_|{}", self.operand(second)),
            Operand::Address { base, offset } => match offset {
                0 => format!("[{}]", self.operand(base)),
                _ => format!("[{}{offset:+}]", self.operand(base)),
            },
        }
    }

    fn list(&mut self, operands: &[Operand]) -> String {
        let operands: Vec<String> = operands.iter().map(|o| self.operand(o)).collect();
        operands.join(", ")
    }
}
