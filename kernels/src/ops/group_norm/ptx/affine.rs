//! What the channels of an image are normalised by.

use super::*;
use crate::ptx::{F32, Fast, Floats, Global, Pointer, Shared};
use crate::real::Real;

/// The operands that say how an image's channels are normalised.
#[derive(Clone, Copy)]
pub(super) struct Affine<'k> {
    pub mean: Pointer<'k, Global, F32>,
    pub rstd: Pointer<'k, Global, F32>,
    pub gamma: Floats<'k>,
    pub beta: Floats<'k>,
    /// [n, 2·c], or absent.
    pub scale_shift: Floats<'k>,
}

impl<'k> Affine<'k> {
    /// Those of a kernel that reads the statistics.
    pub fn parameters(k: &'k Assembler, storage: Storage) -> Affine<'k> {
        let [mean, rstd] = ["mean", "rstd"].map(|name| k.buffer(name).read_only());
        Affine::with(k, storage, [mean, rstd])
    }

    /// Those of a kernel that has declared the statistics.
    pub fn with(
        k: &'k Assembler,
        storage: Storage,
        [mean, rstd]: [Pointer<'k, Global, F32>; 2],
    ) -> Affine<'k> {
        let [gamma, beta, scale_shift] =
            ["gamma", "beta", "scale_shift"].map(|name| k.floats(storage, name).read_only());
        Affine {
            mean,
            rstd,
            gamma,
            beta,
            scale_shift,
        }
    }

    /// A group's mean and rstd, by its number among all images' groups.
    pub fn statistics(self, group: Value<'k, U32>) -> [Value<'k, F32>; 2] {
        [self.mean, self.rstd].map(|of| of.at(group).load())
    }

    /// What is multiplied and added to a channel of an image.
    pub fn gains(
        self,
        k: &'k Assembler,
        c: Value<'k, U32>,
        image: Value<'k, U32>,
        channel: Value<'k, U32>,
    ) -> Gains<'k> {
        let [one_plus_scale, shift] = [1.0f32, 0.0].map(|absent| k.variable(absent));
        k.if_(self.scale_shift.is_present(), || {
            let scale = self.scale_shift.at(image * 2 * c + channel);
            one_plus_scale.set(scale.load() + 1.0);
            shift.set(scale.at(c).load());
        });
        Gains {
            gamma: self.gamma.at(channel).load(),
            beta: self.beta.at(channel).load(),
            one_plus_scale: one_plus_scale.get(),
            shift: shift.get(),
        }
    }
}

/// γ, β, 1 + scale and shift of one channel.
#[derive(Clone, Copy)]
pub(super) struct Gains<'k> {
    pub gamma: Value<'k, F32>,
    pub beta: Value<'k, F32>,
    pub one_plus_scale: Value<'k, F32>,
    shift: Value<'k, F32>,
}

impl<'k> Gains<'k> {
    /// With the statistics of the channel's group.
    pub fn coefficients(self, [mean, rstd]: [Value<'k, F32>; 2]) -> Coefficients<'k> {
        Coefficients {
            mean,
            a: rstd * self.gamma * self.one_plus_scale,
            b: self.beta.mul_add(self.one_plus_scale, self.shift),
        }
    }
}

/// What one channel needs: z = (x − mean)·a + b.
#[derive(Clone, Copy)]
pub(super) struct Coefficients<'k> {
    pub mean: Value<'k, F32>,
    pub a: Value<'k, F32>,
    pub b: Value<'k, F32>,
}

impl<'k> Coefficients<'k> {
    /// Of a channel of the walk's image.
    pub fn load(walk: Walk<'k>, affine: Affine<'k>, channel: Value<'k, U32>) -> Coefficients<'k> {
        let Walk {
            k, extents, image, ..
        } = walk;
        k.comment("z = (x - mean) * a + b");
        let gains = affine.gains(k, extents.c, image, channel);
        let group = image * extents.groups + channel / extents.width();
        gains.coefficients(affine.statistics(group))
    }

    pub fn numbers(self) -> [Value<'k, F32>; 3] {
        [self.mean, self.a, self.b]
    }

    pub fn from_numbers([mean, a, b]: [Value<'k, F32>; 3]) -> Coefficients<'k> {
        Coefficients { mean, a, b }
    }
}

/// N numbers of each of a tile's channels on chip, which one thread writes and all that treat the channel read.
#[derive(Clone, Copy)]
pub(super) struct OfChannels<'k, const N: usize> {
    arrays: [Pointer<'k, Shared, F32>; N],
    /// Threads beside each other, and channels of each.
    columns: Value<'k, U32>,
    width: u32,
}

impl<'k, const N: usize> OfChannels<'k, N> {
    /// In arrays that are as long as the tile has channels.
    pub fn new(
        arrays: [Pointer<'k, Shared, F32>; N],
        columns: Value<'k, U32>,
        width: u32,
    ) -> OfChannels<'k, N> {
        OfChannels {
            arrays,
            columns,
            width,
        }
    }

    /// Writes those of a channel, by its number in the tile.
    pub fn put(self, channel: Value<'k, U32>, numbers: [Value<'k, F32>; N]) {
        // First those of the first channels of all threads, and so on: threads beside each other read different banks.
        let at = channel % self.width * self.columns + channel / self.width;
        for (array, number) in self.arrays.iter().zip(numbers) {
            array.at(at).store(number);
        }
    }

    /// Those of the channels of a thread's column, once all are written.
    pub fn get(self, column: Value<'k, U32>) -> Vec<[Value<'k, F32>; N]> {
        let first = self.arrays.map(|array| array.at(column));
        let channels = 0..self.width;
        channels
            .map(|i| first.map(|array| array.at(self.columns * i).load()))
            .collect()
    }
}

/// z·σ(z) and its like: as exact as the storage deserves.
pub(super) fn sigmoid<'k>(storage: Storage, z: Value<'k, F32>) -> Value<'k, F32> {
    match storage {
        Storage::F32 => z.sigmoid(),
        Storage::Bf16 => Fast(z).sigmoid().0,
    }
}
