//! Arithmetic, comparisons and conversions: operators of Rust where they mean the same, methods named as PTX otherwise.
//!
//! Operations on constants alone are done here and now, with the rounding that the device would use.

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Rem, Shl, Shr, Sub};

use super::assembler::Assembler;
use super::text::Operand;
use super::types::*;
use super::value::{Facts, IntoValue, Repr, Value, Variable};

/// The assembler of whichever value is a register.
fn assembler<'k>(values: &[Option<&'k Assembler>]) -> &'k Assembler {
    let found = values.iter().find_map(|a| *a);
    found.expect("an operation on constants alone is folded")
}

/// `opcode` of two operands of one type.
#[track_caller]
fn binary<'k, T: Type, R: Type>(
    opcode: &str,
    a: Value<'k, T>,
    b: Value<'k, T>,
    fold: fn(u64, u64) -> u64,
    facts: Facts,
) -> Value<'k, R> {
    match (a.repr, b.repr) {
        (Repr::Constant(a), Repr::Constant(b)) => Value::from_bits(fold(a, b)),
        _ => assembler(&[a.assembler(), b.assembler()]).compute(
            opcode,
            vec![a.operand(), b.operand()],
            facts,
        ),
    }
}

/// `opcode` of one operand, which is never folded.
#[track_caller]
fn unary<'k, T: Type, R: Type>(
    k: &'k Assembler,
    opcode: &str,
    x: Value<'k, T>,
    facts: Facts,
) -> Value<'k, R> {
    k.compute(opcode, vec![x.operand()], facts)
}

fn is<T: Arithmetic>(x: Value<'_, T>, constant: u64) -> bool {
    T::FOLDS_IDENTITIES && x.constant() == Some(constant)
}

#[track_caller]
fn add<'k, T: Arithmetic>(a: Value<'k, T>, b: Value<'k, T>) -> Value<'k, T> {
    if is(a, T::ZERO) {
        return b;
    }
    if is(b, T::ZERO) {
        return a;
    }
    let facts = a.facts().add(b.facts());
    binary(&format!("add.{}", T::ADD), a, b, T::add, facts)
}

#[track_caller]
fn sub<'k, T: Arithmetic>(a: Value<'k, T>, b: Value<'k, T>) -> Value<'k, T> {
    if is(b, T::ZERO) {
        return a;
    }
    let facts = a.facts().sub(b.facts());
    binary(&format!("sub.{}", T::ADD), a, b, T::sub, facts)
}

#[track_caller]
fn mul<'k, T: Arithmetic>(a: Value<'k, T>, b: Value<'k, T>) -> Value<'k, T> {
    if is(a, T::ONE) || is(b, T::ZERO) {
        return b;
    }
    if is(b, T::ONE) || is(a, T::ZERO) {
        return a;
    }
    let facts = product(a, b);
    binary(&format!("mul.{}", T::MUL), a, b, T::mul, facts)
}

/// What is known of a·b.
fn product<T: Type>(a: Value<'_, T>, b: Value<'_, T>) -> Facts {
    match a.constant() {
        Some(_) => b.facts().mul(a.facts(), a.constant()),
        None => a.facts().mul(b.facts(), b.constant()),
    }
}

#[track_caller]
fn div<'k, T: Arithmetic>(a: Value<'k, T>, b: Value<'k, T>) -> Value<'k, T> {
    if is(b, T::ONE) {
        return a;
    }
    let facts = a.facts().div(b.constant());
    // Integers divide without a rounding mode.
    let suffix = T::ADD;
    binary(&format!("div.{suffix}"), a, b, T::div, facts)
}

#[track_caller]
fn rem<'k, T: Integer>(a: Value<'k, T>, b: Value<'k, T>) -> Value<'k, T> {
    if is(b, T::ONE) {
        return Value::from_bits(0);
    }
    let facts = a.facts().rem(b.facts(), b.constant());
    binary(&format!("rem.{}", T::ADD), a, b, T::rem, facts)
}

#[track_caller]
fn and<'k, T: Bits>(a: Value<'k, T>, b: Value<'k, T>) -> Value<'k, T> {
    let facts = a.facts().and(b.facts());
    binary(&format!("and.{}", T::BITS), a, b, |a, b| a & b, facts)
}

#[track_caller]
fn or<'k, T: Bits>(a: Value<'k, T>, b: Value<'k, T>) -> Value<'k, T> {
    let facts = a.facts().or(b.facts());
    binary(&format!("or.{}", T::BITS), a, b, |a, b| a | b, facts)
}

