//! The command line: one file per command, one sentence per error.
//!
//! Exit codes: 0 done, 1 failed, 2 not understood, 128 + signal stopped by a signal with everything saved.

mod assemble;
mod data;
mod demo;
mod device;
mod doctor;
mod eval;
mod eval_clip;
mod import;
mod kernels;
mod model;
mod output;
mod pictures;
mod probe;
mod train;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Parser, Subcommand};
use signal_hook::consts::SIGPIPE;

use self::device::Choice;
use crate::Result;

/// Train and run DALL·E 2 (unCLIP): text → CLIP → prior → decoder → upsampler → picture.
#[derive(Parser)]
#[command(name = "unclip", version, propagate_version = true)]
struct Arguments {
    /// Where to compute: auto picks a GPU if there is one; cuda:1 is the second GPU, sim a simulated one.
    #[arg(
        long,
        global = true,
        default_value = "auto",
        value_name = "auto|cpu|cuda|cuda:N|sim"
    )]
    device: Choice,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    Train(train::Train),
    Assemble(assemble::Assemble),
    Generate(pictures::generate::Generate),
    Vary(pictures::vary::Vary),
    Blend(pictures::blend::Blend),
    Edit(pictures::edit::Edit),
    Inpaint(pictures::inpaint::Inpaint),
    #[command(subcommand)]
    Model(model::Command),
    #[command(subcommand)]
    Import(import::Command),
    Eval(eval::Eval),
    EvalClip(eval_clip::EvalClip),
    #[command(subcommand)]
    Data(data::Command),
    Probe(probe::Probe),
    #[command(subcommand)]
    Kernels(kernels::Command),
    Doctor(doctor::Doctor),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    ::kernels::parallel::adopt_current_thread();
    let arguments = Arguments::parse();
    // `unclip … | head`: when nobody reads on, the program ends without a word, as others do.
    let reader_gone = Arc::new(AtomicBool::new(true));
    if signal_hook::flag::register_conditional_shutdown(SIGPIPE, 128 + SIGPIPE, reader_gone)
        .is_err()
    {
        eprintln!("warning: cannot listen for a closed pipe");
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(Arguments { device, command }: Arguments) -> Result<()> {
    match command {
        Command::Demo(demo) => {
            device.without_gpu("`unclip demo` runs on the CPU only")?;
            demo.run()
        }
        Command::Train(train) => train.run(device),
        Command::Assemble(assemble) => assemble.run(),
        Command::Generate(generate) => generate.run(device.device()?),
        Command::Vary(vary) => vary.run(device.device()?),
        Command::Blend(blend) => blend.run(device.device()?),
        Command::Edit(edit) => edit.run(device.device()?),
        Command::Inpaint(inpaint) => inpaint.run(device.device()?),
        Command::Model(command) => command.run(),
        Command::Import(command) => command.run(),
        Command::Eval(eval) => eval.run(device.device()?),
        Command::EvalClip(eval) => eval.run(device.device()?),
        Command::Data(command) => command.run(),
        Command::Probe(probe) => probe.run(device),
        Command::Kernels(command) => command.run(device),
        Command::Doctor(doctor) => doctor.run(device),
    }
}
