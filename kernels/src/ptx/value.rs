//! Values: registers and constants with a type, and what an author may know about them.
//!
//! A [`Value`] is computed once and never changes. What changes is a [`Variable`]: reading it gives a value that is good
//! until the variable is set again, and using it after that does not assemble.

use std::marker::PhantomData;

use super::assembler::Assembler;
use super::text::Operand;
use super::types::{B16, B32, B64, F32, F64, Pred, S32, Type, U32, U64};

/// What is known of an unsigned integer when the kernel is written: enough to prove that an address is aligned and that
/// it lies inside a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The bits that may be set.
    pub bits: u64,
    /// It is less than this; `u64::MAX` if nothing is known.
    pub below: u64,
}

impl Facts {
    pub const NONE: Facts = Facts {
        bits: u64::MAX,
        below: u64::MAX,
    };

    pub(super) fn of(constant: u64) -> Facts {
        Facts {
            bits: constant,
            below: constant.saturating_add(1),
        }
    }

    /// Of anything less than `bound`.
    pub(super) fn below(bound: u64) -> Facts {
        Facts::new(u64::MAX, Some(bound))
    }

    /// Of any multiple of a power of two.
    pub(super) fn multiple_of(multiple: u64) -> Facts {
        Facts {
            bits: !(multiple - 1),
            ..Facts::NONE
        }
    }

    /// The largest power of two that is sure to divide it.
    pub fn multiple(self) -> u64 {
        1u64.checked_shl(self.bits.trailing_zeros())
            .unwrap_or(1 << 63)
    }

    /// No bound is known of what does not fit in 32 bits: it may have wrapped.
    fn new(bits: u64, below: Option<u64>) -> Facts {
        match below {
            Some(below) if below <= 1 << 32 => Facts {
                bits: bits & (below.next_power_of_two() - 1),
                below,
            },
            _ => Facts {
                bits,
                below: u64::MAX,
            },
        }
    }

    /// The largest value that it can have, if a bound is known.
    fn last(self) -> Option<u64> {
        (self.below != u64::MAX).then(|| self.below.saturating_sub(1))
    }

    pub(super) fn add(self, other: Facts) -> Facts {
        let last = self.last().zip(other.last());
        // Where no bit can meet another one, nothing carries.
        let bits = match self.bits & other.bits {
            0 => self.bits | other.bits,
            _ => at_and_above(self.bits | other.bits),
        };
        Facts::new(bits, last.map(|(a, b)| a + b + 1))
    }

    pub(super) fn sub(self, other: Facts) -> Facts {
        Facts::new(at_and_above(self.bits | other.bits), None)
    }

    /// Of a product, where the factor may be a constant.
    pub(super) fn mul(self, other: Facts, factor: Option<u64>) -> Facts {
        let last = self.last().zip(other.last());
        let bits = match factor {
            Some(c) if c.is_power_of_two() => self.bits << c.trailing_zeros(),
            _ => {
                let zeros = self.bits.trailing_zeros() + other.bits.trailing_zeros();
                u64::MAX.checked_shl(zeros).unwrap_or(0)
            }
        };
        Facts::new(
            bits,
            last.map(|(a, b)| a.saturating_mul(b).saturating_add(1)),
        )
    }

    /// Of a quotient, where the divisor may be a constant.
    pub(super) fn div(self, by: Option<u64>) -> Facts {
        let bits = match by {
            Some(c) if c.is_power_of_two() => self.bits >> c.trailing_zeros(),
            _ => u64::MAX,
        };
        let by = by.unwrap_or(1).max(1);
        Facts::new(bits, self.last().map(|last| last / by + 1))
    }

    /// Of a remainder, where the divisor may be a constant.
    pub(super) fn rem(self, other: Facts, by: Option<u64>) -> Facts {
        let bits = match by {
            Some(c) if c.is_power_of_two() => self.bits & (c - 1),
            _ => at_and_above(self.bits | other.bits),
        };
        // Of a known divisor, at most one less; and never more than what is divided.
        let last = match other.last() {
            Some(divisor) => Some(self.last().map_or(divisor, |last| (last + 1).min(divisor))),
            None => self.last().map(|last| last + 1),
        };
        Facts::new(bits, last)
    }

    pub(super) fn and(self, other: Facts) -> Facts {
        Facts::new(self.bits & other.bits, Some(self.below.min(other.below)))
    }

    /// Of `or` and `xor`.
    pub(super) fn or(self, other: Facts) -> Facts {
        let last = self.last().zip(other.last());
        Facts::new(
            self.bits | other.bits,
            last.map(|(a, b)| (a.max(b) + 1).next_power_of_two()),
        )
    }

    pub(super) fn min(self, other: Facts) -> Facts {
        Facts::new(self.bits | other.bits, Some(self.below.min(other.below)))
    }

    /// Of one or the other.
    pub(super) fn either(self, other: Facts) -> Facts {
        Facts::new(self.bits | other.bits, Some(self.below.max(other.below)))
    }
}

/// The lowest of these bits, and all above it.
fn at_and_above(bits: u64) -> u64 {
    u64::MAX.checked_shl(bits.trailing_zeros()).unwrap_or(0)
}

