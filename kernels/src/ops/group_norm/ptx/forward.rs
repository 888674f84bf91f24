//! The forward pass: moments of blocks, their merging, and the normalisation.

use super::*;
use crate::ops::variants::Variant;
use crate::ptx::{F32, Variable};

/// Each block's mean, and sum of squared distances from it, per channel. Launch over [`Sizes::pixels_grid`] with
/// `Write(partials), Read(x), U32(pixels), U32(c), U32(groups)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments(pub Channels);

/// Each group's mean and reciprocal standard deviation, f32 [n, groups]. Launch over [`Sizes::groups_grid`] with
/// `Write(mean), Write(rstd), Read(partials), U32(pixels), U32(c), U32(groups), U32(groups_beside), F32(eps)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge;

/// y. Launch over [`Sizes::pixels_grid`] with `Write(y), Read(x), Read(mean), Read(rstd), Read(gamma), Read(beta),
/// Read(scale_shift)` or `Null`, `U32(pixels), U32(c), U32(groups)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apply {
    pub channels: Channels,
    pub silu: bool,
}

/// How many values a set has, their mean, and the sum of their squared distances from it.
#[derive(Clone, Copy)]
pub(super) struct Set<'k> {
    pub count: Value<'k, F32>,
    pub mean: Value<'k, F32>,
    pub squares: Value<'k, F32>,
}

impl<'k> Set<'k> {
    /// Both sets together (Chan, Golub & LeVeque, 1983). Either may be empty.
    pub fn merge(self, other: Set<'k>) -> Set<'k> {
        let count = self.count + other.count;
        let share = other.count / count.max(1.0);
        let apart = other.mean - self.mean;
        Set {
            count,
            mean: apart.mul_add(share, self.mean),
            squares: (apart * apart).mul_add(share * self.count, self.squares + other.squares),
        }
    }

    /// The mean and 1 / √(variance + eps).
    pub fn statistics(self, k: &'k Assembler, eps: Value<'k, F32>) -> [Value<'k, F32>; 2] {
        let deviation = k.sqrt_rn(self.squares / self.count + eps);
        [self.mean, k.rcp_rn(deviation)]
    }

    pub fn numbers(self) -> [Value<'k, F32>; 3] {
        [self.count, self.mean, self.squares]
    }

    pub fn from_numbers([count, mean, squares]: [Value<'k, F32>; 3]) -> Set<'k> {
        Set {
            count,
            mean,
            squares,
        }
    }

    /// The set of the lane whose number differs by the bits of `mask`.
    fn of_lane(self, k: &'k Assembler, mask: u32) -> Set<'k> {
        Set::from_numbers(self.numbers().map(|x| k.shuffle_xor(x, mask)))
    }
}

/// A set that grows.
#[derive(Clone, Copy)]
pub(super) struct Growing<'k> {
    count: Variable<'k, F32>,
    mean: Variable<'k, F32>,
    squares: Variable<'k, F32>,
}

impl<'k> Growing<'k> {
    pub fn new(k: &'k Assembler) -> Growing<'k> {
        let [count, mean, squares] = [0.0f32; 3].map(|zero| k.variable(zero));
        Growing {
            count,
            mean,
            squares,
        }
    }

    pub fn get(self) -> Set<'k> {
        Set {
            count: self.count.get(),
            mean: self.mean.get(),
            squares: self.squares.get(),
        }
    }

    pub fn set(self, to: Set<'k>) {
        self.squares.set(to.squares);
        self.mean.set(to.mean);
        self.count.set(to.count);
    }

    /// The sets of all lanes together.
    pub fn over_warp(self, k: &'k Assembler) -> Set<'k> {
        let lanes = [16, 8, 4, 2, 1].into_iter();
        lanes.fold(self.get(), |set, mask| set.merge(set.of_lane(k, mask)))
    }
}

impl Variant for Moments {
    const KERNEL: &'static str = "group_norm/moments";

    fn all() -> Vec<Moments> {
        Channels::all().into_iter().map(Moments).collect()
    }

    fn label(&self) -> String {
        self.0.label()
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "partials[image, block] = the block's mean and sum of squared distances from it, by channel; x is {}.\n\
             Grid: ceil(pixels / {PIXELS}), ceil(c / {}), n CTAs of {COLUMNS} columns by {ROWS} rows of threads. Reads x once.",
            self.0.storage.name(),
            self.0.tile()
        ));
        let partials = k.buffer::<F32>("partials");
        let x = k.floats(self.0.storage, "x").read_only();
        let walk = Walk::new(k, self.0, Extents::parameters(k));

        k.comment("Welford's recurrence over this thread's pixels");
        let count = k.variable(0.0f32);
        let sets: Vec<_> = (0..walk.width)
            .map(|_| [k.variable(0.0f32), k.variable(0.0f32)])
            .collect();
        walk.for_each_pixel(|element| {
            let values = x.at(element).load_span(walk.width);
            count.set(count + 1.0);
            let share = k.rcp_rn(count);
            for ([mean, squares], x) in sets.iter().zip(values) {
                let apart = x - *mean;
                mean.set(apart.mul_add(share, *mean));
                squares.set(apart.mul_add(x - *mean, *squares));
            }
        });
        let mut sets: Vec<Set> = sets
            .iter()
            .map(|[mean, squares]| Set {
                count: count.get(),
                mean: mean.get(),
                squares: squares.get(),
            })
            .collect();

        k.comment("the four rows of the warp together");
        for mask in [COLUMNS, 2 * COLUMNS] {
            sets = sets.iter().map(|s| s.merge(s.of_lane(k, mask))).collect();
        }

        k.comment("the warps together, one thread a channel");
        let warps = THREADS / 32;
        let tile = self.0.tile();
        let shared = k.shared_array::<F32>(3 * warps * tile);
        let (counts, means, squares) =
            (shared, shared.at(warps * tile), shared.at(2 * warps * tile));
        k.if_(k.lane().lt(COLUMNS), || {
            let first = k.warp() * tile + walk.column * walk.width;
            for (i, set) in (0..).zip(&sets) {
                counts.at(first).at(i).store(set.count);
                means.at(first).at(i).store(set.mean);
                squares.at(first).at(i).store(set.squares);
            }
        });
        k.barrier();
        walk.for_each_channel(|here, channel| {
            let of_warp = |warp: u32| Set {
                count: counts.at(here).at(warp * tile).load(),
                mean: means.at(here).at(warp * tile).load(),
                squares: squares.at(here).at(warp * tile).load(),
            };
            let set = (1..warps).fold(of_warp(0), |set, warp| set.merge(of_warp(warp)));
            let to = partials.at(walk.extents.partial(walk.image, walk.block) + channel);
            to.store(set.mean);
            to.at(walk.extents.c).store(set.squares);
        });
    }
}

impl Variant for Merge {
    const KERNEL: &'static str = "group_norm/merge";

    fn all() -> Vec<Merge> {
        vec![Merge]
    }

    fn label(&self) -> String {
        "f32".to_string()
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "mean and 1 / sqrt(variance + eps) of every image's groups, from its blocks' and channels' moments.\n{}",
            merging::GRID
        ));
        let mean = k.buffer::<F32>("mean");
        let rstd = k.buffer::<F32>("rstd");
        let partials = k.buffer::<F32>("partials").read_only();
        let extents = Extents::parameters(k);
        let merging = Merging::new(k, extents);
        let eps = k.parameter::<F32>("eps");
        let pixels = extents.pixels.to_f32();
        let all = Growing::new(k);
        merging.for_each_channel(
            |channel| {
                let growing = Growing::new(k);
                merging.for_each_block(|block| {
                    let from = partials.at(extents.partial(merging.image, block) + channel);
                    let set = Set {
                        count: (extents.pixels - block * PIXELS).min(PIXELS).to_f32(),
                        mean: from.load(),
                        squares: from.at(extents.c).load(),
                    };
                    growing.set(growing.get().merge(set));
                });
                growing.get().numbers()
            },
            |_, of_warps| {
                let sets = of_warps.into_iter().map(Set::from_numbers);
                let Set { mean, squares, .. } = sets.reduce(Set::merge).expect("warps");
                [mean, squares]
            },
            |[mean, squares]| {
                let set = Set {
                    count: pixels,
                    mean,
                    squares,
                };
                all.set(all.get().merge(set));
            },
        );
        let (exists, group) = merging.own_group();
        k.if_(exists, || {
            let [its_mean, its_rstd] = all.get().statistics(k, eps);
            mean.at(group).store(its_mean);
            rstd.at(group).store(its_rstd);
        });
    }
}

