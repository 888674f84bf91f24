//! The GPU kernels on the simulated GPU, against the CPU's functions.

use super::ptx::{Backward, Forward};
use super::*;
use crate::Accum;
use crate::ptx::Storage;
use crate::testing::gpu::{decode, encode};
use crate::testing::operands::{Operand, assert_within_budget, rounded, simulate};

/// Values on both sides of every branch of the functions, as the storage holds them.
fn inputs(storage: Storage, n: usize) -> Vec<f32> {
    let values: Vec<f32> = (0..n)
        .map(|i| match i % 17 {
            0 => 0.0,
            1 => -90.0,
            2 => 80.0,
            3 => 1e-20,
            j => ((i * 7919 + j) % 2001) as f32 / 100.0 - 10.0,
        })
        .collect();
    rounded(storage, &values)
}

/// Around the sizes of a chunk, a warp and a CTA.
const SIZES: [usize; 7] = [1, 3, 8, 31, 1000, 2048, 4101];

#[test]
fn forward_is_the_cpus() {
    for function in Unary::ALL {
        for storage in Storage::ALL {
            for n in SIZES {
                let x = inputs(storage, n);
                let variant = Forward { function, storage };
                let plan = variant.config(n).expect("few elements");
                let operands = [
                    Operand::Out(n * storage.bytes() as usize),
                    Operand::In(encode(storage, &x)),
                    Operand::U32(n as u32),
                ];
                let (outputs, _) = simulate(&plan, &operands);
                let got = decode(storage, &outputs[0]);
                let case = format!("{variant:?} of {n}");
                judge(
                    &case,
                    storage,
                    &got,
                    &x,
                    |x| value(function, x),
                    |x| value(function, x),
                );
            }
        }
    }
}

#[test]
fn backward_is_the_cpus() {
    for function in Unary::ALL {
        for storage in Storage::ALL {
            for (n, accum) in SIZES.into_iter().zip(Accum::ALL.into_iter().cycle()) {
                let x = inputs(storage, n);
                let variant = Backward {
                    function,
                    storage,
                    accum,
                };
                let plan = variant.config(n).expect("few elements");
                let dx = match accum {
                    Accum::Replace => Operand::Out(n * storage.bytes() as usize),
                    Accum::Add => Operand::InOut(encode(storage, &vec![0.5; n])),
                };
                let operands = [
                    dx,
                    Operand::In(encode(storage, &vec![2.0; n])),
                    Operand::In(encode(storage, &x)),
                    Operand::U32(n as u32),
                ];
                let (outputs, _) = simulate(&plan, &operands);
                let got = decode(storage, &outputs[0]);
                let case = format!("{variant:?} of {n}");
                let single = |x| 2.0 * derivative(function, x);
                let double = |x| 2.0 * derivative(function, x);
                match accum {
                    Accum::Replace => judge(&case, storage, &got, &x, single, double),
                    Accum::Add => {
                        let single = |x| 0.5 + single(x);
                        judge(&case, storage, &got, &x, single, |x| 0.5 + double(x));
                    }
                }
            }
        }
    }
}

/// f32 must agree with the CPU in every bit, bf16 within the budget.
fn judge(
    case: &str,
    storage: Storage,
    got: &[f32],
    x: &[f32],
    single: impl Fn(f32) -> f32,
    double: impl Fn(f64) -> f64,
) {
    let naive: Vec<f32> = x.iter().map(|&x| single(x)).collect();
    match storage {
        Storage::F32 => {
            for ((got, want), x) in got.iter().zip(&naive).zip(x) {
                assert_eq!(got.to_bits(), want.to_bits(), "{case}: {got} {want} at {x}");
            }
        }
        Storage::Bf16 => {
            // One infinity would hide every other error.
            let finite: Vec<usize> = (0..x.len()).filter(|&i| naive[i].abs() < 1e30).collect();
            let pick = |values: &[f32]| finite.iter().map(|&i| values[i]).collect::<Vec<_>>();
            let exact: Vec<f64> = pick(x).iter().map(|&x| double(f64::from(x))).collect();
            assert_within_budget(case, storage, &pick(got), &pick(&naive), &exact);
        }
    }
}
