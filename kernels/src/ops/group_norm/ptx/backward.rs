//! The backward pass. With z what the activation receives and g = γ·(1 + scale)·dz, dx = rstd·(g − mean(g) −
//! x̂·mean(g·x̂)), the means taken over the group.

use super::*;
use crate::Accum;
use crate::ops::variants::Variant;
use crate::ptx::F32;
use crate::real::Real;

/// Each block's Σ dz and Σ dz·(x − mean), per channel. Launch over [`Sizes::pixels_grid`] with `Write(partials), Read(dy),
/// Read(x), Read(mean), Read(rstd), Read(gamma), Read(beta), Read(scale_shift)` or `Null`, `U32(pixels), U32(c),
/// U32(groups)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    pub channels: Channels,
    pub silu: bool,
}

/// Per image and channel Σ dz and Σ dz·x̂ (`totals`, [n, 2, c]), per image and group what dx subtracts (`means`, [n,
/// groups, 2]), and the gradient of scale and shift. Launch over [`Sizes::groups_grid`] with `Write(totals),
/// Write(means), Write(dscale_shift)` (`Update` under [`Accum::Add`], or `Null`), `Read(partials), Read(mean), Read(rstd),
/// Read(gamma), Read(beta), Read(scale_shift)` or `Null`, `U32(pixels), U32(c), U32(groups), U32(groups_beside)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeSums {
    pub storage: Storage,
    pub accum: Accum,
}

/// dγ and dβ. Launch over [`Sizes::channels_grid`] with `Write(dgamma), Write(dbeta)` (`Update` under [`Accum::Add`], or
/// `Null`), `Read(totals), Read(scale_shift)` or `Null`, `U32(c), U32(n)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    pub storage: Storage,
    pub accum: Accum,
}

/// dx. Launch over [`Sizes::pixels_grid`] with `Write(dx)` (`Update` under [`Accum::Add`]), `Read(means)`, then as
/// [`Sums`] from dy on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputGradient {
    pub channels: Channels,
    pub silu: bool,
    pub accum: Accum,
}

/// x − mean, and the gradient before the activation.
pub(super) fn through_activation<'k>(
    storage: Storage,
    silu: bool,
    [dy, x]: [Value<'k, F32>; 2],
    k: &Coefficients<'k>,
) -> [Value<'k, F32>; 2] {
    let centred = x - k.mean;
    if !silu {
        return [centred, dy];
    }
    let z = centred.mul_add(k.a, k.b);
    let s = sigmoid(storage, z);
    let one: Value<F32> = Real::from_f64(1.0);
    [centred, dy * s * z.mul_add(one - s, one)]
}

/// dx of one element, from what it subtracts: the means of a·dz and of a·dz·x̂·rstd over the group.
pub(super) fn input_gradient<'k>(
    storage: Storage,
    silu: bool,
    operands: [Value<'k, F32>; 2],
    k: &Coefficients<'k>,
    [offset, slope]: [Value<'k, F32>; 2],
) -> Value<'k, F32> {
    let [centred, dz] = through_activation(storage, silu, operands, k);
    k.a.mul_add(dz, -offset) - centred * slope
}

impl Variant for Sums {
    const KERNEL: &'static str = "group_norm/backward_sums";

