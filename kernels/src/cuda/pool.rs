//! Which device memory is free. Pure book-keeping: whoever asks allocates.

use std::collections::BTreeMap;

/// Where allocations become coarse: their sizes are multiples of this, so that little of a large arena is wasted.
const LARGE: usize = 2 << 20;
/// The smallest allocation, and the alignment of every address: what kernels may count on.
const SMALLEST: usize = crate::launch::BUFFER_ALIGNMENT as usize;

/// Memory by size class, free or not.
///
/// What is given back is taken again at once, while the GPU may still be at work on it: everything happens in the order
/// of one stream, so whoever takes it comes later.
#[derive(Debug, Default)]
pub struct Pool {
    free: BTreeMap<usize, Vec<u64>>,
    free_bytes: usize,
    live_bytes: usize,
    peak_bytes: usize,
    fresh: u64,
}

/// Rounds up to one of eight sizes per power of two, and to whole [`LARGE`] from there on.
pub fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(SMALLEST);
    let step = (bytes.next_power_of_two() / 16).max(SMALLEST);
    bytes.next_multiple_of(if bytes > 8 * LARGE { LARGE } else { step })
}

impl Pool {
    /// Memory of a class, if some is free. It counts as live from now on.
    pub fn take(&mut self, class: usize) -> Option<u64> {
        let address = self.free.get_mut(&class)?.pop()?;
        self.free_bytes -= class;
        self.live(class);
        Some(address)
    }

    /// Counts memory that was just allocated.
    pub fn allocated(&mut self, class: usize) {
        self.fresh += 1;
        self.live(class);
    }

    fn live(&mut self, class: usize) {
        self.live_bytes += class;
        self.peak_bytes = self.peak_bytes.max(self.live_bytes);
    }

    /// Takes memory back.
    pub fn give(&mut self, class: usize, address: u64) {
        self.live_bytes -= class;
        self.free_bytes += class;
        self.free.entry(class).or_default().push(address);
    }

    /// Takes all free memory out, for it to be returned to the driver.
    pub fn drain(&mut self) -> Vec<u64> {
        self.free_bytes = 0;
        std::mem::take(&mut self.free)
            .into_values()
            .flatten()
            .collect()
    }

    pub fn free_bytes(&self) -> usize {
        self.free_bytes
    }

    pub fn stats(&self) -> crate::buffer::PoolStats {
        crate::buffer::PoolStats {
            fresh_allocations: self.fresh,
            live_bytes: self.live_bytes as u64,
            peak_bytes: self.peak_bytes as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_was_asked_and_waste_an_eighth_at_most() {
        let large = [LARGE, 8 * LARGE, 8 * LARGE + 1, 123_456_789, 5 << 30];
        for bytes in (0..5000).chain(large) {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(SMALLEST));
            assert_eq!(size_class(class), class, "{bytes}");
            let wasted = class - bytes.max(SMALLEST);
            assert!(
                wasted < SMALLEST || wasted * 8 <= bytes,
                "{bytes} -> {class}"
            );
        }
    }

    #[test]
    fn what_is_given_back_is_taken_again_and_counted_once() {
        let mut pool = Pool::default();
        let class = size_class(1000);
        assert_eq!(pool.take(class), None);
        pool.allocated(class);
        pool.give(class, 0x1000);
        assert_eq!(pool.free_bytes(), class);
        assert_eq!(pool.take(size_class(100_000)), None);
        assert_eq!(pool.take(class), Some(0x1000));
        pool.allocated(class);
        let stats = pool.stats();
        assert_eq!(stats.fresh_allocations, 2);
        assert_eq!(stats.live_bytes, 2 * class as u64);
        pool.give(class, 0x1000);
        pool.give(class, 0x2000);
        let mut drained = pool.drain();
        drained.sort_unstable();
        assert_eq!(drained, [0x1000, 0x2000]);
        assert_eq!((pool.free_bytes(), pool.stats().live_bytes), (0, 0));
        assert_eq!(pool.stats().peak_bytes, 2 * class as u64);
    }
}
