//! What a profiler would say of a launch, as a line of a table, and what the repository's kernels promise of such lines.

use std::collections::HashMap;
use std::fmt;

use kernels::occupancy::Occupancy;
use kernels::ptxas::{self, Ptxas};
use kernels::sim::{Class, LineProfile};
use tensor::gpu::Launched;

use super::device::launches;
use crate::spec::{Case, OpSpec};
use crate::{DType, Device, Result};

/// What NVIDIA's assembler says of a launch's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assembled {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of spill stores and loads, and of local memory.
    pub spilled: u32,
    /// Warps of an SM, of 64.
    pub warps: u32,
}

/// What NVIDIA's assembler says of kernels, each asked about once; nothing where it was not found.
pub struct Assembler {
    ptxas: Option<Ptxas>,
    known: HashMap<String, Assembled>,
}

impl Assembler {
    pub fn new(ptxas: Option<Ptxas>) -> Assembler {
        Assembler {
            ptxas,
            known: HashMap::new(),
        }
    }

    /// # Errors
    /// If the assembler refuses the kernel.
    pub fn ask(&mut self, launched: &Launched) -> Result<Option<Assembled>, ptxas::Error> {
        let kernel = &launched.assembled.kernel;
        let Some(ptxas) = &self.ptxas else {
            return Ok(None);
        };
        if let Some(assembled) = self.known.get(&kernel.name) {
            return Ok(Some(*assembled));
        }
        let report = ptxas.assemble(kernel)?;
        let threads = launched.launch.threads() as u32;
        let shared = launched.profile.shared_bytes;
        let occupancy = Occupancy::new(kernel.arch, threads, report.registers, shared);
        let assembled = Assembled {
            registers: report.registers,
            spilled: report.spill_store_bytes + report.spill_load_bytes + report.stack_bytes,
            warps: occupancy.warps,
        };
        self.known.insert(kernel.name.clone(), assembled);
        Ok(Some(assembled))
    }
}

/// What a case launches on a device.
pub struct Launches {
    /// Op, case, storage and device.
    pub name: String,
    /// Those of the forward pass come first.
    pub all: Vec<Launched>,
    pub rows: Vec<Row>,
    forward: usize,
    /// Bytes of the operands and results of a forward pass.
    least: f64,
}

impl Launches {
    /// Runs the forward pass, and the backward pass too if `backward`. `ask` is [`Assembler::ask`] with the caller's errors.
    ///
    /// # Errors
    /// If the case does not run there, and those of `ask`.
    pub fn new<E: From<tensor::Error>>(
        op: &dyn OpSpec,
        case: &Case,
        device: Device,
        float: DType,
        backward: bool,
        mut ask: impl FnMut(&Launched) -> Result<Option<Assembled>, E>,
    ) -> Result<Launches, E> {
        let mut all = launches(op, case, device, float, false)?;
        let forward = all.len();
        if backward {
            all = launches(op, case, device, float, true)?;
        }
        let row = |launched: &Launched| Ok(Row::new(launched, ask(launched)?));
        Ok(Launches {
            name: format!("{}/{} {float} on {device}", op.name(), case.name),
            rows: all.iter().map(row).collect::<Result<_, E>>()?,
            all,
            forward,
            least: case.cost.elements * float.size() as f64,
        })
    }

    /// What its kernels promise and do not keep, each by itself and those of either pass together.
    pub fn broken(&self) -> Vec<String> {
        let each = self.rows.iter().flat_map(|row| {
            let of_kernel = |what| format!("{} {what}", row.kernel);
            row.broken().into_iter().map(of_kernel)
        });
        let (forward, backward) = self.rows.split_at(self.forward);
        let forward = broken_together(forward, self.least);
        let backward = broken_backward(backward, self.least);
        each.chain(forward).chain(backward).collect()
    }

