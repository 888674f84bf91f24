//! Work split into parts that depend on the problem's size alone, never on the number of threads.
//!
//! A part writes its own outputs; where parts produce partial sums, the caller adds them in the order of their index.

use rayon::prelude::*;

use crate::Element;
use crate::buffer::{ALIGNMENT, Buffer};

/// Below this many elements a loop runs on the calling thread: waking a worker costs more than it saves.
pub const SERIAL_BELOW: usize = 16 * 1024;

/// Makes the calling thread a worker of the global pool; a program's main thread calls it once, before any other work.
///
/// A caller from outside the pool sleeps while the workers run its parts, and each call wakes all of them anew: with as
/// many threads as cores two of them can then wait for one core. A caller that is a worker itself goes on at once: matrix
/// products of 1024³ on two cores took 10.4 ms in place of 11.5. Where the pool has started already, nothing changes.
pub fn adopt_current_thread() {
    // The only errors are a pool that has begun already and a system without threads: work goes on as it can either way.
    let _ = rayon::ThreadPoolBuilder::new()
        .use_current_thread()
        .build_global();
}

/// Calls `f(index, chunk)` for consecutive chunks of `chunk` elements of `data`.
pub fn chunks_mut<T: Send>(
    data: &mut [T],
    chunk: usize,
    f: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    let work = data.len();
    chunks_mut_of(data, chunk, work, f)
}

/// [`chunks_mut`] where the parts touch `work` elements that are not `data`'s.
pub fn chunks_mut_of<T: Send>(
    data: &mut [T],
    chunk: usize,
    work: usize,
    f: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    let chunk = chunk.max(1);
    if work <= SERIAL_BELOW || data.len() <= chunk {
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

/// Calls `f(row, start, part)` for parts of at most `part` elements of every row of `row` elements; `start` counts from
/// the beginning of the row. Short rows share a task.
pub fn row_parts<T: Send>(
    data: &mut [T],
    row: usize,
    part: usize,
    f: impl Fn(usize, usize, &mut [T]) + Sync + Send,
) {
    if row == 0 {
        return;
    }
    let rows = (part / row).max(1);
    chunks_mut(data, rows * row, |i, data| {
        for (r, data) in data.chunks_mut(row).enumerate() {
            chunks_mut(data, part, |p, data| f(i * rows + r, p * part, data));
        }
    });
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

    /// Address of `start`, for parts that interleave within `start..start + len` and so cannot hold it as a slice.
    ///
    /// # Panics
    /// If the range leaves the slice.
    #[inline]
    pub fn address(&self, start: usize, len: usize) -> *mut T {
        assert!(
            start <= self.len && len <= self.len - start,
            "range {start}+{len} leaves a slice of {}",
            self.len
        );
        // SAFETY: in bounds by the assertion.
        unsafe { self.data.add(start) }
    }
}

/// Working memory for parts running in parallel: one piece per thread, taken from the pool once per operation.
pub struct Scratch<T> {
    // Held for its memory only; `pieces` points into it.
    _memory: Buffer,
    pieces: Disjoint<T>,
    len: usize,
}

impl<T: Element> Scratch<T> {
    /// `len` elements for each thread of the current pool.
    pub fn new(len: usize) -> Self {
        // Whole cache lines, so that threads do not share one.
        let len = len.next_multiple_of(ALIGNMENT / size_of::<T>());
        let mut memory = Buffer::uninit(rayon::current_num_threads() * len * size_of::<T>());
        let pieces = Disjoint::new(memory.as_mut_slice());
        Scratch {
            _memory: memory,
            pieces,
            len,
        }
    }

    /// Calls `f` with this thread's piece, whose contents are undefined.
    ///
    /// # Safety
    /// `f` must not call rayon nor this function: another part would then run on this thread and take the same piece.
    pub unsafe fn with<R>(&self, f: impl FnOnce(&mut [T]) -> R) -> R {
        let thread = rayon::current_thread_index().unwrap_or(0);
        // SAFETY: a thread runs one part at a time by this function's contract, and every thread has its own index;
        // a thread outside the pool runs all parts alone.
        f(unsafe { self.pieces.range(thread * self.len, self.len) })
    }
}
