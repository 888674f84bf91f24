//! `unclip kernels run`: any PTX file on a GPU, simulated or not.

use std::path::PathBuf;

use kernels::cuda::{self, Context};
use kernels::launch::{Arch, Argument as Launched, Kernel, Launch};
use kernels::sim::{self, Completion, Options};
use tensor::Device;

use super::super::device::Choice;
use super::buffer::{Access, Argument, Buffer, FORMS, Scalar};
use crate::{Error, Result, files};

/// Run a PTX file on the simulated GPU, or with --device cuda on a GPU.
///
/// The simulator is stricter than hardware: races, uninitialised values, accesses out of bounds, missing waits and fences
/// are errors that name the line. What the kernel wrote is printed, and its profile. For example
///
///   unclip kernels show unary_forward_silu_f32 > silu.ptx
///   unclip kernels run silu.ptx --grid 1 --block 256 -a 'write:f32[1000]' -a 'read:f32[1000]=iota' -a u32:1000
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Run {
    /// The PTX.
    file: PathBuf,
    /// The entry to run [default: the first].
    #[arg(long)]
    entry: Option<String>,
    /// CTAs along x, y, z.
    #[arg(long, default_value = "1", value_parser = extents, value_name = "X,Y,Z")]
    grid: [u32; 3],
    /// Threads of a CTA along x, y, z.
    #[arg(long, default_value = "32", value_parser = extents, value_name = "X,Y,Z")]
    block: [u32; 3],
    /// CTAs of a cluster along x, y, z.
    #[arg(long, default_value = "1", value_parser = extents, value_name = "X,Y,Z")]
    cluster: [u32; 3],
    /// Dynamic shared memory of a CTA in bytes.
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    shared: u32,
    #[arg(short, long = "argument", help = format!("An argument of the kernel, in order: {FORMS}"))]
    argument: Vec<String>,
    /// The order of warps is a function of it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Asynchronous work completes at once, in place of as late as the program allows.
    #[arg(long)]
    early: bool,
    /// Numbers of each buffer that are printed.
    #[arg(long, default_value_t = 8)]
    print: usize,
    /// Write the raw bytes of a buffer to a file, by its place among the arguments: --save 0=y.bin
    #[arg(long, value_name = "N=FILE")]
    save: Vec<String>,
}

/// `4`, `4,2` or `4,2,1`.
fn extents(text: &str) -> std::result::Result<[u32; 3], String> {
    let mut out = [1; 3];
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > 3 {
        return Err("there are three dimensions".into());
    }
    for (extent, part) in out.iter_mut().zip(parts) {
        *extent = part
            .parse()
            .map_err(|_| format!("\"{part}\" is no extent"))?;
    }
    Ok(out)
}

impl Run {
    pub fn run(self, device: Choice) -> Result<()> {
        let device = match device {
            Choice::Auto | Choice::Named(Device::Sim { .. }) => Device::SIM,
            named => named.device()?,
        };
        let bytes = std::fs::read(&self.file).map_err(Error::io("read", &self.file))?;
        let text = String::from_utf8(bytes).map_err(|_| {
            Error::usage(format!(
                "{} is no PTX: it holds bytes that are no text",
                self.file.display()
            ))
        })?;
        let kernel = self.kernel(text)?;
        let mut arguments = self
            .argument
            .iter()
            .enumerate()
            .map(|(number, text)| Argument::parse(text, number))
            .collect::<Result<Vec<_>>>()?;
        let saves = self
            .save
            .iter()
            .map(|text| self.save_target(text, &arguments))
            .collect::<Result<Vec<_>>>()?;
        let launch = Launch {
            grid: self.grid,
            block: self.block,
            cluster: self.cluster,
            shared_bytes: self.shared,
        };
        let mut launched: Vec<Launched> = arguments.iter_mut().map(launched).collect();
        let report = match device {
            Device::Cuda(gpu) => on_gpu(gpu, &kernel, &launch, &mut launched)?,
            Device::Sim { .. } => {
                let options = Options {
                    seed: self.seed,
                    completion: match self.early {
                        true => Completion::Early,
                        false => Completion::Late,
                    },
                    ..Options::default()
                };
                sim::run(&kernel, &launch, &mut launched, &options)
                    .map_err(|error| Error::failure(error.to_string()))?
                    .to_string()
            }
            Device::Cpu => {
                return Err(Error::usage(
                    "PTX does not run on the CPU: use --device sim or --device cuda",
                ));
            }
        };
        for (number, argument) in arguments.iter().enumerate() {
            if let Argument::Buffer(buffer) = argument
                && buffer.access != Access::Read
            {
                println!("{}", self.line(number, buffer));
            }
        }
        print!("{report}");
        for (number, path) in saves {
            if let Some(Argument::Buffer(buffer)) = arguments.get(number) {
                files::replace(&path, &buffer.bytes)?;
                println!("written to {}", path.display());
            }
        }
        Ok(())
    }

