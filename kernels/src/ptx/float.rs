//! Floating point: exact operations, the special function unit's approximations, and bf16.
//!
//! The approximations are those with `.ftz` where PTX has both: without it each costs extra instructions to scale
//! subnormals, which nothing here needs.

use super::assembler::Assembler;
use super::text::Operand;
use super::types::*;
use super::value::{Facts, IntoValue, Repr, Value};
use crate::launch::Arch;

macro_rules! unary {
    ($($(#[$doc:meta])* $method:ident: $opcode:literal;)*) => {
        impl Assembler { $(
            $(#[$doc])*
            #[track_caller]
            pub fn $method<'k>(&'k self, x: impl IntoValue<'k, F32>) -> Value<'k, F32> {
                self.compute($opcode, vec![x.into_value().operand()], Facts::NONE)
            }
        )* }
    };
}

unary! {
    /// |x|.
    abs: "abs.f32";
    /// The square root, correctly rounded.
    sqrt_rn: "sqrt.rn.f32";
    /// 1/x, correctly rounded.
    rcp_rn: "rcp.rn.f32";
    /// 1/x, within 1 ulp.
    rcp_approx: "rcp.approx.ftz.f32";
    /// 1/√x, relative error below 2⁻²².9.
    rsqrt_approx: "rsqrt.approx.ftz.f32";
    /// √x, relative error below 2⁻²³.
    sqrt_approx: "sqrt.approx.ftz.f32";
    /// 2ˣ, relative error below 2⁻²².5.
    ex2_approx: "ex2.approx.ftz.f32";
    /// log₂ x, absolute error below 2⁻²² where x is in (0.5, 2), relative error below 2⁻²² elsewhere.
    lg2_approx: "lg2.approx.ftz.f32";
    /// tanh x, relative error below 2⁻¹¹.
    tanh_approx: "tanh.approx.f32";
    /// sin x, absolute error below 2⁻²⁰.5 where |x| ≤ π.
    sin_approx: "sin.approx.ftz.f32";
    /// cos x, absolute error below 2⁻²⁰.9 where |x| ≤ π.
    cos_approx: "cos.approx.ftz.f32";
}

impl<'k> Value<'k, F32> {
    /// The bits of the float; `mov`, which costs nothing.
    #[track_caller]
    pub fn to_bits(self) -> Value<'k, U32> {
        match self.repr {
            Repr::Constant(bits) => Value::from_bits(bits),
            Repr::Register { assembler, .. } => {
                assembler.compute("mov.b32", vec![self.operand()], Facts::NONE)
            }
        }
    }

    /// Whether it is NaN.
    #[track_caller]
    pub fn is_nan(self) -> Value<'k, Pred> {
        let k = self.assembler().expect("a register");
        let sources = vec![self.operand(), self.operand()];
        k.compute("setp.nan.f32", sources, Facts::NONE)
    }

    /// Rounded to the nearest integer, ties to even.
    #[track_caller]
    pub fn round_to_s32(self) -> Value<'k, S32> {
        let k = self.assembler().expect("a register");
        k.compute("cvt.rni.s32.f32", vec![self.operand()], Facts::NONE)
    }

    /// Rounded to the nearest bf16, ties to even.
    #[track_caller]
    pub fn to_bf16(self) -> Value<'k, Bf16> {
        match self.repr {
            Repr::Constant(bits) => {
                let x = half::bf16::from_f32(f32::from_bits(bits as u32));
                Value::from_bits(u64::from(x.to_bits()))
            }
            Repr::Register { assembler, .. } => {
                assembler.compute("cvt.rn.bf16.f32", vec![self.operand()], Facts::NONE)
            }
        }
    }
}

impl<'k> Value<'k, U32> {
    /// The float with these bits.
    #[track_caller]
    pub fn to_f32_bits(self) -> Value<'k, F32> {
        match self.repr {
            Repr::Constant(bits) => Value::from_bits(bits),
            Repr::Register { assembler, .. } => {
                assembler.compute("mov.b32", vec![self.operand()], Facts::NONE)
            }
        }
    }
}

impl<'k> Value<'k, Bf16> {
    /// The same number: its bits above sixteen zeros.
    #[track_caller]
    pub fn to_f32(self) -> Value<'k, F32> {
        let k = self.assembler().expect("a register");
        let zero = Operand::text("0x0000");
        let halves = Operand::Group(vec![zero, self.operand()]);
        k.compute("mov.b32", vec![halves], Facts::NONE)
    }
}

