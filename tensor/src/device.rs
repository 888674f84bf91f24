//! Where a tensor lives.

use std::fmt;
use std::str::FromStr;

pub use kernels::launch::Arch;

/// A device that tensors live on and kernels run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Device {
    #[default]
    Cpu,
    /// The simulated GPU: every op runs its PTX kernel, on the host, under [`kernels::sim`]'s rules.
    Sim {
        /// The kernels that it is given: those that a GPU of this arch would be.
        arch: Arch,
    },
}

impl Device {
    /// The simulated GPU on which kernels for Ampere and later run.
    pub const SIM: Device = Device::Sim { arch: Arch::Sm80 };

    /// The arch that kernels are chosen for; none on the CPU.
    pub fn arch(self) -> Option<Arch> {
        match self {
            Device::Cpu => None,
            Device::Sim { arch } => Some(arch),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Sim { arch: Arch::Sm80 } => f.write_str("sim"),
            Device::Sim { arch } => write!(f, "sim:{arch}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Device, String> {
        match name {
            "cpu" | "auto" => Ok(Device::Cpu),
            "sim" | "sim:sm_80" => Ok(Device::SIM),
            "sim:sm_90a" => Ok(Device::Sim { arch: Arch::Sm90a }),
            _ => Err(format!(
                "unknown device {name:?}: this build runs on \"cpu\" (\"auto\" picks it) and on a simulated GPU, \
                 \"sim\" or \"sim:sm_90a\""
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_known_by_what_they_print() {
        for device in [Device::Cpu, Device::SIM, Device::Sim { arch: Arch::Sm90a }] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("sim:sm_80".parse(), Ok(Device::SIM));
        assert!("cuda:0".parse::<Device>().is_err());
    }
}
