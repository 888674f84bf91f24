//! Random numbers as a function of counters: nothing is stored, and any element can be drawn alone.
//!
//! A draw is (seed, stream, step, sample, element). The stream names who asks (a hash of a module path or a parameter's
//! name), the sample is counted globally over micro-steps and ranks, the element within the sample. So recompute,
//! resume, accumulation and sharding draw what one uninterrupted rank would.

use crate::math::{polynomial, sin_cos_eighth};
use crate::philox::philox4x32_10;
use crate::real::{Real, Single, Word};
use crate::{Float, multiversion, parallel};

/// Who draws, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// The seed, with the upper half of the stream's hash folded in.
    pub key: [u32; 2],
    /// The lower half of the stream's hash.
    pub stream: u32,
    pub step: u32,
    /// Global index of the first sample: that of index 0 along the outermost dimension.
    pub first_sample: u32,
}

impl Draw {
    /// The draw of `name` number `occurrence`, at step 0 and sample 0.
    pub fn named(seed: u64, name: &str, occurrence: u32) -> Draw {
        // FNV-1a, 64 bits: names are few, and the hash is part of the file format of nothing.
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for byte in name.bytes().chain(occurrence.to_le_bytes()) {
            hash = (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let key = [seed as u32, (seed >> 32) as u32 ^ (hash >> 32) as u32];
        Draw {
            key,
            stream: hash as u32,
            step: 0,
            first_sample: 0,
        }
    }

    /// Four random words: elements `4·quad..4·quad + 4` of `sample`.
    #[inline(always)]
    pub fn words(&self, sample: u32, quad: u32) -> [u32; 4] {
        philox4x32_10(
            self.key,
            [
                quad,
                self.first_sample.wrapping_add(sample),
                self.step,
                self.stream,
            ],
        )
    }
}

/// A float in (0, 1): the upper 24 bits, plus half a step.
#[inline(always)]
pub fn open_unit<W: Word>(word: W) -> W::Single {
    let c = W::Single::from_f32;
    (word.shift_right(8).to_single() + c(0.5)) * c(1.0 / 16_777_216.0)
}

/// Two standard normals from two words, by Box and Muller's method (1958).
///
/// Made of IEEE-exact operations only (fused multiply-add, multiply, add, square root and integer operations), so that
/// every device gives the same bits.
#[inline(always)]
pub fn normal_pair<W: Word>(a: W, b: W) -> [W::Single; 2] {
    /// The bits of √½.
    const ROOT_HALF: u32 = 0x3F35_04F3;
    let c = W::Single::from_f32;
    // Radius √(−2 ln u). u = 2^e·(1 + f) with 1 + f in [√½, √2).
    let offset = open_unit(a).to_bits().sub(W::from_u32(ROOT_HALF));
    let e = offset.shift_right_signed(23).signed_to_single();
    let m = offset.and(0x007F_FFFF).add(W::from_u32(ROOT_HALF));
    let f = W::Single::from_bits(m) - c(1.0);
    let z = f * f;
    let p = polynomial(
        f,
        [
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_8e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ],
    );
    let ln = e.mul_add(
        c(std::f32::consts::LN_2),
        z.mul_add(c(-0.5), (p * f).mul_add(z, f)),
    );
    let radius = (ln * c(-2.0)).sqrt();

    // Angle: two bits choose the quadrant, the rest an angle θ in (−π/4, π/4).
    let turn = b.and(0x3FFF_FFFF).sub(W::from_u32(0x2000_0000));
    let theta = turn.signed_to_single() * c(std::f32::consts::FRAC_PI_2 / 1_073_741_824.0);
    let [sin, cos] = sin_cos_eighth(theta);
    let swap = b.has(0x4000_0000);
    let (x, y) = (
        W::Single::select(swap, sin, cos),
        W::Single::select(swap, cos, sin),
    );
    let sign = W::Single::select(b.has(0x8000_0000), c(-1.0), c(1.0));
    [radius * x * sign, radius * y * sign]
}

/// Elements of a sample that one parallel part draws.
const PART: usize = 4096;

/// `out[sample, element] = std · normal`. `out` holds whole samples of `per_sample` elements.
pub fn normal<T: Float>(out: &mut [T], draw: &Draw, per_sample: usize, std: f64) {
    fill(out, draw, per_sample, |out, draw, sample, first_quad| {
        normal_leaf(out, draw, sample, first_quad, T::from_f64(std))
    });
}

/// `out[sample, element]` uniform in [low, high).
pub fn uniform<T: Float>(out: &mut [T], draw: &Draw, per_sample: usize, low: f64, high: f64) {
    let (low, span) = (T::from_f64(low), T::from_f64(high - low));
    fill(out, draw, per_sample, |out, draw, sample, first_quad| {
        uniform_leaf(out, draw, sample, first_quad, low, span)
    });
}

fn fill<T: Float>(
    out: &mut [T],
    draw: &Draw,
    per_sample: usize,
    leaf: impl Fn(&mut [T], Draw, u32, u32) + Sync + Send,
) {
    parallel::row_parts(out, per_sample, PART, |sample, start, out| {
        leaf(out, *draw, sample as u32, (start / 4) as u32)
    });
}

multiversion! {
    fn normal_leaf<T: Float>(out: &mut [T], draw: Draw, sample: u32, first_quad: u32, std: T) {
        for (quad, out) in out.chunks_mut(4).enumerate() {
            let w = draw.words(sample, first_quad + quad as u32);
            let ([a, b], [c, d]) = (normal_pair(w[0], w[1]), normal_pair(w[2], w[3]));
            for (out, z) in out.iter_mut().zip([a, b, c, d]) {
                *out = T::from_f64(z as f64) * std;
            }
        }
    }
}

multiversion! {
    fn uniform_leaf<T: Float>(out: &mut [T], draw: Draw, sample: u32, first_quad: u32, low: T, span: T) {
        for (quad, out) in out.chunks_mut(4).enumerate() {
            let words = draw.words(sample, first_quad + quad as u32);
            for (out, word) in out.iter_mut().zip(words) {
                *out = T::from_f64(open_unit(word) as f64).mul_add(span, low);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_the_moments_and_tails_of_normals() {
        let n = 1 << 20;
        let mut x = vec![0.0f64; n];
        normal(&mut x, &Draw::named(7, "test", 0), n, 1.0);
        let moment = |p: i32| x.iter().map(|v| v.powi(p)).sum::<f64>() / n as f64;
        // Four standard errors of each sample moment.
        let tolerance = |variance: f64| 4.0 * (variance / n as f64).sqrt();
        assert!(moment(1).abs() < tolerance(1.0));
        assert!((moment(2) - 1.0).abs() < tolerance(2.0));
        assert!(moment(3).abs() < tolerance(15.0));
        assert!((moment(4) - 3.0).abs() < tolerance(96.0));
        let beyond = x.iter().filter(|v| v.abs() > 3.0).count() as f64 / n as f64;
        assert!((beyond - 0.0026998).abs() < tolerance(0.0027));
    }

    #[test]
    fn box_muller_follows_the_exact_formula() {
        for i in 0..100_000u32 {
            let [a, b] = [
                i.wrapping_mul(2_654_435_761),
                i.wrapping_mul(0x9E37_79B9).rotate_left(13),
            ];
            let [x, y] = normal_pair(a, b);
            let radius = (-2.0 * (open_unit(a) as f64).ln()).sqrt();
            assert!(
                ((x as f64).hypot(y as f64) - radius).abs() <= 2e-6 * radius.max(1.0),
                "{a} {b}"
            );
        }
    }

    #[test]
    fn a_draw_depends_on_its_counters_alone() {
        let draw = Draw::named(1, "decoder.dropout", 0);
        let mut whole = vec![0.0f32; 6 * 5000];
        normal(&mut whole, &draw, 5000, 1.0);
        // The second half of the batch, drawn by another rank.
        let mut half = vec![0.0f32; 3 * 5000];
        normal(
            &mut half,
            &Draw {
                first_sample: 3,
                ..draw
            },
            5000,
            1.0,
        );
        assert_eq!(whole[15_000..], half);
        let mut other = vec![0.0f32; 5000];
        normal(&mut other, &Draw { step: 1, ..draw }, 5000, 1.0);
        assert_ne!(whole[..5000], other);
    }
}