impl<'k> Value<'k, Bf16x2> {
    /// Both numbers, the lower half's first.
    #[track_caller]
    pub fn to_f32(self) -> [Value<'k, F32>; 2] {
        let bits = self.cast::<U32>();
        let upper = bits.cast::<B32>() & 0xFFFF_0000u32;
        [
            (bits << 16).to_f32_bits(),
            upper.cast::<U32>().to_f32_bits(),
        ]
    }

    /// `mov`: the halves, the lower one first.
    #[track_caller]
    pub fn unpack(self) -> [Value<'k, Bf16>; 2] {
        let k = self.assembler().expect("a register");
        let (low, high) = (k.define(Facts::NONE), k.define(Facts::NONE));
        let halves = Operand::Group(vec![low.operand(), high.operand()]);
        k.emit("mov.b32", vec![halves], vec![self.operand()]);
        [low, high]
    }
}

impl Assembler {
    /// Two floats rounded to bf16; `low` comes to lie in the lower half, where memory has the first.
    #[track_caller]
    pub fn pack_bf16<'k>(
        &'k self,
        low: impl IntoValue<'k, F32>,
        high: impl IntoValue<'k, F32>,
    ) -> Value<'k, Bf16x2> {
        // The instruction's first source is the upper half.
        let sources = vec![high.into_value().operand(), low.into_value().operand()];
        self.compute("cvt.rn.bf16x2.f32", sources, Facts::NONE)
    }

    /// `mov`: two 16-bit values in one word, `low` in the lower half.
    #[track_caller]
    pub fn pack<'k, T: Type>(&'k self, low: Value<'k, T>, high: Value<'k, T>) -> Value<'k, B32> {
        const { assert!(T::SIZE == 2, "pack() takes 16-bit values") };
        let halves = Operand::Group(vec![low.operand(), high.operand()]);
        self.compute("mov.b32", vec![halves], Facts::NONE)
    }

    /// a·b + c of both halves, each rounded once.
    #[track_caller]
    pub fn fma_bf16x2<'k>(
        &'k self,
        a: Value<'k, Bf16x2>,
        b: Value<'k, Bf16x2>,
        c: Value<'k, Bf16x2>,
    ) -> Value<'k, Bf16x2> {
        let sources = vec![a.operand(), b.operand(), c.operand()];
        self.compute("fma.rn.bf16x2", sources, Facts::NONE)
    }

    /// The larger of both halves.
    #[track_caller]
    pub fn max_bf16x2<'k>(
        &'k self,
        a: Value<'k, Bf16x2>,
        b: Value<'k, Bf16x2>,
    ) -> Value<'k, Bf16x2> {
        self.compute("max.bf16x2", vec![a.operand(), b.operand()], Facts::NONE)
    }

    /// The sum of both halves.
    #[track_caller]
    pub fn add_bf16x2<'k>(
        &'k self,
        a: Value<'k, Bf16x2>,
        b: Value<'k, Bf16x2>,
    ) -> Value<'k, Bf16x2> {
        self.require(Arch::Sm90a, "add.rn.bf16x2");
        self.compute("add.rn.bf16x2", vec![a.operand(), b.operand()], Facts::NONE)
    }

    /// The product of both halves.
    #[track_caller]
    pub fn mul_bf16x2<'k>(
        &'k self,
        a: Value<'k, Bf16x2>,
        b: Value<'k, Bf16x2>,
    ) -> Value<'k, Bf16x2> {
        self.require(Arch::Sm90a, "mul.rn.bf16x2");
        self.compute("mul.rn.bf16x2", vec![a.operand(), b.operand()], Facts::NONE)
    }

    /// a/b, within 2 ulp, for |b| in [2⁻¹²⁶, 2¹²⁶].
    #[track_caller]
    pub fn div_full<'k>(
        &'k self,
        a: impl IntoValue<'k, F32>,
        b: impl IntoValue<'k, F32>,
    ) -> Value<'k, F32> {
        let sources = vec![a.into_value().operand(), b.into_value().operand()];
        self.compute("div.full.ftz.f32", sources, Facts::NONE)
    }
}
