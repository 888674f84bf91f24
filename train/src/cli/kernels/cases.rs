//! The ops' cases as the command line names them.

use autograd::ops::ALL;
use autograd::spec::{Case, OpSpec};
use tensor::{DType, Device};

use crate::{Error, Result};

/// How operands are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Storage {
    F32,
    Bf16,
}

impl Storage {
    pub fn dtype(self) -> DType {
        match self {
            Storage::F32 => DType::F32,
            Storage::Bf16 => DType::BF16,
        }
    }
}

/// What of an op's cases is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those for correctness.
    Small,
    /// Those and the ones for timing.
    All,
}

/// The cases whose `op/case` contains `op` as the op's name, or all ops', and `case`.
pub fn find(
    op: Option<&str>,
    case: &str,
    which: Which,
) -> Result<Vec<(&'static dyn OpSpec, Case)>> {
    let ops: Vec<_> = ALL
        .iter()
        .filter(|spec| op.is_none_or(|op| spec.name() == op))
        .collect();
    if ops.is_empty() {
        let names: Vec<&str> = ALL.iter().map(|spec| spec.name()).collect();
        return Err(Error::usage(format!(
            "no op is called \"{}\"; there are {}",
            op.unwrap_or_default(),
            names.join(", ")
        )));
    }
    let cases = ops.iter().flat_map(|&&spec| {
        let benches = match which {
            Which::Small => vec![],
            Which::All => spec.benches(),
        };
        spec.cases()
            .into_iter()
            .chain(benches)
            .map(move |case| (spec, case))
    });
    let found: Vec<_> = cases.filter(|(_, its)| its.name.contains(case)).collect();
    if found.is_empty() {
        let all = ops
            .iter()
            .flat_map(|spec| spec.cases().into_iter().chain(spec.benches()));
        let names: Vec<String> = all.map(|case| case.name).collect();
        return Err(Error::usage(format!(
            "no case's name contains \"{case}\"; there are\n  {}",
            names.join("\n  ")
        )));
    }
    Ok(found)
}

/// The device, if it is a GPU.
pub fn gpu(device: Device) -> Result<Device> {
    match device {
        Device::Cpu => Err(Error::usage(
            "GPU kernels do not run on the CPU: add --device sim for the simulated GPU, or --device cuda",
        )),
        device => Ok(device),
    }
}
