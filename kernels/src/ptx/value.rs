//! Values: registers and constants with a type, and what an author may know about them.
//!
//! A [`Value`] is computed once and never changes. What changes is a [`Variable`]: reading it gives a value that is good
//! until the variable is set again, and using it after that does not assemble.

use std::marker::PhantomData;

use super::assembler::Assembler;
use super::text::Operand;
use super::types::{B16, B32, B64, F32, Pred, S32, Type, U32, U64};

/// What is known of an unsigned integer when the kernel is written: enough to prove that an address is aligned and that
/// it lies inside a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// A power of two that divides it.
    pub multiple: u64,
    /// It is less than this; `u64::MAX` if nothing is known.
    pub below: u64,
}

impl Facts {
    pub const NONE: Facts = Facts {
        multiple: 1,
        below: u64::MAX,
    };

    /// The power of two that stands for "divided by every power of two": zero's.
    const ANY: u64 = 1 << 32;

    pub(super) fn of(constant: u64) -> Facts {
        Facts {
            multiple: match constant {
                0 => Facts::ANY,
                c => (1u64 << c.trailing_zeros()).min(Facts::ANY),
            },
            below: constant.saturating_add(1),
        }
    }

    pub(super) fn multiple_of(multiple: u64) -> Facts {
        Facts {
            multiple,
            ..Facts::NONE
        }
    }

    /// Nothing below is known of what does not fit in 32 bits: it may have wrapped.
    fn new(multiple: u64, below: Option<u64>) -> Facts {
        Facts {
            multiple: multiple.min(Facts::ANY),
            below: below.filter(|&b| b <= 1 << 32).unwrap_or(u64::MAX),
        }
    }

    fn last(self) -> Option<u64> {
        (self.below != u64::MAX).then(|| self.below.saturating_sub(1))
    }

    pub(super) fn add(self, other: Facts) -> Facts {
        let last = self.last().zip(other.last());
        Facts::new(
            self.multiple.min(other.multiple),
            last.map(|(a, b)| a + b + 1),
        )
    }

    pub(super) fn mul(self, other: Facts) -> Facts {
        let last = self.last().zip(other.last());
        Facts::new(
            self.multiple.saturating_mul(other.multiple),
            last.map(|(a, b)| a.saturating_mul(b).saturating_add(1)),
        )
    }

    pub(super) fn sub(self, other: Facts) -> Facts {
        Facts::new(self.multiple.min(other.multiple), None)
    }

    /// Of a quotient, where the divisor is a constant.
    pub(super) fn div(self, by: Option<u64>) -> Facts {
        let last = self.last().map(|l| l / by.unwrap_or(1) + 1);
        let multiple = match by {
            Some(c) if c.is_power_of_two() => (self.multiple / c).max(1),
            _ => 1,
        };
        Facts::new(multiple, last)
    }

    pub(super) fn rem(self, other: Facts) -> Facts {
        let below = match (self.last(), other.last()) {
            (Some(a), Some(b)) => Some((a + 1).min(b)),
            (None, Some(b)) => Some(b),
            (a, None) => a.map(|a| a + 1),
        };
        Facts::new(self.multiple.min(other.multiple), below)
    }

    pub(super) fn and(self, other: Facts) -> Facts {
        Facts::new(
            self.multiple.max(other.multiple),
            Some(self.below.min(other.below)),
        )
    }

    /// Of `or` and `xor`: no bit beyond both operands' highest ones, none below both operands' lowest.
    pub(super) fn or(self, other: Facts) -> Facts {
        let last = self.last().zip(other.last());
        Facts::new(
            self.multiple.min(other.multiple),
            last.map(|(a, b)| (a.max(b) + 1).next_power_of_two()),
        )
    }

    pub(super) fn min(self, other: Facts) -> Facts {
        Facts::new(
            self.multiple.min(other.multiple),
            Some(self.below.min(other.below)),
        )
    }

    pub(super) fn either(self, other: Facts) -> Facts {
        Facts::new(
            self.multiple.min(other.multiple),
            Some(self.below.max(other.below)),
        )
    }
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
            assembler.learn(id, |facts| facts.multiple = facts.multiple.max(multiple));
        }
        self
    }

    /// Adds that the value is less than `bound`.
    pub fn assume_below(self, bound: u64) -> Self {
        if let Repr::Register { assembler, id, .. } = self.repr {
            assembler.learn(id, |facts| facts.below = facts.below.min(bound));
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
