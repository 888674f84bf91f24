//! `unclip kernels check`: the op harness on a device.

use autograd::harness::device::{Verdict, check};
use kernels::sim::Completion;
use tensor::Device;
use tensor::gpu::Simulation;

use super::cases::{Storage, Which, find, gpu};
use crate::{Error, Result};

/// Hold the GPU kernels to the CPU in f64, op by op.
///
/// Every case of an op runs forward and backward on the numbers that the storage holds, and its outputs and gradients must
/// be within the error budget. On the simulated GPU, every order of warps and completion must give the same bits.
#[derive(clap::Args)]
pub struct Check {
    /// One op [default: all].
    op: Option<String>,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    case: String,
    /// How operands are stored [default: both].
    #[arg(long, value_enum)]
    storage: Option<Storage>,
    /// Orders of warps that are simulated.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Also let asynchronous work complete at once, and not only as late as the program allows.
    #[arg(long)]
    early: bool,
    /// Also run on strided views of the operands.
    #[arg(long)]
    views: bool,
    /// Also check the large cases that are timed, which take minutes each on a simulated GPU.
    #[arg(long)]
    large: bool,
}

impl Check {
    pub fn run(self, device: Device) -> Result<()> {
        let device = gpu(device)?;
        let which = if self.large { Which::All } else { Which::Small };
        let cases = find(self.op.as_deref(), &self.case, which)?;
        let completions = match self.early {
            true => vec![Completion::Late, Completion::Early],
            false => vec![Completion::Late],
        };
        let simulations: Vec<Simulation> = (0..self.seeds)
            .flat_map(|seed| {
                let with = |&completion| Simulation { seed, completion };
                completions.iter().map(with).collect::<Vec<_>>()
            })
            .collect();
        let storages = match self.storage {
            Some(storage) => vec![storage],
            None => vec![Storage::F32, Storage::Bf16],
        };
        let (mut passed, mut lacking, mut failed) = (0, 0, 0);
        for (op, case) in &cases {
            for storage in &storages {
                let dtype = storage.dtype();
                let verdict = check(*op, case, device, dtype, &simulations, self.views);
                println!("{}/{} {dtype}: {verdict}", op.name(), case.name);
                match verdict {
                    Verdict::Passed(_) => passed += 1,
                    Verdict::Lacking(_) => lacking += 1,
                    Verdict::Failed(_) => failed += 1,
                }
            }
        }
        println!(
            "on {device}: {passed} passed, {failed} failed, {lacking} not run for lack of a kernel"
        );
        match failed {
            0 => Ok(()),
            n => Err(Error::failure(format!("{n} cases failed on {device}"))),
        }
    }
}
