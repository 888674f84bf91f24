//! What this machine can do at most, measured: the yardstick that speeds are printed beside.
//!
//! Neither is a data sheet's number: clocks, neighbours on the same host and the memory's layout are in it, as they are in
//! every kernel's time.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use crate::{Buffer, multiversion};

/// Independent chains of fused multiply-adds: enough to hide their latency at two per cycle.
const CHAINS: usize = 12;
const WIDTH: usize = crate::simd::LANES;
const ROUNDS: usize = 200_000;

multiversion! {
    fn chains(rounds: usize, factor: f32, term: f32) -> f32 {
        let mut sums = [[0.0f32; WIDTH]; CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                for lane in sum {
                    *lane = lane.mul_add(factor, term);
                }
            }
        }
        sums.as_flattened().iter().sum()
    }
}

/// The best of `tries` in f32 operations per second, on all threads of the current pool.
pub fn fused_multiply_adds(tries: usize) -> f64 {
    let threads = rayon::current_num_threads();
    let best = best_seconds(tries, || {
        (0..threads).into_par_iter().for_each(|_| {
            black_box(chains(ROUNDS, black_box(0.999), black_box(1e-3)));
        });
    });
    (2 * CHAINS * WIDTH * ROUNDS * threads) as f64 / best
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
