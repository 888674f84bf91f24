//! The backward pass in one launch, where groups of x and dy fit on chip: both are read once, and dx written once. What
//! the gradients of γ and β sum over images, [`Parameters`](backward::Parameters) reads.

use super::backward::{input_gradient, through_activation};
use super::slab::{Cut, Kept};
use super::*;
use crate::Accum;
use crate::ops::geometry::Call;
use crate::ops::reduction::{Fold, over_warp};
use crate::ops::variants::Variant;
use crate::ptx::F32;

/// Chunks that a thread can keep of each of the two. With few, several CTAs fit on a multiprocessor; with many, one: 147 KiB
/// and the sums.
const KEPT: [u32; 3] = [2, 8, 18];

/// dx, per image and channel Σ dz and Σ dz·x̂ (`totals`, [n, 2, c], f32), and the gradient of scale and shift.
///
/// Launch with `Write(dx)`, `Write(dscale_shift)` (`Update` under [`Accum::Add`]) and `Write(totals)`, or any of them `Null`,
/// `Read(dy), Read(x), Read(mean), Read(rstd), Read(gamma), Read(beta), Read(scale_shift)` or `Null`, and the call's numbers.
/// Channels come in whole chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholeBackward {
    pub storage: Storage,
    pub silu: bool,
    /// Of dx, and of dscale_shift.
    pub accums: [Accum; 2],
    /// Chunks that a thread can keep of each tensor.
    kept: u32,
}

/// The launch for a descriptor whose [`sizes`] are counted; none where groups do not fit on chip, or channels are no whole
/// chunks.
pub fn config(d: &GroupNorm, storage: Storage, accums: [Accum; 2]) -> Option<Call<WholeBackward>> {
    let cut = Cut::new(d, storage, &KEPT)?;
    let variant = WholeBackward {
        storage,
        silu: d.silu,
        accums,
        kept: cut.kept,
    };
    Some(Call::new(variant, cut.grid(d), cut.numbers(d)))
}

impl Variant for WholeBackward {
    const KERNEL: &'static str = "group_norm/whole_backward";

    fn all() -> Vec<WholeBackward> {
        let mut all = vec![];
        for storage in Storage::ALL {
            for silu in [false, true] {
                for kept in KEPT {
                    for of_dx in Accum::ALL {
                        all.extend(Accum::ALL.map(|of_scale| WholeBackward {
                            storage,
                            silu,
                            accums: [of_dx, of_scale],
                            kept,
                        }));
                    }
                }
            }
        }
        all
    }

    fn label(&self) -> String {
        let silu = if self.silu { "_silu" } else { "" };
        let [of_dx, of_scale] = self.accums.map(Accum::name);
        let storage = self.storage.name();
        format!("{storage}_kept{}{silu}_{of_dx}_{of_scale}", self.kept)
    }

    fn block(&self) -> [u32; 3] {
        [THREADS, 1, 1]
    }

