//! How far a result may be from the truth.
//!
//! **f64** against the naive reference: 1e-9 of the largest value, over 10⁶ times the rounding of one operation, and far
//! below any mistake in a formula. The worst that was measured over all ops is printed with every run.
//!
//! **f32** against f64, on the same numbers: `max|y − y64| ≤ 2·max|naive − y64| + 2 ulp` (of the largest value), and the
//! same for the root of the mean square, so that a small bias everywhere is seen too. There is no second, naive f32
//! program of every op to take `naive` from. By backward error analysis a sound f32 program gives the exact result of
//! operands that are each off by a few roundings, so `naive` is the f64 result of just that: every float operand moved
//! by a relative ±[`Precision::backward_error`], at random signs, the worst of several draws. A program that loses more than that
//! (a one-pass variance, a sum that grows away from its terms) is above the budget, whatever the op's conditioning.
//!
//! **bf16**, which GPUs store and compute in f32: the same with the numbers of bf16, and numbers that bf16 holds.

use super::values::Random;
use crate::DType;
use crate::spec::{Array, Case, Fill};

/// Largest error of an f64 result, as a fraction of its largest value.
pub const F64: f64 = 1e-9;

/// What a dtype's results may differ from f64's in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// The distance of 1 from the next number.
    pub ulp: f64,
    /// What a sound program is allowed in terms of its operands, as a fraction of each.
    pub backward_error: f64,
}

impl Precision {
    /// Four roundings to nearest, 4·2⁻²⁴.
    pub const F32: Precision = Precision {
        ulp: 1.0 / 8_388_608.0,
        backward_error: 4.0 / 16_777_216.0,
    };

    /// Sums are kept in f32, so that operands are rounded once, 2⁻⁹: where a kernel makes one of them itself.
    pub const BF16: Precision = Precision {
        ulp: 1.0 / 128.0,
        backward_error: 1.0 / 512.0,
    };

    /// Of results in `dtype`.
    pub fn of(dtype: DType) -> Precision {
        match dtype {
            DType::BF16 => Precision::BF16,
            _ => Precision::F32,
        }
    }
}

pub fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, v| v.abs().max(m))
}

fn root_mean_square(x: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = x.len().max(1) as f64;
    (x.map(|v| v * v).sum::<f64>() / n).sqrt()
}

/// The largest difference. NaN where either has one.
fn distance(y: &[f64], reference: &[f64]) -> f64 {
    let differences = y.iter().zip(reference).map(|(y, r)| (y - r).abs());
    differences.fold(0.0, |m, d| if d <= m { m } else { d })
}

fn root_mean_square_distance(y: &[f64], reference: &[f64]) -> f64 {
    root_mean_square(y.iter().zip(reference).map(|(y, r)| y - r))
}

/// The error as a fraction of the largest value.
pub fn relative(y: &[f64], reference: &[f64]) -> f64 {
    let error = distance(y, reference);
    if error == 0.0 {
        0.0
    } else {
        error / largest(reference).max(f64::MIN_POSITIVE)
    }
}

/// The part of its budget that a result uses: above 1 it is refused. NaN is above.
///
/// `from` is the largest value that a gradient is made from. Where the exact gradient vanishes beside it (the gradient of
/// a norm along its own operand), only the rounding of what cancels is left, and an ulp is one of `from`.
pub fn used(
    precision: Precision,
    y: &[f64],
    reference: &[f64],
    naive: &[&[f64]],
    from: f64,
) -> f64 {
    let worst = |measure: fn(&[f64], &[f64]) -> f64| {
        naive
            .iter()
            .map(|naive| measure(naive, reference))
            .fold(0.0, f64::max)
    };
    let share = |error: f64, budget: f64| if error == 0.0 { 0.0 } else { error / budget };
    let vanishes = largest(reference) <= F64 * from;
    let ulp = precision.ulp * if vanishes { from } else { largest(reference) };
    let max = share(distance(y, reference), 2.0 * worst(distance) + 2.0 * ulp);
    let mean_ulp = if vanishes {
        ulp
    } else {
        precision.ulp * root_mean_square(reference.iter().copied())
    };
    let mean = share(
        root_mean_square_distance(y, reference),
        2.0 * worst(root_mean_square_distance) + 2.0 * mean_ulp,
    );
    if max.is_nan() || mean.is_nan() {
        f64::INFINITY
    } else {
        max.max(mean)
    }
}

/// The operands, moved by the precision's [`Precision::backward_error`].
pub fn moved(
    precision: Precision,
    case: &Case,
    values: &[Array],
    random: &mut Random,
) -> Vec<Array> {
    let float = |fill| !matches!(fill, Fill::Index { .. } | Fill::Mask { .. });
    let pairs = case.inputs.iter().zip(values);
    pairs
        .map(|(input, values)| {
            if float(input.fill) {
                moved_array(precision, values, random)
            } else {
                values.clone()
            }
        })
        .collect()
}

pub fn moved_array(precision: Precision, values: &Array, random: &mut Random) -> Array {
    let mut out = values.clone();
    for value in &mut out.data {
        let sign = if random.word() & 1 == 0 { 1.0 } else { -1.0 };
        *value *= 1.0 + sign * precision.backward_error;
    }
    out
}
