//! `unclip kernels`: the GPU kernels, for those who write and measure them.

mod buffer;
mod cases;
mod check;
mod profile;
mod run;
mod truth;

use std::collections::HashSet;
use std::path::Path;

use autograd::harness::device::launches;

use super::device::Choice;
use crate::{Error, Result};
use kernels::ops::variants::{self, Listing};
use kernels::ptxas::Ptxas;

/// Look at the GPU kernels.
#[derive(clap::Subcommand)]
pub enum Command {
    List(List),
    Show(Show),
    Check(check::Check),
    Profile(profile::Profile),
    Run(run::Run),
    Truth(truth::Truth),
}

/// One line for each variant of each kernel.
///
/// Registers, spills and shared memory are what NVIDIA's assembler reports; without it (see tools/get-ptxas) they are
/// left out.
#[derive(clap::Args)]
pub struct List {
    /// Only variants whose name contains this.
    #[arg(default_value = "")]
    filter: String,
}

/// Print the PTX of a variant, or that of all kernels that a case of an op launches.
///
/// For example
///
///   unclip kernels show unary_forward_silu_f32
///   unclip kernels show group_norm 'x=[8, 32, 32, 128],groups=32,silu' --backward
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Show {
    /// A variant's name, or a part of it that only one has; an op's name before a case.
    name: String,
    /// A case's name, or a part of it that only one has.
    case: Option<String>,
    /// How the case's operands are stored.
    #[arg(long, value_enum, default_value = "bf16", requires = "case")]
    storage: cases::Storage,
    /// The kernels of the case's backward pass too.
    #[arg(long, requires = "case")]
    backward: bool,
}

impl Command {
    pub fn run(self, device: Choice) -> Result<()> {
        match self {
            Command::List(list) => list.run(),
            Command::Show(show) => show.run(device),
            Command::Check(check) => check.run(device.device()?),
            Command::Profile(profile) => profile.run(device),
            Command::Run(run) => run.run(device),
            Command::Truth(truth) => truth.run(device),
        }
    }
}

/// The variants whose name contains `part`.
fn matching(part: &str) -> Result<Vec<Listing>> {
    let mut found = variants::all();
    found.retain(|listing| listing.name.contains(part));
    match found.is_empty() {
        true => Err(Error::usage(format!(
            "no kernel's name contains \"{part}\"; `unclip kernels list` shows all"
        ))),
        false => Ok(found),
    }
}

impl List {
    fn run(self) -> Result<()> {
        let found = matching(&self.filter)?;
        let ptxas = Ptxas::find(Path::new("."));
        if ptxas.is_none() {
            eprintln!(
                "warning: no ptxas ($PTXAS, PATH, .venv): registers and spills are left out; tools/get-ptxas installs it"
            );
        }
        println!(
            "{:<48} {:<7} {:>7} {:>9} {:>6}",
            "kernel", "arch", "threads", "registers", "shared"
        );
        for listing in &found {
            let assembled = listing.assemble();
            let report = match &ptxas {
                Some(ptxas) => Some(
                    ptxas
                        .assemble(&assembled.kernel)
                        .map_err(|e| Error::failure(format!("{}: {e}", listing.name)))?,
                ),
                None => None,
            };
            let registers = report
                .as_ref()
                .map_or("–".to_owned(), |r| r.registers.to_string());
            let fixed = report.as_ref().map_or(0, |r| r.shared_bytes);
            println!(
                "{:<48} {:<7} {:>7} {registers:>9} {:>6}",
                listing.name,
                listing.arch.target(),
                assembled.block.iter().product::<u32>(),
                assembled.shared_bytes + fixed,
            );
            for defect in report.iter().flat_map(|r| r.defects()) {
                println!("    {defect}");
            }
        }
        println!("{} variants", found.len());
        Ok(())
    }
}

impl Show {
    fn run(self, device: Choice) -> Result<()> {
        if let Some(case) = &self.case {
            return self.of_case(case, device);
        }
        let mut found = matching(&self.name)?;
        if let Some(exact) = found.iter().position(|listing| listing.name == self.name) {
            found = vec![found.swap_remove(exact)];
        }
        match &found[..] {
            [one] => print!("{}", one.assemble().kernel.text),
            several => {
                let names: Vec<&str> = several.iter().take(8).map(|l| &*l.name).collect();
                return Err(Error::usage(format!(
                    "{} variants have \"{}\" in their name: {}{}; name one",
                    several.len(),
                    self.name,
                    names.join(", "),
                    if several.len() > names.len() {
                        ", …"
                    } else {
                        ""
                    }
                )));
            }
        }
        Ok(())
    }

    /// Prints each kernel that a case launches once, in the order of the launches.
    fn of_case(&self, case: &str, device: Choice) -> Result<()> {
        let device = cases::simulated(device, "what a case launches is looked at")?;
        let (op, case) = cases::find_one(&self.name, Some(case))?;
        let float = self.storage.dtype();
        let launched = launches(op, &case, device, float, self.backward)?;
        let mut shown = HashSet::new();
        for launched in &launched {
            let kernel = &launched.assembled.kernel;
            if shown.insert(&kernel.name) {
                let [grid, block] = [launched.launch.grid, launched.launch.block];
                println!(
                    "// {}/{} {float} launches {} over {grid:?} CTAs of {block:?} threads.",
                    op.name(),
                    case.name,
                    kernel.name
                );
                print!("{}", kernel.text);
            }
        }
        Ok(())
    }
}
