//! Transcendental functions as polynomials of our own, branch-free so that loops over them vectorise, and free of the C
//! library so that they give the same bits everywhere, in GPU kernels too. Each states the largest error its test measures.

use crate::real::{Real, Single, Word};

/// exp(x) for f32. Error ≤ 2 ulp; 0 below −104, ∞ above 88.73, NaN for NaN.
///
/// Cody–Waite reduction x = n·ln 2 + r, then a degree-6 polynomial in r on [−ln 2 / 2, ln 2 / 2].
#[inline(always)]
pub fn exp<S: Single>(x: S) -> S {
    // Adding and subtracting 1.5·2²³ rounds to the nearest integer without a branch.
    const ROUND: f32 = 12_582_912.0;
    let c = S::from_f32;
    // NaN passes both comparisons unchanged.
    let clamped = S::select(c(89.0).less(x), c(89.0), x);
    let clamped = S::select(clamped.less(c(-104.0)), c(-104.0), clamped);
    let shifted = clamped.mul_add(c(std::f32::consts::LOG2_E), c(ROUND));
    let n = shifted - c(ROUND);
    let r = n.mul_add(c(-LN2_HIGH), clamped);
    let r = n.mul_add(c(-LN2_LOW), r);
    let p = polynomial(
        r,
        [
            1.987_569_1e-4,
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ],
    );
    let p = p.mul_add(r * r, r) + c(1.0);
    // Two factors 2^(n/2), so that neither overflows or goes subnormal before the product does.
    let n = shifted.to_bits().sub(S::Word::from_u32(ROUND.to_bits()));
    let half = n.shift_right_signed(1);
    let scale = |e: S::Word| S::from_bits(e.add(S::Word::from_u32(127)).shift_left(23));
    let y = p * scale(half) * scale(n.sub(half));
    S::select(x.is_nan(), x, y)
}

/// ln(x) for f32. Error ≤ 2 ulp for normal x > 0; −∞ at 0 and for subnormals' lower end, NaN below 0.
///
/// x = 2^e·m with m in [√½, √2), ln m from an odd polynomial in s = (m − 1) / (m + 1).
#[inline(always)]
pub fn ln<S: Single>(x: S) -> S {
    /// The bits of √½: subtracting them puts the exponent's boundary there.
    const ROOT_HALF: u32 = 0x3F35_04F3;
    let c = S::from_f32;
    // Subnormals are scaled into the normal range first.
    let tiny = x.less(c(f32::MIN_POSITIVE));
    let scaled = S::select(tiny, x * c(8_388_608.0), x);
    let offset = scaled.to_bits().sub(S::Word::from_u32(ROOT_HALF));
    let exponent = offset.shift_right_signed(23);
    let m = S::from_bits(offset.and(0x007F_FFFF).add(S::Word::from_u32(ROOT_HALF)));
    let e = exponent.signed_to_single() - S::select(tiny, c(23.0), c(0.0));
    let f = m - c(1.0);
    let s = f / (c(2.0) + f);
    let z = s * s;
    let p = polynomial(z, [0.242_790_79, 0.284_987_87, 0.400_009_72, 0.666_666_6]);
    // ln(1 + f) = f − f²/2 + s·(f²/2 + z·p), which keeps the low bits of f.
    let half = c(0.5) * f * f;
    let tail = s * z.mul_add(p, half);
    let y = e.mul_add(c(LN2_HIGH), f - (half - (tail + e * c(LN2_LOW))));
    let y = S::select(c(f32::MAX).less(x), x, y);
    // Nothing positive is less than the least subnormal.
    let special = S::select(x.less(c(0.0)), c(f32::NAN), c(f32::NEG_INFINITY));
    let y = S::select(x.less(c(f32::from_bits(1))), special, y);
    S::select(x.is_nan(), x, y)
}

