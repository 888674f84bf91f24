//! Double precision: conversions, and functions in registers.
//!
//! GPUs for graphics have one f64 unit for every 64 of f32. It is for sums that a thread adds to once for each load, and
//! for ops of a few numbers a pixel.

use super::assembler::Assembler;
use super::text::Operand;
use super::types::{F32, F64, Pred, S32, U32, U64};
use super::value::{Facts, IntoValue, Value};
use crate::real::Real;

impl<'k> Value<'k, F32> {
    /// The same number.
    #[track_caller]
    pub fn widen(self) -> Value<'k, F64> {
        match self.constant() {
            Some(bits) => f64::from(f32::from_bits(bits as u32)).into_value(),
            None => compute(self.assembler(), "cvt.f64.f32", self.operand()),
        }
    }
}

impl<'k> Value<'k, U32> {
    /// The same number.
    #[track_caller]
    pub fn to_f64(self) -> Value<'k, F64> {
        match self.constant() {
            Some(bits) => f64::from(bits as u32).into_value(),
            None => compute(self.assembler(), "cvt.rn.f64.u32", self.operand()),
        }
    }
}

impl<'k> Value<'k, S32> {
    /// The same number.
    #[track_caller]
    pub fn to_f64(self) -> Value<'k, F64> {
        match self.constant() {
            Some(bits) => f64::from(bits as u32 as i32).into_value(),
            None => compute(self.assembler(), "cvt.rn.f64.s32", self.operand()),
        }
    }
}

impl<'k> Value<'k, F64> {
    /// Rounded to the nearest f32.
    #[track_caller]
    pub fn narrow(self) -> Value<'k, F32> {
        match self.constant() {
            Some(bits) => (f64::from_bits(bits) as f32).into_value(),
            None => compute(self.assembler(), "cvt.rn.f32.f64", self.operand()),
        }
    }

    /// Rounded to the nearest integer, ties to even.
    #[track_caller]
    pub fn round_to_s32(self) -> Value<'k, S32> {
        compute(self.assembler(), "cvt.rni.s32.f64", self.operand())
    }

    /// The bits of the float.
    #[track_caller]
    pub fn to_u64_bits(self) -> Value<'k, U64> {
        compute(self.assembler(), "mov.b64", self.operand())
    }
}

impl<'k> Value<'k, U64> {
    /// The float with these bits.
    #[track_caller]
    pub fn to_f64_bits(self) -> Value<'k, F64> {
        compute(self.assembler(), "mov.b64", self.operand())
    }
}

#[track_caller]
fn compute<'k, T: super::Type>(
    k: Option<&'k Assembler>,
    opcode: &str,
    source: Operand,
) -> Value<'k, T> {
    let k = k.expect("a function of a constant is a constant of the author's");
    k.compute(opcode, vec![source], Facts::NONE)
}

/// c₀ + c₁·x + c₂·x² + …
fn polynomial<'k>(
    x: Value<'k, F64>,
    coefficients: impl DoubleEndedIterator<Item = f64>,
) -> Value<'k, F64> {
    let mut highest_first = coefficients.rev();
    let first = highest_first.next().expect("a coefficient").into_value();
    highest_first.fold(first, |sum, c| sum.mul_add(x, c))
}

/// ln 2 in two parts, the first with so few bits that its products with exponents are exact.
const LN_2: [f64; 2] = [
    f64::from_bits(0x3FE6_2E42_FEE0_0000),
    f64::from_bits(0x3DEA_39EF_3579_3C76),
];

impl<'k> Real for Value<'k, F64> {
    type Mask = Value<'k, Pred>;

    fn from_f64(x: f64) -> Self {
        x.into_value()
    }
    fn mul_add(self, a: Self, b: Self) -> Self {
        Value::mul_add(self, a, b)
    }
    #[track_caller]
    fn sqrt(self) -> Self {
        compute(self.assembler(), "sqrt.rn.f64", self.operand())
    }
    #[track_caller]
    fn abs(self) -> Self {
        compute(self.assembler(), "abs.f64", self.operand())
    }

