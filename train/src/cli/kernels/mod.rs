//! `unclip kernels`: the GPU kernels, for those who write and measure them.

mod buffer;
mod cases;
mod check;
mod profile;
mod run;
mod truth;

use std::path::Path;

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

/// Print the PTX of a variant.
#[derive(clap::Args)]
pub struct Show {
    /// A variant's name, or a part of it that only one has.
    name: String,
}

impl Command {
    pub fn run(self, device: Choice) -> Result<()> {
        match self {
            Command::List(list) => list.run(),
            Command::Show(show) => show.run(),
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
    fn run(self) -> Result<()> {
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
}
