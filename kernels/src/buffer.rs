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
    /// The first byte that is handed out: past the front guard, where there is one.
    memory: NonNull<u8>,
    bytes: usize,
    /// Bytes of guard before and after: zero, or [`GUARD`] while [`set_guards`] was on.
    guard: usize,
}

// SAFETY: a `Buffer` owns its memory exclusively and hands it out only by the usual borrowing rules.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Memory with undefined (but initialised) contents: whatever its last owner left there, or the poison pattern
    /// where [`set_poison`] is on.
    pub fn uninit(bytes: usize) -> Buffer {
        let guard = if GUARDS.load(Ordering::Relaxed) {
            GUARD
        } else {
            0
        };
        let class = size_class(bytes + 2 * guard);
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
        // SAFETY: a class holds both guards and `bytes`, so the first byte after the front guard is inside.
        let memory = unsafe { memory.add(guard) };
        let mut buffer = Buffer {
            memory,
            bytes,
            guard,
        };
        if guard > 0 {
            buffer.guard_bands_mut().for_each(|band| {
                for (i, byte) in band.iter_mut().enumerate() {
                    *byte = CANARY[i % CANARY.len()];
                }
            });
        }
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

    /// The guards before and after the memory that was handed out.
    fn guard_bands_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let (start, guard) = (self.memory.as_ptr(), self.guard);
        // SAFETY: `uninit` reserved `guard` bytes on either side and initialised them; `&mut self` makes them ours.
        let (front, back) = unsafe {
            (
                std::slice::from_raw_parts_mut(start.sub(guard), guard),
                std::slice::from_raw_parts_mut(start.add(self.bytes), guard),
            )
        };
        [front, back].into_iter()
    }

    /// Writes one byte past the end where a guard follows, and nothing where none does: the planted bug that shows
    /// that guards are looked at.
    #[doc(hidden)]
    pub fn overrun(&mut self) {
        if let Some(byte) = self.guard_bands_mut().nth(1).and_then(<[u8]>::first_mut) {
            *byte = !*byte;
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let whole = |band: &mut [u8]| {
            let mut canary = CANARY.iter().cycle();
            band.iter().all(|byte| Some(byte) == canary.next())
        };
        if !self.guard_bands_mut().all(whole) {
            OVERRUNS.fetch_add(1, Ordering::Relaxed);
        }
        let class = size_class(self.bytes + 2 * self.guard);
        LIVE.fetch_sub(class as u64, Ordering::Relaxed);
        POOL.lock()
            .unwrap_or_else(|e| e.into_inner())
            .entry(class)
            .or_default()
            // SAFETY: back to where the allocation starts, from which `uninit` had moved by `guard`.
            .push(Recycled(unsafe { self.memory.sub(self.guard) }));
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
static GUARDS: AtomicBool = AtomicBool::new(false);
static OVERRUNS: AtomicU64 = AtomicU64::new(0);

/// Bytes of guard on either side of a buffer; a multiple of [`ALIGNMENT`].
const GUARD: usize = 2 * ALIGNMENT;
/// What guards hold: NaN as f32 and as f64, so that reading past an end shows too, but not the NaN of [`set_poison`]
/// nor the one that arithmetic makes, so that writing one shows.
const CANARY: [u8; 4] = [0x5A, 0xA5, 0xFF, 0xFF];

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

/// Puts a guard before and after every new buffer, for [`overruns`] to count those that a kernel wrote to. For tests.
pub fn set_guards(on: bool) {
    GUARDS.store(on, Ordering::Relaxed);
}

/// Buffers dropped so far whose guards had been written to.
pub fn overruns() -> u64 {
    OVERRUNS.load(Ordering::Relaxed)
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

    /// Held by tests that buffers of other tests would disturb.
    static ALONE: Mutex<()> = Mutex::new(());

    #[test]
    fn classes_hold_what_was_asked_and_waste_at_most_a_quarter() {
        for bytes in (0..5000).chain([1 << 20, (1 << 20) + 1, 12_345_678]) {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(ALIGNMENT));
            assert!(bytes < 1024 || class * 4 <= bytes * 5, "{bytes} -> {class}");
        }
    }

    #[test]
    fn a_write_past_the_end_is_counted_where_guards_are_on() {
        let _alone = ALONE.lock();
        set_guards(true);
        let (mut guarded, intact) = (Buffer::uninit(1001), Buffer::uninit(1001));
        set_guards(false);
        assert_eq!(guarded.as_bytes().as_ptr() as usize % ALIGNMENT, 0);
        let before = overruns();
        drop(intact);
        assert_eq!(overruns(), before);
        guarded.overrun();
        drop(guarded);
        assert_eq!(overruns(), before + 1);
    }

    #[test]
    fn buffers_are_aligned_and_recycled() {
        let _alone = ALONE.lock();
        let bytes = 3_333_333; // a size no other test uses
        let buffer = Buffer::uninit(bytes);
        assert_eq!(buffer.as_bytes().as_ptr() as usize % ALIGNMENT, 0);
        let address = buffer.as_bytes().as_ptr();
        drop(buffer);
        assert_eq!(Buffer::uninit(bytes).as_bytes().as_ptr(), address);
    }
}