/// A register, or a constant, of type `T`.
#[derive(Debug)]
pub struct Value<'k, T> {
    pub(super) repr: Repr<'k>,
    kind: PhantomData<T>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Repr<'k> {
    /// The type's bits, zero-extended.
    Constant(u64),
    Register {
        assembler: &'k Assembler,
        id: usize,
        /// How many lines there were when it was read; only a variable's readings age.
        read: usize,
    },
}

impl<T> Clone for Value<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Value<'_, T> {}

impl<'k, T: Type> Value<'k, T> {
    pub(super) fn new(repr: Repr<'k>) -> Self {
        Value {
            repr,
            kind: PhantomData,
        }
    }

    /// A constant from its bits, zero-extended.
    pub fn from_bits(bits: u64) -> Self {
        Value::new(Repr::Constant(bits))
    }

    pub(super) fn operand(self) -> Operand {
        match self.repr {
            Repr::Constant(bits) => Operand::Text(T::literal(bits)),
            Repr::Register { id, read, .. } => Operand::Register { id, read },
        }
    }

    pub(super) fn assembler(self) -> Option<&'k Assembler> {
        match self.repr {
            Repr::Constant(_) => None,
            Repr::Register { assembler, .. } => Some(assembler),
        }
    }

    pub fn facts(self) -> Facts {
        match self.repr {
            Repr::Constant(bits) => Facts::of(bits),
            Repr::Register { assembler, id, .. } => assembler.facts(id),
        }
    }

    /// The bits of a constant.
    pub fn constant(self) -> Option<u64> {
        match self.repr {
            Repr::Constant(bits) => Some(bits),
            Repr::Register { .. } => None,
        }
    }

    /// The same register seen as another type of its class; no instruction.
    pub fn cast<U: Type>(self) -> Value<'k, U> {
        const { assert!(T::CLASS as u8 == U::CLASS as u8, "cast between classes") };
        Value::new(self.repr)
    }

    /// Adds what the author knows and the assembler cannot derive, such as what `config` has checked of a size.
    ///
    /// The simulator holds a kernel to its consequences: a wrong claim is a misaligned or out-of-bounds access there.
    pub fn assume_multiple_of(self, multiple: u64) -> Self {
        assert!(multiple.is_power_of_two());
        if let Repr::Register { assembler, id, .. } = self.repr {
            assembler.learn(id, |facts| facts.bits &= !(multiple - 1));
        }
        self
    }

    /// Adds that the value is less than `bound`.
    pub fn assume_below(self, bound: u64) -> Self {
        if let Repr::Register { assembler, id, .. } = self.repr {
            assembler.learn(id, |facts| *facts = facts.and(Facts::below(bound)));
        }
        self
    }
}

/// A register that can be set again: a loop's state, an accumulator.
#[derive(Debug)]
pub struct Variable<'k, T> {
    pub(super) assembler: &'k Assembler,
    pub(super) id: usize,
    kind: PhantomData<T>,
}

impl<T> Clone for Variable<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Variable<'_, T> {}

impl<'k, T: Type> Variable<'k, T> {
    pub(super) fn new(assembler: &'k Assembler, id: usize) -> Self {
        Variable {
            assembler,
            id,
            kind: PhantomData,
        }
    }

    /// Its present value, good until it is set again.
    pub fn get(self) -> Value<'k, T> {
        Value::new(Repr::Register {
            assembler: self.assembler,
            id: self.id,
            read: self.assembler.now(),
        })
    }

    /// Sets it. The instruction that computed `value` writes the variable itself where it is the latest one; `value` is
    /// used up then.
    pub fn set(self, value: impl IntoValue<'k, T>) {
        self.assembler.set(self, value.into_value());
    }

    /// As the destination of an instruction that changes it in place.
    pub(super) fn operand(self) -> Operand {
        Operand::Register {
            id: self.id,
            read: self.assembler.now(),
        }
    }
}

/// What can stand for a value of type `T`: a value, a variable (its present value), a Rust number.
pub trait IntoValue<'k, T: Type>: Copy {
    fn into_value(self) -> Value<'k, T>;
}

impl<'k, T: Type> IntoValue<'k, T> for Value<'k, T> {
    fn into_value(self) -> Value<'k, T> {
        self
    }
}

impl<'k, T: Type> IntoValue<'k, T> for Variable<'k, T> {
    fn into_value(self) -> Value<'k, T> {
        self.get()
    }
}

macro_rules! constants {
    ($($rust:ty => $name:ident: $bits:expr;)*) => { $(
        impl<'k> IntoValue<'k, $name> for $rust {
            fn into_value(self) -> Value<'k, $name> {
                let bits: fn($rust) -> u64 = $bits;
                Value::from_bits(bits(self))
            }
        }
    )* };
}
constants! {
    u32 => U32: u64::from;
    i32 => S32: |x| u64::from(x as u32);
    u64 => U64: |x| x;
    f32 => F32: |x| u64::from(x.to_bits());
    f64 => F64: f64::to_bits;
    u32 => B32: u64::from;
    u64 => B64: |x| x;
    u16 => B16: u64::from;
}

/// A condition, and whether it is meant or its opposite: instructions take both for the same price.
#[derive(Clone, Copy, Debug)]
pub struct Condition<'k> {
    pub(super) value: Value<'k, Pred>,
    pub(super) negated: bool,
}

impl<'k> From<Value<'k, Pred>> for Condition<'k> {
    fn from(value: Value<'k, Pred>) -> Self {
        Condition {
            value,
            negated: false,
        }
    }
}