const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// tanh(x) for f32, from its own exp. Error ≤ 4 ulp.
#[inline(always)]
pub fn tanh<R: Real>(x: R) -> R {
    let c = |x: f32| R::from_f64(x as f64);
    let a = x.abs();
    // Near zero 1 − 2/(e^2a + 1) cancels: an odd polynomial there.
    let z = x * x;
    let p = polynomial(
        z,
        [
            -5.704_988_7e-3,
            2.063_908_8e-2,
            -5.373_972e-2,
            1.333_144_2e-1,
            -3.333_328e-1,
        ],
    );
    let small = (p * z).mul_add(x, x);
    let large = c(1.0) - c(2.0) / ((c(2.0) * a).exp() + c(1.0));
    let large = R::select(x.less(c(0.0)), -large, large);
    let y = R::select(a.less(c(0.625)), small, large);
    R::select(x.is_nan(), x, y)
}

/// erf(x) for f32, from its own exp. Error ≤ 2 ulp.
///
/// Below 1, x + x·p(x²); above, 1 − exp(−q(|x| − 1)). Both polynomials interpolate erf(x)/x − 1 and −ln erfc(x) at
/// Chebyshev nodes, on [0, 1] and [1, 4], to 1.3e-9 of erf; beyond 4 erf rounds to 1.
#[inline(always)]
pub fn erf<R: Real>(x: R) -> R {
    let c = |x: f32| R::from_f64(x as f64);
    let a = x.abs();
    let p = polynomial(
        x * x,
        [
            7.875_875e-5,
            -8.016_864e-4,
            5.189_087_4e-3,
            -2.685_421_2e-2,
            1.128_359_5e-1,
            -3.761_262_7e-1,
            1.283_791_7e-1,
        ],
    );
    let small = p.mul_add(x, x);
    let u = R::select(a.less(c(4.0)), a - c(1.0), c(3.0));
    let q = polynomial(
        u,
        [
            -1.637_151_4e-6,
            3.296_083e-5,
            -3.202_395_7e-4,
            2.054_301e-3,
            -1.007_780_8e-2,
            4.157_574e-2,
            8.431_047e-1,
            2.638_967_7,
            1.849_605_5,
        ],
    );
    let large = c(1.0) - (-q).exp();
    let large = R::select(x.less(c(0.0)), -large, large);
    let y = R::select(a.less(c(1.0)), small, large);
    R::select(x.is_nan(), x, y)
}

/// Sine and cosine of an angle θ in [−π/4, π/4]. Error ≤ 1e-7.
#[inline(always)]
pub(crate) fn sin_cos_eighth<R: Real>(theta: R) -> [R; 2] {
    let c = |x: f32| R::from_f64(x as f64);
    let z = theta * theta;
    let sin = polynomial(z, [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1]);
    let sin = (sin * z).mul_add(theta, theta);
    let cos = polynomial(z, [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2]);
    let cos = (cos * z).mul_add(z, z.mul_add(c(-0.5), c(1.0)));
    [sin, cos]
}

/// Sine and cosine of 2π·(turns + rest), for |turns| < 2²² and a `rest` that is small beside a turn. Error ≤ 1.6e-7: whole
/// and quarter turns are taken off exactly.
#[inline(always)]
pub fn sin_cos_turns<S: Single>(turns: S, rest: S) -> [S; 2] {
    // Adding and subtracting 1.5·2²³ rounds to the nearest integer without a branch.
    const ROUND: f32 = 12_582_912.0;
    let c = S::from_f32;
    let fraction = (turns - ((turns + c(ROUND)) - c(ROUND))) + rest;
    let shifted = fraction.mul_add(c(4.0), c(ROUND));
    let quarters = shifted - c(ROUND);
    let theta = quarters.mul_add(c(-0.25), fraction) * c(std::f32::consts::TAU);
    let [sin, cos] = sin_cos_eighth(theta);
    let quarters = shifted.to_bits().sub(S::Word::from_u32(ROUND.to_bits()));
    let swap = quarters.has(1);
    let signed = |x: S, negative| S::select(negative, -x, x);
    [
        signed(S::select(swap, cos, sin), quarters.has(2)),
        signed(
            S::select(swap, sin, cos),
            quarters.add(S::Word::from_u32(1)).has(2),
        ),
    ]
}

/// Horner's scheme, the highest power first, each step rounded once.
#[inline(always)]
pub(crate) fn polynomial<R: Real, const N: usize>(x: R, coefficients: [f32; N]) -> R {
    let mut p = R::from_f64(coefficients[0] as f64);
    for c in &coefficients[1..] {
        p = p.mul_add(x, R::from_f64(*c as f64));
    }
    p
}

