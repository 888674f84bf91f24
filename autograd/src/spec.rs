//! What every op says of itself, once: cases, inputs, a naive reference, and its cost.
//!
//! Tests (correctness, finite differences, determinism, bounds) and benches iterate over [`crate::ops::ALL`] and contain
//! no op of their own.

use tensor::Result;

use crate::{StepState, Tape, Var};

/// The counters that every case runs under, in training mode and outside any module: what the reference of an op that
/// draws random numbers draws from too, by `Draw { step, first_sample, ..Draw::named(seed, "", 0) }`.
pub const STEP: StepState = StepState {
    seed: 7,
    step: 3,
    first_sample: 5,
};

/// One op's cases. No default methods: an op that leaves something out says so.
pub trait OpSpec: Sync {
    /// The stem of the op's files.
    fn name(&self) -> &'static str;
    /// Whether the op has a gradient, and why not.
    fn gradient(&self) -> Gradient;
    /// Small cases for correctness: odd and size-1 extents, every option on and off, a large mean for reductions.
    fn cases(&self) -> Vec<Case>;
    /// Large cases for timing, of the sizes that the models use.
    fn benches(&self) -> Vec<Case>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradient {
    Checked,
    /// The reason.
    None(&'static str),
}

/// An op on a tape, its attributes fixed.
pub type Run = Box<dyn Fn(&Tape, &[Var]) -> Result<Vec<Var>> + Send + Sync>;
/// The same op on plain arrays.
pub type Reference = Box<dyn Fn(&[Array]) -> Vec<Array> + Send + Sync>;

/// An op with its attributes and input shapes fixed.
pub struct Case {
    /// Selects the case on a command line, such as `m=17,n=33,k=5,bias,gelu`.
    pub name: String,
    pub inputs: Vec<Input>,
    /// The op on a tape.
    pub run: Run,
    /// The same by the plainest loops in f64, from the formula and not from the kernel.
    pub reference: Reference,
    pub cost: Cost,
}

/// What the forward pass must do at least.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Multiplications and additions.
    pub flops: f64,
    /// Elements of float tensors read plus written once each.
    pub elements: f64,
}

/// An operand of a case.
#[derive(Clone, Debug)]
pub struct Input {
    pub name: &'static str,
    pub shape: Vec<usize>,
    pub fill: Fill,
}

impl Input {
    /// A differentiable operand with standard normal values.
    pub fn normal(name: &'static str, shape: &[usize]) -> Input {
        Input {
            name,
            shape: shape.to_vec(),
            fill: Fill::Normal {
                mean: 0.0,
                std: 1.0,
            },
        }
    }

    pub fn new(name: &'static str, shape: &[usize], fill: Fill) -> Input {
        Input {
            name,
            shape: shape.to_vec(),
            fill,
        }
    }
}

/// The values of an operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Differentiable.
    Normal { mean: f64, std: f64 },
    /// Differentiable, in [low, high).
    Uniform { low: f64, high: f64 },
    /// A float constant: no gradient is asked for.
    Constant { low: f64, high: f64 },
    /// i32 in 0..below.
    Index { below: usize },
    /// bool, true with this probability; the first of each row is true.
    Mask { probability: f64 },
}

impl Fill {
    /// Whether the values are floats, which are rounded to the dtype of a run.
    pub fn is_float(self) -> bool {
        !matches!(self, Fill::Index { .. } | Fill::Mask { .. })
    }

    pub fn differentiable(self) -> bool {
        matches!(self, Fill::Normal { .. } | Fill::Uniform { .. })
    }
}

/// A plain row-major array in f64, for references.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Array {
    pub fn zeros(shape: &[usize]) -> Array {
        Array {
            shape: shape.to_vec(),
            data: vec![0.0; shape.iter().product()],
        }
    }

    /// Each element from its index.
    pub fn from_fn(shape: &[usize], f: impl Fn(&[usize]) -> f64) -> Array {
        let mut out = Array::zeros(shape);
        let mut index = vec![0; shape.len()];
        for value in &mut out.data {
            *value = f(&index);
            for d in (0..shape.len()).rev() {
                index[d] += 1;
                if index[d] < shape[d] {
                    break;
                }
                index[d] = 0;
            }
        }
        out
    }

    pub fn at(&self, index: &[usize]) -> f64 {
        let flat = index
            .iter()
            .zip(&self.shape)
            .fold(0, |flat, (&i, &extent)| flat * extent + i);
        self.data[flat]
    }

    pub fn map(&self, f: impl Fn(f64) -> f64) -> Array {
        Array {
            shape: self.shape.clone(),
            data: self.data.iter().map(|&x| f(x)).collect(),
        }
    }
}
