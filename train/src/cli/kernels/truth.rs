//! `unclip kernels truth`: the simulator beside hardware, instruction by instruction.

use std::path::PathBuf;

use kernels::cuda::{self, Context};
use kernels::sim::truth::{self, Probe};
use tensor::{Arch, Device};

use super::super::device::Choice;
use crate::{Error, Result};

/// Compare the simulated GPU with hardware, instruction by instruction.
///
/// Approximate functions, conversions and matrix instructions run on many operands. With --device cuda the truth is what
/// the GPU gives, and --record keeps it; without a GPU it is what was kept.
#[derive(clap::Args)]
pub struct Truth {
    /// Keep what the GPU gives in this folder: kernels/src/sim/truth is where tests look for it.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
}

impl Truth {
    pub fn run(self, device: Choice) -> Result<()> {
        let device = match device {
            Choice::Named(device @ Device::Sim { .. }) => device,
            named => named.device()?,
        };
        match (device, &self.record) {
            (Device::Cuda(gpu), _) => self.on_gpu(gpu),
            (_, Some(_)) => Err(Error::usage(
                "--record keeps what a GPU gives: add --device cuda",
            )),
            (device, None) => self.recorded(device.arch().unwrap_or(Arch::Sm80)),
        }
    }

    fn on_gpu(&self, gpu: usize) -> Result<()> {
        let failed = |error: cuda::Error| Error::failure(error.to_string());
        let context = Context::open(gpu).map_err(failed)?;
        let arch = context.gpu().arch().unwrap_or(Arch::Sm80);
        let release = cuda::release().unwrap_or_else(|| "unknown".to_owned());
        let [major, minor] = context.gpu().capability;
        let name = &context.gpu().name;
        let gpu = format!("{name}, compute capability {major}.{minor}, driver {release}");
        println!("{gpu}");
        let mut wrong = 0;
        for probe in truth::probes(arch) {
            let found = probe.on_gpu(context).map_err(failed)?;
            wrong += usize::from(!report(&probe, &found)?);
            if let Some(dir) = &self.record {
                let path = probe.file(dir);
                let kept = probe.record(dir, &gpu, &found);
                kept.map_err(Error::io("write", &path))?;
            }
        }
        finish(wrong)
    }

    fn recorded(&self, arch: Arch) -> Result<()> {
        let (mut wrong, mut unknown) = (0, 0);
        for probe in truth::probes(arch) {
            let recorded = probe.recorded(&truth::folder());
            match recorded.map_err(Error::failure)? {
                Some(found) => wrong += usize::from(!report(&probe, &found)?),
                None => unknown += 1,
            }
        }
        if unknown > 0 {
            println!(
                "{unknown} instructions were never recorded for {arch}: run this with --device cuda --record DIR"
            );
        }
        finish(wrong)
    }
}

/// One line about an instruction; whether simulator and hardware agree.
fn report(probe: &Probe, truth: &[u32]) -> Result<bool> {
    let simulated = probe.simulated();
    let simulated = simulated.map_err(|error| Error::failure(error.to_string()))?;
    let found = probe.compare(truth, &simulated);
    println!(
        "{:<52} {:>5} of {:>5} differ, {:.2} of what is allowed ({}){}",
        probe.instruction,
        found.different,
        found.cases,
        found.worst,
        probe.agreement,
        if found.agrees() { "" } else { "  WRONG" }
    );
    Ok(found.agrees())
}

fn finish(wrong: usize) -> Result<()> {
    match wrong {
        0 => Ok(()),
        n => Err(Error::failure(format!(
            "the simulator is wrong about {n} instructions"
        ))),
    }
}
