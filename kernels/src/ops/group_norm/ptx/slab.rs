//! Slabs of an image whose groups fit on chip: all pixels of some groups whose channels fill whole sectors.
//!
//! A CTA has a slab. Each thread keeps its chunks in shared memory, where nobody else reads them, so that a second pass over
//! the slab reads no other memory.

use super::*;
use crate::ptx::{Bf16x2, F32, Floats, Pointer, Pred, Shared};

/// Bytes of a row of a slab, at least, where it then still fits: what a warp's rows need to be whole lines of memory.
const LINE_BYTES: usize = 128;
/// Bytes that memory moves at once.
const SECTOR_BYTES: usize = 32;
/// The most groups of a slab: a line of them, and another where sectors ask for more than one.
const MOST_GROUPS: u32 = 128;

/// How an image is cut into slabs.
pub(super) struct Cut {
    /// Channels of a slab.
    channels: usize,
    /// Chunks that a thread can keep of each of its tensors.
    pub kept: u32,
}

impl Cut {
    /// For threads that can keep one of these numbers of chunks; none where groups do not fit on chip, channels are no
    /// whole chunks, or a row of a slab takes more than half of the threads.
    pub fn new(d: &GroupNorm, storage: Storage, keep: &[u32]) -> Option<Cut> {
        let chunk = storage.chunk() as usize;
        if !d.c.is_multiple_of(chunk) {
            return None;
        }
        let bytes = storage.bytes() as usize;
        let sector = SECTOR_BYTES / bytes;
        let width = d.c / d.groups;
        // Whole groups and whole sectors; or all channels.
        let least = least_common_multiple(width, sector);
        let line = least * (LINE_BYTES / bytes).div_ceil(least);
        let mut cuts = [line, least].into_iter().filter_map(|channels| {
            let channels = channels.min(d.c);
            // Pixels that the CTA's threads treat at a time.
            let rows = THREADS as usize / (channels / chunk);
            let needed = (rows >= 2).then(|| d.pixels.div_ceil(rows))?;
            let kept = keep.iter().copied().find(|&kept| needed <= kept as usize)?;
            Some(Cut { channels, kept })
        });
        cuts.next()
    }

    pub fn grid(&self, d: &GroupNorm) -> [u32; 3] {
        [d.c.div_ceil(self.channels) as u32, d.n as u32, 1]
    }

    /// What the kernels declare after their operands.
    pub fn numbers(&self, d: &GroupNorm) -> Vec<u32> {
        let numbers = [d.pixels, d.c, d.groups, self.channels];
        numbers.map(|n| n as u32).to_vec()
    }
}

/// A thread's part of a slab: some channels of every pixel of its row.
#[derive(Clone, Copy)]
pub(super) struct Slab<'k> {
    pub k: &'k Assembler,
    pub extents: Extents<'k>,
    pub image: Value<'k, U32>,
    /// The slab's first channel, and how many it has; the image's last slab can have fewer than the others.
    pub first: Value<'k, U32>,
    pub channels: Value<'k, U32>,
    /// From one row of the slab's channels to the next.
    pitch: Value<'k, U32>,
    /// Its first group, how many it has, and how many channels each has.
    first_group: Value<'k, U32>,
    groups: Value<'k, U32>,
    group_width: Value<'k, U32>,
    /// Threads beside each other, and rows of them.
    columns: Value<'k, U32>,
    pub rows: Value<'k, U32>,
    pub column: Value<'k, U32>,
    row: Value<'k, U32>,
    /// Whether the thread has any channels.
    pub active: Value<'k, Pred>,
    /// How many.
    pub width: u32,
}

