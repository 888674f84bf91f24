//! What the driver says, as one sentence that says what to do.

use std::fmt;

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

/// Why a GPU did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    pub(super) fn new(sentence: impl Into<String>) -> Error {
        Error(sentence.into())
    }

    /// For `map_err`: what was tried, in the infinitive.
    pub(super) fn of(doing: impl fmt::Display) -> impl FnOnce(DriverError) -> Error {
        move |error| {
            let said = |text: Result<&std::ffi::CStr, DriverError>| {
                text.map_or("an error it has no words for".into(), |s| {
                    s.to_string_lossy().into_owned()
                })
            };
            let (meaning, name) = (said(error.error_string()), said(error.error_name()));
            let advice = advice(error.0);
            Error(format!("cannot {doing}: {meaning} ({name}){advice}"))
        }
    }

    /// That memory is short, in bytes.
    pub(super) fn out_of_memory(gpu: &str, asked: usize, free: usize, total: usize) -> Error {
        Error(format!(
            "{gpu} is out of memory: {} were asked for, {} of {} are free; lower train_batch_size (and raise \
             gradient_accumulation_steps to make up for it), or end what else uses the GPU",
            Size(asked),
            Size(free),
            Size(total)
        ))
    }
}

/// What to do about an error, where that is known.
fn advice(code: CUresult) -> &'static str {
    match code {
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_INVALID_PC
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT => {
            "; a kernel before this failed: run the same with --device sim, which names the kernel and the line"
        }
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            "; the driver is too old for the kernels: update it"
        }
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "; another process holds the GPU for itself: end it or choose another GPU"
        }
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE => {
            "; the GPU's memory is faulty: choose another GPU"
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "; the driver was updated under the running system: restart it"
        }
        _ => "",
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Bytes for people.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.0 as f64 / f64::from(1 << 20);
        match self.0 {
            0..0x10_0000 => write!(f, "{} B", self.0),
            0x10_0000..0x4000_0000 => write!(f, "{mib:.1} MiB"),
            _ => write!(f, "{:.1} GiB", mib / 1024.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_memory_says_how_much_was_asked_for_and_what_to_do() {
        let said = Error::out_of_memory("GPU 0 (NVIDIA H200)", 3 << 30, 700 << 20, 141 << 30);
        let said = said.to_string();
        assert!(said.contains("3.0 GiB were asked for"), "{said}");
        assert!(said.contains("700.0 MiB of 141.0 GiB are free"), "{said}");
        assert!(said.contains("lower train_batch_size"), "{said}");
        assert!(!said.contains('\n'));
    }
}