    fn all() -> Vec<Sums> {
        let both = |channels| [false, true].map(|silu| Sums { channels, silu });
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
            "partials[image, block] = the block's sum of dz and of dz * (x - mean), by channel; dy and x are {}.\n\
             Grid: ceil(pixels / {PIXELS}), ceil(c / {}), n CTAs of {COLUMNS} columns by {ROWS} rows of threads. Reads dy and x once.",
            storage.name(),
            self.channels.tile()
        ));
        let partials = k.buffer::<F32>("partials");
        let dy = k.floats(storage, "dy").read_only();
        let x = k.floats(storage, "x").read_only();
        let affine = Affine::parameters(k, storage);
        let walk = Walk::new(k, self.channels, Extents::parameters(k));

        let sums: Vec<_> = (0..walk.width)
            .map(|_| [k.variable(0.0f32), k.variable(0.0f32)])
            .collect();
        let coefficients =
            walk.of_channels(|channel| Coefficients::load(walk, affine, channel).numbers());
        k.if_(walk.exists(), || {
            let coefficients = coefficients.get(walk.column).into_iter();
            let coefficients: Vec<_> = coefficients.map(Coefficients::from_numbers).collect();
            walk.for_each_pixel(|element| {
                let dy = dy.at(element).load_span(walk.width);
                let x = x.at(element).load_span(walk.width);
                let operands = dy.into_iter().zip(x).zip(&coefficients);
                for (((dy, x), k), [sum, sum_x]) in operands.zip(&sums) {
                    let [centred, dz] = through_activation(storage, self.silu, [dy, x], k);
                    sum.set(*sum + dz);
                    sum_x.set(dz.mul_add(centred, *sum_x));
                }
            });
        });

        k.comment("the four rows of the warp together");
        let sums: Vec<[Value<F32>; 2]> = sums
            .iter()
            .map(|pair| {
                pair.map(|sum| {
                    let masks = [COLUMNS, 2 * COLUMNS].into_iter();
                    masks.fold(sum.get(), |sum, mask| sum + k.shuffle_xor(sum, mask))
                })
            })
            .collect();

        k.comment("the warps together, one thread a channel");
        let warps = THREADS / 32;
        let tile = self.channels.tile();
        let shared = k.shared_array::<F32>(2 * warps * tile);
        let halves = [shared, shared.at(warps * tile)];
        k.if_(k.lane().lt(COLUMNS), || {
            let first = k.warp() * tile + walk.column * walk.width;
            for (i, pair) in (0..).zip(&sums) {
                for (half, sum) in halves.iter().zip(pair) {
                    half.at(first).at(i).store(*sum);
                }
            }
        });
        k.barrier();
        walk.for_each_channel(|here, channel| {
            let [sum, sum_x] = halves.map(|half| {
                let of_warp = |warp: u32| half.at(here).at(warp * tile).load();
                (1..warps).fold(of_warp(0), |sum, warp| sum + of_warp(warp))
            });
            let to = partials.at(walk.extents.partial(walk.image, walk.block) + channel);
            to.store(sum);
            to.at(walk.extents.c).store(sum_x);
        });
    }
}

impl Variant for MergeSums {
    const KERNEL: &'static str = "group_norm/backward_merge";

    fn all() -> Vec<MergeSums> {
        let both = |storage| Accum::ALL.map(|accum| MergeSums { storage, accum });
        Storage::ALL.into_iter().flat_map(both).collect()
    }

    fn label(&self) -> String {
        format!("{}_{}", self.storage.name(), self.accum.name())
    }

    fn block(&self) -> [u32; 3] {
        [WARPS * 32, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "totals[image] = sums of dz and of dz * xhat by channel; means[image, group] = what dx subtracts;\n\
             dscale {} gamma * sum(dz * xhat) + beta * sum(dz), dshift {} sum(dz).\n\
             {}",
            self.accum.symbol(),
            self.accum.symbol(),
            merging::GRID
        ));
        let totals = k.buffer::<F32>("totals");
        let means = k.buffer::<F32>("means");
        let dscale_shift = k.floats(self.storage, "dscale_shift");
        let partials = k.buffer::<F32>("partials").read_only();
        let affine = Affine::parameters(k, self.storage);
        let extents = Extents::parameters(k);
        let c = extents.c;
        let merging = Merging::new(k, extents);
        let image = merging.image;
        let sums = [0.0f32; 2].map(|zero| k.variable(zero));
        merging.for_each_channel(
            |channel| {
                let [dz, dzx] = [0.0f32; 2].map(|zero| k.variable(zero));
                merging.for_each_block(|block| {
                    let from = partials.at(extents.partial(image, block) + channel);
                    dz.set(dz + from.load());
                    dzx.set(dzx + from.at(c).load());
                });
                [dz.get(), dzx.get()]
            },
            |channel, of_warps| {
                let [dz, dzx] = [0, 1].map(|i: usize| {
                    let terms = of_warps.iter().map(|pair| pair[i]);
                    terms.reduce(|sum, term| sum + term).expect("warps")
                });
                let group = image * extents.groups + channel / merging.width;
                let [mean, rstd] = affine.statistics(group);
                let dzx = dzx * rstd;
                let to = image * 2 * c + channel;
                totals.at(to).store(dz);
                totals.at(to).at(c).store(dzx);
                let gains = affine.gains(k, c, image, channel);
                k.if_(dscale_shift.is_present(), || {
                    let dscale = gains.gamma.mul_add(dzx, gains.beta * dz);
                    dscale_shift.at(to).put_span(self.accum, &[dscale]);
                    dscale_shift.at(to).at(c).put_span(self.accum, &[dz]);
                });
                let a = gains.coefficients([mean, rstd]).a;
                [a * dz, a * dzx * rstd]
            },
            |terms| {
                let pairs = sums.iter().zip(terms);
                pairs.for_each(|(sum, term)| sum.set(*sum + term));
            },
        );
        let (exists, group) = merging.own_group();
        k.if_(exists, || {
            let count = (extents.pixels * merging.width).to_f32();
            means
                .at(group * 2)
                .store_vector(sums.map(|sum| sum / count));
        });
    }
}