#[track_caller]
fn xor<'k, T: Bits>(a: Value<'k, T>, b: Value<'k, T>) -> Value<'k, T> {
    if T::CLASS != Class::Predicate && b.constant() == Some(0) {
        return a;
    }
    let facts = a.facts().or(b.facts());
    binary(&format!("xor.{}", T::BITS), a, b, |a, b| a ^ b, facts)
}

macro_rules! operators {
    ($($trait:ident $method:ident for $bound:ident;)*) => { $(
        impl<'k, T: $bound, R: IntoValue<'k, T>> $trait<R> for Value<'k, T> {
            type Output = Value<'k, T>;
            #[track_caller]
            fn $method(self, other: R) -> Value<'k, T> {
                $method::<T>(self, other.into_value())
            }
        }

        impl<'k, T: $bound, R: IntoValue<'k, T>> $trait<R> for Variable<'k, T> {
            type Output = Value<'k, T>;
            #[track_caller]
            fn $method(self, other: R) -> Value<'k, T> {
                $method::<T>(self.get(), other.into_value())
            }
        }
    )* };
}

use {and as bitand, or as bitor, xor as bitxor};
operators! {
    Add add for Arithmetic;
    Sub sub for Arithmetic;
    Mul mul for Arithmetic;
    Div div for Arithmetic;
    Rem rem for Integer;
    BitAnd bitand for Bits;
    BitOr bitor for Bits;
    BitXor bitxor for Bits;
}

impl<'k, T: Integer> Shl<u32> for Value<'k, T> {
    type Output = Value<'k, T>;
    #[track_caller]
    fn shl(self, by: u32) -> Value<'k, T> {
        self.shift_left(by)
    }
}

impl<'k, T: Integer> Shr<u32> for Value<'k, T> {
    type Output = Value<'k, T>;
    #[track_caller]
    fn shr(self, by: u32) -> Value<'k, T> {
        self.shift_right(by)
    }
}

macro_rules! negation {
    ($($float:ident: $opcode:literal, $sign:literal;)*) => { $(
        impl<'k> Neg for Value<'k, $float> {
            type Output = Value<'k, $float>;
            #[track_caller]
            fn neg(self) -> Value<'k, $float> {
                match self.repr {
                    Repr::Constant(bits) => Value::from_bits(bits ^ $sign),
                    Repr::Register { assembler, .. } => {
                        unary(assembler, $opcode, self, Facts::NONE)
                    }
                }
            }
        }
    )* };
}
negation! {
    F32: "neg.f32", 0x8000_0000;
    F64: "neg.f64", 0x8000_0000_0000_0000;
}

