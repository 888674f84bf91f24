//! The forward pass in one launch, where groups fit on chip: x is read once, and y written once.

use super::forward::{Growing, Set, normalise};
use super::slab::{Cut, Kept};
use super::*;
use crate::ops::geometry::Call;
use crate::ops::variants::Variant;
use crate::ptx::F32;

/// Chunks that a thread can keep. With few, several CTAs fit on a multiprocessor; with many, one: 147 KiB and the moments.
const KEPT: [u32; 2] = [8, 36];

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
    let cut = Cut::new(d, storage, &KEPT)?;
    let variant = Whole {
        storage,
        silu: d.silu,
        kept: cut.kept,
    };
    Some(Call::new(variant, cut.grid(d), cut.numbers(d)))
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
        let affine = Affine::with(k, storage, [mean, rstd]);
        let eps = k.parameter::<F32>("eps");
        let slab = Slab::new(k, storage);

        k.comment("Welford's recurrence over this thread's pixels, which it keeps");
        let kept = Kept::new(k, storage, self.kept);
        let count = k.variable(0.0f32);
        let sets: Vec<_> = (0..width)
            .map(|_| [k.variable(0.0f32), k.variable(0.0f32)])
            .collect();
        k.if_(slab.active, || {
            slab.for_each_pixel(|place, element| {
                let values = kept.keep(place, x.at(element));
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
        let moments = slab.table();
        k.if_(slab.active, || {
            let pairs: Vec<_> = sets.iter().map(|pair| pair.map(|x| x.get())).collect();
            moments.put_own(&pairs);
        });
        k.barrier();
        let statistics = slab.of_groups(|first| {
            let growing = Growing::new(k);
            let group_width = slab.group_width();
            k.comment("every 32nd of its rows' channels");
            k.for_(k.lane(), slab.rows * group_width, 32, |item| {
                let (row, i) = (item / group_width, item % group_width);
                let [mean, squares] = moments.at(row, first + i).map(|x| x.load());
                let set = Set {
                    count: slab.pixels_of(row).to_f32(),
                    mean,
                    squares,
                };
                growing.set(growing.get().merge(set));
            });
            growing.over_warp(k).statistics(k, eps)
        });
        statistics.for_each(|group, [its_mean, its_rstd]| {
            mean.at(group).store(its_mean);
            rstd.at(group).store(its_rstd);
        });

        k.comment("z = (x - mean) * a + b: each channel's coefficients, in place of the moments");
        let coefficients = moments.of_channels();
        slab.for_each_channel(|here, _| {
            let gains = affine.gains(k, slab.extents.c, slab.image, slab.first + here);
            let its = statistics.get(slab.group_of(here));
            coefficients.put(here, gains.coefficients(its).numbers());
        });
        k.barrier();
        k.if_(slab.active, || {
            let coefficients = coefficients.get(slab.column).into_iter();
            let coefficients: Vec<_> = coefficients.map(Coefficients::from_numbers).collect();
            slab.for_each_pixel(|place, element| {
                let values = kept.get(place);
                let normalised = normalise(storage, self.silu, values, &coefficients);
                y.at(element).store_span(&normalised);
            });
        });
    }
}
