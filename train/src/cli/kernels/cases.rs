//! The ops' cases as the command line names them.

use autograd::ops::ALL;
use autograd::spec::{Case, OpSpec};
use tensor::{DType, Device};

use super::super::device::Choice;
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

/// The one case of an op whose name is or contains `part`; without a part, the op's first case for timing.
pub fn find_one(op: &str, part: Option<&str>) -> Result<(&'static dyn OpSpec, Case)> {
    let mut found = find(Some(op), part.unwrap_or_default(), Which::All)?;
    let whole = match part {
        Some(part) => Some(part.to_owned()),
        None => {
            let benches = found.first().map_or(vec![], |(op, _)| op.benches());
            benches.first().map(|case| case.name.clone())
        }
    };
    // A whole name is that case, though others may contain it.
    let exact = found
        .iter()
        .position(|(_, case)| Some(&case.name) == whole.as_ref());
    if let Some(exact) = exact {
        return Ok(found.swap_remove(exact));
    }
    let names: Vec<String> = found.iter().map(|(_, case)| case.name.clone()).collect();
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        _ => Err(Error::usage(format!(
            "{} cases contain \"{}\"; name one:\n  {}",
            names.len(),
            part.unwrap_or_default(),
            names.join("\n  ")
        ))),
    }
}

/// The simulated GPU that was asked for, for what is looked at nowhere else.
pub fn simulated(device: Choice, what: &str) -> Result<Device> {
    match device {
        Choice::Auto => Ok(Device::SIM),
        Choice::Named(device @ Device::Sim { .. }) => Ok(device),
        Choice::Named(device) => Err(Error::usage(format!(
            "{what} on the simulated GPU only, not on {device}: use --device sim"
        ))),
    }
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
