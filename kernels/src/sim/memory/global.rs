//! Global memory: the launch's buffers and the module's variables, each an object of its own, far from the others.
//!
//! CTAs run on several threads of the host, so everything here is shared: values are accessed with relaxed atomics of
//! their own size, and shadows are atomics too. A kernel whose CTAs conflict is reported whatever the interleaving,
//! since each side swaps its mark in before it looks at the other's.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use super::super::error::Rule;
use super::super::program::GLOBAL_SHIFT;
use super::super::race::{Clock, Stamp, Thread};
use super::{Conflict, ConflictKind};
use crate::launch::BUFFER_ALIGNMENT;

/// Granules of one page of shadow.
const PAGE: usize = 1024;

/// What a kernel may do with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Poison until written.
    Write,
    Update,
}

/// One granule's last writer and last reader, as [`pack`]ed accesses.
#[derive(Default)]
struct Cell {
    writer: AtomicU64,
    reader: AtomicU64,
    writer_pc: AtomicU32,
    reader_pc: AtomicU32,
}

/// Set in [`Cell::writer`] where the write was atomic.
const ATOMIC: u64 = 1 << 63;
/// Set in [`Cell::reader`] where more readers are in [`Object::readers`].
const MANY: u64 = 1 << 63;
const TEAM_BITS: u32 = 22;
const THREAD_BITS: u32 = 15;
const STAMP_BITS: u32 = 63 - TEAM_BITS - THREAD_BITS;

/// Teams of the largest grid that shadows can tell apart.
pub const MAX_TEAMS: u64 = (1 << TEAM_BITS) - 2;

/// A team, a thread of it and its time, never 0.
fn pack(team: u32, thread: Thread, stamp: Stamp) -> u64 {
    let stamp = u64::from(stamp) & ((1 << STAMP_BITS) - 1);
    (u64::from(team) + 1) << (THREAD_BITS + STAMP_BITS) | u64::from(thread) << STAMP_BITS | stamp
}

fn unpack(access: u64) -> (u32, Thread, Stamp) {
    let access = access & !(1 << 63);
    let thread = access >> STAMP_BITS & ((1 << THREAD_BITS) - 1);
    let stamp = access & ((1 << STAMP_BITS) - 1);
    let team = (access >> (THREAD_BITS + STAMP_BITS)) - 1;
    (team as u32, thread as Thread, stamp as Stamp)
}

/// Who accesses, with what knowledge, at which instruction.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    pub team: u32,
    pub thread: Thread,
    pub now: Stamp,
    pub clock: &'a Clock,
    pub pc: u32,
    pub atomic: bool,
}

impl Who<'_> {
    fn follows(&self, access: u64) -> bool {
        let (team, thread, stamp) = unpack(access);
        if team != self.team {
            return self.clock.knows_foreign(team, thread, stamp);
        }
        thread == self.thread || self.clock.knows(thread, stamp)
    }
}

pub struct Object<'a> {
    /// Of `len` bytes, aligned to 16, exclusively this object's for `'a`.
    data: *mut u8,
    len: usize,
    access: Access,
    /// What it is called in errors.
    pub name: String,
    pages: Vec<OnceLock<Box<[Cell]>>>,
    /// Readers of granules that several unordered threads have read since the last write.
    readers: Mutex<HashMap<usize, Vec<(u64, u32)>>>,
    touched_read: Vec<AtomicU64>,
    touched_written: Vec<AtomicU64>,
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: the memory behind `data` is borrowed for `'a` and, where it may be written, accessed through atomics only.
unsafe impl Send for Object<'_> {}
// SAFETY: as above.
unsafe impl Sync for Object<'_> {}

pub struct Global<'a> {
    objects: Vec<Object<'a>>,
    /// Bytes of a granule as a power of two.
    shift: u32,
}

/// A place in an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    pub object: usize,
    pub offset: usize,
}

