//! `unclip kernels profile`: what a profiler would count, without a GPU.

use std::path::Path;

use autograd::harness::device::launches;
use autograd::spec::{Case, OpSpec};
use kernels::occupancy::Occupancy;
use kernels::ptxas::Ptxas;
use kernels::sim::Class;
use tensor::Device;
use tensor::gpu::Launched;

use super::cases::{Storage, Which, find, gpu};
use crate::{Error, Result};

/// Count what an op's kernels do on the simulated GPU.
///
/// One block for each launch: instructions by class, tensor-core operations, bytes of global memory against the fewest
/// possible, sectors a request, bank conflicts; and registers, spills and occupancy where NVIDIA's assembler is found.
/// Bytes are those of whole sectors, as if nothing were cached.
#[derive(clap::Args)]
pub struct Profile {
    op: String,
    /// A case's name, or a part of it [default: the op's first case for timing].
    case: Option<String>,
    /// How operands are stored.
    #[arg(long, value_enum, default_value = "bf16")]
    storage: Storage,
    /// The backward pass too.
    #[arg(long)]
    backward: bool,
    /// One line for each launch.
    #[arg(long)]
    table: bool,
}

impl Profile {
    pub fn run(self, device: Device) -> Result<()> {
        let device = match device {
            Device::Cpu => Device::SIM,
            device => gpu(device)?,
        };
        let (op, case) = self.case()?;
        let dtype = self.storage.dtype();
        let launches = launches(op, &case, device, dtype, self.backward)?;
        let ptxas = Ptxas::find(Path::new("."));
        if ptxas.is_none() {
            eprintln!(
                "warning: no ptxas ($PTXAS, PATH, .venv): registers and occupancy are left out; tools/get-ptxas installs it"
            );
        }
        if self.table {
            println!("{HEADER}");
        } else {
            println!("{}/{} {dtype} on {device}", op.name(), case.name);
        }
        for launched in &launches {
            let assembled = Assembled::new(launched, ptxas.as_ref())?;
            match self.table {
                true => println!("{}", row(launched, &assembled)),
                false => print_launch(launched, &assembled),
            }
        }
        let moved: u64 = launches.iter().map(|l| l.profile.moved_bytes()).sum();
        let pass = if self.backward {
            "passes move"
        } else {
            "pass moves"
        };
        println!(
            "{} launches; the {pass} {moved} B, and the operands and results of a forward pass have {:.0} B",
            launches.len(),
            case.cost.elements * dtype.size() as f64
        );
        Ok(())
    }

    fn case(&self) -> Result<(&'static dyn OpSpec, Case)> {
        let part = self.case.as_deref().unwrap_or_default();
        let mut found = find(Some(&self.op), part, Which::All)?;
        if self.case.is_none() {
            let benches = found.first().map_or(vec![], |(op, _)| op.benches());
            let first = benches.first().map(|case| case.name.clone());
            found.retain(|(_, case)| Some(&case.name) == first.as_ref());
        }
        // A whole name is that case, though others may contain it.
        if let Some(exact) = found.iter().position(|(_, case)| case.name == part) {
            return Ok(found.swap_remove(exact));
        }
        let names: Vec<String> = found.iter().map(|(_, case)| case.name.clone()).collect();
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            _ => Err(Error::usage(format!(
                "{} cases contain \"{part}\"; name one:\n  {}",
                names.len(),
                names.join("\n  ")
            ))),
        }
    }
}

/// What NVIDIA's assembler makes of a kernel, where it is found.
struct Assembled {
    registers: Option<u32>,
    spilled: u32,
    occupancy: Option<Occupancy>,
}

impl Assembled {
    fn new(launched: &Launched, ptxas: Option<&Ptxas>) -> Result<Assembled> {
        let Some(ptxas) = ptxas else {
            return Ok(Assembled {
                registers: None,
                spilled: 0,
                occupancy: None,
            });
        };
        let kernel = &launched.assembled.kernel;
        let report = ptxas
            .assemble(kernel)
            .map_err(|e| Error::failure(format!("{}: {e}", kernel.name)))?;
        let threads = launched.launch.threads() as u32;
        let shared = launched.profile.shared_bytes;
        Ok(Assembled {
            registers: Some(report.registers),
            spilled: report.spill_store_bytes + report.spill_load_bytes,
            occupancy: Some(Occupancy::new(
                kernel.arch,
                threads,
                report.registers,
                shared,
            )),
        })
    }
}