    fn write(&self, k: &Assembler) {
        let storage = self.storage;
        let width = storage.chunk();
        let [of_dx, of_scale] = self.accums;
        k.contract(&format!(
            "With z what the activation receives and g = gamma * (1 + scale) * dz:\n\
             dx {} rstd * (g - mean g - xhat * mean(g * xhat)), the means over each group, {};\n\
             totals[image] = sums of dz and of dz * xhat by channel;\n\
             dscale {} gamma * sum(dz * xhat) + beta * sum(dz), dshift {} sum(dz).\n\
             Grid: ceil(c / slab), n CTAs: all pixels of slab channels, which are whole groups. {THREADS} threads, each with\n\
             {width} channels of every pixel in floor({THREADS} * {width} / slab).\n\
             Shared memory: twice {} chunks a thread, and two sums for each of its channels.\n\
             Reads dy and x and writes dx once.",
            of_dx.symbol(),
            storage.name(),
            of_scale.symbol(),
            of_scale.symbol(),
            self.kept
        ));
        let dx = k.floats(storage, "dx");
        let dscale_shift = k.floats(storage, "dscale_shift");
        let totals = k.buffer::<F32>("totals");
        let dy = k.floats(storage, "dy").read_only();
        let x = k.floats(storage, "x").read_only();
        let affine = Affine::parameters(k, storage);
        let slab = Slab::new(k, storage);
        let c = slab.extents.c;
        let zeros = |n: u32| -> Vec<_> { (0..n).map(|_| k.variable(0.0f32)).collect() };

        k.comment("z = (x - mean) * a + b: each channel's coefficients, where its sums will be");
        let sums = slab.table();
        let on_chip = sums.of_channels();
        // Of the channels that this thread answers for.
        let [gammas, betas, slopes, rstds] = [(); 4].map(|()| zeros(slab.most_channels()));
        slab.for_each_channel(|here, turn| {
            let gains = affine.gains(k, c, slab.image, slab.first + here);
            let [mean, rstd] = affine.statistics(slab.group(slab.group_of(here)));
            let coefficients = gains.coefficients([mean, rstd]);
            on_chip.put(here, coefficients.numbers());
            gammas[turn].set(gains.gamma);
            betas[turn].set(gains.beta);
            slopes[turn].set(coefficients.a);
            rstds[turn].set(rstd);
        });
        k.barrier();
        let coefficients: Vec<_> = (0..width)
            .map(|_| [(); 3].map(|()| k.variable(0.0f32)))
            .collect();
        k.if_(slab.active, || {
            for (kept, numbers) in coefficients.iter().zip(on_chip.get(slab.column)) {
                kept.iter()
                    .zip(numbers)
                    .for_each(|(kept, number)| kept.set(number));
            }
        });
        let coefficients = || -> Vec<_> {
            let numbers = coefficients
                .iter()
                .map(|kept| kept.map(|number| number.get()));
            numbers.map(Coefficients::from_numbers).collect()
        };

        k.comment("this thread's sums over its pixels, which it keeps");
        let [kept_dy, kept_x] = [(); 2].map(|()| Kept::new(k, storage, self.kept));
        let own: Vec<_> = (0..width)
            .map(|_| [(); 2].map(|()| k.variable(0.0f32)))
            .collect();
        k.if_(slab.active, || {
            let coefficients = coefficients();
            slab.for_each_pixel(|place, element| {
                let dy = kept_dy.keep(place, dy.at(element));
                let x = kept_x.keep(place, x.at(element));
                let operands = dy.into_iter().zip(x).zip(&coefficients);
                for (((dy, x), k), [sum, sum_x]) in operands.zip(&own) {
                    let [centred, dz] = through_activation(storage, self.silu, [dy, x], k);
                    sum.set(*sum + dz);
                    sum_x.set(dz.mul_add(centred, *sum_x));
                }
            });
        });
        k.comment("every row's sums, by channel, once all have their coefficients");
        k.barrier();
        k.if_(slab.active, || {
            let pairs: Vec<_> = own.iter().map(|pair| pair.map(|x| x.get())).collect();
            sums.put_own(&pairs);
        });
        k.barrier();

        k.comment("each warp every eighth row");
        k.if_(k.warp().lt(slab.rows), || {
            k.for_(k.lane(), slab.channels, 32, |here| {
                let total = [(); 2].map(|()| k.variable(0.0f32));
                k.for_(k.warp(), slab.rows, WARPS, |row| {
                    let pair = sums.at(row, here).map(|x| x.load());
                    total.iter().zip(pair).for_each(|(t, x)| t.set(*t + x));
                });
                let to = sums.at(k.warp(), here);
                to.iter().zip(total).for_each(|(to, t)| to.store(t));
            });
        });
        k.barrier();

        k.comment(
            "the warps' sums, by channel, and what a group's means of g and g * xhat have of each",
        );
        slab.for_each_channel(|here, turn| {
            let total = [(); 2].map(|()| k.variable(0.0f32));
            k.for_(0, slab.rows.min(WARPS), 1, |row| {
                let pair = sums.at(row, here).map(|x| x.load());
                total.iter().zip(pair).for_each(|(t, x)| t.set(*t + x));
            });
            let [dz, dzx] = total;
            let dz = dz.get();
            let dzx = dzx * rstds[turn];
            let to = slab.image * 2 * c + (slab.first + here);
            k.if_(totals.is_present(), || {
                totals.at(to).store(dz);
                totals.at(to).at(c).store(dzx);
            });
            k.if_(dscale_shift.is_present(), || {
                let dscale = dzx.mul_add(gammas[turn], dz * betas[turn]);
                dscale_shift.at(to).put_span(of_scale, &[dscale]);
                dscale_shift.at(to).at(c).put_span(of_scale, &[dz]);
            });
            let [offset, along] = sums.at(Value::from_bits(0), here);
            offset.store(dz * slopes[turn]);
            along.store(dzx * slopes[turn] * rstds[turn]);
        });
        k.barrier();
        let means = slab.of_groups(|first| {
            let total = [(); 2].map(|()| k.variable(0.0f32));
            k.for_(k.lane(), slab.group_width(), 32, |i| {
                let pair = sums.at(Value::from_bits(0), first + i).map(|x| x.load());
                total.iter().zip(pair).for_each(|(t, x)| t.set(*t + x));
            });
            let size = slab.group_size().to_f32();
            total.map(|t| over_warp(k, Fold::Sum, t.get()) / size)
        });

        k.if_(dx.is_present() & slab.active, || {
            let coefficients = coefficients().into_iter().zip(0u32..);
            let coefficients: Vec<_> = coefficients
                .map(|(coefficients, i)| {
                    let channel = slab.column * width + i;
                    (coefficients, means.get(slab.group_of(channel)))
                })
                .collect();
            slab.for_each_pixel(|place, element| {
                let operands = kept_dy.get(place).into_iter().zip(kept_x.get(place));
                let gradients: Vec<_> = operands
                    .zip(&coefficients)
                    .map(|(operands, (k, means))| {
                        input_gradient(storage, self.silu, operands.into(), k, *means)
                    })
                    .collect();
                dx.at(element).put_span(of_dx, &gradients);
            });
        });
    }
}
