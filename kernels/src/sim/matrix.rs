//! The tensor core's arithmetic: products of 16-bit floats summed into f32 with the hardware's order and rounding.
//!
//! As Li et al. measured it ("MMA-Sim", arXiv 2511.10909): the addend and a block of products are aligned to the largest
//! exponent among them, each is cut off after a fixed number of fraction bits, the sum is exact, and the result is
//! rounded towards zero. Ampere takes K in blocks of 8 with 24 bits, one block after the other; Hopper takes 16 with 25.

use super::program::op::MatrixElement;
use crate::launch::Arch;

/// Exponent of a zero: never the largest.
const ZERO_EXPONENT: i32 = -5000;
/// Columns computed together.
const COLUMNS: usize = 8;

/// A matrix of 16-bit floats taken apart: value = significand · 2^(exponent − fraction bits).
pub struct Parts {
    exponents: Vec<i32>,
    significands: Vec<i32>,
    /// Rows (or columns, for B) that hold an infinity or NaN.
    special: Vec<bool>,
    any_special: bool,
    values: Vec<f32>,
}

fn fraction_bits(element: MatrixElement) -> u32 {
    match element {
        MatrixElement::Bf16 => 7,
        MatrixElement::F16 => 10,
    }
}

impl Parts {
    /// Takes `values` (row-major, `columns` wide) apart; `special` is kept by row, or by column where `by_column`.
    pub fn new(element: MatrixElement, values: &[u16], columns: usize, by_column: bool) -> Parts {
        let fraction = fraction_bits(element);
        let exponent_bits = 15 - fraction;
        let bias = (1 << (exponent_bits - 1)) - 1;
        let rows = values.len() / columns;
        let mut parts = Parts {
            exponents: vec![0; values.len()],
            significands: vec![0; values.len()],
            special: vec![false; if by_column { columns } else { rows }],
            any_special: false,
            values: Vec::new(),
        };
        for (i, &bits) in values.iter().enumerate() {
            let exponent = i32::from(bits >> fraction) & ((1 << exponent_bits) - 1);
            let mut significand = i32::from(bits) & ((1 << fraction) - 1);
            let mut at = exponent - bias;
            if exponent == 0 {
                at = if significand == 0 {
                    ZERO_EXPONENT
                } else {
                    1 - bias
                };
            } else {
                significand |= 1 << fraction;
            }
            if exponent == (1 << exponent_bits) - 1 {
                parts.special[if by_column { i % columns } else { i / columns }] = true;
                parts.any_special = true;
            }
            parts.exponents[i] = at;
            parts.significands[i] = if bits >> 15 != 0 {
                -significand
            } else {
                significand
            };
        }
        if parts.any_special {
            let to_f32 = |&bits: &u16| match element {
                MatrixElement::Bf16 => half::bf16::from_bits(bits).to_f32(),
                MatrixElement::F16 => half::f16::from_bits(bits).to_f32(),
            };
            parts.values = values.iter().map(to_f32).collect();
        } else {
            // Needed only where the other operand is special; zero times infinity must still be seen.
            parts.values = Vec::new();
        }
        parts
    }

    fn value(&self, i: usize, fraction: u32) -> f64 {
        match self.values.get(i) {
            Some(&value) => f64::from(value),
            None if self.significands[i] == 0 => 0.0,
            None => {
                f64::from(self.significands[i]) * 2f64.powi(self.exponents[i] - fraction as i32)
            }
        }
    }
}

/// C += A·B with A of `m`×`k`, B of `k`×`n`, C of `m`×`n`, all row-major; `n` a multiple of 8, `k` of 8.
pub fn multiply_add(
    arch: Arch,
    element: MatrixElement,
    a: &Parts,
    b: &Parts,
    c: &mut [f32],
    [m, n, k]: [usize; 3],
) {
    let (block, bits) = match arch {
        Arch::Sm80 => (8, 24),
        Arch::Sm90a => (16, 25),
    };
    for k0 in (0..k).step_by(block) {
        let k1 = (k0 + block).min(k);
        blocks(a, b, c, m, n, k, k0, k1, bits, fraction_bits(element));
    }
}