impl<'k> Slab<'k> {
    /// Declares the numbers of a [`Cut`].
    pub fn new(k: &'k Assembler, storage: Storage) -> Slab<'k> {
        let extents = Extents::parameters(k);
        let pitch = k.parameter::<U32>("slab");
        k.min_ctas(1);
        let width = storage.chunk();
        // What the cut has checked.
        for channels in [extents.c, pitch] {
            channels.assume_multiple_of(width.into());
        }
        k.comment("this thread's channels, and the first of its pixels");
        let columns = pitch / width;
        let threads: Value<U32> = Value::from_bits(THREADS.into());
        let rows = threads / columns;
        let (column, row) = (k.thread_x() % columns, k.thread_x() / columns);
        let first = k.cta_x() * pitch;
        let group_width = extents.width();
        let channels = pitch.min(extents.c - first);
        Slab {
            k,
            extents,
            image: k.cta_y(),
            first,
            channels,
            pitch,
            first_group: first / group_width,
            groups: channels / group_width,
            group_width,
            columns,
            rows,
            column,
            row,
            active: row.lt(rows) & (column * width).lt(channels),
            width,
        }
    }

    /// The first of this thread's elements in a pixel.
    fn element(self, pixel: Value<'k, U32>) -> Value<'k, U32> {
        let pixel = self.image * self.extents.pixels + pixel;
        pixel * self.extents.c + (self.first + self.column * self.width)
    }

    /// Calls `body` for each of an active thread's pixels: with where it keeps its chunk, and with the first of its elements.
    pub fn for_each_pixel(self, body: impl FnOnce(Value<'k, U32>, Value<'k, U32>)) {
        let k = self.k;
        let place = k.variable_multiple_of::<U32>(0, 4);
        k.for_(self.row, self.extents.pixels, self.rows, |pixel| {
            body(place.get(), self.element(pixel));
            place.set(place + 4 * THREADS);
        });
    }

    /// Two numbers of each row and channel on chip.
    pub fn table(self) -> Table<'k> {
        let numbers = self.k.shared_array::<F32>(2 * THREADS * self.width);
        Table {
            slab: self,
            halves: [numbers, numbers.at(THREADS * self.width)],
        }
    }

    /// The most channels that a thread answers for: rows are two at least.
    pub fn most_channels(self) -> u32 {
        self.width / 2
    }

    /// Calls `body` for each channel that this thread answers for, every 256th of the slab, with its number in the slab and
    /// which of the thread's it is.
    pub fn for_each_channel(self, mut body: impl FnMut(Value<'k, U32>, usize)) {
        for turn in 0..self.most_channels() {
            let here = self.k.thread_x() + turn * THREADS;
            self.k
                .if_(here.lt(self.channels), || body(here, turn as usize));
        }
    }

    /// The number among all images' groups of the slab's group with this number.
    pub fn group(self, group: Value<'k, U32>) -> Value<'k, U32> {
        self.image * self.extents.groups + self.first_group + group
    }

    /// The number in the slab of a channel's group.
    pub fn group_of(self, channel: Value<'k, U32>) -> Value<'k, U32> {
        channel / self.group_width
    }

    /// Values that a group has.
    pub fn group_size(self) -> Value<'k, U32> {
        self.extents.pixels * self.group_width
    }

    /// Pixels of a row of threads.
    pub fn pixels_of(self, row: Value<'k, U32>) -> Value<'k, U32> {
        (self.extents.pixels + self.rows - 1 - row) / self.rows
    }

    /// Two numbers of each group on chip: a warp a group makes them of the lane's items, of which there are `items` for each
    /// of the group's channels; `make` gets the number of the group's first channel in the slab and must give every lane the
    /// same. A barrier is among it.
    pub fn of_groups(
        self,
        make: impl FnOnce(Value<'k, U32>) -> [Value<'k, F32>; 2],
    ) -> OfGroups<'k> {
        let k = self.k;
        let arrays = [(); 2].map(|()| k.shared_array::<F32>(MOST_GROUPS));
        k.comment("a warp a group");
        k.for_(k.warp(), self.groups, WARPS, |group| {
            let numbers = make(group * self.group_width);
            k.if_(k.lane().eq(0), || {
                for (array, number) in arrays.iter().zip(numbers) {
                    array.at(group).store(number);
                }
            });
        });
        k.barrier();
        OfGroups { slab: self, arrays }
    }

    /// Channels of a group.
    pub fn group_width(self) -> Value<'k, U32> {
        self.group_width
    }
}

/// Two numbers of each row of threads and channel of a slab on chip: row after row of one, then of the other.
#[derive(Clone, Copy)]
pub(super) struct Table<'k> {
    slab: Slab<'k>,
    halves: [Pointer<'k, Shared, F32>; 2],
}

impl<'k> Table<'k> {
    /// A channel's numbers of one row.
    pub fn at(self, row: Value<'k, U32>, channel: Value<'k, U32>) -> [Pointer<'k, Shared, F32>; 2] {
        self.halves
            .map(|half| half.at(row * self.slab.pitch + channel))
    }

    /// Writes this active thread's pairs, one for each of its channels.
    pub fn put_own(self, pairs: &[[Value<'k, F32>; 2]]) {
        let own = self.at(self.slab.row, self.slab.column * self.slab.width);
        for (i, pair) in (0..).zip(pairs) {
            for (half, number) in own.iter().zip(pair) {
                half.at(i).store(*number);
            }
        }
    }

    /// Its memory for three numbers of each channel, while it is not used: two rows of two are enough.
    pub fn of_channels(self) -> OfChannels<'k, 3> {
        let Slab {
            pitch,
            columns,
            width,
            ..
        } = self.slab;
        let [first, _] = self.halves;
        let arrays = [first, first.at(pitch), first.at(pitch * 2)];
        OfChannels::new(arrays, columns, width)
    }
}

/// Two numbers of each group of a slab on chip.
#[derive(Clone, Copy)]
pub(super) struct OfGroups<'k> {
    slab: Slab<'k>,
    arrays: [Pointer<'k, Shared, F32>; 2],
}

impl<'k> OfGroups<'k> {
    /// Those of a group, by its number in the slab.
    pub fn get(self, group: Value<'k, U32>) -> [Value<'k, F32>; 2] {
        self.arrays.map(|array| array.at(group).load())
    }

    /// Calls `body` in one thread a group, with the group's number among all images' groups and its numbers.
    pub fn for_each(self, body: impl FnOnce(Value<'k, U32>, [Value<'k, F32>; 2])) {
        let group = self.slab.k.thread_x();
        self.slab.k.if_(group.lt(self.slab.groups), || {
            body(self.slab.group(group), self.get(group));
        });
    }
}

/// Where a thread keeps its chunks of a tensor.
#[derive(Clone, Copy)]
pub(super) enum Kept<'k> {
    F32(Pointer<'k, Shared, F32>),
    Bf16(Pointer<'k, Shared, Bf16x2>),
}

impl<'k> Kept<'k> {
    /// Of `chunks` chunks; one after the other are [`THREADS`] chunks apart.
    pub fn new(k: &'k Assembler, storage: Storage, chunks: u32) -> Kept<'k> {
        let words = 4 * THREADS * chunks;
        let own = k.thread_x() * 4;
        match storage {
            Storage::F32 => Kept::F32(k.shared_array::<F32>(words).at(own)),
            Storage::Bf16 => Kept::Bf16(k.shared_array::<Bf16x2>(words).at(own)),
        }
    }

    /// Keeps the chunk at `from`, `words` words behind the first one, and gives its values.
    pub fn keep(self, words: Value<'k, U32>, from: Floats<'k>) -> Vec<Value<'k, F32>> {
        match (self, from) {
            (Kept::F32(kept), Floats::F32(from)) => {
                let values = from.load_vector::<4>();
                kept.at(words).store_vector(values);
                values.to_vec()
            }
            (Kept::Bf16(kept), Floats::Bf16(from)) => {
                let pairs = from.cast::<Bf16x2>().load_vector::<4>();
                kept.at(words).store_vector(pairs);
                pairs.into_iter().flat_map(|pair| pair.to_f32()).collect()
            }
            _ => unreachable!("both are of the kernel's storage"),
        }
    }

    /// The values of a chunk that was kept.
    pub fn get(self, words: Value<'k, U32>) -> Vec<Value<'k, F32>> {
        match self {
            Kept::F32(kept) => kept.at(words).load_vector::<4>().to_vec(),
            Kept::Bf16(kept) => {
                let pairs = kept.at(words).load_vector::<4>();
                pairs.into_iter().flat_map(|pair| pair.to_f32()).collect()
            }
        }
    }
}