    /// One line: how much the passes move, and must.
    pub fn summary(&self) -> String {
        let moved = |rows: &[Row]| rows.iter().map(|row| row.moved).sum::<u64>();
        let (forward, backward) = self.rows.split_at(self.forward);
        let backward = match backward {
            [] => String::new(),
            rows => format!("; the backward pass moves {} B", moved(rows)),
        };
        format!(
            "{} launches; the forward pass moves {} B, its operands and results have {:.0} B{backward}",
            self.rows.len(),
            moved(forward),
            self.least
        )
    }
}

/// A table in Markdown.
impl fmt::Display for Launches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n\n{}", self.name, Row::HEADER)?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        writeln!(f, "\n{}", self.summary())?;
        for broken in self.broken() {
            writeln!(f, "BROKEN: {broken}")?;
        }
        Ok(())
    }
}

/// The cases for timing that the table of all ops has: of f32 those that a simulator without tensor cores gets through in
/// seconds. An op has its cheapest one at least.
pub fn cases(op: &dyn OpSpec, float: DType) -> Vec<Case> {
    let largest = match float {
        DType::BF16 => 1.5e9,
        _ => 3e8,
    };
    let mut cases = op.benches();
    cases.sort_by(|a, b| a.cost.flops.total_cmp(&b.cost.flops));
    let few = cases.iter().take_while(|case| case.cost.flops <= largest);
    cases.truncate(few.count().max(1));
    cases
}

/// The counts of one launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub kernel: String,
    pub ctas: u64,
    pub threads: u64,
    /// None where no assembler was found.
    pub assembled: Option<Assembled>,
    /// Shared memory of a CTA, in bytes.
    pub shared: u64,
    /// Instructions that warps issued.
    pub instructions: u64,
    pub tensor_flops: u64,
    /// Bytes of global memory in whole sectors, as if nothing were cached.
    pub moved: u64,
    /// Bytes of global memory that are read or written at least once.
    pub touched: u64,
    /// Sectors that the main part's loads ask for, and the fewest that their bytes fit in.
    pub sectors: u64,
    pub least_sectors: u64,
    /// Passes through shared memory's banks beyond the fewest possible: in the main part, and in all.
    pub main_conflicts: u64,
    pub conflicts: u64,
}

/// Bytes that a launch must touch before a promise about how many it moves applies: what every CTA reads for itself, such
/// as gains, is not small beside less.
const SMALL: u64 = 1 << 16;

/// Bytes that streaming kernels may move for each that they touch, or that an op must.
const MOST_MOVED: f64 = 1.1;

/// Sectors that products' loads may ask for in place of one: rows of a key mask begin anywhere.
const MOST_SECTORS: f64 = 1.05;

/// Kernels that multiply matrices of some kind.
const PRODUCTS: [&str; 8] = [
    "matmul_product",
    "matmul_warp_groups",
    "conv2d_forward",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "attention_forward",
    "attention_query_gradient",
    "attention_key_gradients",
];

/// Kernels that are as fast as memory.
const STREAMS: [&str; 8] = [
    "affine_",
    "binary_",
    "dropout_",
    "group_norm_",
    "layer_norm_",
    "muon_",
    "optimizer_",
    "unary_",
];

impl Row {
    pub fn new(launched: &Launched, assembled: Option<Assembled>) -> Row {
        let (profile, launch) = (&launched.profile, &launched.launch);
        let kernel = &launched.assembled.kernel;
        let total = profile.total();
        let main = profile.main_part(&kernel.text);
        let conflicts = |l: &LineProfile| l.counts.wavefronts - l.counts.least_wavefronts;
        let loads = || {
            let load = |l: &&&LineProfile| matches!(l.class, Class::GlobalLoad | Class::AsyncCopy);
            main.iter().filter(load)
        };
        Row {
            kernel: kernel.name.clone(),
            ctas: launch.ctas(),
            threads: launch.threads(),
            assembled,
            shared: profile.shared_bytes.into(),
            instructions: total.warps,
            tensor_flops: total.matrix_flops,
            moved: profile.moved_bytes(),
            touched: profile.unique_read() + profile.unique_written(),
            sectors: loads().map(|l| l.counts.sectors).sum(),
            least_sectors: loads().map(|l| l.counts.least_sectors).sum(),
            main_conflicts: main.iter().map(|l| conflicts(l)).sum(),
            conflicts: total.wavefronts - total.least_wavefronts,
        }
    }

