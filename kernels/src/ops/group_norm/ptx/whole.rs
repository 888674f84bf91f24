//! The forward pass in one launch, where a CTA can keep whole groups on chip: x is read once, and y written once.
//!
//! A CTA has a slab of an image: all pixels of some groups whose channels fill whole sectors. Each thread keeps its chunks
//! in shared memory, where nobody else reads them, between the moments and the normalisation.

use super::forward::{Growing, Set, normalise};
use super::*;
use crate::ops::geometry::Call;
use crate::ops::variants::Variant;
use crate::ptx::{Bf16x2, Shared};

/// Chunks that a thread can keep. With few, several CTAs fit on a multiprocessor; with many, one: 147 KiB and the sums.
const KEPT: [u32; 2] = [8, 36];
/// Bytes of a row of a slab, at least, where it then still fits: what a warp's rows need to be whole lines of memory.
const LINE_BYTES: usize = 128;
/// Bytes that memory moves at once.
const SECTOR_BYTES: usize = 32;

/// y, and each group's mean and reciprocal standard deviation, f32 [n, groups].
///
/// Launch with `Write(y), Write(mean), Write(rstd), Read(x), Read(gamma), Read(beta), Read(scale_shift)` or `Null`,
/// `F32(eps)` and the call's numbers. Channels come in whole chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    pub storage: Storage,
    pub silu: bool,
    /// Chunks that a thread can keep.
    kept: u32,
}

