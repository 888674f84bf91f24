//! What the simulator says when a kernel is wrong: which rule, where in the PTX, which threads, why, and what to do.

use std::fmt;

/// The rule that a kernel, its text or its launch broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The text is not PTX.
    Syntax,
    /// PTX that the simulator, or the kernel's arch, does not have.
    Unsupported,
    /// Grid, block, arguments or shared memory do not fit the kernel.
    Launch,
    /// An address outside every object that the thread may touch.
    Bounds,
    /// An address that is not a multiple of the access's size.
    Alignment,
    /// A write to a read-only buffer.
    Permission,
    /// A value that nobody wrote decides a branch, an address or an output.
    Uninitialised,
    /// Two accesses to the same bytes, at least one a write, that nothing orders.
    Race,
    /// Memory or registers that an asynchronous operation still owns.
    InFlight,
    /// Generic writes read by the asynchronous proxy without a proxy fence.
    ProxyFence,
    /// Threads of a warp that had to be together were not.
    Divergence,
    /// Every thread waits, and nothing under way can wake one.
    Deadlock,
    /// A barrier, group or descriptor used against its contract.
    Protocol,
    /// The kernel executed `trap`.
    Trap,
    /// More instructions than the launch was allowed.
    Budget,
}

impl Rule {
    fn name(self) -> &'static str {
        match self {
            Rule::Syntax => "syntax",
            Rule::Unsupported => "unsupported",
            Rule::Launch => "launch",
            Rule::Bounds => "out of bounds",
            Rule::Alignment => "misaligned",
            Rule::Permission => "read-only buffer",
            Rule::Uninitialised => "uninitialised value",
            Rule::Race => "race",
            Rule::InFlight => "still in flight",
            Rule::ProxyFence => "missing proxy fence",
            Rule::Divergence => "divergence",
            Rule::Deadlock => "deadlock",
            Rule::Protocol => "protocol",
            Rule::Trap => "trap",
            Rule::Budget => "instruction budget",
        }
    }

    /// What usually mends it.
    fn help(self) -> &'static str {
        match self {
            Rule::Syntax => "correct the text; the PTX ISA manual gives every form",
            Rule::Unsupported => "use a form that the kernel's arch has, or declare another arch",
            Rule::Launch => "launch what the entry declares, within the limits of the hardware",
            Rule::Bounds => "guard the access with a predicate, or pass a larger buffer",
            Rule::Alignment => "align the address, or use a narrower access",
            Rule::Permission => "pass the buffer as Argument::Write or Argument::Update",
            Rule::Uninitialised => {
                "write it before it is used; wait for the copy that brings it; zero-fill tails"
            }
            Rule::Race => {
                "put a barrier, or a release and an acquire, between the two accesses (bar.warp.sync within a warp)"
            }
            Rule::InFlight => "wait for the operation before touching what it owns",
            Rule::ProxyFence => "execute fence.proxy.async after the writes, before the barrier",
            Rule::Divergence => "make all lanes of the warp reach it together",
            Rule::Deadlock => "count the arrivals that each barrier phase gets, and check parities",
            Rule::Protocol => "see the PTX ISA manual on this instruction",
            Rule::Trap => "find out which check of the kernel failed",
            Rule::Budget => {
                "look for a loop that never ends, or raise Options::max_warp_instructions"
            }
        }
    }
}

/// Threads that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    pub cta: [u32; 3],
    pub warp: u32,
    /// One bit per lane.
    pub lanes: u32,
}

/// Why a kernel could not be run, or was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub rule: Rule,
    /// The entry, as [`crate::launch::Kernel::name`] gives it.
    pub kernel: String,
    /// Line of the kernel's text, counted from 1.
    pub line: Option<u32>,
    /// That line, trimmed.
    pub text: String,
    pub threads: Option<Threads>,
    /// One sentence with the operands.
    pub why: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.kernel, self.rule.name(), self.why)?;
        if let Some(line) = self.line {
            write!(f, "\n  at PTX line {line}: {}", self.text)?;
        }
        if let Some(Threads { cta, warp, lanes }) = self.threads {
            let [x, y, z] = cta;
            write!(f, "\n  in CTA ({x}, {y}, {z}), warp {warp}, ")?;
            write_lanes(f, lanes)?;
        }
        write!(f, "\n  help: {}", self.rule.help())
    }
}

impl std::error::Error for Error {}

/// `lane 3`, `lanes 0-15, 17`.
fn write_lanes(f: &mut fmt::Formatter<'_>, lanes: u32) -> fmt::Result {
    f.write_str(if lanes.count_ones() == 1 {
        "lane "
    } else {
        "lanes "
    })?;
    let mut separator = "";
    let mut lane = 0;
    while lane < 32 {
        if lanes >> lane & 1 == 0 {
            lane += 1;
            continue;
        }
        let run = (!(lanes >> lane)).trailing_zeros().min(32 - lane);
        match run {
            1 => write!(f, "{separator}{lane}")?,
            _ => write!(f, "{separator}{lane}-{}", lane + run - 1)?,
        }
        separator = ", ";
        lane += run;
    }
    Ok(())
}

/// An error before it is known which kernel it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub rule: Rule,
    pub line: Option<u32>,
    pub threads: Option<Threads>,
    pub why: String,
}

impl Fault {
    /// Boxed, because results of instructions are made by the million and faults once.
    #[cold]
    pub fn new(rule: Rule, why: impl Into<String>) -> Box<Fault> {
        Box::new(Fault {
            rule,
            line: None,
            threads: None,
            why: why.into(),
        })
    }

    #[cold]
    pub fn at(rule: Rule, line: u32, why: impl Into<String>) -> Box<Fault> {
        let mut fault = Fault::new(rule, why);
        fault.line = Some(line);
        fault
    }

    /// With the kernel's name, and the text of the line.
    pub fn in_kernel(self, kernel: &str, ptx: &str) -> Error {
        let text = |line: u32| ptx.lines().nth(line.saturating_sub(1) as usize);
        Error {
            rule: self.rule,
            kernel: kernel.to_string(),
            line: self.line,
            // Hostile text may be one line of megabytes.
            text: self
                .line
                .and_then(text)
                .map(|t| t.trim().chars().take(200).collect())
                .unwrap_or_default(),
            threads: self.threads,
            why: self.why,
        }
    }
}

/// The result of everything that a kernel can get wrong.
pub(super) type Outcome<T = ()> = Result<T, Box<Fault>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_where_and_who_and_what_to_do() {
        let fault = Fault {
            rule: Rule::Race,
            line: Some(2),
            threads: Some(Threads {
                cta: [1, 0, 0],
                warp: 3,
                lanes: 0x0002_FFFF,
            }),
            why: "shared byte 16 was written at line 1 by warp 0, lane 4".into(),
        };
        let text = fault
            .in_kernel("gemm", "first\n  ld.shared.f32 %f1, [%r1];\nthird")
            .to_string();
        assert_eq!(
            text,
            "gemm: race: shared byte 16 was written at line 1 by warp 0, lane 4\n  \
             at PTX line 2: ld.shared.f32 %f1, [%r1];\n  \
             in CTA (1, 0, 0), warp 3, lanes 0-15, 17\n  \
             help: put a barrier, or a release and an acquire, between the two accesses (bar.warp.sync within a warp)"
        );
    }
}
