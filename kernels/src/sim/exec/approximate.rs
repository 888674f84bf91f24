//! The special functions (`ex2`, `lg2`, `tanh`, `sin`, `cos`).
//!
//! Hardware gives them to about 22 bits by tables that nobody publishes, so kernels are held to a tolerance, not to
//! bits. Here they are polynomials in f64 of our own: far more exact, and the same bits on every machine.

/// 2ˣ, by 2^⌊x⌉ and the series of e^(r·ln 2) with |r| ≤ ½: error below 1e-13.
#[inline(always)]
pub fn exp2(x: f64) -> f64 {
    // NaN passes both comparisons.
    let clamped = if x > 1100.0 { 1100.0 } else { x };
    let clamped = if clamped < -1100.0 { -1100.0 } else { clamped };
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5·2⁵²
    let shifted = clamped + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n) * std::f64::consts::LN_2;
    let mut p = 1.0 / 479_001_600.0;
    for c in [
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + c;
    }
    // Two factors, so that neither leaves the range before the product does.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i64;
    let half = n >> 1;
    let scale = |e: i64| f64::from_bits((e.wrapping_add(1023) as u64) << 52);
    let y = p * scale(half) * scale(n.wrapping_sub(half));
    if x.is_nan() { x } else { y }
}

/// log₂ x, by the series of atanh on a mantissa in [√½, √2).
#[inline(always)]
pub fn log2(x: f64) -> f64 {
    let bits = x.to_bits();
    let offset = bits.wrapping_sub(0x3FE6_A09E_667F_3BCD);
    let e = ((offset as i64) >> 52) as f64;
    let m = f64::from_bits((offset & 0x000F_FFFF_FFFF_FFFF).wrapping_add(0x3FE6_A09E_667F_3BCD));
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 1.0 / 21.0;
    for c in [
        1.0 / 19.0,
        1.0 / 17.0,
        1.0 / 15.0,
        1.0 / 13.0,
        1.0 / 11.0,
        1.0 / 9.0,
        1.0 / 7.0,
        1.0 / 5.0,
        1.0 / 3.0,
        1.0,
    ] {
        p = p * z + c;
    }
    let y = e + 2.0 * s * p * std::f64::consts::LOG2_E;
    if x > 0.0 && x < f64::INFINITY {
        y
    } else if x == 0.0 {
        f64::NEG_INFINITY
    } else if x > 0.0 {
        x
    } else {
        f64::NAN
    }
}

/// tanh x by exponentials; its series where they would cancel.
#[inline(always)]
pub fn tanh(x: f64) -> f64 {
    let z = x * x;
    let near = x * (1.0 - z * (1.0 / 3.0 - z * (2.0 / 15.0 - z * (17.0 / 315.0))));
    let e = exp2(2.0 * std::f64::consts::LOG2_E * x.abs());
    let far = (1.0 - 2.0 / (e + 1.0)).copysign(x);
    if z < 1e-3 { near } else { far }
}

/// sin and cos after reduction by multiples of π/2, good for the angles below 10⁵ that `.approx` is specified for.
#[inline(always)]
pub fn sin_cos(x: f64) -> (f64, f64) {
    use std::f64::consts::{FRAC_2_PI, FRAC_PI_2};
    // π/2 less its f64 value.
    const TAIL: f64 = 6.123_233_995_736_766e-17;
    let n = (x * FRAC_2_PI).round();
    let r = x - n * FRAC_PI_2 - n * TAIL;
    let z = r * r;
    let mut sin = -1.0 / 39_916_800.0;
    for c in [
        1.0 / 362_880.0,
        -1.0 / 5_040.0,
        1.0 / 120.0,
        -1.0 / 6.0,
        1.0,
    ] {
        sin = sin * z + c;
    }
    let sin = sin * r;
    let mut cos = 1.0 / 479_001_600.0;
    for c in [
        -1.0 / 3_628_800.0,
        1.0 / 40_320.0,
        -1.0 / 720.0,
        1.0 / 24.0,
        -0.5,
        1.0,
    ] {
        cos = cos * z + c;
    }
    match n as i64 & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_agree_with_the_c_library_to_f32() {
        let mut worst = [0.0f64; 5];
        for i in -4000..4000 {
            let x = f64::from(i) * 0.0123;
            let relative = |a: f64, b: f64| (a - b).abs() / b.abs().max(1e-300);
            let (sin, cos) = sin_cos(x);
            let pairs = [
                relative(exp2(x), x.exp2()),
                if x == 0.0 {
                    0.0
                } else {
                    (log2(x.abs()) - x.abs().log2()).abs()
                },
                if x == 0.0 {
                    0.0
                } else {
                    relative(tanh(x), x.tanh())
                },
                (sin - x.sin()).abs(),
                (cos - x.cos()).abs(),
            ];
            for (worst, error) in worst.iter_mut().zip(pairs) {
                *worst = worst.max(error);
            }
        }
        // Measured: exp2 6e-15, log2 7e-15, tanh 4e-12, sin and cos 6e-8 (the series end at r¹¹ and r¹²).
        let limits = [1e-13, 1e-13, 1e-10, 1e-7, 1e-7];
        for (worst, limit) in worst.iter().zip(limits) {
            assert!(worst < &limit, "{worst:e} against {limit:e}");
        }
        assert!(exp2(f64::NAN).is_nan() && log2(-1.0).is_nan());
        assert_eq!(exp2(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp2(f64::INFINITY), f64::INFINITY);
        assert_eq!(log2(f64::INFINITY), f64::INFINITY);
        assert_eq!(tanh(f64::INFINITY), 1.0);
    }
}