    /// Bytes moved for each that is touched.
    pub fn excess(&self) -> f64 {
        self.moved as f64 / self.touched.max(1) as f64
    }

    /// Whether it promises to move what it touches once. An operand that is broadcast is read for every element of the
    /// result, and comes from caches.
    fn is_stream(&self) -> bool {
        let broadcast = self.kernel.starts_with("binary_") && !self.kernel.contains("_loops1_");
        !broadcast && STREAMS.iter().any(|p| self.kernel.starts_with(p))
    }

    /// What the kernel promises and does not keep.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = vec![];
        let is = |prefix: &&str| self.kernel.starts_with(*prefix);
        if PRODUCTS.iter().any(is) {
            if self.main_conflicts > 0 {
                broken.push(format!("{} bank conflicts", self.main_conflicts));
            }
            let (got, least) = (self.sectors, self.least_sectors);
            // Rows that are no whole chunks are copied element by element.
            let any = self.kernel.contains("_any");
            if !any && got as f64 > MOST_SECTORS * least as f64 {
                broken.push(format!("loads {got} sectors, {least} would do"));
            }
        }
        if self.is_stream() && self.touched >= SMALL && self.excess() > MOST_MOVED {
            broken.push(format!("moves {:.2} times what it touches", self.excess()));
        }
        if let Some(Assembled { spilled: 1.., .. }) = self.assembled {
            broken.push("spills".to_string());
        }
        broken
    }

    /// The head of a table in Markdown.
    pub const HEADER: &str = "| kernel | CTAs | threads | registers | spilled B | warps of 64 | shared B | instructions | tensor FLOP | bytes moved | bytes touched | main loads: sectors | at least | bank conflicts: main | all |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|";

    /// Reads a line of a table.
    pub fn parse(line: &str) -> Option<Row> {
        let cells: Vec<&str> = line
            .trim()
            .trim_matches('|')
            .split('|')
            .map(str::trim)
            .collect();
        let [kernel, numbers @ ..] = &cells[..] else {
            return None;
        };
        let number = |i: usize| numbers.get(i)?.parse::<u64>().ok();
        let small = |i: usize| number(i).and_then(|n| u32::try_from(n).ok());
        let assembled = match (small(2), small(3), small(4)) {
            (Some(registers), Some(spilled), Some(warps)) => Some(Assembled {
                registers,
                spilled,
                warps,
            }),
            _ => None,
        };
        Some(Row {
            kernel: kernel.to_string(),
            ctas: number(0)?,
            threads: number(1)?,
            assembled,
            shared: number(5)?,
            instructions: number(6)?,
            tensor_flops: number(7)?,
            moved: number(8)?,
            touched: number(9)?,
            sectors: number(10)?,
            least_sectors: number(11)?,
            main_conflicts: number(12)?,
            conflicts: number(13)?,
        })
    }
}

/// A line of a table.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} | {} | {} |", self.kernel, self.ctas, self.threads)?;
        match self.assembled {
            Some(a) => write!(f, " {} | {} | {} |", a.registers, a.spilled, a.warps)?,
            None => write!(f, " – | – | – |")?,
        }
        for number in [
            self.shared,
            self.instructions,
            self.tensor_flops,
            self.moved,
            self.touched,
            self.sectors,
            self.least_sectors,
            self.main_conflicts,
            self.conflicts,
        ] {
            write!(f, " {number} |")?;
        }
        Ok(())
    }
}

