//! The modifiers of one instruction, taken off one by one, so that none is overlooked.

use super::super::error::{Fault, Outcome, Rule};
use super::super::parse::types::Type;
use super::op::Round;

pub struct Modifiers<'t> {
    opcode: &'t str,
    rest: Vec<&'t str>,
    line: u32,
}

impl<'t> Modifiers<'t> {
    pub fn new(opcode: &'t str, modifiers: &[&'t str], line: u32) -> Self {
        Modifiers {
            opcode,
            rest: modifiers.to_vec(),
            line,
        }
    }

    /// Takes the modifier wherever it stands.
    pub fn take(&mut self, name: &str) -> bool {
        match self.rest.iter().position(|&m| m == name) {
            Some(at) => {
                self.rest.remove(at);
                true
            }
            None => false,
        }
    }

    /// The value of the first of `table` that stands here.
    pub fn any<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        table
            .iter()
            .find(|(name, _)| self.take(name))
            .map(|&(_, value)| value)
    }

    /// The value of the one of `table` that stands first in the text.
    pub fn earliest<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let found = self.rest.iter().enumerate().find_map(|(i, m)| {
            let entry = table.iter().find(|(name, _)| name == m);
            entry.map(|&(_, value)| (i, value))
        });
        found.map(|(i, value)| {
            self.rest.remove(i);
            value
        })
    }

    pub fn need<T: Copy>(&mut self, what: &str, table: &[(&str, T)]) -> Outcome<T> {
        match self.any(table) {
            Some(value) => Ok(value),
            None => {
                let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
                let why = format!(
                    "{} needs {what}: one of .{}",
                    self.opcode,
                    names.join(", .")
                );
                Err(Fault::at(Rule::Syntax, self.line, why))
            }
        }
    }

    /// The first type among the modifiers.
    pub fn kind(&mut self) -> Outcome<Type> {
        let found = self
            .rest
            .iter()
            .enumerate()
            .find_map(|(i, name)| Type::named(name).map(|kind| (i, kind)));
        match found {
            Some((i, kind)) => {
                self.rest.remove(i);
                Ok(kind)
            }
            None => {
                let why = format!("{} needs a type such as .b32", self.opcode);
                Err(Fault::at(Rule::Syntax, self.line, why))
            }
        }
    }

    pub fn round(&mut self) -> Option<Round> {
        self.any(&[
            ("rn", Round::Nearest),
            ("rz", Round::Zero),
            ("rm", Round::Down),
            ("rp", Round::Up),
        ])
    }

    /// Drops what only steers caches.
    pub fn cache_hints(&mut self) {
        self.rest.retain(|m| {
            let prefetch = m.starts_with("L1::") || m.starts_with("L2::");
            let policy = matches!(*m, "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc");
            !(prefetch || policy)
        });
    }

    /// Drops the scope of a synchronising access.
    pub fn scope(&mut self) -> Option<()> {
        self.any(&[("cta", ()), ("cluster", ()), ("gpu", ()), ("sys", ())])
    }

    /// # Errors
    /// A modifier that nobody took.
    pub fn finish(self) -> Outcome {
        match self.rest.first() {
            None => Ok(()),
            Some(left) => {
                let why = format!("{} with .{left} is not supported", self.opcode);
                Err(Fault::at(Rule::Unsupported, self.line, why))
            }
        }
    }
}
