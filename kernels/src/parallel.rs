//! Work split into parts that depend on the problem's size alone, never on the number of threads.
//!
//! A part writes its own outputs; where parts produce partial sums, the caller adds them in the order of their index.

use rayon::prelude::*;

/// Below this many elements a loop runs on the calling thread: waking a worker costs more than it saves.
pub const SERIAL_BELOW: usize = 16 * 1024;

/// Calls `f(index, chunk)` for consecutive chunks of `chunk` elements of `data`.
pub fn chunks_mut<T: Send>(
    data: &mut [T],
    chunk: usize,
    f: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    let chunk = chunk.max(1);
    if data.len() <= SERIAL_BELOW || data.len() <= chunk {
        data.chunks_mut(chunk)
            .enumerate()
            .for_each(|(i, c)| f(i, c));
    } else {
        data.par_chunks_mut(chunk)
            .enumerate()
            .for_each(|(i, c)| f(i, c));
    }
}

/// Calls `f(i)` for every `i < n`, in parallel.
///
/// For parts that write through something else than one slice's chunks; `work` is the elements that all parts touch.
pub fn for_each(n: usize, work: usize, f: impl Fn(usize) + Sync + Send) {
    if n <= 1 || work <= SERIAL_BELOW {
        (0..n).for_each(f);
    } else {
        (0..n).into_par_iter().for_each(f);
    }
}

/// `f(i)` for every `i < n`, results in order of `i`.
pub fn map<R: Send>(n: usize, work: usize, f: impl Fn(usize) -> R + Sync + Send) -> Vec<R> {
    if n <= 1 || work <= SERIAL_BELOW {
        (0..n).map(f).collect()
    } else {
        (0..n).into_par_iter().map(f).collect()
    }
}

/// A pointer that parts running in parallel write disjoint ranges through.
pub struct Disjoint<T> {
    data: *mut T,
    len: usize,
}

// SAFETY: `Disjoint` only hands out ranges; the caller of `range` promises that no two live ranges overlap.
unsafe impl<T: Send> Sync for Disjoint<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Disjoint<T> {}

impl<T> Disjoint<T> {
    pub fn new(data: &mut [T]) -> Self {
        Disjoint {
            data: data.as_mut_ptr(),
            len: data.len(),
        }
    }

    /// # Safety
    /// No other live range of this slice may overlap `start..start + len`, and the slice outlives the range.
    ///
    /// # Panics
    /// If the range leaves the slice.
    #[allow(clippy::mut_from_ref)] // the point of the type: the caller vouches for disjointness
    #[inline]
    pub unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "range {start}+{len} leaves a slice of {}",
            self.len
        );
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}
