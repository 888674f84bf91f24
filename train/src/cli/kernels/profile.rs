//! `unclip kernels profile`: what a profiler would count, without a GPU.

use std::path::Path;

use autograd::harness::profile::{Assembled, Assembler, Launches, Row, cases};
use autograd::spec::{Case, OpSpec};
use kernels::occupancy::Occupancy;
use kernels::ptxas::Ptxas;
use kernels::sim::Class;
use tensor::gpu::Launched;

use super::super::device::Choice;
use super::cases::{Storage, find_one, simulated};
use crate::{Error, Result};

/// Count what an op's kernels do on the simulated GPU.
///
/// One block for each launch: instructions by class, tensor-core operations, bytes of global memory against the fewest
/// possible, sectors a request, bank conflicts; and registers, spills and occupancy where NVIDIA's assembler is found.
/// Bytes are those of whole sectors, as if nothing were cached. Without an op: a table of all ops, forward and backward, in
/// both storages, which takes some minutes.
#[derive(clap::Args)]
pub struct Profile {
    /// One op [default: all, as a table].
    op: Option<String>,
    /// A case's name, or a part of it [default: the op's first case for timing].
    case: Option<String>,
    /// How operands are stored [default: bf16; both for all ops].
    #[arg(long, value_enum)]
    storage: Option<Storage>,
    /// The backward pass too.
    #[arg(long)]
    backward: bool,
    /// One line of Markdown for each launch, and what kernels promise and do not keep.
    #[arg(long)]
    table: bool,
}

impl Profile {
    pub fn run(self, device: Choice) -> Result<()> {
        let device = simulated(device, "kernels are counted")?;
        let ptxas = Ptxas::find(Path::new("."));
        if ptxas.is_none() {
            eprintln!(
                "warning: no ptxas ($PTXAS, PATH, .venv): registers and occupancy are left out; tools/get-ptxas installs it"
            );
        }
        let mut assembler = Assembler::new(ptxas);
        let mut profiled = |op: &dyn OpSpec, case: &Case, storage: Storage, backward| {
            let ask = |launched: &Launched| -> Result<Option<Assembled>> {
                let name = &launched.assembled.kernel.name;
                let failed = |e| Error::failure(format!("{name}: {e}"));
                assembler.ask(launched).map_err(failed)
            };
            Launches::new(op, case, device, storage.dtype(), backward, ask)
        };
        let mut broken = 0;
        if let Some(op) = &self.op {
            let (op, case) = find_one(op, self.case.as_deref())?;
            let storage = self.storage.unwrap_or(Storage::Bf16);
            let launches = profiled(op, &case, storage, self.backward)?;
            if self.table {
                broken = launches.broken().len();
                println!("{launches}");
            } else {
                println!("{}", launches.name);
                for (row, launched) in launches.rows.iter().zip(&launches.all) {
                    print_launch(row, launched);
                }
                println!("\n{}", launches.summary());
            }
        } else {
            let storages = match self.storage {
                Some(storage) => vec![storage],
                None => vec![Storage::F32, Storage::Bf16],
            };
            for op in autograd::ops::ALL {
                for &storage in &storages {
                    for case in cases(*op, storage.dtype()) {
                        let launches = profiled(*op, &case, storage, true)?;
                        broken += launches.broken().len();
                        println!("{launches}");
                    }
                }
            }
        }
        match broken {
            0 => Ok(()),
            n => Err(Error::failure(format!(
                "{n} promises of kernels are broken"
            ))),
        }
    }
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

fn print_launch(row: &Row, launched: &Launched) {
    let (profile, launch) = (&launched.profile, &launched.launch);
    let kernel = &launched.assembled.kernel;
    let total = profile.total();
    println!("\n{}", row.kernel);
    println!(
        "  {} CTAs of {} threads, {} B of shared memory each",
        row.ctas, row.threads, row.shared
    );
    if let Some(Assembled {
        registers, spilled, ..
    }) = row.assembled
    {
        let threads = launch.threads() as u32;
        let occupancy = Occupancy::new(kernel.arch, threads, registers, profile.shared_bytes);
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
        row.moved,
        row.excess(),
        profile.unique_read(),
        profile.unique_written(),
    );
    println!(
        "  {:.2} bank conflicts a request to shared memory; {} in the main loop, {} in all",
        conflicts(launched),
        row.main_conflicts,
        row.conflicts,
    );
}