/// y of a thread's channels.
pub(super) fn normalise<'k>(
    storage: Storage,
    silu: bool,
    values: Vec<Value<'k, F32>>,
    coefficients: &[Coefficients<'k>],
) -> Vec<Value<'k, F32>> {
    let pairs = values.into_iter().zip(coefficients);
    pairs
        .map(|(x, k)| {
            let z = (x - k.mean).mul_add(k.a, k.b);
            if silu { z * sigmoid(storage, z) } else { z }
        })
        .collect()
}

impl Variant for Apply {
    const KERNEL: &'static str = "group_norm/apply";

    fn all() -> Vec<Apply> {
        let both = |channels| [false, true].map(|silu| Apply { channels, silu });
        Channels::all().into_iter().flat_map(both).collect()
    }

    fn label(&self) -> String {
        let silu = if self.silu { "_silu" } else { "" };
        format!("{}{silu}", self.channels.label())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let storage = self.channels.storage;
        k.contract(&format!(
            "y = {}((x - mean) * rstd * gamma + beta) * (1 + scale) + shift), {}.\n\
             Grid: ceil(pixels / {PIXELS}), ceil(c / {}), n CTAs. Reads x and writes y once.",
            if self.silu { "silu(" } else { "(" },
            storage.name(),
            self.channels.tile()
        ));
        let y = k.floats(storage, "y");
        let x = k.floats(storage, "x").read_only();
        let affine = Affine::parameters(k, storage);
        let walk = Walk::new(k, self.channels, Extents::parameters(k));
        let coefficients =
            walk.of_channels(|channel| Coefficients::load(walk, affine, channel).numbers());
        k.exit_if(!walk.exists());
        let coefficients = coefficients.get(walk.column).into_iter();
        let coefficients: Vec<_> = coefficients.map(Coefficients::from_numbers).collect();
        walk.for_each_pixel(|element| {
            let values = x.at(element).load_span(walk.width);
            let normalised = normalise(storage, self.silu, values, &coefficients);
            y.at(element).store_span(&normalised);
        });
    }
}