/// What the launches of an op's forward pass together promise and do not keep, `least` being the bytes of its operands and
/// results: of streaming ops, that they move no more, but for group norm, which reads twice where groups do not fit on chip.
/// Optimisers promise it kernel by kernel only: arenas are f32 whatever the storage, and Muon has products in between.
fn broken_together(rows: &[Row], least: f64) -> Option<String> {
    let first = rows.first()?;
    let optimizer = ["muon_", "optimizer_"].map(|prefix| first.kernel.starts_with(prefix));
    if !first.is_stream() || optimizer.contains(&true) || least < SMALL as f64 {
        return None;
    }
    let first = &first.kernel;
    let allowed = match first.starts_with("group_norm_moments") {
        true => 1.5 * MOST_MOVED,
        false => MOST_MOVED,
    };
    let moved: u64 = rows.iter().map(|row| row.moved).sum();
    let times = moved as f64 / least;
    (times > allowed).then(|| format!("{first} and what follows move {times:.2} times the least"))
}

/// The same of the norms' backward passes, `least` being the bytes of x and y. What must move is dy, x and dx: half as much
/// again. Where groups do not fit on chip dy and x are read twice. Statistics, gains and the partial sums of the parameters'
/// gradients have to find room in what is allowed beyond.
fn broken_backward(rows: &[Row], least: f64) -> Option<String> {
    let first = &rows.first()?.kernel;
    let norm = ["group_norm_", "layer_norm_"].map(|prefix| first.starts_with(prefix));
    if !norm.contains(&true) || least < SMALL as f64 {
        return None;
    }
    let tensors = match first.starts_with("group_norm_backward_sums") {
        true => 5.0,
        false => 3.0,
    };
    let moved: u64 = rows.iter().map(|row| row.moved).sum();
    let times = moved as f64 / (tensors / 2.0 * least);
    (times > MOST_MOVED)
        .then(|| format!("{first} and what follows move {times:.2} times the least"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kernel: &str) -> Row {
        Row {
            kernel: kernel.to_string(),
            ctas: 4,
            threads: 256,
            assembled: Some(Assembled {
                registers: 40,
                spilled: 0,
                warps: 48,
            }),
            shared: 0,
            instructions: 1000,
            tensor_flops: 0,
            moved: 200_000,
            touched: 190_000,
            sectors: 104,
            least_sectors: 100,
            main_conflicts: 0,
            conflicts: 3,
        }
    }

    #[test]
    fn lines_are_read_as_they_are_written() {
        for assembled in [row("x").assembled, None] {
            let row = Row {
                assembled,
                ..row("unary_forward_silu_f32")
            };
            assert_eq!(Row::parse(&row.to_string()), Some(row));
        }
        let mut head = Row::HEADER.lines();
        assert!(head.all(|line| Row::parse(line).is_none()));
        let columns = |line: &str| line.matches('|').count();
        let lines = Row::HEADER.lines().map(columns);
        assert!(
            lines
                .into_iter()
                .all(|n| n == columns(&row("x").to_string()))
        );
    }

    #[test]
    fn each_promise_is_held() {
        let broken = |row: Row| row.broken().len();
        assert_eq!(broken(row("matmul_product_nn")), 0);
        let conflicts = Row {
            main_conflicts: 1,
            sectors: 106,
            ..row("attention_forward_x")
        };
        assert_eq!(broken(conflicts.clone()), 2);
        let spilled = Assembled {
            registers: 255,
            spilled: 8,
            warps: 8,
        };
        let others = Row {
            kernel: "concat_join".to_string(),
            assembled: Some(spilled),
            ..conflicts
        };
        assert_eq!(broken(others), 1);
        let twice = Row {
            moved: 400_000,
            ..row("affine_forward")
        };
        assert_eq!(broken(twice.clone()), 1);
        assert!(broken_together(&[twice], 200_000.0).is_some());
        assert_eq!(broken_together(&[row("affine_forward")], 190_000.0), None);
        let backward = |kernel, least| broken_backward(&[row(kernel)], least).is_some();
        assert!(!backward("layer_norm_backward_x", 122_000.0));
        assert!(backward("layer_norm_backward_x", 121_000.0));
        assert!(!backward("group_norm_backward_sums_x", 73_000.0));
        assert!(backward("group_norm_backward_sums_x", 72_000.0));
    }
}
