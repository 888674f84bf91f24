//! The text of one kernel while it is written: lines, registers, parameters, and the rules that hold between them.
//!
//! What can be wrong with a kernel that Rust's types do not show is found here, while it is written: a register used
//! outside of the block that sets it, a stale reading of a variable, an instruction that the arch does not have, a
//! parameter declared twice. Kernels are written by us from a `config` that has refused what users may ask wrongly, so
//! these are panics; each says which kernel, after which comment, and what to do.

use std::cell::{Cell, RefCell};
use std::fmt;

use super::text::{Line, Operand, Text};
use super::types::{Class, Pred, Type};
use super::value::{Condition, Facts, Repr, Value, Variable};
use crate::launch::{Arch, Kernel, Launch};

/// Writes one kernel.
///
/// Every method appends to the text, through a shared reference: values hold one too, so that `a + b` can append.
pub struct Assembler {
    name: String,
    arch: Arch,
    block: [u32; 3],
    cluster: Cell<[u32; 3]>,
    state: RefCell<State>,
}

impl fmt::Debug for Assembler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {} for {}", self.name, self.arch)
    }
}

/// A written kernel, and what a launch of it needs besides its grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembled {
    pub kernel: Kernel,
    /// Threads of a CTA.
    pub block: [u32; 3],
    /// CTAs of a cluster.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of a CTA, in bytes.
    pub shared_bytes: u32,
}

impl Assembled {
    pub fn launch(&self, grid: [u32; 3]) -> Launch {
        Launch {
            grid,
            block: self.block,
            cluster: self.cluster,
            shared_bytes: self.shared_bytes,
        }
    }
}

#[derive(Default)]
struct State {
    contract: Vec<String>,
    directives: Vec<String>,
    parameters: Vec<Parameter>,
    registers: Vec<Register>,
    lines: Vec<Line>,
    /// The blocks that are open, outermost first.
    scopes: Vec<usize>,
    scope_count: usize,
    loops: Vec<Loop>,
    guard: Option<(Operand, bool)>,
    label_count: usize,
    shared_bytes: u32,
}

/// A `.param` of the entry.
pub(super) struct Parameter {
    pub declaration: String,
    pub name: String,
}

struct Register {
    class: Class,
    /// The block outside of which it has no value.
    scope: usize,
    facts: Facts,
    variable: bool,
    /// The number of lines when it was last set.
    set_at: usize,
    /// Whether [`Variable::set`] took its instruction over.
    moved: bool,
}

/// An open loop.
struct Loop {
    start: usize,
    /// Variables whose readings from before the loop were used inside: those may not be set inside too.
    read_before: Vec<usize>,
}

impl Assembler {
    /// A kernel of CTAs with `block` threads along x, y, z.
    pub fn new(name: impl Into<String>, arch: Arch, block: [u32; 3]) -> Assembler {
        let name = name.into();
        let is_identifier = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        assert!(is_identifier, "{name:?} is no PTX identifier");
        let threads: u32 = block.iter().product();
        assert!(
            (1..=1024).contains(&threads),
            "{name}: a CTA of {threads} threads; 1 to 1024 can be launched"
        );
        let state = State {
            scopes: vec![0],
            ..State::default()
        };
        Assembler {
            name,
            arch,
            block,
            cluster: Cell::new([1; 3]),
            state: RefCell::new(state),
        }
    }

    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Threads of a CTA along x, y, z.
    pub fn block(&self) -> [u32; 3] {
        self.block
    }

    /// What a reader must know first: formula, grid, memory, register budget. Printed above the entry.
    #[track_caller]
    pub fn contract(&self, text: &str) {
        self.check_comment(text);
        let lines = text.lines().map(|line| line.trim().to_string());
        self.state.borrow_mut().contract.extend(lines);
    }

    /// A comment on the instructions that follow.
    #[track_caller]
    pub fn comment(&self, text: impl fmt::Display) {
        let text = text.to_string();
        self.check_comment(&text);
        let mut state = self.state.borrow_mut();
        let depth = state.scopes.len();
        for line in text.lines() {
            state.lines.push(Line::Comment(line.to_string(), depth));
        }
    }

    /// Assemblers of PTX take ASCII only, in comments too.
    #[track_caller]
    fn check_comment(&self, text: &str) {
        if !text.is_ascii() {
            self.misuse(format_args!("a comment that is not ASCII: {text}"));
        }
    }