/// The launch for a descriptor whose [`sizes`] are counted; none where groups do not fit on chip, or channels are no whole
/// chunks.
pub fn config(d: &GroupNorm, storage: Storage) -> Option<Call<Whole>> {
    let chunk = storage.chunk() as usize;
    if !d.c.is_multiple_of(chunk) {
        return None;
    }
    let bytes = storage.bytes() as usize;
    let sector = SECTOR_BYTES / bytes;
    let width = d.c / d.groups;
    // Whole groups and whole sectors; or all channels.
    let least = width * sector / greatest_common_divisor(width, sector);
    let line = least * (LINE_BYTES / bytes).div_ceil(least);
    let slabs = [line, least].map(|slab| slab.min(d.c)).into_iter();
    let mut fitting = slabs.filter_map(|slab| {
        // Pixels that the CTA's threads treat at a time; zero where its channels are more than they are.
        let rows = THREADS as usize / (slab / chunk);
        let needed = (rows > 0).then(|| d.pixels.div_ceil(rows))?;
        let kept = KEPT.into_iter().find(|&kept| needed <= kept as usize)?;
        Some((slab, kept))
    });
    let (slab, kept) = fitting.next()?;
    let variant = Whole {
        storage,
        silu: d.silu,
        kept,
    };
    let grid = [d.c.div_ceil(slab) as u32, d.n as u32, 1];
    let numbers = [d.pixels, d.c, d.groups, slab].map(|n| n as u32);
    Some(Call::new(variant, grid, numbers.to_vec()))
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

/// Where a thread keeps its chunks.
#[derive(Clone, Copy)]
enum Kept<'k> {
    F32(Pointer<'k, Shared, F32>),
    Bf16(Pointer<'k, Shared, Bf16x2>),
}

impl<'k> Kept<'k> {
    /// Of `chunks` chunks; one after the other are [`THREADS`] chunks apart.
    fn new(k: &'k Assembler, storage: Storage, chunks: u32) -> Kept<'k> {
        let words = 4 * THREADS * chunks;
        let own = k.thread_x() * 4;
        match storage {
            Storage::F32 => Kept::F32(k.shared_array::<F32>(words).at(own)),
            Storage::Bf16 => Kept::Bf16(k.shared_array::<Bf16x2>(words).at(own)),
        }
    }

    /// Keeps the chunk at `from`, `words` words behind the first one, and gives its values.
    fn keep(self, words: Value<'k, U32>, from: Floats<'k>) -> Vec<Value<'k, F32>> {
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
    fn get(self, words: Value<'k, U32>) -> Vec<Value<'k, F32>> {
        match self {
            Kept::F32(kept) => kept.at(words).load_vector::<4>().to_vec(),
            Kept::Bf16(kept) => {
                let pairs = kept.at(words).load_vector::<4>();
                pairs.into_iter().flat_map(|pair| pair.to_f32()).collect()
            }
        }
    }
}

impl Variant for Whole {
    const KERNEL: &'static str = "group_norm/whole";

    fn all() -> Vec<Whole> {
        let mut all = vec![];
        for storage in Storage::ALL {
            for silu in [false, true] {
                all.extend(KEPT.map(|kept| Whole {
                    storage,
                    silu,
                    kept,
                }));
            }
        }
        all
    }

    fn label(&self) -> String {
        let silu = if self.silu { "_silu" } else { "" };
        format!("{}_kept{}{silu}", self.storage.name(), self.kept)
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let storage = self.storage;
        let width = storage.chunk();
        k.contract(&format!(
            "mean and rstd = 1 / sqrt(variance + eps) of every image's groups, and\n\
             y = {}((x - mean) * rstd * gamma + beta) * (1 + scale) + shift), {}.\n\
             Grid: ceil(c / slab), n CTAs: all pixels of slab channels, which are whole groups. {THREADS} threads, each with\n\
             {width} channels of every pixel in floor({THREADS} * {width} / slab).\n\
             Shared memory: {} chunks a thread, and a mean and a sum of squares for each of its channels.\n\
             Reads x and writes y once.",
            if self.silu { "silu(" } else { "(" },
            storage.name(),
            self.kept
        ));
        let y = k.floats(storage, "y");
        let (mean, rstd) = (k.buffer::<F32>("mean"), k.buffer::<F32>("rstd"));
        let x = k.floats(storage, "x").read_only();
        let affine = Affine {
            mean,
            rstd,
            gamma: k.floats(storage, "gamma").read_only(),
            beta: k.floats(storage, "beta").read_only(),
            scale_shift: k.floats(storage, "scale_shift").read_only(),
        };
        let eps = k.parameter::<F32>("eps");
        let extents = Extents::parameters(k);
        let slab = k.parameter::<U32>("slab");
        k.min_ctas(1);
        // What `config` has checked.
        for channels in [extents.c, slab] {
            channels.assume_multiple_of(width.into());
        }

        k.comment("this thread's channels, and the first of its pixels");
        let columns = slab / width;
        let threads: Value<U32> = Value::from_bits(THREADS.into());
        let rows = threads / columns;
        let (column, row) = (k.thread_x() % columns, k.thread_x() / columns);
        let first = k.cta_x() * slab;
        let image = k.cta_y();
        let walk = Walk {
            k,
            extents,
            image,
            block: Value::from_bits(0),
            column,
            row,
            channel: first + column * width,
            width,
        };
        let active = row.lt(rows) & walk.channel.lt(extents.c);

        k.comment("Welford's recurrence over this thread's pixels, which it keeps");
        let kept = Kept::new(k, storage, self.kept);
        let count = k.variable(0.0f32);
        let sets: Vec<_> = (0..width)
            .map(|_| [k.variable(0.0f32), k.variable(0.0f32)])
            .collect();
        k.if_(active, || {
            let place = k.variable_multiple_of::<U32>(0, 4);
            k.for_(row, extents.pixels, rows, |pixel| {
                let values = kept.keep(place.get(), x.at(walk.element(pixel)));
                place.set(place + 4 * THREADS);
                count.set(count + 1.0);
                let share = k.rcp_rn(count);
                for ([mean, squares], x) in sets.iter().zip(values) {
                    let apart = x - *mean;
                    mean.set(apart.mul_add(share, *mean));
                    squares.set(apart.mul_add(x - *mean, *squares));
                }
            });
        });

        k.comment("every row's moments, by channel");
        let shared = k.shared_array::<F32>(2 * THREADS * width);
        let (means, squares) = (shared, shared.at(THREADS * width));
        k.if_(active, || {
            let own = row * slab + column * width;
            for (i, [mean, square]) in (0u32..).zip(&sets) {
                means.at(own).at(i).store(*mean);
                squares.at(own).at(i).store(*square);
            }
        });
        k.barrier();
        k.comment("a warp a group: every 32nd of its rows' channels");
        let group_width = extents.width();
        let first_group = first / group_width;
        let groups = (slab / group_width).min(extents.groups - first_group);
        k.for_(k.warp(), groups, THREADS / 32, |group| {
            let growing = Growing::new(k);
            k.for_(k.lane(), rows * group_width, 32, |item| {
                let (row, i) = (item / group_width, item % group_width);
                let from = row * slab + group * group_width + i;
                let pixels = (extents.pixels + rows - 1 - row) / rows;
                let set = Set {
                    count: pixels.to_f32(),
                    mean: means.at(from).load(),
                    squares: squares.at(from).load(),
                };
                growing.set(growing.get().merge(set));
            });
            let all = growing.over_warp(k);
            k.comment("kept where the group's first row was, which no other warp reads");
            k.warp_barrier();
            k.if_(k.lane().eq(0), || {
                let [its_mean, its_rstd] = all.statistics(k, eps);
                let index = image * extents.groups + first_group + group;
                mean.at(index).store(its_mean);
                rstd.at(index).store(its_rstd);
                means.at(group * group_width).store(its_mean);
                squares.at(group * group_width).store(its_rstd);
            });
        });
        k.barrier();

        k.if_(active, || {
            let coefficients = Coefficients::with(walk, affine, |group| {
                let at = group * group_width - first;
                [means, squares].map(|of| of.at(at).load())
            });
            let place = k.variable_multiple_of::<U32>(0, 4);
            k.for_(row, extents.pixels, rows, |pixel| {
                let values = kept.get(place.get());
                place.set(place + 4 * THREADS);
                let normalised = normalise(storage, self.silu, values, &coefficients);
                y.at(walk.element(pixel)).store_span(&normalised);
            });
        });
    }
}