impl<'k, T: Arithmetic> Value<'k, T> {
    /// `self · a + b`: `mad.lo`, or `fma.rn` with one rounding.
    #[track_caller]
    pub fn mul_add(self, a: impl IntoValue<'k, T>, b: impl IntoValue<'k, T>) -> Value<'k, T> {
        let (a, b) = (a.into_value(), b.into_value());
        if let (Some(x), Some(a), Some(b)) = (self.constant(), a.constant(), b.constant()) {
            return Value::from_bits(T::mul_add(x, a, b));
        }
        let facts = product(self, a).add(b.facts());
        assembler(&[self.assembler(), a.assembler(), b.assembler()]).compute(
            T::MULTIPLY_ADD,
            vec![self.operand(), a.operand(), b.operand()],
            facts,
        )
    }

    /// The smaller one; of a float and NaN, the float.
    #[track_caller]
    pub fn min(self, other: impl IntoValue<'k, T>) -> Value<'k, T> {
        let other = other.into_value();
        let facts = self.facts().min(other.facts());
        binary(&format!("min.{}", T::NAME), self, other, T::min, facts)
    }

    /// The larger one; of a float and NaN, the float.
    #[track_caller]
    pub fn max(self, other: impl IntoValue<'k, T>) -> Value<'k, T> {
        let other = other.into_value();
        let facts = self.facts().either(other.facts());
        binary(&format!("max.{}", T::NAME), self, other, T::max, facts)
    }
}

macro_rules! comparisons {
    ($($(#[$doc:meta])* $method:ident: $text:literal;)*) => {
        impl<'k, T: Arithmetic> Value<'k, T> { $(
            $(#[$doc])*
            #[track_caller]
            pub fn $method(self, other: impl IntoValue<'k, T>) -> Value<'k, Pred> {
                self.compare($text, other.into_value())
            }
        )* }

        impl<'k, T: Arithmetic> Variable<'k, T> { $(
            $(#[$doc])*
            #[track_caller]
            pub fn $method(self, other: impl IntoValue<'k, T>) -> Value<'k, Pred> {
                self.get().compare($text, other.into_value())
            }
        )* }
    };
}
comparisons! {
    /// Less; false for NaN, as every comparison is.
    lt: "lt";
    le: "le";
    gt: "gt";
    ge: "ge";
    eq: "eq";
    /// Neither equal nor NaN.
    ne: "ne";
}

impl<'k, T: Arithmetic> Value<'k, T> {
    #[track_caller]
    fn compare(self, relation: &str, other: Value<'k, T>) -> Value<'k, Pred> {
        let k = assembler(&[self.assembler(), other.assembler()]);
        let opcode = format!("setp.{relation}.{}", T::NAME);
        k.compute(&opcode, vec![self.operand(), other.operand()], Facts::NONE)
    }
}

impl<'k> Value<'k, Pred> {
    /// `selp`: `a` where the condition holds, else `b`.
    #[track_caller]
    pub fn select<T: Type>(
        self,
        a: impl IntoValue<'k, T>,
        b: impl IntoValue<'k, T>,
    ) -> Value<'k, T> {
        let (a, b) = (a.into_value(), b.into_value());
        // Bits of any class of registers have a name of their own.
        let opcode = match T::CLASS {
            Class::Float32 => "selp.f32".to_string(),
            class => format!("selp.{}", class.declared()),
        };
        assembler(&[self.assembler()]).compute(
            &opcode,
            vec![a.operand(), b.operand(), self.operand()],
            a.facts().either(b.facts()),
        )
    }
}

impl<'k, T: Integer> Value<'k, T> {
    #[track_caller]
    pub fn shift_left(self, by: u32) -> Value<'k, T> {
        match self.repr {
            _ if by == 0 => self,
            Repr::Constant(bits) => Value::from_bits(T::mul(bits, 1u64 << by)),
            Repr::Register { assembler, .. } => assembler.compute(
                &format!("shl.{}", T::CLASS.declared()),
                vec![self.operand(), Operand::text(by.to_string())],
                self.facts().mul(Facts::of(1 << by), Some(1 << by)),
            ),
        }
    }

    #[track_caller]
    pub fn shift_right(self, by: u32) -> Value<'k, T> {
        match self.repr {
            _ if by == 0 => self,
            Repr::Constant(bits) => Value::from_bits(T::shr(bits, by)),
            Repr::Register { assembler, .. } => assembler.compute(
                &format!("shr.{}", T::NAME),
                vec![self.operand(), Operand::text(by.to_string())],
                self.facts().div(Some(1u64 << by)),
            ),
        }
    }
}

impl<'k, T: Bits> Value<'k, T> {
    /// `not`: every bit inverted.
    #[track_caller]
    pub fn invert(self) -> Value<'k, T> {
        let k = assembler(&[self.assembler()]);
        unary(k, &format!("not.{}", T::BITS), self, Facts::NONE)
    }
}

impl<'k> Value<'k, U32> {
    /// `mul.wide`: all 64 bits of the product.
    #[track_caller]
    pub fn mul_wide(self, other: impl IntoValue<'k, U32>) -> Value<'k, U64> {
        let other = other.into_value();
        let facts = product(self, other);
        binary("mul.wide.u32", self, other, |a, b| a * b, facts)
    }

    /// `mul.hi`: the upper half of the product.
    #[track_caller]
    pub fn mul_hi(self, other: impl IntoValue<'k, U32>) -> Value<'k, U32> {
        let other = other.into_value();
        binary("mul.hi.u32", self, other, |a, b| (a * b) >> 32, Facts::NONE)
    }

    /// The same number in 64 bits.
    #[track_caller]
    pub fn widen(self) -> Value<'k, U64> {
        match self.repr {
            Repr::Constant(bits) => Value::from_bits(bits),
            Repr::Register { assembler, .. } => unary(assembler, "cvt.u64.u32", self, self.facts()),
        }
    }

    /// The nearest float.
    #[track_caller]
    pub fn to_f32(self) -> Value<'k, F32> {
        match self.repr {
            Repr::Constant(bits) => (bits as u32 as f32).into_value(),
            Repr::Register { assembler, .. } => {
                unary(assembler, "cvt.rn.f32.u32", self, Facts::NONE)
            }
        }
    }

    /// `shr` by as many bits as a register says.
    #[track_caller]
    pub fn shift_right_by(self, by: impl IntoValue<'k, U32>) -> Value<'k, U32> {
        let by = by.into_value();
        binary(
            "shr.u32",
            self,
            by,
            |a, by| a.checked_shr(by as u32).unwrap_or(0),
            Facts::NONE,
        )
    }

    /// `bfe`: `length` bits from bit `start` on.
    #[track_caller]
    pub fn bit_field(self, start: u32, length: u32) -> Value<'k, U32> {
        assembler(&[self.assembler()]).compute(
            "bfe.u32",
            vec![
                self.operand(),
                Operand::text(start.to_string()),
                Operand::text(length.to_string()),
            ],
            Facts::below(1u64 << length.min(32)),
        )
    }
}

impl<'k> Value<'k, U64> {
    /// The lower 32 bits.
    #[track_caller]
    pub fn truncate(self) -> Value<'k, U32> {
        match self.repr {
            Repr::Constant(bits) => Value::from_bits(bits & 0xFFFF_FFFF),
            Repr::Register { assembler, .. } => unary(assembler, "cvt.u32.u64", self, self.facts()),
        }
    }
}

impl<'k> Value<'k, S32> {
    /// The nearest float.
    #[track_caller]
    pub fn to_f32(self) -> Value<'k, F32> {
        match self.repr {
            Repr::Constant(bits) => (bits as u32 as i32 as f32).into_value(),
            Repr::Register { assembler, .. } => {
                unary(assembler, "cvt.rn.f32.s32", self, Facts::NONE)
            }
        }
    }
}

/// Three-operand and bit instructions that have no operator.
impl Assembler {
    /// `lop3.b32`: the truth table `table` of three words, bit by bit; 0x96 is their exclusive or.
    #[track_caller]
    pub fn lop3<'k>(
        &'k self,
        a: Value<'k, B32>,
        b: Value<'k, B32>,
        c: Value<'k, B32>,
        table: u8,
    ) -> Value<'k, B32> {
        let table = Operand::text(format!("{table:#04x}"));
        let sources = vec![a.operand(), b.operand(), c.operand(), table];
        self.compute("lop3.b32", sources, Facts::NONE)
    }

    /// `prmt.b32`: four bytes picked from the eight of b:a; each hexadecimal digit of `selector` picks one.
    #[track_caller]
    pub fn prmt<'k>(
        &'k self,
        a: Value<'k, B32>,
        b: Value<'k, B32>,
        selector: u16,
    ) -> Value<'k, B32> {
        let selector = Operand::text(format!("{selector:#06x}"));
        self.compute(
            "prmt.b32",
            vec![a.operand(), b.operand(), selector],
            Facts::NONE,
        )
    }

    /// `bfi.b32`: `length` bits of `field` put into `into` at bit `start`.
    #[track_caller]
    pub fn bfi<'k>(
        &'k self,
        field: Value<'k, B32>,
        into: Value<'k, B32>,
        start: u32,
        length: u32,
    ) -> Value<'k, B32> {
        let numbers = [start, length].map(|n| Operand::text(n.to_string()));
        let [start, length] = numbers;
        let sources = vec![field.operand(), into.operand(), start, length];
        self.compute("bfi.b32", sources, Facts::NONE)
    }

    /// `shf.l.wrap`: the upper word of high:low shifted left.
    #[track_caller]
    pub fn shf_left<'k>(
        &'k self,
        low: Value<'k, B32>,
        high: Value<'k, B32>,
        by: u32,
    ) -> Value<'k, B32> {
        let by = Operand::text(by.to_string());
        let sources = vec![low.operand(), high.operand(), by];
        self.compute("shf.l.wrap.b32", sources, Facts::NONE)
    }

    /// `popc`: the number of bits set.
    #[track_caller]
    pub fn popc<'k>(&'k self, x: Value<'k, B32>) -> Value<'k, U32> {
        let facts = Facts::below(33);
        unary(self, "popc.b32", x, facts)
    }

    /// `clz`: the number of zeros above the highest bit set.
    #[track_caller]
    pub fn clz<'k>(&'k self, x: Value<'k, B32>) -> Value<'k, U32> {
        let facts = Facts::below(33);
        unary(self, "clz.b32", x, facts)
    }
}
