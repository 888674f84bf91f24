//! Errors are values that carry their operands.

use std::fmt;

use crate::{DType, Device, Shape, Tensor};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A tensor as an error shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operand {
    pub name: &'static str,
    pub shape: Shape,
    pub dtype: DType,
    pub device: Device,
}

impl Operand {
    pub fn new(name: &'static str, tensor: &Tensor) -> Operand {
        Operand {
            name,
            shape: tensor.shape(),
            dtype: tensor.dtype(),
            device: tensor.device(),
        }
    }
}

/// Why an op refused its operands, or could not run.
///
/// ```text
/// conv2d: weight expects 320 input channels, x has 640
///     x       [8, 32, 32, 640]  f32  cpu
///     weight  [320, 3, 3, 320]  f32  cpu
///   in  decoder.down_blocks.1.resnets.0.conv1
/// ```
#[derive(Clone, Debug)]
pub struct Error(Box<Details>);

#[derive(Clone, Debug)]
struct Details {
    op: &'static str,
    reason: String,
    operands: Vec<Operand>,
    module: Option<String>,
    unsupported: bool,
}

impl Error {
    pub fn new(op: &'static str, reason: impl Into<String>, operands: Vec<Operand>) -> Error {
        Error(Box::new(Details {
            op,
            reason: reason.into(),
            operands,
            module: None,
            unsupported: false,
        }))
    }

    /// The same about the same operands, for another reason.
    pub fn because(mut self, reason: impl Into<String>) -> Error {
        self.0.reason = reason.into();
        self
    }

    /// Marks a refusal that is the device's, not the op's.
    pub(crate) fn unsupported(mut self) -> Error {
        self.0.unsupported = true;
        self
    }

    /// Whether only this device cannot do what was asked, for lack of a kernel.
    pub fn is_unsupported(&self) -> bool {
        self.0.unsupported
    }

    pub fn op(&self) -> &'static str {
        self.0.op
    }

    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    pub fn operands(&self) -> &[Operand] {
        &self.0.operands
    }

    /// The path of the innermost module that was running, such as `decoder.mid_block.resnets.0`.
    pub fn module(&self) -> Option<&str> {
        self.0.module.as_deref()
    }

    /// Names the module that was running, unless an inner one already did.
    pub fn in_module(mut self, path: &str) -> Error {
        if self.0.module.is_none() && !path.is_empty() {
            self.0.module = Some(path.to_owned());
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Details {
            op,
            reason,
            operands,
            module,
            ..
        } = &*self.0;
        write!(f, "{op}: {reason}")?;
        let width = operands.iter().map(|o| o.name.len()).max().unwrap_or(0);
        for Operand {
            name,
            shape,
            dtype,
            device,
        } in operands
        {
            write!(f, "\n    {name:width$}  {shape}  {dtype}  {device}")?;
        }
        if let Some(module) = module {
            write!(f, "\n  in  {module}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
