//! Where a tensor lives.

use std::fmt;
use std::str::FromStr;

use kernels::cuda::Context;
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
    /// The GPU of this number, which counts from 0 in the driver's order.
    Cuda(usize),
}

impl Device {
    /// The simulated GPU on which kernels for Ampere and later run.
    pub const SIM: Device = Device::Sim { arch: Arch::Sm80 };

    /// The arch that kernels are chosen for; none on the CPU.
    pub fn arch(self) -> Option<Arch> {
        match self {
            Device::Cpu => None,
            Device::Sim { arch } => Some(arch),
            Device::Cuda(gpu) => {
                let of = |context: &Context| context.gpu().arch();
                // A GPU that cannot be opened says so at the first allocation.
                let arch = Context::open(gpu).ok().and_then(of);
                Some(arch.unwrap_or(Arch::Sm80))
            }
        }
    }

    /// Starts the device, if it has to be started.
    ///
    /// # Errors
    /// One sentence that says why there is no such device, and what to use instead.
    pub fn open(self) -> Result<(), String> {
        match self {
            Device::Cpu | Device::Sim { .. } => Ok(()),
            Device::Cuda(gpu) => Context::open(gpu).map(|_| ()).map_err(|e| e.to_string()),
        }
    }

    /// Waits until the device has done everything that it was asked.
    ///
    /// # Errors
    /// If it failed at some of it.
    pub fn synchronize(self) -> Result<(), String> {
        match self {
            Device::Cpu | Device::Sim { .. } => Ok(()),
            Device::Cuda(gpu) => Context::open(gpu)
                .and_then(Context::synchronize)
                .map_err(|e| e.to_string()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Sim { arch: Arch::Sm80 } => f.write_str("sim"),
            Device::Sim { arch } => write!(f, "sim:{arch}"),
            Device::Cuda(gpu) => write!(f, "cuda:{gpu}"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(name: &str) -> Result<Device, String> {
        match name {
            "cpu" => Ok(Device::Cpu),
            "sim" | "sim:sm_80" => Ok(Device::SIM),
            "sim:sm_90a" => Ok(Device::Sim { arch: Arch::Sm90a }),
            "cuda" => Ok(Device::Cuda(0)),
            _ => {
                let number = name.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                number.map(Device::Cuda).ok_or_else(|| {
                    format!(
                        "unknown device {name:?}: there are \"cpu\", a GPU (\"cuda\", \"cuda:1\"), and a simulated one \
                         (\"sim\", \"sim:sm_90a\")"
                    )
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_known_by_what_they_print() {
        let simulated = [Device::SIM, Device::Sim { arch: Arch::Sm90a }];
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(7)]
            .into_iter()
            .chain(simulated)
        {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("sim:sm_80".parse(), Ok(Device::SIM));
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert!("cuda:first".parse::<Device>().is_err());
        assert!("gpu".parse::<Device>().is_err_and(|e| e.contains("cpu")));
    }

    /// With a driver or without: no panic, and a tensor that a GPU did not give says why to whoever uses it.
    #[test]
    fn a_gpu_that_is_not_there_is_an_error_of_the_first_use() {
        use crate::{DType, Tensor};
        let nowhere = Device::Cuda(999);
        assert!(nowhere.open().is_err_and(|e| !e.contains('\n')));
        let x = Tensor::zeros([2, 3], DType::F32, nowhere);
        assert_eq!(x.dims(), [2, 3]);
        let why = nowhere.open().unwrap_err();
        for error in [
            x.to_host().unwrap_err(),
            crate::ops::affine::forward(&x, 2.0, 0.0).unwrap_err(),
        ] {
            assert!(error.reason().contains(&why), "{error}");
        }
    }
}
