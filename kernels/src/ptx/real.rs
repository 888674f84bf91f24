//! Registers as numbers: what is written over [`Real`](crate::real::Real) for CPUs writes kernels too.
//!
//! [`Value<F32>`] computes as CPUs do, bit for bit; [`Fast`] with the special function unit's approximations.

use std::ops::{Add, Div, Mul, Neg, Sub};

use super::types::{F32, Pred, U32};
use super::value::{IntoValue, Value};
use super::{Assembler, S32};
use crate::math;
use crate::real::{Real, Single, Word};

#[track_caller]
fn assembler<'k>(x: Value<'k, F32>) -> &'k Assembler {
    x.assembler()
        .expect("a function of a constant is a constant of the author's")
}

impl<'k> Real for Value<'k, F32> {
    type Mask = Value<'k, Pred>;

    fn from_f64(x: f64) -> Self {
        (x as f32).into_value()
    }
    fn mul_add(self, a: Self, b: Self) -> Self {
        Value::mul_add(self, a, b)
    }
    fn sqrt(self) -> Self {
        assembler(self).sqrt_rn(self)
    }
    fn abs(self) -> Self {
        assembler(self).abs(self)
    }
    fn exp(self) -> Self {
        math::exp(self)
    }
    fn ln(self) -> Self {
        math::ln(self)
    }
    fn tanh(self) -> Self {
        math::tanh(self)
    }
    fn erf(self) -> Self {
        math::erf(self)
    }
    fn less(self, other: Self) -> Value<'k, Pred> {
        self.lt(other)
    }
    fn is_nan(self) -> Value<'k, Pred> {
        Value::is_nan(self)
    }
    fn select(mask: Value<'k, Pred>, a: Self, b: Self) -> Self {
        mask.select(a, b)
    }
}

impl<'k> Single for Value<'k, F32> {
    type Word = Value<'k, U32>;

    fn to_bits(self) -> Value<'k, U32> {
        Value::to_bits(self)
    }
    fn from_bits(bits: Value<'k, U32>) -> Self {
        bits.to_f32_bits()
    }
}

impl<'k> Word for Value<'k, U32> {
    type Single = Value<'k, F32>;

    fn from_u32(x: u32) -> Self {
        x.into_value()
    }
    fn add(self, other: Self) -> Self {
        self + other
    }
    fn sub(self, other: Self) -> Self {
        self - other
    }
    fn xor(self, other: Self) -> Self {
        self ^ other
    }
    fn and(self, mask: u32) -> Self {
        self & mask
    }
    fn shift_left(self, by: u32) -> Self {
        self << by
    }
    fn shift_right(self, by: u32) -> Self {
        self >> by
    }
    fn shift_right_signed(self, by: u32) -> Self {
        (self.cast::<S32>() >> by).cast()
    }
    fn mul_wide(self, factor: u32) -> [Self; 2] {
        [self.mul_hi(factor), self * factor]
    }
    fn has(self, bits: u32) -> Value<'k, Pred> {
        (self & bits).ne(0)
    }
    fn to_single(self) -> Value<'k, F32> {
        self.to_f32()
    }
    fn signed_to_single(self) -> Value<'k, F32> {
        self.cast::<S32>().to_f32()
    }
}

/// Numbers that will be rounded to bf16: exponentials, logarithms, quotients and roots are approximations of 22 good
/// bits, one or two instructions each.
#[derive(Clone, Copy, Debug)]
pub struct Fast<'k>(pub Value<'k, F32>);

macro_rules! forward {
    ($($trait:ident $method:ident;)*) => { $(
        impl $trait for Fast<'_> {
            type Output = Self;
            #[track_caller]
            fn $method(self, other: Self) -> Self {
                Fast($trait::$method(self.0, other.0))
            }
        }
    )* };
}
forward! {
    Add add;
    Sub sub;
    Mul mul;
}

impl Div for Fast<'_> {
    type Output = Self;
    #[track_caller]
    fn div(self, other: Self) -> Self {
        let reciprocal = assembler(other.0).rcp_approx(other.0);
        match self.0.constant() {
            Some(bits) if bits == u64::from(1.0f32.to_bits()) => Fast(reciprocal),
            _ => Fast(self.0 * reciprocal),
        }
    }
}

impl Neg for Fast<'_> {
    type Output = Self;
    #[track_caller]
    fn neg(self) -> Self {
        Fast(-self.0)
    }
}

impl<'k> Real for Fast<'k> {
    type Mask = Value<'k, Pred>;

    fn from_f64(x: f64) -> Self {
        Fast(Real::from_f64(x))
    }
    fn mul_add(self, a: Self, b: Self) -> Self {
        Fast(self.0.mul_add(a.0, b.0))
    }
    fn sqrt(self) -> Self {
        Fast(assembler(self.0).sqrt_approx(self.0))
    }
    fn abs(self) -> Self {
        Fast(self.0.abs())
    }
    fn exp(self) -> Self {
        Fast(assembler(self.0).ex2_approx(self.0 * std::f32::consts::LOG2_E))
    }
    fn ln(self) -> Self {
        Fast(assembler(self.0).lg2_approx(self.0) * std::f32::consts::LN_2)
    }
    fn tanh(self) -> Self {
        math::tanh(self)
    }
    fn erf(self) -> Self {
        math::erf(self)
    }
    fn less(self, other: Self) -> Value<'k, Pred> {
        self.0.lt(other.0)
    }
    fn is_nan(self) -> Value<'k, Pred> {
        self.0.is_nan()
    }
    fn select(mask: Value<'k, Pred>, a: Self, b: Self) -> Self {
        Fast(mask.select(a.0, b.0))
    }
}
