//! Memory of the host that the GPU copies from by itself: uploads go through it, so that they neither wait nor depend on
//! how the system moves pages.

use std::ffi::c_void;

use cudarc::driver::result;

use super::{Error, Result};

/// Page-locked bytes. They are written only through `&mut`, and given back when dropped.
#[derive(Debug)]
pub struct Pinned {
    memory: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is owned, and reached through `&mut` alone.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// # Errors
    /// If the system does not lock so much. A context must be current.
    pub fn allocate(bytes: usize) -> Result<Pinned> {
        // SAFETY: the memory is read only after it was written.
        let memory = unsafe { result::malloc_host(bytes.max(1), 0) };
        let memory = memory.map_err(Error::of(format!(
            "lock {bytes} bytes of the host's memory"
        )))?;
        Ok(Pinned {
            memory: memory.cast(),
            bytes,
        })
    }

    /// Writes `data` at `start`, and returns its address for a copy by the GPU.
    ///
    /// # Panics
    /// If it does not fit: a mistake of this crate.
    pub fn write(&mut self, start: usize, data: &[u8]) -> *const c_void {
        assert!(start <= self.bytes && data.len() <= self.bytes - start);
        // SAFETY: inside the allocation by the assertion; `&mut self` makes it ours, and callers wait for the GPU's
        // copies out of a place before they write there again.
        unsafe {
            let to = self.memory.add(start);
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
            to.cast_const().cast()
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A context that is gone has freed it already; there is nobody to tell.
        // SAFETY: allocated by `malloc_host`, once.
        let _ = unsafe { result::free_host(self.memory.cast()) };
    }
}

/// Places in pinned memory, in turn.
#[derive(Debug)]
pub struct Ring {
    memory: Pinned,
    next: usize,
}

/// Alignment of a place.
const ALIGNMENT: usize = 64;
/// Bytes of a ring.
const BYTES: usize = 16 << 20;

impl Ring {
    /// The most that one place holds.
    pub const PIECE: usize = BYTES / 4;

    pub fn allocate() -> Result<Ring> {
        Ok(Ring {
            memory: Pinned::allocate(BYTES)?,
            next: 0,
        })
    }

    /// Writes a piece to the next place. `wait` is called before places are used again, and must return when the GPU has
    /// read all that were given out.
    pub fn write(
        &mut self,
        piece: &[u8],
        wait: impl FnOnce() -> Result<()>,
    ) -> Result<*const c_void> {
        if self.memory.bytes() - self.next < piece.len() {
            wait()?;
            self.next = 0;
        }
        let at = self.next;
        self.next = (at + piece.len())
            .next_multiple_of(ALIGNMENT)
            .min(self.memory.bytes());
        Ok(self.memory.write(at, piece))
    }
}

/// Places in pinned memory that stay: those of a recorded step's uploads.
#[derive(Debug, Default)]
pub struct Slots {
    chunks: Vec<Pinned>,
    /// Bytes of the last chunk in use.
    used: usize,
    /// Chunk and start of each slot.
    places: Vec<(usize, usize)>,
}

impl Slots {
    const CHUNK: usize = 1 << 20;

    /// Writes to a new slot.
    pub fn add(&mut self, data: &[u8]) -> Result<*const c_void> {
        let room = self.chunks.last().map_or(0, |c| c.bytes() - self.used);
        if room < data.len() || self.chunks.is_empty() {
            let chunk = Pinned::allocate(data.len().max(Slots::CHUNK))?;
            self.chunks.push(chunk);
            self.used = 0;
        }
        let place = (self.chunks.len() - 1, self.used);
        let bytes = self.chunks[place.0].bytes();
        self.used = (self.used + data.len())
            .next_multiple_of(ALIGNMENT)
            .min(bytes);
        self.places.push(place);
        Ok(self.chunks[place.0].write(place.1, data))
    }

    /// Writes to a slot again: as much as the first time.
    pub fn rewrite(&mut self, slot: usize, data: &[u8]) {
        let (chunk, start) = self.places[slot];
        self.chunks[chunk].write(start, data);
    }
}
