//! What the tests of several ops share.

pub mod gpu;
pub mod operands;

use std::sync::{Mutex, MutexGuard};

use crate::simd::{self, Level};
use crate::{DType, Float};

/// Values in [−1, 1), a function of the seed.
pub fn values<T: Float>(n: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // Few enough bits that f32 and f64 see the same inputs.
        T::from_f64((state >> 41) as f64 / (1u64 << 22) as f64 - 1.0)
    };
    (0..n).map(|_| next()).collect()
}

pub fn to_f64<T: Float>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// Asserts `max|got − exact| ≤ 2·max|naive − exact| + 2 ulp` (of the largest value) in f32, and 1e-12 of the largest
/// value in f64, where the reference is no more exact than what it judges.
pub fn assert_within_budget<T: Float>(case: &str, got: &[T], naive: &[T], exact: &[f64]) {
    assert_eq!(got.len(), exact.len(), "{case}");
    let worst = |x: &[T]| {
        let errors = x.iter().zip(exact).map(|(x, e)| (x.to_f64() - e).abs());
        errors.fold(
            0.0,
            |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) },
        )
    };
    let largest = exact.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    let slack = if T::DTYPE == DType::F32 {
        2.0 * f32::EPSILON as f64
    } else {
        1e-12
    };
    let (error, budget) = (worst(got), 2.0 * worst(naive) + slack * largest);
    assert!(
        error <= budget,
        "{case}: error {error:.2e}, budget {budget:.2e}"
    );
}

/// Holds the process-wide SIMD level for one test, and gives it back.
pub struct Levels(#[allow(dead_code)] MutexGuard<'static, ()>);

impl Drop for Levels {
    fn drop(&mut self) {
        simd::set_level(Level::Avx512);
    }
}

/// Runs `f` at every level and on pools of 1 to 4 threads, and asserts that the results agree in every bit.
pub fn assert_bits_agree<R: PartialEq + Send>(case: &str, f: impl Fn() -> R + Sync) {
    static LEVEL: Mutex<()> = Mutex::new(());
    let _levels = Levels(LEVEL.lock().unwrap_or_else(|e| e.into_inner()));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a small pool starts").install(&f)
    };
    let reference = run(1);
    for threads in 2..=4 {
        assert!(
            run(threads) == reference,
            "{case}: {threads} threads differ from one"
        );
    }
    for level in [Level::Avx2, Level::Baseline] {
        let level = simd::set_level(level);
        assert!(
            run(2) == reference,
            "{case}: {level:?} differs from the best level"
        );
    }
}

/// Bits of a result, so that NaN compares equal to itself and 0 differs from −0.
pub fn bits<T: Float>(x: &[T]) -> Vec<u64> {
    x.iter().map(|x| x.to_f64().to_bits()).collect()
}