    /// Within 2 ulp, with subnormal results: 2ⁿ times the series of what is left, which is at most ln 2 / 2.
    fn exp(self) -> Self {
        // Beyond, results are 0 and infinity anyway. NaN, which `min` drops, is put back at the end.
        let x = self.max(-746.0).min(710.0);
        let n = (x * std::f64::consts::LOG2_E).round_to_s32();
        let float = n.to_f64();
        let rest = float.mul_add(-LN_2[0], x);
        let rest = float.mul_add(-LN_2[1], rest);
        let series = (0..14).map(|i| 1.0 / (1..=i).map(f64::from).product::<f64>());
        let power = polynomial(rest, series);
        // Two factors, because neither 2ⁿ nor its inverse need be a number.
        let half = n.shift_right(1);
        let scale = |exponent: Value<'k, S32>| {
            let biased = (exponent + 1023).cast::<U32>().widen();
            biased.shift_left(52).to_f64_bits()
        };
        let y = power * scale(half) * scale(n - half);
        self.is_nan().select(self, y)
    }

    /// Within 2 ulp: the exponent's logarithm, and the series of artanh for a mantissa between √½ and √2.
    fn ln(self) -> Self {
        let is_tiny = self.lt(f64::MIN_POSITIVE);
        let x: Self = is_tiny.select(self * 2f64.powi(54), self);
        let bits = x.to_u64_bits();
        let mantissa: Value<U64> = (bits & 0x000F_FFFF_FFFF_FFFFu64) | 0x3FF0_0000_0000_0000u64;
        let mantissa = mantissa.to_f64_bits();
        let exponent = bits.shift_right(52).truncate().cast::<S32>();
        let upper = mantissa.gt(std::f64::consts::SQRT_2);
        let m: Self = upper.select(mantissa * 0.5, mantissa);
        let bias: Value<S32> = is_tiny.select(1023 + 54, 1023);
        let exponent: Value<S32> = upper.select(exponent + 1, exponent) - bias;
        let exponent = exponent.to_f64();
        let s = (m - 1.0) / (m + 1.0);
        let series = polynomial(s * s, (0..12).map(|i| 2.0 / f64::from(2 * i + 1)));
        let y = exponent.mul_add(LN_2[0], s.mul_add(series, exponent * LN_2[1]));
        // Infinity and NaN are their own logarithms.
        let y = self.lt(f64::INFINITY).select(y, self);
        let below: Self = self.lt(0.0).select(f64::NAN, f64::NEG_INFINITY);
        self.le(0.0).select(below, y)
    }

    /// # Panics
    /// Always: no kernel needs it.
    #[track_caller]
    fn tanh(self) -> Self {
        missing(self, "tanh")
    }
    /// # Panics
    /// Always: no kernel needs it.
    #[track_caller]
    fn erf(self) -> Self {
        missing(self, "erf")
    }

    fn less(self, other: Self) -> Value<'k, Pred> {
        self.lt(other)
    }
    #[track_caller]
    fn is_nan(self) -> Value<'k, Pred> {
        let k = self.assembler().expect("a register");
        let sources = vec![self.operand(), self.operand()];
        k.compute("setp.nan.f64", sources, Facts::NONE)
    }
    fn select(mask: Value<'k, Pred>, a: Self, b: Self) -> Self {
        mask.select(a, b)
    }
}

#[track_caller]
fn missing<'k>(x: Value<'k, F64>, function: &str) -> ! {
    let k = x.assembler().expect("a register");
    k.misuse(format_args!("there is no {function} of f64 registers"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::{Arch, Argument};
    use crate::sim::{self, Options};

    /// A function of f64 in registers, of a few numbers.
    fn on_gpu(x: &[f64], f: fn(Value<'_, F64>) -> Value<'_, F64>) -> Vec<f64> {
        let k = Assembler::new("double", Arch::Sm80, [32, 1, 1]);
        k.contract("y = f(x), one element a CTA.");
        let y = k.buffer::<F64>("y");
        let from = k.buffer::<F64>("x");
        let i = k.cta_x();
        let result = f(from.at(i).load());
        k.if_(k.lane().eq(0), || y.at(i).store(result));
        let assembled = k.finish();
        let mut bytes = vec![0; 8 * x.len()];
        let arguments = [
            Argument::Write(&mut bytes),
            Argument::Read(bytemuck::cast_slice(x)),
        ];
        let launch = assembled.launch([x.len() as u32, 1, 1]);
        let options = Options::default();
        let result = sim::run(
            &assembled.kernel,
            &launch,
            &mut Vec::from(arguments),
            &options,
        );
        result.unwrap_or_else(|error| panic!("{error}"));
        bytes
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes")))
            .collect()
    }

    #[test]
    fn exponentials_and_logarithms_are_those_of_c() {
        let edges = [
            0.0,
            -0.0,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
            1.0,
            5e-324,
            1e-310,
        ];
        let sweep =
            |low: f64, high: f64| (0..400).map(move |i| low + (high - low) * f64::from(i) / 399.0);
        let powers: Vec<f64> = sweep(-750.0, 712.0)
            .chain(sweep(-1.0, 1.0))
            .chain(edges)
            .collect();
        let logs: Vec<f64> = sweep(1e-3, 4.0)
            .chain(sweep(-700.0, 700.0).map(f64::exp))
            .chain(edges)
            .chain([-1.0])
            .collect();
        for (x, got, exact) in [
            (
                &powers,
                on_gpu(&powers, |x| Real::exp(x)),
                f64::exp as fn(f64) -> f64,
            ),
            (&logs, on_gpu(&logs, |x| Real::ln(x)), f64::ln),
        ] {
            for (x, got) in x.iter().zip(got) {
                let want = exact(*x);
                let same = got == want || (got.is_nan() && want.is_nan());
                let error = (got - want).abs() / want.abs().max(f64::MIN_POSITIVE);
                assert!(
                    same || error <= 2.0 * f64::EPSILON,
                    "{x:e}: {got:e}, {want:e}"
                );
            }
        }
    }
}
