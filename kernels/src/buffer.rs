//! Aligned memory for tensors, recycled through size classes so that a warm training step allocates nothing.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::Element;

/// Alignment of every buffer: a cache line, and an AVX-512 register.
pub const ALIGNMENT: usize = 64;

/// Exclusively owned memory, 64-byte aligned. Dropping it returns the memory to the pool.
#[derive(Debug)]
pub struct Buffer {
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a `Buffer` owns its memory exclusively and hands it out only by the usual borrowing rules.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Memory with undefined (but initialised) contents: whatever its last owner left there, or the poison pattern
    /// where [`set_poison`] is on.
    pub fn uninit(bytes: usize) -> Buffer {
        let class = size_class(bytes);
        let recycled = POOL
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .get_mut(&class)
            .and_then(Vec::pop);
        let memory = match recycled {
            Some(Recycled(memory)) => memory,
            None => {
                FRESH.fetch_add(1, Ordering::Relaxed);
                // SAFETY: `size_class` is never zero.
                let memory = unsafe { alloc_zeroed(layout(class)) };
                NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout(class)))
            }
        };
        let live = LIVE.fetch_add(class as u64, Ordering::Relaxed) + class as u64;
        PEAK.fetch_max(live, Ordering::Relaxed);
        let mut buffer = Buffer { memory, bytes };
        if POISON.load(Ordering::Relaxed) {
            // 0xFF bytes are NaN in every float type and −1 (an invalid index) in every integer type.
            buffer.as_bytes_mut().fill(0xFF);
        }
        buffer
    }

    /// Bytes asked for, which may be less than are held.
    pub fn len_bytes(&self) -> usize {
        self.bytes
    }

    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: the memory is ours, initialised at its first allocation, and at least `bytes` long.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.bytes) }
    }

    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_bytes`; `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.bytes) }
    }

    /// The memory as elements; a trailing part of an element is left out.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        let whole = self.bytes / size_of::<T>() * size_of::<T>();
        bytemuck::cast_slice(&self.as_bytes()[..whole])
    }

    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        let whole = self.bytes / size_of::<T>() * size_of::<T>();
        bytemuck::cast_slice_mut(&mut self.as_bytes_mut()[..whole])
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let class = size_class(self.bytes);
        LIVE.fetch_sub(class as u64, Ordering::Relaxed);
        POOL.lock()
            .unwrap_or_else(|e| e.into_inner())
            .entry(class)
            .or_default()
            .push(Recycled(self.memory));
    }
}

struct Recycled(NonNull<u8>);
// SAFETY: memory in the pool has no owner; whoever takes it out owns it.
unsafe impl Send for Recycled {}

static POOL: Mutex<BTreeMap<usize, Vec<Recycled>>> = Mutex::new(BTreeMap::new());
static FRESH: AtomicU64 = AtomicU64::new(0);
static LIVE: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);
static POISON: AtomicBool = AtomicBool::new(false);

/// What the pool has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStats {
    /// Allocations that the system had to serve. Constant while a training step is warm.
    pub fresh_allocations: u64,
    pub live_bytes: u64,
    pub peak_bytes: u64,
}

pub fn pool_stats() -> PoolStats {
    PoolStats {
        fresh_allocations: FRESH.load(Ordering::Relaxed),
        live_bytes: LIVE.load(Ordering::Relaxed),
        peak_bytes: PEAK.load(Ordering::Relaxed),
    }
}

/// Starts a new peak measurement at what is live now.
pub fn reset_peak() {
    PEAK.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// Returns all memory that no buffer holds to the system.
pub fn trim_pool() {
    let pool = std::mem::take(&mut *POOL.lock().unwrap_or_else(|e| e.into_inner()));
    for (class, memories) in pool {
        for Recycled(memory) in memories {
            // SAFETY: allocated by `Buffer::uninit` with this class's layout, and nobody owns it.
            unsafe { dealloc(memory.as_ptr(), layout(class)) };
        }
    }
}

/// Fills every new buffer with NaN, so that a kernel that leaves part of its output unwritten is seen. For tests.
pub fn set_poison(on: bool) {
    POISON.store(on, Ordering::Relaxed);
}

fn layout(class: usize) -> Layout {
    Layout::from_size_align(class, ALIGNMENT).expect("a size class fits in the address space")
}

/// Rounds up to one of four sizes per power of two: at most a quarter is wasted, and similar shapes share memory.
fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(256);
    let step = (bytes.next_power_of_two() / 8).max(ALIGNMENT);
    bytes.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_was_asked_and_waste_at_most_a_quarter() {
        for bytes in (0..5000).chain([1 << 20, (1 << 20) + 1, 12_345_678]) {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(ALIGNMENT));
            assert!(bytes < 1024 || class * 4 <= bytes * 5, "{bytes} -> {class}");
        }
    }

    #[test]
    fn buffers_are_aligned_and_recycled() {
        let bytes = 3_333_333; // a size no other test uses
        let buffer = Buffer::uninit(bytes);
        assert_eq!(buffer.as_bytes().as_ptr() as usize % ALIGNMENT, 0);
        let address = buffer.as_bytes().as_ptr();
        drop(buffer);
        assert_eq!(Buffer::uninit(bytes).as_bytes().as_ptr(), address);
    }
}