/// Bytes moved for each that the launch touches at least once.
fn excess(launched: &Launched) -> f64 {
    let profile = &launched.profile;
    let least = profile.unique_read() + profile.unique_written();
    profile.moved_bytes() as f64 / least.max(1) as f64
}

/// Extra passes through shared memory's banks for each request to it.
fn conflicts(launched: &Launched) -> f64 {
    let total = launched.profile.total();
    let extra = total.wavefronts - total.least_wavefronts;
    let shared = launched
        .profile
        .lines
        .iter()
        .filter(|l| l.counts.wavefronts > 0);
    let requests: u64 = shared.map(|l| l.counts.requests.max(l.counts.warps)).sum();
    extra as f64 / requests.max(1) as f64
}

/// Sectors of a global request, and the fewest that its bytes would fit in.
fn sectors(launched: &Launched) -> [f64; 2] {
    let global = launched
        .profile
        .lines
        .iter()
        .filter(|l| l.counts.sectors > 0);
    let (mut requests, mut sectors, mut least) = (0, 0, 0);
    for line in global {
        requests += line.counts.requests;
        sectors += line.counts.sectors;
        least += line.counts.least_sectors;
    }
    [sectors, least].map(|n| n as f64 / requests.max(1) as f64)
}

fn print_launch(launched: &Launched, assembled: &Assembled) {
    let kernel = &launched.assembled.kernel;
    let (profile, launch) = (&launched.profile, &launched.launch);
    let total = profile.total();
    println!("\n{}", kernel.name);
    println!(
        "  {} CTAs of {} threads, {} B of shared memory each",
        launch.ctas(),
        launch.threads(),
        profile.shared_bytes
    );
    if let (Some(registers), Some(occupancy)) = (assembled.registers, assembled.occupancy) {
        let spilled = assembled.spilled;
        println!("  {registers} registers, {spilled} B spilled; {occupancy}");
    }
    let mix = Class::ALL.into_iter().filter_map(|class| {
        let warps = profile.class(class).warps;
        let share = 100.0 * warps as f64 / total.warps.max(1) as f64;
        (warps > 0).then(|| format!("{} {share:.1} %", class.name()))
    });
    let mix: Vec<String> = mix.collect();
    println!("  {} warp instructions: {}", total.warps, mix.join(", "));
    if total.matrix_flops > 0 {
        println!("  {} FLOP on tensor cores", total.matrix_flops);
    }
    let [of_request, at_least] = sectors(launched);
    println!(
        "  {} B moved, {:.2} times those that it touches ({} read, {} written); {of_request:.2} sectors a request, {at_least:.2} at least",
        profile.moved_bytes(),
        excess(launched),
        profile.unique_read(),
        profile.unique_written(),
    );
    println!(
        "  {:.2} bank conflicts a request to shared memory",
        conflicts(launched)
    );
}

const HEADER: &str = "| kernel | CTAs | threads | registers | shared B | warps an SM | warp instructions | tensor FLOP | bytes moved | times least | sectors (least) | conflicts |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|";

/// A line of Markdown.
fn row(launched: &Launched, assembled: &Assembled) -> String {
    let profile = &launched.profile;
    let total = profile.total();
    let known = |n: Option<u32>| n.map_or("–".to_string(), |n| n.to_string());
    let [of_request, at_least] = sectors(launched);
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.2} | {of_request:.2} ({at_least:.2}) | {:.2} |",
        launched.assembled.kernel.name,
        launched.launch.ctas(),
        launched.launch.threads(),
        known(assembled.registers),
        profile.shared_bytes,
        known(assembled.occupancy.map(|o| o.warps)),
        total.warps,
        total.matrix_flops,
        profile.moved_bytes(),
        excess(launched),
        conflicts(launched),
    )
}
