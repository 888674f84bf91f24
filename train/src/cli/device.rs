//! `--device`: where to compute.

use std::str::FromStr;

use kernels::cuda::{self, Gpu};
use tensor::Device;

use crate::{Error, Result};

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The GPU if there is one, else the processor.
    Auto,
    Named(Device),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(name: &str) -> Result<Choice, String> {
        match name {
            "auto" => Ok(Choice::Auto),
            name => name.parse().map(Choice::Named),
        }
    }
}

impl Choice {
    /// The device, started. What is picked for somebody is said in one line.
    ///
    /// # Errors
    /// If there is no such device.
    pub fn device(self) -> Result<Device> {
        match self {
            Choice::Auto => Ok(picked().map_or(Device::Cpu, |gpu| {
                eprintln!("computing on {gpu}; --device cpu keeps to the processor");
                Device::Cuda(gpu.ordinal)
            })),
            Choice::Named(device) => match device.open() {
                Ok(()) => Ok(device),
                Err(why) => Err(Error::usage(format!("--device {device}: {why}"))),
            },
        }
    }

    /// The device of a command that cannot use a GPU for `why`; picks the processor, and says so where there is a GPU.
    ///
    /// # Errors
    /// If another was named.
    pub fn without_gpu(self, why: &str) -> Result<Device> {
        match self {
            Choice::Auto => {
                if let Some(gpu) = picked() {
                    eprintln!("computing on the processor, not on {gpu}: {why}");
                }
                Ok(Device::Cpu)
            }
            Choice::Named(Device::Cpu) => Ok(Device::Cpu),
            Choice::Named(device) => Err(Error::usage(format!("--device {device}: {why}"))),
        }
    }
}

/// The first GPU that runs the kernels.
fn picked() -> Option<Gpu> {
    let gpus = cuda::gpus().ok()?;
    gpus.into_iter().find(|gpu| gpu.arch().is_some())
}