    /// `.maxnreg`: the registers that a thread may have.
    pub fn max_registers(&self, count: u32) {
        self.directive(format!(".maxnreg {count}"));
    }

    /// `.minnctapersm`: the CTAs that must fit on one multiprocessor together.
    pub fn min_ctas(&self, count: u32) {
        self.directive(format!(".minnctapersm {count}"));
    }

    /// `.reqnctapercluster`: CTAs of a cluster along x, y, z.
    pub fn cluster(&self, ctas: [u32; 3]) {
        self.require(Arch::Sm90a, "a cluster");
        let [x, y, z] = ctas;
        self.directive(".explicitcluster".to_string());
        self.directive(format!(".reqnctapercluster {x}, {y}, {z}"));
        self.cluster.set(ctas);
    }

    fn directive(&self, text: String) {
        self.state.borrow_mut().directives.push(text);
    }

    /// Declares the next `.param`. `declaration` is what stands between `.param` and the name, and `suffix` after it.
    pub(super) fn declare_parameter(&self, declaration: &str, name: &str, suffix: &str) {
        let mut state = self.state.borrow_mut();
        if state.parameters.iter().any(|p| p.name == name) {
            drop(state);
            self.misuse(format_args!("parameter {name} is declared twice"));
        }
        state.parameters.push(Parameter {
            declaration: format!(".param {declaration} {name}{suffix}"),
            name: name.to_string(),
        });
    }

    /// Reserves `bytes` of shared memory at a multiple of `align`, and gives their offset.
    pub(super) fn reserve_shared(&self, bytes: u32, align: u32) -> u32 {
        assert!(align.is_power_of_two() && align <= SHARED_ALIGNMENT);
        let mut state = self.state.borrow_mut();
        let start = state.shared_bytes.next_multiple_of(align);
        state.shared_bytes = start + bytes;
        if state.shared_bytes > self.arch.max_shared_bytes() {
            let wanted = state.shared_bytes;
            drop(state);
            self.misuse(format_args!(
                "{wanted} bytes of shared memory; {} has {}",
                self.arch,
                self.arch.max_shared_bytes()
            ));
        }
        start
    }

    /// Shared memory reserved so far, in bytes.
    pub(super) fn shared_bytes(&self) -> u32 {
        self.state.borrow().shared_bytes
    }

    /// Stops at a mistake of the kernel's author.
    #[track_caller]
    pub(super) fn misuse(&self, what: impl fmt::Display) -> ! {
        let state = self.state.borrow();
        let comment = state.lines.iter().rev().find_map(|line| match line {
            Line::Comment(text, _) => Some(text.as_str()),
            _ => None,
        });
        panic!(
            "kernel {} ({}), after \"{}\": {what}",
            self.name,
            self.arch,
            comment.unwrap_or("")
        );
    }

    /// Refuses an instruction that the arch does not have.
    #[track_caller]
    pub(super) fn require(&self, arch: Arch, what: &str) {
        if self.arch < arch {
            self.misuse(format_args!("{what} needs {arch}"));
        }
    }

    /// The number of lines so far: the age of whatever is read now.
    pub(super) fn now(&self) -> usize {
        self.state.borrow().lines.len()
    }

    pub(super) fn facts(&self, id: usize) -> Facts {
        self.state.borrow().registers[id].facts
    }

    pub(super) fn learn(&self, id: usize, change: impl FnOnce(&mut Facts)) {
        change(&mut self.state.borrow_mut().registers[id].facts);
    }

    /// A new register, which the caller's next instruction sets.
    fn register<T: Type>(&self, facts: Facts, variable: bool) -> usize {
        let mut state = self.state.borrow_mut();
        let scope = *state.scopes.last().expect("the kernel's own block is open");
        let set_at = state.lines.len();
        state.registers.push(Register {
            class: T::CLASS,
            scope,
            facts,
            variable,
            set_at,
            moved: false,
        });
        state.registers.len() - 1
    }