    /// The entry that is asked for, of the arch that the text targets.
    fn kernel(&self, text: String) -> Result<Kernel> {
        let lines = || {
            text.lines()
                .map(|line| line.split("//").next().unwrap_or(line))
        };
        let target = lines().find_map(|line| line.trim_start().strip_prefix(".target"));
        let arch = match target.map(str::trim) {
            Some(target) if target.starts_with("sm_90") => Arch::Sm90a,
            _ => Arch::Sm80,
        };
        let first = || {
            // The name may stand on the next line.
            let after = |line: &str| line.split_once(".entry").map(|(_, rest)| rest.to_owned());
            let mut rest = lines().skip_while(|line| after(line).is_none());
            let words = after(rest.next()?).into_iter();
            let words: Vec<String> = words.chain(rest.next().map(str::to_owned)).collect();
            let words = words.join(" ");
            let name = words.trim_start();
            let end = name.find(|c: char| !(c.is_alphanumeric() || "_$%".contains(c)));
            Some(name[..end.unwrap_or(name.len())].to_owned())
        };
        let name =
            self.entry.clone().or_else(first).ok_or_else(|| {
                Error::usage(format!("{} has no .entry to run", self.file.display()))
            })?;
        Ok(Kernel { name, arch, text })
    }

    fn save_target(&self, text: &str, arguments: &[Argument]) -> Result<(usize, PathBuf)> {
        let parts = text.split_once('=');
        let target = parts.and_then(|(number, path)| Some((number.parse().ok()?, path.into())));
        match target {
            Some((number, path)) if matches!(arguments.get(number), Some(Argument::Buffer(_))) => {
                Ok((number, path))
            }
            _ => Err(Error::usage(format!(
                "--save {text}: write N=FILE, where argument N (from 0) is a buffer"
            ))),
        }
    }

    /// What a buffer holds now: the first numbers, and the extremes and the mean of all.
    fn line(&self, number: usize, buffer: &Buffer) -> String {
        let values = buffer.values();
        let first: Vec<String> = values.iter().take(self.print).map(f64::to_string).collect();
        let more = if values.len() > self.print {
            " …"
        } else {
            ""
        };
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        format!(
            "argument {number} {}[{}]: {}{more} | least {least}, most {most}, mean {mean}",
            buffer.element.name(),
            values.len(),
            first.join(" ")
        )
    }
}

/// Runs a kernel on a GPU; how long that took.
fn on_gpu(
    gpu: usize,
    kernel: &Kernel,
    launch: &Launch,
    arguments: &mut [Launched],
) -> Result<String> {
    let failed = |error: cuda::Error| Error::failure(error.to_string());
    let context = Context::open(gpu).map_err(failed)?;
    let seconds = cuda::run(context, kernel, launch, arguments).map_err(failed)?;
    let micros = seconds * 1e6;
    Ok(format!(
        "{micros:.1} us on {}, the first launch of a kernel included\n",
        context.gpu()
    ))
}

fn launched(argument: &mut Argument) -> Launched<'_> {
    match argument {
        Argument::Null => Launched::Null,
        Argument::Scalar(Scalar::U32(v)) => Launched::U32(*v),
        Argument::Scalar(Scalar::I32(v)) => Launched::I32(*v),
        Argument::Scalar(Scalar::U64(v)) => Launched::U64(*v),
        Argument::Scalar(Scalar::F32(v)) => Launched::F32(*v),
        Argument::Buffer(buffer) => match buffer.access {
            Access::Read => Launched::Read(&buffer.bytes),
            Access::Write => Launched::Write(&mut buffer.bytes),
            Access::Update => Launched::Update(&mut buffer.bytes),
        },
    }
}