impl<'a> Global<'a> {
    pub fn new(granule: u32) -> Global<'a> {
        Global {
            objects: Vec::new(),
            shift: granule.trailing_zeros(),
        }
    }

    /// Adds memory that nobody writes.
    pub fn add_read(&mut self, name: String, memory: &'a [u8]) {
        // Never written through: every store checks the access first.
        self.add(name, memory.as_ptr().cast_mut(), memory.len(), Access::Read);
    }

    /// Adds memory that the kernel may write; aligned to 16.
    pub fn add_write(&mut self, name: String, memory: &'a mut [u8], access: Access) {
        assert!(
            memory.as_ptr().addr().is_multiple_of(16),
            "the caller aligned it"
        );
        self.add(name, memory.as_mut_ptr(), memory.len(), access);
    }

    fn add(&mut self, name: String, data: *mut u8, len: usize, access: Access) {
        let cells = len.div_ceil(1 << self.shift);
        let pages = match access {
            Access::Read => 0,
            _ => cells.div_ceil(PAGE),
        };
        let words = || (0..cells.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        self.objects.push(Object {
            data,
            len,
            access,
            name,
            pages: (0..pages).map(|_| OnceLock::new()).collect(),
            readers: Mutex::default(),
            touched_read: words(),
            touched_written: if access == Access::Read {
                Vec::new()
            } else {
                words()
            },
            memory: PhantomData,
        });
    }

    /// The address of object `index`.
    pub fn address(index: usize) -> u64 {
        ((index as u64 + 1) << GLOBAL_SHIFT) + BUFFER_ALIGNMENT
    }

    /// Where `bytes` at `address` lie.
    ///
    /// # Errors
    /// Which rule the address breaks, and why.
    #[inline]
    pub fn locate(
        &self,
        address: u64,
        bytes: u64,
        write: bool,
    ) -> Result<Location, (Rule, String)> {
        let index = (address >> GLOBAL_SHIFT).wrapping_sub(1) as usize;
        let offset = (address & ((1 << GLOBAL_SHIFT) - 1)).wrapping_sub(BUFFER_ALIGNMENT);
        match self.objects.get(index) {
            Some(object)
                if offset < object.len as u64
                    && bytes <= object.len as u64 - offset
                    && !(write && object.access == Access::Read) =>
            {
                Ok(Location {
                    object: index,
                    offset: offset as usize,
                })
            }
            found => Err(self.refusal(found, address, offset, bytes, write)),
        }
    }

    #[cold]
    fn refusal(
        &self,
        object: Option<&Object<'_>>,
        address: u64,
        offset: u64,
        bytes: u64,
        write: bool,
    ) -> (Rule, String) {
        let access = if write { "write" } else { "read" };
        let Some(object) = object else {
            let why = match address >> GLOBAL_SHIFT {
                0 if address < 1 << 16 => {
                    format!("{access} of {bytes} bytes at a null address (0x{address:x})")
                }
                _ => {
                    format!("{access} of {bytes} bytes at 0x{address:x}, where there is no buffer")
                }
            };
            return (Rule::Bounds, why);
        };
        let inside = offset < object.len as u64 && bytes <= object.len as u64 - offset;
        if inside {
            return (
                Rule::Permission,
                format!("write to {}, which is read-only", object.name),
            );
        }
        // Offsets before the beginning have wrapped.
        let offset = offset as i64;
        let why = format!(
            "{access} of {bytes} bytes at offset {offset} of {}, which has {} bytes",
            object.name, object.len
        );
        (Rule::Bounds, why)
    }

    /// # Errors
    /// An object that may only be read.
    pub fn writable(&self, at: Location) -> Result<(), (Rule, String)> {
        match self.objects[at.object].access {
            Access::Read => {
                let why = format!("write to {}, which is read-only", self.name(at.object));
                Err((Rule::Permission, why))
            }
            _ => Ok(()),
        }
    }

    pub fn name(&self, object: usize) -> &str {
        &self.objects[object].name
    }

    /// The value of `bytes` (1, 2, 4 or 8) at `at`, which [`Self::locate`] gave and which is a multiple of `bytes`.
    #[inline]
    pub fn load(&self, at: Location, bytes: u32) -> u64 {
        let object = &self.objects[at.object];
        assert!(
            at.offset + bytes as usize <= object.len && at.offset.is_multiple_of(bytes as usize)
        );
        // SAFETY: in bounds and aligned by the assertion, as `data` is aligned to more. Memory that may be written is
        // only accessed through atomics; memory that may not be is read at any alignment of its own.
        unsafe {
            let data = object.data.add(at.offset);
            if object.access == Access::Read {
                return match bytes {
                    1 => u64::from(data.read()),
                    2 => u64::from(data.cast::<u16>().read_unaligned()),
                    4 => u64::from(data.cast::<u32>().read_unaligned()),
                    _ => data.cast::<u64>().read_unaligned(),
                };
            }
            match bytes {
                1 => u64::from(AtomicU8::from_ptr(data).load(Ordering::Relaxed)),
                2 => u64::from(AtomicU16::from_ptr(data.cast()).load(Ordering::Relaxed)),
                4 => u64::from(AtomicU32::from_ptr(data.cast()).load(Ordering::Relaxed)),
                _ => AtomicU64::from_ptr(data.cast()).load(Ordering::Relaxed),
            }
        }
    }

    /// Stores the low `bytes` (1, 2, 4 or 8) of `value`, where [`Self::locate`] allowed a write.
    #[inline]
    pub fn store(&self, at: Location, bytes: u32, value: u64) {
        let object = &self.objects[at.object];
        assert!(
            at.offset + bytes as usize <= object.len
                && at.offset.is_multiple_of(bytes as usize)
                && object.access != Access::Read
        );
        // SAFETY: as in `load`; the object was added as writable memory.
        unsafe {
            let data = object.data.add(at.offset);
            match bytes {
                1 => AtomicU8::from_ptr(data).store(value as u8, Ordering::Relaxed),
                2 => AtomicU16::from_ptr(data.cast()).store(value as u16, Ordering::Relaxed),
                4 => AtomicU32::from_ptr(data.cast()).store(value as u32, Ordering::Relaxed),
                _ => AtomicU64::from_ptr(data.cast()).store(value, Ordering::Relaxed),
            }
        }
    }

    #[inline]
    fn cells(&self, offset: usize, bytes: usize) -> std::ops::Range<usize> {
        offset >> self.shift..((offset + bytes - 1) >> self.shift) + 1
    }

    #[inline]
    fn cell<'o>(object: &'o Object<'_>, cell: usize) -> &'o Cell {
        let page =
            object.pages[cell / PAGE].get_or_init(|| (0..PAGE).map(|_| Cell::default()).collect());
        &page[cell % PAGE]
    }

    fn conflict(who: &Who<'_>, access: u64, pc: u32, was_write: bool) -> Conflict {
        let (team, thread, _) = unpack(access);
        Conflict {
            kind: ConflictKind::Race,
            pc,
            thread,
            cta: (team != who.team).then_some(team),
            was_write,
        }
    }

    /// Checks and notes a read; returns whether every byte is valid.
    ///
    /// # Errors
    /// A write that is not ordered before.
    #[inline]
    pub fn read(&self, at: Location, bytes: usize, who: &Who<'_>) -> Result<bool, Conflict> {
        let object = &self.objects[at.object];
        let cells = self.cells(at.offset, bytes);
        touch(&object.touched_read, cells.clone());
        if object.access == Access::Read {
            return Ok(true);
        }
        let mut valid = true;
        let me = pack(who.team, who.thread, who.now);
        for index in cells {
            let cell = Self::cell(object, index);
            cell.reader_pc.store(who.pc, Ordering::Relaxed);
            let before = cell.reader.swap(me, Ordering::SeqCst);
            if before != 0 && before & !MANY != me && (before & MANY != 0 || !who.follows(before)) {
                Self::add_reader(object, index, before, who.pc);
                cell.reader.store(me | MANY, Ordering::SeqCst);
            }
            let writer = cell.writer.load(Ordering::SeqCst);
            if writer == 0 {
                valid &= object.access == Access::Update;
            } else if !(who.follows(writer) || who.atomic && writer & ATOMIC != 0) {
                let pc = cell.writer_pc.load(Ordering::Relaxed);
                return Err(Self::conflict(who, writer, pc, true));
            }
        }
        Ok(valid)
    }

    #[cold]
    fn add_reader(object: &Object<'_>, cell: usize, reader: u64, pc: u32) {
        let mut readers = object.readers.lock().unwrap_or_else(|e| e.into_inner());
        let list = readers.entry(cell).or_default();
        let reader = reader & !MANY;
        if !list.iter().any(|&(known, _)| known == reader) {
            list.push((reader, pc));
        }
    }

    /// Checks that `who` may write, and notes it.
    ///
    /// # Errors
    /// A read or a write that is not ordered before.
    #[inline]
    pub fn write(&self, at: Location, bytes: usize, who: &Who<'_>) -> Result<(), Conflict> {
        let object = &self.objects[at.object];
        let cells = self.cells(at.offset, bytes);
        touch(&object.touched_written, cells.clone());
        let me = pack(who.team, who.thread, who.now) | if who.atomic { ATOMIC } else { 0 };
        for index in cells {
            let cell = Self::cell(object, index);
            let writer = cell.writer.swap(me, Ordering::SeqCst);
            let writer_pc = cell.writer_pc.swap(who.pc, Ordering::Relaxed);
            if writer != 0 && !(who.follows(writer) || who.atomic && writer & ATOMIC != 0) {
                return Err(Self::conflict(who, writer, writer_pc, true));
            }
            let reader = cell.reader.load(Ordering::SeqCst);
            if reader == 0 || who.atomic {
                // Atomics read and write in one: their readers are writers too.
                continue;
            }
            if !who.follows(reader) {
                let pc = cell.reader_pc.load(Ordering::Relaxed);
                return Err(Self::conflict(who, reader, pc, false));
            }
            if reader & MANY != 0 {
                let mut readers = object.readers.lock().unwrap_or_else(|e| e.into_inner());
                for (reader, pc) in readers.remove(&index).unwrap_or_default() {
                    if !who.follows(reader) {
                        return Err(Self::conflict(who, reader, pc, false));
                    }
                }
            }
            cell.reader.store(0, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Bytes read, bytes written, and bytes in all, of each object; counted once each, in whole granules.
    pub fn unique(&self) -> Vec<[u64; 3]> {
        let count = |words: &[AtomicU64], len: usize| {
            let granules: u64 = words
                .iter()
                .map(|w| u64::from(w.load(Ordering::Relaxed).count_ones()))
                .sum();
            (granules << self.shift).min(len as u64)
        };
        self.objects
            .iter()
            .map(|o| {
                [
                    count(&o.touched_read, o.len),
                    count(&o.touched_written, o.len),
                    o.len as u64,
                ]
            })
            .collect()
    }
}

/// Sets the bits of `cells`.
#[inline]
fn touch(words: &[AtomicU64], cells: std::ops::Range<usize>) {
    for cell in cells {
        let (word, bit) = (&words[cell / 64], 1 << (cell % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }
}
