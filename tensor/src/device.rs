//! Where a tensor lives.

use std::fmt;
use std::str::FromStr;

/// A device that tensors live on and kernels run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Device {
    #[default]
    Cpu,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Device, String> {
        match name {
            "cpu" | "auto" => Ok(Device::Cpu),
            _ => Err(format!(
                "unknown device {name:?}: this build runs on \"cpu\" (\"auto\" picks it)"
            )),
        }
    }
}