impl Variant for Parameters {
    const KERNEL: &'static str = "group_norm/backward_parameters";

    fn all() -> Vec<Parameters> {
        let both = |storage| Accum::ALL.map(|accum| Parameters { storage, accum });
        Storage::ALL.into_iter().flat_map(both).collect()
    }

    fn label(&self) -> String {
        format!("{}_{}", self.storage.name(), self.accum.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        k.contract(&format!(
            "dgamma {} sum over images of (1 + scale) * sum(dz * xhat), dbeta likewise of sum(dz).\n\
             Grid: ceil(c / {THREADS}) CTAs; one thread a channel.",
            self.accum.symbol()
        ));
        let dgamma = k.floats(self.storage, "dgamma");
        let dbeta = k.floats(self.storage, "dbeta");
        let totals = k.buffer::<F32>("totals").read_only();
        let scale_shift = k.floats(self.storage, "scale_shift").read_only();
        let [c, n] = ["c", "n"].map(|name| k.parameter::<U32>(name));
        let channel = k.cta_x() * THREADS + k.thread_x();
        k.exit_if(channel.ge(c));
        let [gamma, beta] = [0.0f32; 2].map(|zero| k.variable(zero));
        k.for_(0, n, 1, |image| {
            let at = image * 2 * c + channel;
            let one_plus = k.variable(1.0f32);
            k.if_(scale_shift.is_present(), || {
                one_plus.set(scale_shift.at(at).load() + 1.0);
            });
            let [dz, dzx] = [totals.at(at), totals.at(at).at(c)].map(|total| total.load());
            beta.set(dz.mul_add(one_plus, beta));
            gamma.set(dzx.mul_add(one_plus, gamma));
        });
        for (to, sum) in [(dgamma, gamma), (dbeta, beta)] {
            k.if_(to.is_present(), || {
                to.at(channel).put_span(self.accum, &[sum.get()]);
            });
        }
    }
}

impl Variant for InputGradient {
    const KERNEL: &'static str = "group_norm/backward_input";

    fn all() -> Vec<InputGradient> {
        let mut all = vec![];
        for channels in Channels::all() {
            for silu in [false, true] {
                all.extend(Accum::ALL.map(|accum| InputGradient {
                    channels,
                    silu,
                    accum,
                }));
            }
        }
        all
    }

    fn label(&self) -> String {
        let silu = if self.silu { "_silu" } else { "" };
        format!("{}{silu}_{}", self.channels.label(), self.accum.name())
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let storage = self.channels.storage;
        k.contract(&format!(
            "dx {} a * dz - means[0] - (x - mean) * means[1], {}.\n\
             Grid: ceil(pixels / {PIXELS}), ceil(c / {}), n CTAs. Reads dy and x and writes dx once.",
            self.accum.symbol(),
            storage.name(),
            self.channels.tile()
        ));
        let dx = k.floats(storage, "dx");
        let means = k.buffer::<F32>("means").read_only();
        let dy = k.floats(storage, "dy").read_only();
        let x = k.floats(storage, "x").read_only();
        let affine = Affine::parameters(k, storage);
        let walk = Walk::new(k, self.channels, Extents::parameters(k));
        let coefficients = walk.of_channels(|channel| {
            let [mean, a, b] = Coefficients::load(walk, affine, channel).numbers();
            let extents = walk.extents;
            let group = walk.image * extents.groups + channel / extents.width();
            let [offset, slope] = means.at(group * 2).load_vector();
            [mean, a, b, offset, slope]
        });
        k.exit_if(!walk.exists());
        let coefficients = coefficients.get(walk.column).into_iter();
        let coefficients: Vec<_> = coefficients
            .map(|[mean, a, b, offset, slope]| {
                let coefficients = Coefficients::from_numbers([mean, a, b]);
                (coefficients, [offset, slope])
            })
            .collect();
        walk.for_each_pixel(|element| {
            let dy = dy.at(element).load_span(walk.width);
            let x = x.at(element).load_span(walk.width);
            let operands = dy.into_iter().zip(x).zip(&coefficients);
            let gradients: Vec<_> = operands
                .map(|((dy, x), (k, means))| input_gradient(storage, self.silu, [dy, x], k, *means))
                .collect();
            dx.at(element).put_span(self.accum, &gradients);
        });
    }
}
