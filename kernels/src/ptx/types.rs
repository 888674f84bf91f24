//! The types of registers and of memory's elements.
//!
//! A type exists at build time of the Rust code only: it decides which instructions a value may meet, so that a kernel
//! that confuses them does not compile. Several types share a class of registers, and [`Value::cast`] moves between
//! those for nothing.
//!
//! [`Value::cast`]: super::Value::cast

/// A class of registers: what `.reg` declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    Predicate,
    Bits16,
    Bits32,
    Bits64,
    Float32,
    Float64,
}

impl Class {
    pub(super) const ALL: [Class; 6] = [
        Class::Predicate,
        Class::Bits16,
        Class::Bits32,
        Class::Bits64,
        Class::Float32,
        Class::Float64,
    ];

    /// What register names of this class start with, after `%`.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Class::Predicate => "p",
            Class::Bits16 => "h",
            Class::Bits32 => "r",
            Class::Bits64 => "d",
            Class::Float32 => "f",
            Class::Float64 => "fd",
        }
    }

    /// The type in the class's `.reg` directive.
    pub(super) fn declared(self) -> &'static str {
        match self {
            Class::Predicate => "pred",
            Class::Bits16 => "b16",
            Class::Bits32 => "b32",
            Class::Bits64 => "b64",
            Class::Float32 => "f32",
            Class::Float64 => "f64",
        }
    }
}

/// The type of a register, and of an element in memory.
pub trait Type: Copy + 'static {
    const CLASS: Class;
    /// As in `ld`, `st` and `mov`, without the dot.
    const NAME: &'static str;
    /// Bytes in memory.
    const SIZE: u32;

    /// A constant as PTX writes it; `bits` holds the type's bits, zero-extended.
    fn literal(bits: u64) -> String;
}

/// Types with `add`, `sub`, `mul` and `min`, and what these do to constants.
pub trait Arithmetic: Type {
    /// Suffix of `add` and `sub`: `u32`, `rn.f32`.
    const ADD: &'static str;
    /// Suffix of `mul`: `lo.u32`, `rn.f32`.
    const MUL: &'static str;
    /// `mad.lo.u32`, `fma.rn.f32`.
    const MULTIPLY_ADD: &'static str;
    const ZERO: u64;
    const ONE: u64;

    fn add(a: u64, b: u64) -> u64;
    fn sub(a: u64, b: u64) -> u64;
    fn mul(a: u64, b: u64) -> u64;
    fn mul_add(a: u64, b: u64, c: u64) -> u64;
    fn div(a: u64, b: u64) -> u64;
    fn min(a: u64, b: u64) -> u64;
    fn max(a: u64, b: u64) -> u64;
    /// Whether a·0 and a + 0 may be left out: true for integers, not for floats with their NaN and −0.
    const FOLDS_IDENTITIES: bool;
}

/// Whole numbers, which shift and divide with remainder.
pub trait Integer: Arithmetic {
    fn rem(a: u64, b: u64) -> u64;
    fn shr(a: u64, by: u32) -> u64;
}

/// Types with `and`, `or`, `xor` and `not`.
pub trait Bits: Type {
    /// Suffix of the instruction: `b32`, `pred`.
    const BITS: &'static str;
}