/// erf(x) for f64, absolute error below 1e-15.
///
/// Below 2.5 the Maclaurin-type series erf(x) = 2/√π · e^(−x²) · Σ 2ⁿx^(2n+1)/(2n+1)!!, whose terms are all positive;
/// above, 1 − erfc by its continued fraction (Abramowitz & Stegun 7.1.6 and 7.1.14).
pub fn erf_f64(x: f64) -> f64 {
    let a = x.abs();
    let y = if a.is_nan() {
        return x;
    } else if a < 2.5 {
        let mut term = a;
        let mut sum = a;
        let mut n = 0.0;
        while term > 1e-17 * sum {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum
    } else if a < 6.0 {
        let mut fraction = 0.0;
        for k in (1..=60).rev() {
            fraction = k as f64 * 0.5 / (a + fraction);
        }
        1.0 - (-a * a).exp() / (std::f64::consts::PI.sqrt() * (a + fraction))
    } else {
        1.0
    };
    if x < 0.0 { -y } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error in units of the last place of the correctly rounded result, over a sweep of f32 in [low, high].
    fn worst_ulp(
        low: f32,
        high: f32,
        ours: impl Fn(f32) -> f32,
        exact: impl Fn(f64) -> f64,
    ) -> f64 {
        let mut worst = 0.0f64;
        for i in 0..=400_000 {
            let x = low + (high - low) * (i as f32 / 400_000.0);
            let want = exact(x as f64);
            let ulp =
                (f32::from_bits((want as f32).abs().to_bits() + 1) - (want as f32).abs()) as f64;
            worst = worst.max((ours(x) as f64 - want).abs() / ulp);
        }
        worst
    }

    #[test]
    fn errors_are_as_documented() {
        let table = [
            ("exp", worst_ulp(-87.0, 88.7, exp, f64::exp), 2.0),
            ("exp near 0", worst_ulp(-1.0, 1.0, exp, f64::exp), 2.0),
            ("ln", worst_ulp(1e-3, 100.0, ln, f64::ln), 2.0),
            ("ln near 1", worst_ulp(0.9, 1.1, ln, f64::ln), 2.0),
            ("erf", worst_ulp(-5.0, 5.0, erf, erf_f64), 2.0),
            ("erf near 0", worst_ulp(-0.1, 0.1, erf, erf_f64), 2.0),
            ("tanh", worst_ulp(-10.0, 10.0, tanh, f64::tanh), 4.0),
            ("tanh near 0", worst_ulp(-0.7, 0.7, tanh, f64::tanh), 4.0),
        ];
        for (name, measured, bound) in table {
            assert!(
                measured <= bound,
                "{name}: {measured:.2} ulp, documented {bound}"
            );
        }
    }

    #[test]
    fn sines_and_cosines_of_turns() {
        let mut worst = 0.0f64;
        for i in -200_000..200_000 {
            let (turns, rest) = (i as f32 * 0.001_37, i as f32 * 1e-12);
            let exact = (f64::from(turns) + f64::from(rest)) * std::f64::consts::TAU;
            let [sin, cos] = sin_cos_turns(turns, rest);
            worst = worst.max((f64::from(sin) - exact.sin()).abs());
            worst = worst.max((f64::from(cos) - exact.cos()).abs());
        }
        assert!(worst <= 1.6e-7, "{worst:e}");
    }

    #[test]
    fn erf_matches_known_values() {
        // Abramowitz & Stegun table 7.1, and symmetry.
        for (x, want) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
        ] {
            assert!(
                (erf_f64(x) - want).abs() < 1e-15,
                "erf({x}) = {}",
                erf_f64(x)
            );
            assert_eq!(erf_f64(-x), -erf_f64(x));
        }
        // The two formulas meet.
        assert!((erf_f64(2.5 - 1e-12) - erf_f64(2.5)).abs() < 1e-14);
    }

    #[test]
    fn special_values() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan() && ln(-1.0).is_nan());
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f32::NEG_INFINITY);
        assert!(tanh(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
        assert_eq!(tanh(40.0f32), 1.0);
        assert_eq!(erf(f32::INFINITY), 1.0);
        assert_eq!(erf(-4.0f32), -1.0);
    }
}
