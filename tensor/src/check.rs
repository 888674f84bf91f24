//! The checks that ops make of their operands, each of which ends in an [`Error`] that shows all of them.

use crate::{Accum, DType, Device, Error, Operand, Result, Tensor};

/// An op's name and operands, for its checks.
pub struct Check<'a> {
    op: &'static str,
    operands: Vec<(&'static str, &'a Tensor)>,
}

impl<'a> Check<'a> {
    pub fn new(op: &'static str, operands: &[(&'static str, &'a Tensor)]) -> Check<'a> {
        Check {
            op,
            operands: operands.to_vec(),
        }
    }

    /// Adds an operand that may be absent.
    pub fn optional(mut self, name: &'static str, operand: Option<&'a Tensor>) -> Check<'a> {
        self.operands.extend(operand.map(|t| (name, t)));
        self
    }

    pub fn error(&self, reason: impl Into<String>) -> Error {
        Error::new(
            self.op,
            reason,
            self.operands
                .iter()
                .map(|(name, t)| Operand::new(name, t))
                .collect(),
        )
    }

    pub fn require(&self, holds: bool, reason: impl FnOnce() -> String) -> Result<()> {
        if holds {
            Ok(())
        } else {
            Err(self.error(reason()))
        }
    }

    /// Requires `tensor` to have `rank` dimensions.
    pub fn rank(&self, name: &str, tensor: &Tensor, rank: usize) -> Result<()> {
        self.require(tensor.rank() == rank, || {
            format!(
                "{name} must have {rank} dimensions, it has {}",
                tensor.rank()
            )
        })
    }

    /// Requires `tensor` to have exactly the shape `dims`.
    pub fn shape(&self, name: &str, tensor: &Tensor, dims: &[usize]) -> Result<()> {
        self.require(&*tensor.shape() == dims, || {
            format!("{name} must be {dims:?}, it is {}", tensor.shape())
        })
    }

    /// Requires `tensor` to hold `dtype`.
    pub fn dtype(&self, name: &str, tensor: &Tensor, dtype: DType) -> Result<()> {
        self.require(tensor.dtype() == dtype, || {
            format!("{name} must be {dtype}, it is {}", tensor.dtype())
        })
    }

    /// Requires every element of an i32 `tensor` to be in `0..below`.
    pub fn index(&self, name: &str, tensor: &Tensor, below: usize) -> Result<()> {
        self.dtype(name, tensor, DType::I32)?;
        let values = tensor.to_vec::<i32>()?;
        let wrong = values.iter().find(|&&v| v < 0 || v as usize >= below);
        self.require(wrong.is_none(), || {
            format!(
                "{name} holds {}, which is outside 0..{below}",
                wrong.copied().unwrap_or_default()
            )
        })
    }

    /// Requires all operands to share one dtype that kernels compute in, and returns it.
    pub fn same_float(&self) -> Result<DType> {
        let all: Vec<&Tensor> = self.operands.iter().map(|&(_, t)| t).collect();
        self.floats(&all)
    }

    /// Requires these operands to share one dtype that kernels compute in, and all operands to share a device.
    pub fn floats(&self, tensors: &[&Tensor]) -> Result<DType> {
        let (dtype, device) = (tensors[0].dtype(), self.device());
        let computes = match device {
            Device::Cpu => [DType::F32, DType::F64],
            Device::Sim { .. } | Device::Cuda(_) => [DType::F32, DType::BF16],
        };
        self.require(computes.contains(&dtype), || {
            let [a, b] = computes;
            format!("cannot compute in {dtype} on {device}, which computes in {a} and {b}")
        })?;
        let same = tensors.iter().all(|t| t.dtype() == dtype);
        self.require(same, || "float operands must share one dtype".into())?;
        self.same_device()?;
        Ok(dtype)
    }

    /// The device of the first operand.
    pub(crate) fn device(&self) -> Device {
        self.operands
            .first()
            .map(|(_, t)| t.device())
            .unwrap_or_default()
    }

    pub fn same_device(&self) -> Result<()> {
        let device = self.device();
        self.require(
            self.operands.iter().all(|(_, t)| t.device() == device),
            || "operands must be on one device".into(),
        )
    }
}

/// Runs a body with `$T` bound to the Rust type of a float dtype that [`Check::same_float`] returned on the CPU.
macro_rules! dispatch_float {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            _ => {
                type $T = f32;
                $body
            }
        }
    };
}
pub(crate) use dispatch_float;

/// Where a kernel that makes several gradients puts one of them, if anywhere.
pub(crate) type Destination<'a, T> = Option<(&'a mut [T], Accum)>;

/// The destinations of a kernel that makes several gradients.
pub(crate) fn slices_mut<T: crate::Float, const N: usize>(
    gradients: &mut [Option<(Tensor, Accum)>; N],
) -> Result<[Destination<'_, T>; N]> {
    let mut slices = [const { None }; N];
    for (slice, gradient) in slices.iter_mut().zip(gradients) {
        if let Some((tensor, accum)) = gradient {
            *slice = Some((tensor.as_mut_slice()?, *accum));
        }
    }
    Ok(slices)
}