macro_rules! types {
    ($($(#[$doc:meta])* $name:ident: $class:ident, $text:literal, $size:literal, $literal:expr;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name;

        impl Type for $name {
            const CLASS: Class = Class::$class;
            const NAME: &'static str = $text;
            const SIZE: u32 = $size;

            fn literal(bits: u64) -> String {
                let literal: fn(u64) -> String = $literal;
                literal(bits)
            }
        }
    )* };
}

types! {
    /// A condition.
    Pred: Predicate, "pred", 0, |_| unreachable!("PTX has no predicate constants");
    /// Sixteen bits without a meaning, as integers or floats have it.
    B16: Bits16, "b16", 2, |bits| format!("{bits:#06x}");
    /// A brain float: storage, which arithmetic widens to [`F32`].
    Bf16: Bits16, "b16", 2, |bits| format!("{bits:#06x}");
    /// A byte in memory; in a register, a word below 256.
    U8: Bits32, "u8", 1, |bits| bits.to_string();
    B32: Bits32, "b32", 4, |bits| format!("{bits:#010x}");
    U32: Bits32, "u32", 4, |bits| bits.to_string();
    S32: Bits32, "s32", 4, |bits| (bits as u32 as i32).to_string();
    /// Two brain floats; the first lies in the lower half, as in memory.
    Bf16x2: Bits32, "b32", 4, |bits| format!("{bits:#010x}");
    B64: Bits64, "b64", 8, |bits| format!("{bits:#018x}");
    U64: Bits64, "u64", 8, |bits| bits.to_string();
    F32: Float32, "f32", 4, |bits| format!("0f{:08X}", bits as u32);
    /// For sums and differences that f32 has too few digits for, where few of them are taken.
    F64: Float64, "f64", 8, |bits| format!("0d{bits:016X}");
}

macro_rules! bits {
    ($($name:ident: $text:literal),*) => { $(impl Bits for $name { const BITS: &'static str = $text; })* };
}
bits!(Pred: "pred", B16: "b16", B32: "b32", U32: "b32", S32: "b32", B64: "b64", U64: "b64");

macro_rules! integers {
    ($($name:ident = $rust:ty, $suffix:literal;)*) => { $(
        impl Arithmetic for $name {
            const ADD: &'static str = $suffix;
            const MUL: &'static str = concat!("lo.", $suffix);
            const MULTIPLY_ADD: &'static str = concat!("mad.lo.", $suffix);
            const ZERO: u64 = 0;
            const ONE: u64 = 1;
            const FOLDS_IDENTITIES: bool = true;

            fn add(a: u64, b: u64) -> u64 {
                truncate(Self::SIZE, ((a as $rust).wrapping_add(b as $rust)) as u64)
            }
            fn sub(a: u64, b: u64) -> u64 {
                truncate(Self::SIZE, ((a as $rust).wrapping_sub(b as $rust)) as u64)
            }
            fn mul(a: u64, b: u64) -> u64 {
                truncate(Self::SIZE, ((a as $rust).wrapping_mul(b as $rust)) as u64)
            }
            fn mul_add(a: u64, b: u64, c: u64) -> u64 {
                Self::add(Self::mul(a, b), c)
            }
            fn div(a: u64, b: u64) -> u64 {
                truncate(Self::SIZE, ((a as $rust).wrapping_div(b as $rust)) as u64)
            }
            fn min(a: u64, b: u64) -> u64 {
                truncate(Self::SIZE, ((a as $rust).min(b as $rust)) as u64)
            }
            fn max(a: u64, b: u64) -> u64 {
                truncate(Self::SIZE, ((a as $rust).max(b as $rust)) as u64)
            }
        }

        impl Integer for $name {
            fn rem(a: u64, b: u64) -> u64 {
                truncate(Self::SIZE, ((a as $rust).wrapping_rem(b as $rust)) as u64)
            }
            fn shr(a: u64, by: u32) -> u64 {
                truncate(Self::SIZE, ((a as $rust) >> by) as u64)
            }
        }
    )* };
}

/// The lower `size` bytes, as constants hold a type's bits.
fn truncate(size: u32, x: u64) -> u64 {
    if size == 4 { x & 0xFFFF_FFFF } else { x }
}

integers! {
    U32 = u32, "u32";
    S32 = i32, "s32";
    U64 = u64, "u64";
}

/// Rounded to nearest, as Rust computes constants too: a constant folds to the bits that the device would produce.
macro_rules! floats {
    ($($name:ident = $rust:ident, $suffix:literal, $one:literal, $from_bits:expr, $to_bits:expr;)*) => { $(
        impl Arithmetic for $name {
            const ADD: &'static str = $suffix;
            const MUL: &'static str = $suffix;
            const MULTIPLY_ADD: &'static str = concat!("fma.", $suffix);
            const ZERO: u64 = 0;
            const ONE: u64 = $one;
            const FOLDS_IDENTITIES: bool = false;

            fn add(a: u64, b: u64) -> u64 {
                $to_bits($from_bits(a) + $from_bits(b))
            }
            fn sub(a: u64, b: u64) -> u64 {
                $to_bits($from_bits(a) - $from_bits(b))
            }
            fn mul(a: u64, b: u64) -> u64 {
                $to_bits($from_bits(a) * $from_bits(b))
            }
            fn mul_add(a: u64, b: u64, c: u64) -> u64 {
                $to_bits($rust::mul_add($from_bits(a), $from_bits(b), $from_bits(c)))
            }
            fn div(a: u64, b: u64) -> u64 {
                $to_bits($from_bits(a) / $from_bits(b))
            }
            fn min(a: u64, b: u64) -> u64 {
                $to_bits($rust::min($from_bits(a), $from_bits(b)))
            }
            fn max(a: u64, b: u64) -> u64 {
                $to_bits($rust::max($from_bits(a), $from_bits(b)))
            }
        }
    )* };
}

floats! {
    F32 = f32, "rn.f32", 0x3F80_0000, |bits: u64| f32::from_bits(bits as u32), |x: f32| u64::from(x.to_bits());
    F64 = f64, "rn.f64", 0x3FF0_0000_0000_0000, f64::from_bits, f64::to_bits;
}
