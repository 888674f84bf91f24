//! The operands of a case: values from its [`Fill`]s, and tensors of them.
//!
//! Values come from a generator of their own (SplitMix64), not from the one under test, and are rounded to f32 first, so
//! that f32 and f64 runs see the same numbers.

use crate::spec::{Array, Case, Fill, Input};
use crate::{DType, Device, Shape, Tensor};

/// SplitMix64 (Steele, Lea & Flood 2014).
pub struct Random(u64);

impl Random {
    /// The generator that belongs to `label`.
    pub fn new(label: &str) -> Random {
        let hash = label.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Random(hash)
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1).
    pub fn unit(&mut self) -> f64 {
        ((self.word() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.word() % n.max(1) as u64) as usize
    }

    /// Standard normals that f32 holds exactly.
    pub fn normals(&mut self, shape: &[usize]) -> Array {
        let mut out = Array::zeros(shape);
        out.data.fill_with(|| f64::from(self.normal() as f32));
        out
    }
}

/// The operand's values.
pub fn values(input: &Input, random: &mut Random) -> Array {
    let mut out = Array::zeros(&input.shape);
    let row = input.shape.last().copied().unwrap_or(1).max(1);
    for (i, value) in out.data.iter_mut().enumerate() {
        *value = match input.fill {
            Fill::Normal { mean, std } => f64::from((mean + std * random.normal()) as f32),
            Fill::Uniform { low, high } | Fill::Constant { low, high } => {
                f64::from((low + (high - low) * random.unit()) as f32)
            }
            Fill::Index { below } => random.below(below) as f64,
            Fill::Mask { probability } => {
                f64::from(u8::from(random.unit() < probability || i % row == 0))
            }
        };
    }
    out
}

/// The values of all operands of a case; `variant` tells several sets apart.
pub fn case_values(case: &Case, variant: usize) -> Vec<Array> {
    let mut random = Random::new(&format!("{} {variant}", case.name));
    case.inputs
        .iter()
        .map(|input| values(input, &mut random))
        .collect()
}

/// What an operand is stored as when floats are `float`.
pub fn dtype(fill: Fill, float: DType) -> DType {
    match fill {
        Fill::Index { .. } => DType::I32,
        Fill::Mask { .. } => DType::Bool,
        _ => float,
    }
}

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Contiguous,
    /// A view with an offset, into rows that are one element longer. What lies between is NaN, or an index of −1.
    Strided,
}

/// The operand as a tensor.
///
/// # Panics
/// If the values do not fill the array's shape.
pub fn tensor(fill: Fill, values: &Array, float: DType, layout: Layout, device: Device) -> Tensor {
    let dtype = dtype(fill, float);
    let shape = Shape::new(&values.shape);
    let row = match (layout, values.shape.last()) {
        (Layout::Strided, Some(&row)) if row > 0 => row,
        _ => return Tensor::from_f64(&values.data, shape, dtype, device),
    };
    let between = match dtype {
        DType::I32 => -1.0,
        DType::Bool => 1.0,
        _ => f64::NAN,
    };
    let padded: Vec<f64> = values
        .data
        .chunks(row)
        .flat_map(|row| std::iter::once(between).chain(row.iter().copied()))
        .collect();
    let mut padded_shape = values.shape.clone();
    let last = padded_shape.len() - 1;
    padded_shape[last] += 1;
    Tensor::from_f64(&padded, Shape::new(&padded_shape), dtype, device)
        .narrow(last, 1, row)
        .expect("the view leaves out one element of each row")
}