crate::multiversion! {
    fn blocks(
        a: &Parts,
        b: &Parts,
        c: &mut [f32],
        m: usize,
        n: usize,
        k: usize,
        k0: usize,
        k1: usize,
        bits: u32,
        fraction: u32,
    ) {
        let products = bits - 2 * fraction;
        for i in 0..m {
            for j in (0..n).step_by(COLUMNS) {
                let row: &mut [f32] = &mut c[i * n + j..][..COLUMNS];
                let mut sums = [0i64; COLUMNS];
                let mut largest = [ZERO_EXPONENT * 2; COLUMNS];
                let mut addend = [(0i32, 0i32); COLUMNS];
                let mut special = [false; COLUMNS];
                for x in 0..COLUMNS {
                    let value = row[x].to_bits();
                    let exponent = (value >> 23 & 0xFF) as i32;
                    let fraction = (value & 0x7F_FFFF) as i32;
                    special[x] = exponent == 255 || a.special[i] || b.special[j + x];
                    let (e, s) = match (exponent, fraction) {
                        (0, 0) => (ZERO_EXPONENT, 0),
                        (0, s) => (-126, s),
                        (e, s) => (e - 127, s | 1 << 23),
                    };
                    addend[x] = (e, if value >> 31 != 0 { -s } else { s });
                    largest[x] = e;
                }
                for l in k0..k1 {
                    let ea = a.exponents[i * k + l];
                    let eb: &[i32] = &b.exponents[l * n + j..][..COLUMNS];
                    for x in 0..COLUMNS {
                        largest[x] = largest[x].max(ea + eb[x]);
                    }
                }
                // Two sums of at most nine terms each stay within 32 bits.
                let mut halves = [[0i32; COLUMNS]; 2];
                for l in k0..k1 {
                    let (ea, sa) = (a.exponents[i * k + l], a.significands[i * k + l]);
                    let eb: &[i32] = &b.exponents[l * n + j..][..COLUMNS];
                    let sb: &[i32] = &b.significands[l * n + j..][..COLUMNS];
                    let half = &mut halves[l & 1];
                    for x in 0..COLUMNS {
                        let product = sa * sb[x];
                        let shift = (largest[x] - ea - eb[x]).min(31) as u32;
                        let aligned = (product.unsigned_abs() << products >> shift) as i32;
                        let sign = product >> 31;
                        half[x] += (aligned ^ sign) - sign;
                    }
                }
                for x in 0..COLUMNS {
                    let (e, s) = addend[x];
                    let shift = (largest[x] - e).clamp(0, 31) as u32;
                    let aligned = (s.unsigned_abs() << (bits - 23) >> shift) as i64;
                    let aligned = if s < 0 { -aligned } else { aligned };
                    sums[x] = i64::from(halves[0][x]) + i64::from(halves[1][x]) + aligned;
                }
                for x in 0..COLUMNS {
                    row[x] = if special[x] {
                        specially(a, b, row[x], [i, j + x], [n, k], [k0, k1], fraction)
                    } else {
                        towards_zero(sums[x], largest[x] - bits as i32)
                    };
                }
            }
        }
    }
}

/// `sum`·2^`exponent` as f32, cut off.
#[inline(always)]
fn towards_zero(sum: i64, exponent: i32) -> f32 {
    // Exact: the sum has at most 33 bits, and f64 has exponents to spare.
    let scale = f64::from_bits(((exponent.max(-1000) + 1023) as u64) << 52);
    let value = sum as f64 * scale;
    let cut = f64::from_bits(value.to_bits() & !((1 << 29) - 1));
    if value.abs() >= f64::from(f32::MIN_POSITIVE) {
        return cut as f32;
    }
    // A subnormal is a multiple of 2⁻¹⁴⁹.
    let steps = (value.abs() * 2f64.powi(149)) as u32;
    f32::from_bits(steps).copysign(value as f32)
}

