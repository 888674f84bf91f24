//! Arithmetic that a CPU executes and a GPU kernel writes down: one source for both.
//!
//! A function over [`Real`] computes when it is called with numbers, and emits instructions when it is called with the
//! registers of a kernel ([`Value`](crate::ptx::Value)). Over [`Single`] and [`Word`] it may look at the bits of a
//! float too. Only operations that round correctly are here, besides the functions that are made of them: so that the
//! transcendental functions of [`crate::math`] and the draws of [`crate::random`] give the same bits on every device, not
//! because two versions agree, but because there is one.

use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::math;

/// A number, or the register that will hold one.
pub trait Real:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// A condition: `bool`, or the register that will hold one.
    type Mask: Copy;

    /// A constant, rounded to the type.
    fn from_f64(x: f64) -> Self;
    /// `self · a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    fn sqrt(self) -> Self;
    fn abs(self) -> Self;
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    fn tanh(self) -> Self;
    /// Gauss error function.
    fn erf(self) -> Self;

    /// `self < other`; false for NaN.
    fn less(self, other: Self) -> Self::Mask;
    fn is_nan(self) -> Self::Mask;
    /// `a` where the condition holds, else `b`.
    fn select(mask: Self::Mask, a: Self, b: Self) -> Self;

    /// `exp(x) − 1`, which keeps its digits near 0.
    #[inline(always)]
    fn exp_m1(self) -> Self {
        exp_m1(self)
    }

    /// `1 / (1 + exp(−x))`.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        let one = Self::from_f64(1.0);
        one / (one + (-self).exp())
    }
}

/// A 32-bit float with its bits.
pub trait Single: Real {
    type Word: Word<Single = Self>;

    fn to_bits(self) -> Self::Word;
    fn from_bits(bits: Self::Word) -> Self;

    /// A constant, exactly.
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::from_f64(x as f64)
    }
}

/// A 32-bit word; sums wrap.
pub trait Word: Copy {
    type Single: Single<Word = Self>;

    fn from_u32(x: u32) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    fn and(self, mask: u32) -> Self;
    fn shift_left(self, by: u32) -> Self;
    fn shift_right(self, by: u32) -> Self;
    /// Shifts copies of the sign in.
    fn shift_right_signed(self, by: u32) -> Self;
    /// Both halves of the product, the upper one first.
    fn mul_wide(self, factor: u32) -> [Self; 2];
    /// Whether any of these bits is set.
    fn has(self, bits: u32) -> <Self::Single as Real>::Mask;
    /// The float nearest to it as an unsigned number.
    fn to_single(self) -> Self::Single;
    /// The float nearest to it as a signed number.
    fn signed_to_single(self) -> Self::Single;
}

/// By Kahan's correction of what rounding does to exp(x).
#[inline(always)]
fn exp_m1<T: Real>(x: T) -> T {
    let one = T::from_f64(1.0);
    let power = x.exp();
    let plain = power - one;
    let corrected = plain * (x / power.ln());
    let near = T::select(x.abs().less(one), corrected, plain);
    // Where exp(x) rounds to 1, its logarithm is no divisor.
    T::select(T::from_f64(0.0).less(plain.abs()), near, x)
}

macro_rules! real {
    ($t:ident, $exp:path, $exp_m1:path, $ln:path, $tanh:path, $erf:path) => {
        impl Real for $t {
            type Mask = bool;

            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                $t::mul_add(self, a, b)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn exp_m1(self) -> Self {
                $exp_m1(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                $ln(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            #[inline(always)]
            fn erf(self) -> Self {
                $erf(self)
            }
            #[inline(always)]
            fn less(self, other: Self) -> bool {
                self < other
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
            #[inline(always)]
            fn select(mask: bool, a: Self, b: Self) -> Self {
                if mask { a } else { b }
            }
        }
    };
}
real!(f32, math::exp, exp_m1, math::ln, math::tanh, math::erf);
real!(
    f64,
    f64::exp,
    f64::exp_m1,
    f64::ln,
    f64::tanh,
    math::erf_f64
);

impl Single for f32 {
    type Word = u32;

    #[inline(always)]
    fn to_bits(self) -> u32 {
        f32::to_bits(self)
    }
    #[inline(always)]
    fn from_bits(bits: u32) -> f32 {
        f32::from_bits(bits)
    }
}

impl Word for u32 {
    type Single = f32;

    #[inline(always)]
    fn from_u32(x: u32) -> u32 {
        x
    }
    #[inline(always)]
    fn add(self, other: u32) -> u32 {
        self.wrapping_add(other)
    }
    #[inline(always)]
    fn sub(self, other: u32) -> u32 {
        self.wrapping_sub(other)
    }
    #[inline(always)]
    fn xor(self, other: u32) -> u32 {
        self ^ other
    }
    #[inline(always)]
    fn and(self, mask: u32) -> u32 {
        self & mask
    }
    #[inline(always)]
    fn shift_left(self, by: u32) -> u32 {
        self << by
    }
    #[inline(always)]
    fn shift_right(self, by: u32) -> u32 {
        self >> by
    }
    #[inline(always)]
    fn shift_right_signed(self, by: u32) -> u32 {
        (self as i32 >> by) as u32
    }
    #[inline(always)]
    fn mul_wide(self, factor: u32) -> [u32; 2] {
        let product = u64::from(self) * u64::from(factor);
        [(product >> 32) as u32, product as u32]
    }
    #[inline(always)]
    fn has(self, bits: u32) -> bool {
        self & bits != 0
    }
    #[inline(always)]
    fn to_single(self) -> f32 {
        self as f32
    }
    #[inline(always)]
    fn signed_to_single(self) -> f32 {
        self as i32 as f32
    }
}
