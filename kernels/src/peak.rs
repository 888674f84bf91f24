//! What this machine can do at most, measured: the yardstick that speeds are printed beside.
//!
//! Neither is a data sheet's number: clocks, neighbours on the same host and the memory's layout are in it, as they are in
//! every kernel's time.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::Buffer;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Level, level};

/// Independent chains of fused multiply-adds: enough to hide their latency at two per cycle.
const CHAINS: usize = 12;
const ROUNDS: usize = 200_000;

/// Runs [`ROUNDS`] rounds of [`CHAINS`] vector operations at the SIMD level in use. Returns the vector's width and a value
/// that depends on all of them.
///
/// In intrinsics, not in a `multiversion!` body: arrays of lanes end up in memory, and what is measured then is not this.
fn chains() -> (usize, f32) {
    let (factor, term) = (black_box(0.999), black_box(1e-3));
    #[cfg(target_arch = "x86_64")]
    match level() {
        // SAFETY: `level` never exceeds what the CPU supports.
        Level::Avx512 => return (16, unsafe { x86::avx512(factor, term) }),
        // SAFETY: as above.
        Level::Avx2 => return (8, unsafe { x86::avx2(factor, term) }),
        Level::Baseline => {}
    }
    let mut sums = [0.0f32; CHAINS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = *sum * factor + term;
        }
    }
    (1, sums.iter().sum())
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{CHAINS, ROUNDS};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub fn avx512(factor: f32, term: f32) -> f32 {
        let (factor, term) = (_mm512_set1_ps(factor), _mm512_set1_ps(term));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        _mm512_reduce_add_ps(sums.into_iter().fold(factor, |a, b| _mm512_add_ps(a, b)))
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(factor: f32, term: f32) -> f32 {
        let (factor, term) = (_mm256_set1_ps(factor), _mm256_set1_ps(term));
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        _mm256_cvtss_f32(sums.into_iter().fold(factor, |a, b| _mm256_add_ps(a, b)))
    }
}

/// The best of `tries` in f32 operations per second, on all threads of the current pool.
pub fn fused_multiply_adds(tries: usize) -> f64 {
    let threads = rayon::current_num_threads();
    let best = best_seconds(tries, || {
        (0..threads).into_par_iter().for_each(|_| {
            black_box(chains());
        });
    });
    (2 * CHAINS * chains().0 * ROUNDS * threads) as f64 / best
}

/// The best of `tries` in bytes read plus written per second, copying `bytes` on all threads of the current pool.
pub fn copy_bandwidth(tries: usize, bytes: usize) -> f64 {
    let (mut to, from) = (Buffer::uninit(bytes), Buffer::uninit(bytes));
    let chunk = bytes.div_ceil(rayon::current_num_threads()).max(1);
    let best = best_seconds(tries, || {
        to.as_bytes_mut()
            .par_chunks_mut(chunk)
            .zip(from.as_bytes().par_chunks(chunk))
            .for_each(|(to, from)| to.copy_from_slice(from));
        black_box(to.as_bytes().first());
    });
    2.0 * bytes as f64 / best
}

fn best_seconds(tries: usize, mut work: impl FnMut()) -> f64 {
    let seconds = (0..tries.max(1)).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    #[test]
    fn peaks_are_plausible() {
        // The slowest machine that could run this, and ten times the fastest.
        assert!((1e8..1e15).contains(&super::fused_multiply_adds(1)));
        assert!((1e8..1e14).contains(&super::copy_bandwidth(1, 1 << 20)));
    }
}