    pub(super) fn define<T: Type>(&self, facts: Facts) -> Value<'_, T> {
        let id = self.register::<T>(facts, false);
        Value::new(Repr::Register {
            assembler: self,
            id,
            read: self.now(),
        })
    }

    /// A variable that starts as `value`. Nothing is known of it: not even that it stays a multiple of something.
    pub fn variable<'k, T: Type>(&'k self, value: impl super::IntoValue<'k, T>) -> Variable<'k, T> {
        self.variable_with(value, Facts::NONE)
    }

    /// A variable whose every value is a multiple of the power of two `multiple`; setting it otherwise does not assemble.
    pub fn variable_multiple_of<'k, T: Type>(
        &'k self,
        value: impl super::IntoValue<'k, T>,
        multiple: u64,
    ) -> Variable<'k, T> {
        self.variable_with(value, Facts::multiple_of(multiple))
    }

    pub(super) fn variable_with<'k, T: Type>(
        &'k self,
        value: impl super::IntoValue<'k, T>,
        facts: Facts,
    ) -> Variable<'k, T> {
        let value = value.into_value();
        let variable = Variable::new(self, self.register::<T>(facts, true));
        self.set(variable, value);
        variable
    }

    pub(super) fn set<T: Type>(&self, variable: Variable<'_, T>, value: Value<'_, T>) {
        let wanted = self.facts(variable.id).multiple();
        let known = value.facts().multiple();
        if known < wanted {
            self.misuse(format_args!(
                "a variable that stays a multiple of {wanted} is set to a value that is only known to be one of {known}"
            ));
        }
        if !self.take_over(variable.id, &value.operand()) {
            let opcode = format!("mov.{}", T::NAME);
            self.emit(&opcode, vec![variable.operand()], vec![value.operand()]);
        }
    }

    /// Lets the latest instruction write `variable` instead of the value that it computes; false if it does not compute
    /// that one alone.
    fn take_over(&self, variable: usize, value: &Operand) -> bool {
        let Operand::Register { id: value, .. } = *value else {
            return false;
        };
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let now = state.lines.len();
        let guarded = state.guard.is_some();
        if state.registers[value].variable {
            return false;
        }
        let Some(Line::Instruction {
            destinations,
            guard,
            ..
        }) = state.lines.last_mut()
        else {
            return false;
        };
        match destinations.as_mut_slice() {
            [Operand::Register { id, .. }] if *id == value && guard.is_some() == guarded => {
                *id = variable;
            }
            _ => return false,
        }
        state.registers[value].moved = true;
        state.registers[variable].set_at = now;
        true
    }

    /// Appends one instruction, after checking every register that it reads and writes.
    #[track_caller]
    pub(super) fn emit(&self, opcode: &str, destinations: Vec<Operand>, sources: Vec<Operand>) {
        let guard = self.state.borrow().guard.clone();
        if let Some((predicate, _)) = &guard {
            self.check_read(predicate);
        }
        sources.iter().for_each(|operand| self.check_read(operand));
        for operand in &destinations {
            // A store reads its destination's address.
            if !operand.is_written() {
                self.check_read(operand);
            }
        }
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let depth = state.scopes.len();
        state.lines.push(Line::Instruction {
            guard,
            opcode: opcode.to_string(),
            destinations: destinations.clone(),
            sources,
            depth,
        });
        let now = state.lines.len();
        for operand in &destinations {
            if operand.is_written() {
                operand.for_each_register(&mut |id, _| state.registers[id].set_at = now);
            }
        }
    }

    #[track_caller]
    fn check_read(&self, operand: &Operand) {
        let mut mistake = None;
        operand.for_each_register(&mut |id, read| {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            let register = &state.registers[id];
            if register.moved {
                mistake = Some(
                    "a value is used that was moved into a variable; read the variable instead",
                );
            } else if !state.scopes.contains(&register.scope) {
                mistake = Some(
                    "a value is used outside of the block that computes it, where it may never have been computed; \
                     declare a variable before the block and set it inside",
                );
            } else if register.variable && read < register.set_at {
                mistake = Some(
                    "a reading of a variable is used after the variable was set again; read it anew, or copy() it first",
                );
            } else if register.variable {
                for open in state.loops.iter_mut().filter(|open| read <= open.start) {
                    open.read_before.push(id);
                }
            }
        });
        if let Some(mistake) = mistake {
            self.misuse(mistake);
        }
    }

    /// Appends an instruction that computes one value.
    #[track_caller]
    pub(super) fn compute<T: Type>(
        &self,
        opcode: &str,
        sources: Vec<Operand>,
        facts: Facts,
    ) -> Value<'_, T> {
        let value = self.define(facts);
        self.emit(opcode, vec![value.operand()], sources);
        value
    }

    /// A name for a place in the text that nobody else has.
    pub(super) fn label(&self, purpose: &str) -> String {
        let mut state = self.state.borrow_mut();
        state.label_count += 1;
        format!("{purpose}_{}", state.label_count)
    }

    pub(super) fn place(&self, label: &str) {
        self.refuse_guard("a label");
        let mut state = self.state.borrow_mut();
        state.lines.push(Line::Label(label.to_string()));
    }

    /// Refuses what cannot be predicated.
    #[track_caller]
    pub(super) fn refuse_guard(&self, what: &str) {
        if self.state.borrow().guard.is_some() {
            self.misuse(format_args!(
                "{what} inside when(); use if_() for more than predicated instructions"
            ));
        }
    }

    /// Runs `body` as a block: what it computes has no value outside.
    pub(super) fn scope<R>(&self, body: impl FnOnce() -> R) -> R {
        {
            let mut state = self.state.borrow_mut();
            state.scope_count += 1;
            let scope = state.scope_count;
            state.scopes.push(scope);
        }
        let result = body();
        self.state.borrow_mut().scopes.pop();
        result
    }

    /// Runs `body` as a block that may be executed again.
    #[track_caller]
    pub(super) fn loop_scope<R>(&self, body: impl FnOnce() -> R) -> R {
        let start = self.now();
        self.state.borrow_mut().loops.push(Loop {
            start,
            read_before: vec![],
        });
        let result = self.scope(body);
        let stale = {
            let mut state = self.state.borrow_mut();
            let closed = state.loops.pop().expect("pushed above");
            let mut read = closed.read_before.iter();
            read.any(|&id| state.registers[id].set_at > start)
        };
        if stale {
            self.misuse(
                "a variable is read before a loop, and the reading used inside, where the variable is set: the second \
                 time round it would be another value; read it inside, or copy() it first",
            );
        }
        result
    }

    /// Runs `body` with every instruction under `@condition`.
    pub(super) fn guarded<R>(&self, condition: Condition<'_>, body: impl FnOnce() -> R) -> R {
        self.refuse_guard("when()");
        let guard = (condition.value.operand(), condition.negated);
        self.check_read(&guard.0);
        self.state.borrow_mut().guard = Some(guard);
        let result = self.scope(body);
        self.state.borrow_mut().guard = None;
        result
    }

    /// A branch to `label`, under a condition or always.
    pub(super) fn branch(&self, condition: Option<Condition<'_>>, label: &str) {
        self.refuse_guard("a branch");
        self.under(condition, "bra", vec![Operand::Text(label.to_string())]);
    }

    /// One instruction without results, under a condition or always.
    pub(super) fn under(
        &self,
        condition: Option<Condition<'_>>,
        opcode: &str,
        sources: Vec<Operand>,
    ) {
        if let Some(Condition { value, negated }) = condition {
            self.refuse_guard("a condition");
            self.state.borrow_mut().guard = Some((value.operand(), negated));
            self.emit(opcode, vec![], sources);
            self.state.borrow_mut().guard = None;
        } else {
            self.emit(opcode, vec![], sources);
        }
    }

    /// The kernel's text.
    pub fn finish(&self) -> Assembled {
        self.emit("ret", vec![], vec![]);
        let state = self.state.borrow();
        let text = Text {
            name: &self.name,
            arch: self.arch,
            block: self.block,
            contract: &state.contract,
            directives: &state.directives,
            parameters: &state.parameters,
            uses_shared: state.shared_bytes > 0,
            lines: &state.lines,
            classes: state.registers.iter().map(|r| r.class).collect(),
        };
        Assembled {
            kernel: Kernel {
                name: self.name.clone(),
                arch: self.arch,
                text: text.render(),
            },
            block: self.block,
            cluster: self.cluster.get(),
            shared_bytes: state.shared_bytes,
        }
    }
}

/// Alignment of the kernel's shared memory, in bytes: that of a 128-byte swizzle's pattern.
pub(super) const SHARED_ALIGNMENT: u32 = 1024;

impl<'k, T: Type> From<Value<'k, T>> for Operand {
    fn from(value: Value<'k, T>) -> Operand {
        value.operand()
    }
}

impl<'k> Condition<'k> {
    pub(super) fn opposite(self) -> Condition<'k> {
        Condition {
            negated: !self.negated,
            ..self
        }
    }
}

impl std::ops::Not for Condition<'_> {
    type Output = Self;
    fn not(self) -> Self {
        self.opposite()
    }
}

impl<'k> std::ops::Not for Value<'k, Pred> {
    type Output = Condition<'k>;
    fn not(self) -> Condition<'k> {
        Condition::from(self).opposite()
    }
}
