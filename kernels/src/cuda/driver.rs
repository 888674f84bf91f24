//! The driver itself: whether there is one, which, and its GPUs.

use std::fmt;
use std::sync::OnceLock;

use cudarc::driver::{result, sys};

use super::{Error, Result};
use crate::launch::Arch;

/// The CUDA version that a driver speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl Version {
    /// The oldest that the kernels and this layer work with: drivers from 525 on.
    const OLDEST: Version = Version {
        major: 12,
        minor: 0,
    };

    /// As the driver encodes it: 12040 is 12.4.
    fn decode(encoded: u32) -> Version {
        Version {
            major: encoded / 1000,
            minor: encoded % 1000 / 10,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A GPU that the driver knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub ordinal: usize,
    /// As its maker calls it.
    pub name: String,
    /// Its memory.
    pub bytes: usize,
    /// The compute capability: 9.0 is Hopper.
    pub capability: [u32; 2],
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
}

impl Gpu {
    /// The kernels that it is given; none where it is older than all of them.
    pub fn arch(&self) -> Option<Arch> {
        match self.capability {
            [9, 0] => Some(Arch::Sm90a),
            [major, _] if major >= 8 => Some(Arch::Sm80),
            _ => None,
        }
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {} ({})", self.ordinal, self.name)
    }
}

/// The CUDA version of the driver.
///
/// # Errors
/// If there is no driver, or it does not start.
pub fn version() -> Result<Version> {
    static STARTED: OnceLock<Result<Version>> = OnceLock::new();
    STARTED.get_or_init(start).clone()
}

fn start() -> Result<Version> {
    // Without a library every other call of cudarc would panic.
    // SAFETY: opening libcuda runs its constructors, which any program that uses it does.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::new(
            "there is no NVIDIA driver on this machine (libcuda.so.1 was not found): install one, or use --device cpu",
        ));
    }
    let mut encoded = 0;
    // SAFETY: `encoded` is written before the call returns.
    unsafe { sys::cuDriverGetVersion(&mut encoded) }
        .result()
        .map_err(Error::of("read the driver's version"))?;
    let version = Version::decode(encoded.unsigned_abs());
    if version < Version::OLDEST {
        return Err(Error::new(format!(
            "the NVIDIA driver speaks CUDA {version}, and {} is needed: update it to release 525 or newer",
            Version::OLDEST
        )));
    }
    match result::init() {
        Ok(()) => Ok(version),
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Err(no_gpu()),
        Err(error) => Err(Error::of("start the NVIDIA driver")(error)),
    }
}

fn no_gpu() -> Error {
    Error::new(
        "there is an NVIDIA driver but no GPU that it may use (CUDA_VISIBLE_DEVICES hides some): use --device cpu",
    )
}

/// The release of the driver, such as 580.65.06; `None` where the system does not tell.
pub fn release() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  …": the first word of numbers and dots.
    let number =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.split_whitespace().find(number).map(str::to_owned)
}

/// All GPUs that this process may use, in the driver's order.
///
/// # Errors
/// If there is no driver, or no GPU.
pub fn gpus() -> Result<Vec<Gpu>> {
    version()?;
    let count = match result::device::get_count() {
        Ok(count) => usize::try_from(count).unwrap_or(0),
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => 0,
        Err(error) => return Err(Error::of("count the GPUs")(error)),
    };
    if count == 0 {
        return Err(no_gpu());
    }
    (0..count).map(gpu).collect()
}

fn gpu(ordinal: usize) -> Result<Gpu> {
    let failed = |error| Error::of(format!("ask for the properties of GPU {ordinal}"))(error);
    let device = device(ordinal)?;
    let attribute = |which| {
        // SAFETY: `device` was given by the driver.
        let value = unsafe { result::device::get_attribute(device, which) };
        value.map(i32::unsigned_abs).map_err(failed)
    };
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as MULTIPROCESSORS,
    };
    Ok(Gpu {
        ordinal,
        name: result::device::get_name(device).map_err(failed)?,
        // SAFETY: as above.
        bytes: unsafe { result::device::total_mem(device) }.map_err(failed)?,
        capability: [attribute(MAJOR)?, attribute(MINOR)?],
        multiprocessors: attribute(MULTIPROCESSORS)?,
    })
}

/// The driver's handle of a GPU.
pub(super) fn device(ordinal: usize) -> Result<sys::CUdevice> {
    let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
    result::device::get(ordinal).map_err(Error::of(format!("open GPU {ordinal}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_decoded_as_the_driver_encodes_them() {
        let version = Version::decode(12040);
        assert_eq!(version.to_string(), "12.4");
        assert!(version > Version::OLDEST && Version::decode(11080) < Version::OLDEST);
        assert_eq!(Version::decode(13000).to_string(), "13.0");
    }

    #[test]
    fn a_gpu_is_given_the_newest_kernels_that_it_runs() {
        let gpu = |capability| Gpu {
            ordinal: 0,
            name: String::new(),
            bytes: 0,
            capability,
            multiprocessors: 1,
        };
        assert_eq!(gpu([7, 5]).arch(), None);
        assert_eq!(gpu([8, 0]).arch(), Some(Arch::Sm80));
        assert_eq!(gpu([8, 9]).arch(), Some(Arch::Sm80));
        assert_eq!(gpu([9, 0]).arch(), Some(Arch::Sm90a));
        // sm_90a is of Hopper alone; the driver compiles sm_80 for what came after.
        assert_eq!(gpu([12, 0]).arch(), Some(Arch::Sm80));
    }

    /// With a driver or without: an answer, and no panic.
    #[test]
    fn every_machine_gets_an_answer() {
        match gpus() {
            Ok(gpus) => assert!(gpus.iter().all(|gpu| gpu.bytes > 0)),
            Err(error) => assert!(error.to_string().contains("--device cpu"), "{error}"),
        }
    }
}