/// An element with an infinity or a NaN among its terms.
#[cold]
fn specially(
    a: &Parts,
    b: &Parts,
    c: f32,
    [i, j]: [usize; 2],
    [n, k]: [usize; 2],
    [k0, k1]: [usize; 2],
    fraction: u32,
) -> f32 {
    let mut sum = f64::from(c);
    for l in k0..k1 {
        sum += a.value(i * k + l, fraction) * b.value(l * n + j, fraction);
    }
    if sum.is_nan() {
        f32::from_bits(super::exec::NAN32)
    } else {
        sum as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    fn product(arch: Arch, a: &[f32], b: &[f32], c: f32) -> f32 {
        // One row, one column repeated eight times.
        let bits = |x: &f32| bf16::from_f32(*x).to_bits();
        let a: Vec<u16> = a.iter().map(bits).collect();
        let b: Vec<u16> = b.iter().flat_map(|x| [bits(x); 8]).collect();
        let k = a.len();
        let a = Parts::new(MatrixElement::Bf16, &a, k, false);
        let b = Parts::new(MatrixElement::Bf16, &b, 8, true);
        let mut c = [c; 8];
        multiply_add(arch, MatrixElement::Bf16, &a, &b, &mut c, [1, 8, k]);
        c[0]
    }

    #[test]
    fn small_integers_are_exact() {
        let a: Vec<f32> = (0..16).map(|i| i as f32 - 7.0).collect();
        let b: Vec<f32> = (0..16).map(|i| 3.0 - i as f32).collect();
        let want: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>() + 5.0;
        for arch in [Arch::Sm80, Arch::Sm90a] {
            assert_eq!(product(arch, &a, &b, 5.0), want);
        }
    }

    #[test]
    fn terms_far_below_the_largest_are_cut_off() {
        // 1 + 2⁻²⁵: its bit is the first that Ampere drops, and the last that Hopper keeps, to drop it in the f32.
        let mut a = [0.0f32; 16];
        a[0] = 1.0;
        a[1] = 2f32.powi(-25);
        a[2] = 2f32.powi(-25);
        let b = [1.0f32; 16];
        assert_eq!(product(Arch::Sm80, &a, &b, 0.0), 1.0);
        assert_eq!(product(Arch::Sm90a, &a, &b, 0.0), 1.0);
        // Four of them make 2⁻²³, an f32's last bit, where they are kept.
        a[3] = a[1];
        a[4] = a[1];
        assert_eq!(product(Arch::Sm80, &a, &b, 0.0), 1.0);
        assert_eq!(product(Arch::Sm90a, &a, &b, 0.0), 1.0 + f32::EPSILON);
    }

    #[test]
    fn results_are_rounded_towards_zero() {
        // 1 + 3·2⁻²⁵ lies nearer to 1 + 2⁻²³.
        let mut a = [0.0f32; 16];
        a[0] = 1.0;
        a[1] = 3.0 * 2f32.powi(-25);
        let b = [1.0f32; 16];
        assert_eq!(product(Arch::Sm90a, &a, &b, 0.0), 1.0);
        assert_eq!(product(Arch::Sm90a, &a.map(|x| -x), &b, 0.0), -1.0);
    }

    #[test]
    fn ampere_adds_two_halves_one_after_the_other() {
        // 2²⁵ cancels within the first half, so that the second half's 1 survives; Hopper aligns both to 2²⁵ and keeps
        // it as well, but loses 2⁻² beside it.
        let mut a = [0.0f32; 16];
        a[0] = 2f32.powi(26);
        a[1] = -2f32.powi(26);
        a[8] = 0.25;
        let b = [1.0f32; 16];
        assert_eq!(product(Arch::Sm80, &a, &b, 0.0), 0.25);
        assert_eq!(product(Arch::Sm90a, &a, &b, 0.0), 0.0);
    }

    #[test]
    fn infinities_and_nans_come_through() {
        let mut a = [1.0f32; 16];
        let b = [1.0f32; 16];
        a[3] = f32::INFINITY;
        assert_eq!(product(Arch::Sm80, &a, &b, 0.0), f32::INFINITY);
        a[4] = f32::NEG_INFINITY;
        assert_eq!(product(Arch::Sm80, &a, &b, 0.0).to_bits(), 0x7FFF_FFFF);
        let mut zeros = [1.0f32; 16];
        zeros[3] = 0.0;
        a[4] = 1.0;
        assert!(product(Arch::Sm90a, &a, &zeros, 0.0).is_nan());
    }

    #[test]
    fn f16_and_subnormals() {
        let a = [f16::from_bits(1).to_bits(); 8]; // 2⁻²⁴
        let b = [f16::ONE.to_bits(); 64];
        let a = Parts::new(MatrixElement::F16, &a, 8, false);
        let b = Parts::new(MatrixElement::F16, &b, 8, true);
        let mut c = [0.0f32; 8];
        multiply_add(Arch::Sm80, MatrixElement::F16, &a, &b, &mut c, [1, 8, 8]);
        assert_eq!(c, [8.0 * 2f32.powi(-24); 8]);
        assert_eq!(towards_zero(-3, -150), -f32::from_bits(1));
    }
}
