//! Launches as tests of several kernels in a row have them: operands that own their bytes, and outputs that are the next
//! launch's inputs.

use super::gpu::{decode, encode, run_plan};
use crate::launch::{Argument, TensorMap};
use crate::ops::variants::{Plan, Variant};
use crate::ptx::Storage;
use crate::sim::Profile;

/// An operand of a launch.
#[derive(Clone)]
pub enum Operand {
    /// Written by the kernel: this many bytes.
    Out(usize),
    /// Updated by the kernel.
    InOut(Vec<u8>),
    In(Vec<u8>),
    Absent,
    U32(u32),
    U64(u64),
    TensorMap(TensorMap),
    F32(f32),
}

/// Runs a plan on the simulated GPU; gives what it wrote, in order.
pub fn simulate<V: Variant>(plan: &Plan<V>, operands: &[Operand]) -> (Vec<Vec<u8>>, Profile) {
    with_arguments(operands, |arguments| run_plan(plan, arguments))
}

/// Calls `run` with arguments of a launch; gives what it wrote into them, in order.
pub fn with_arguments<R>(
    operands: &[Operand],
    run: impl FnOnce(Vec<Argument<'_>>) -> R,
) -> (Vec<Vec<u8>>, R) {
    // What is only written starts as a pattern that no kernel writes.
    let mut written: Vec<Option<Vec<u8>>> = operands
        .iter()
        .map(|operand| match operand {
            Operand::Out(bytes) => Some(vec![0xA5; *bytes]),
            Operand::InOut(bytes) => Some(bytes.clone()),
            _ => None,
        })
        .collect();
    let arguments = operands
        .iter()
        .zip(&mut written)
        .map(|(operand, written)| match (operand, written) {
            (Operand::Out(_), Some(written)) => Argument::Write(written),
            (Operand::InOut(_), Some(written)) => Argument::Update(written),
            (Operand::In(bytes), _) => Argument::Read(bytes),
            (Operand::U32(x), _) => Argument::U32(*x),
            (Operand::U64(x), _) => Argument::U64(*x),
            (Operand::F32(x), _) => Argument::F32(*x),
            (Operand::TensorMap(map), _) => Argument::TensorMap(map.clone()),
            _ => Argument::Null,
        })
        .collect();
    let result = run(arguments);
    (written.into_iter().flatten().collect(), result)
}

/// Values as a storage holds them.
pub fn rounded(storage: Storage, values: &[f32]) -> Vec<f32> {
    decode(storage, &encode(storage, values))
}

/// Asserts `max|got − exact| ≤ 2·max|naive − exact| + 2 ulp` of the storage at the largest value, `naive` being computed
/// in f32 and rounded to the storage.
pub fn assert_within_budget(
    case: &str,
    storage: Storage,
    got: &[f32],
    naive: &[f32],
    exact: &[f64],
) {
    assert_eq!(got.len(), exact.len(), "{case}");
    let naive = rounded(storage, naive);
    let worst = |x: &[f32]| {
        let errors = x.iter().zip(exact).map(|(&x, e)| (f64::from(x) - e).abs());
        errors.fold(
            0.0,
            |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) },
        )
    };
    let largest = exact.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    let ulp = match storage {
        Storage::F32 => f64::from(f32::EPSILON),
        Storage::Bf16 => f64::from(f32::from(half::bf16::EPSILON)),
    };
    let (error, budget) = (worst(got), 2.0 * worst(&naive) + 2.0 * ulp * largest);
    assert!(
        error <= budget,
        "{case}: error {error:.2e}, budget {budget:.2e}"
    );
}
