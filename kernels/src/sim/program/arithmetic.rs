//! Decoding of integer, float and predicate arithmetic.

use super::super::error::Outcome;
use super::super::parse::Operand;
use super::super::parse::types::Type;
use super::Class;
use super::decode::{Decoder, width_of};
use super::modifiers::Modifiers;
use super::op::{
    Compare, Float1, Float2, FloatMode, Int1, Int2, Int3, Logic, Op, PredSource, Round, Width,
};

type Found = Outcome<Option<(Op, Class)>>;

const COMPARES: [(&str, Compare); 18] = [
    ("eq", Compare::Eq),
    ("ne", Compare::Ne),
    ("lt", Compare::Lt),
    ("le", Compare::Le),
    ("gt", Compare::Gt),
    ("ge", Compare::Ge),
    ("lo", Compare::Lt),
    ("ls", Compare::Le),
    ("hi", Compare::Gt),
    ("hs", Compare::Ge),
    ("equ", Compare::Equ),
    ("neu", Compare::Neu),
    ("ltu", Compare::Ltu),
    ("leu", Compare::Leu),
    ("gtu", Compare::Gtu),
    ("geu", Compare::Geu),
    ("num", Compare::Num),
    ("nan", Compare::Nan),
];

const LOGIC: [(&str, Logic); 3] = [("and", Logic::And), ("or", Logic::Or), ("xor", Logic::Xor)];

/// The class of an operation on `kind`.
fn class_of(kind: Type) -> Class {
    match kind {
        Type::F32 => Class::Float32,
        Type::F64 => Class::Float64,
        _ if kind.is_float() => Class::Half,
        Type::Pred => Class::Predicate,
        _ => Class::Integer,
    }
}

impl<'t> Decoder<'_, 't> {
    pub(super) fn arithmetic(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Found {
        let found = match opcode {
            "add" | "sub" | "mul" | "div" | "min" | "max" | "addc" | "subc" => {
                self.two_sided(opcode, m, operands)?
            }
            "mad" | "fma" => self.multiply_add(opcode, m, operands)?,
            "rem" | "and" | "or" | "xor" | "shl" | "shr" => {
                self.integer_two(opcode, m, operands)?
            }
            "not" | "neg" | "abs" | "popc" | "clz" | "brev" | "bfind" => {
                self.one_sided(opcode, m, operands)?
            }
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "ex2" | "lg2" | "tanh" => {
                self.special_function(opcode, m, operands)?
            }
            "lop3" | "bfe" | "bfi" | "prmt" | "shf" | "sad" => {
                self.bit_field(opcode, m, operands)?
            }
            "setp" => self.setp(m, operands)?,
            "set" => self.set(m, operands)?,
            "selp" => self.selp(m, operands)?,
            _ => return Ok(None),
        };
        Ok(Some(found))
    }

    /// # Errors
    /// A rounding other than to nearest, which no kernel of this repository needs.
    fn nearest(&self, round: Option<Round>) -> Outcome {
        match round {
            None | Some(Round::Nearest) => Ok(()),
            Some(_) => self.unsupported("of roundings of arithmetic, .rn is supported"),
        }
    }

    fn float_mode(&mut self, m: &mut Modifiers<'t>) -> FloatMode {
        FloatMode {
            ftz: m.take("ftz"),
            saturate: m.take("sat"),
            relu: m.take("relu"),
        }
    }

    fn two_sided(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<(Op, Class)> {
        if opcode == "mul" && m.take("wide") {
            let kind = m.kind()?;
            self.count::<3>(operands)?;
            let (from, double) = self.double(kind)?;
            let op = Op::MulWide {
                from,
                signed: kind.is_signed(),
                d: self.dest(&operands[0], double)?,
                a: self.source(&operands[1], kind)?,
                b: self.source(&operands[2], kind)?,
                c: None,
            };
            return Ok((op, Class::Integer));
        }
        let kind = m.kind()?;
        if !kind.is_float() {
            return self.integer_two_of(opcode, kind, m, operands);
        }
        self.count::<3>(operands)?;
        let round = m.round();
        self.nearest(round)?;
        let approximate = m.take("approx") || m.take("full");
        let mode = self.float_mode(m);
        if opcode == "div" {
            if !matches!(kind, Type::F32 | Type::F64) {
                return self.unsupported("div works on f32, f64 and integers");
            }
            if round.is_none() && !approximate {
                return self.syntax("div of floats needs .rn, .approx or .full");
            }
        }
        if approximate && opcode != "div" {
            return self.syntax(format!("{opcode} has no .approx form"));
        }
        let nan = m.take("NaN");
        let op = match (opcode, nan) {
            ("add", false) => Float2::Add,
            ("sub", false) => Float2::Sub,
            ("mul", false) => Float2::Mul,
            ("div", false) => Float2::Div,
            ("min", false) => Float2::Min,
            ("max", false) => Float2::Max,
            ("min", true) => Float2::MinNan,
            ("max", true) => Float2::MaxNan,
            _ => return self.syntax(format!("{opcode} of floats has no such form")),
        };
        if matches!(kind, Type::Bf16 | Type::Bf16x2)
            && matches!(op, Float2::Add | Float2::Sub | Float2::Mul)
        {
            self.hopper(&format!("{opcode}.bf16 (use fma.rn.bf16x2)"))?;
        }
        let class = if approximate {
            Class::Special
        } else {
            class_of(kind)
        };
        let op = Op::Float2 {
            op,
            kind,
            mode,
            d: self.dest(&operands[0], kind)?,
            a: self.source(&operands[1], kind)?,
            b: self.source(&operands[2], kind)?,
        };
        Ok((op, class))
    }

    /// The width of `kind` and the integer type of twice that.
    fn double(&self, kind: Type) -> Outcome<(Width, Type)> {
        match kind {
            Type::U16 => Ok((Width::W16, Type::U32)),
            Type::S16 => Ok((Width::W16, Type::S32)),
            Type::U32 => Ok((Width::W32, Type::U64)),
            Type::S32 => Ok((Width::W32, Type::S64)),
            _ => self.syntax(".wide needs .u16, .s16, .u32 or .s32"),
        }
    }

    fn integer_two(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<(Op, Class)> {
        let kind = m.kind()?;
        if kind == Type::Pred {
            self.count::<3>(operands)?;
            let logic = match opcode {
                "and" => Logic::And,
                "or" => Logic::Or,
                "xor" => Logic::Xor,
                _ => return self.syntax(format!("{opcode} has no .pred form")),
            };
            let op = Op::LogicPred {
                logic,
                d: self.pred_dest(&operands[0])?,
                a: self.pred(&operands[1])?,
                b: self.pred(&operands[2])?,
            };
            return Ok((op, Class::Predicate));
        }
        self.integer_two_of(opcode, kind, m, operands)
    }

    fn integer_two_of(
        &mut self,
        opcode: &str,
        kind: Type,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<(Op, Class)> {
        self.count::<3>(operands)?;
        let carry_out = m.take("cc");
        let carry_in = matches!(opcode, "addc" | "subc");
        if carry_out || carry_in {
            if kind.bytes() != 4 || kind.is_float() {
                return self.unsupported("the condition code is supported for 32 bits");
            }
            let op = Op::Carry {
                subtract: opcode.starts_with("sub"),
                carry_in,
                carry_out,
                d: self.dest(&operands[0], kind)?,
                a: self.source(&operands[1], kind)?,
                b: self.source(&operands[2], kind)?,
            };
            return Ok((op, Class::Integer));
        }
        let signed = kind.is_signed();
        let pick = |yes, no| if signed { yes } else { no };
        let high = opcode == "mul" && m.take("hi");
        if opcode == "mul" && !high && !m.take("lo") {
            return self.syntax("mul of integers needs .lo, .hi or .wide");
        }
        let op = match opcode {
            "add" => Int2::Add,
            "sub" => Int2::Sub,
            "mul" if high => pick(Int2::MulHiSigned, Int2::MulHiUnsigned),
            "mul" => Int2::MulLo,
            "div" => pick(Int2::DivSigned, Int2::DivUnsigned),
            "rem" => pick(Int2::RemSigned, Int2::RemUnsigned),
            "min" => pick(Int2::MinSigned, Int2::MinUnsigned),
            "max" => pick(Int2::MaxSigned, Int2::MaxUnsigned),
            "and" => Int2::And,
            "or" => Int2::Or,
            "xor" => Int2::Xor,
            "shl" => Int2::Shl,
            "shr" => pick(Int2::ShrSigned, Int2::ShrUnsigned),
            _ => return self.syntax(format!("{opcode} has no integer form")),
        };
        let bitwise = matches!(op, Int2::And | Int2::Or | Int2::Xor | Int2::Shl);
        if kind.is_float()
            || kind.bytes() < 2
            || bitwise != kind.is_bits() && op != Int2::ShrUnsigned
        {
            return self.syntax(format!("{opcode} has no form of this type"));
        }
        let amount = match op {
            Int2::Shl | Int2::ShrSigned | Int2::ShrUnsigned => Type::U32,
            _ => kind,
        };
        let op = Op::Int2 {
            op,
            width: width_of(kind),
            d: self.dest(&operands[0], kind)?,
            a: self.source(&operands[1], kind)?,
            b: self.source(&operands[2], amount)?,
        };
        Ok((op, Class::Integer))
    }

    fn multiply_add(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<(Op, Class)> {
        self.count::<4>(operands)?;
        if m.take("wide") {
            let kind = m.kind()?;
            let (from, double) = self.double(kind)?;
            let op = Op::MulWide {
                from,
                signed: kind.is_signed(),
                d: self.dest(&operands[0], double)?,
                a: self.source(&operands[1], kind)?,
                b: self.source(&operands[2], kind)?,
                c: Some(self.source(&operands[3], double)?),
            };
            return Ok((op, Class::Integer));
        }
        let high = m.take("hi");
        let low = m.take("lo");
        let kind = m.kind()?;
        if kind.is_float() {
            let round = m.round();
            let mode = self.float_mode(m);
            self.nearest(round)?;
            if round.is_none() {
                return self.syntax(format!("{opcode} of floats needs .rn"));
            }
            let op = Op::Fma {
                kind,
                mode,
                d: self.dest(&operands[0], kind)?,
                a: self.source(&operands[1], kind)?,
                b: self.source(&operands[2], kind)?,
                c: self.source(&operands[3], kind)?,
            };
            return Ok((op, class_of(kind)));
        }
        if opcode == "fma" || high == low || kind.is_bits() || kind.bytes() < 2 {
            return self
                .syntax("mad of integers needs .lo, .hi or .wide and a signed or unsigned type");
        }
        let op = Op::Mad {
            high,
            signed: kind.is_signed(),
            width: width_of(kind),
            d: self.dest(&operands[0], kind)?,
            a: self.source(&operands[1], kind)?,
            b: self.source(&operands[2], kind)?,
            c: self.source(&operands[3], kind)?,
        };
        Ok((op, Class::Integer))
    }

    fn one_sided(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<(Op, Class)> {
        self.count::<2>(operands)?;
        let kind = m.kind()?;
        if kind == Type::Pred && opcode == "not" {
            let a = self.pred(&operands[1])?;
            let op = Op::MovePred {
                d: self.pred_dest(&operands[0])?,
                a: PredSource {
                    negate: !a.negate,
                    ..a
                },
            };
            return Ok((op, Class::Predicate));
        }
        if kind.is_float() {
            let op = match opcode {
                "neg" => Float1::Neg,
                "abs" => Float1::Abs,
                _ => return self.syntax(format!("{opcode} has no float form")),
            };
            let mode = self.float_mode(m);
            let op = Op::Float1 {
                op,
                kind,
                mode,
                approximate: false,
                d: self.dest(&operands[0], kind)?,
                a: self.source(&operands[1], kind)?,
            };
            return Ok((op, class_of(kind)));
        }
        let signed = kind.is_signed();
        let (op, to, fits) = match opcode {
            "not" => (Int1::Not, kind, kind.is_bits()),
            "neg" => (Int1::Neg, kind, signed),
            "abs" => (Int1::Abs, kind, signed),
            "popc" => (Int1::Popc, Type::U32, kind.is_bits()),
            "clz" => (Int1::Clz, Type::U32, kind.is_bits()),
            "brev" => (Int1::Brev, kind, kind.is_bits()),
            _ if signed => (Int1::FindSigned, Type::U32, true),
            _ => (Int1::FindUnsigned, Type::U32, !kind.is_bits()),
        };
        let counts = !matches!(op, Int1::Not | Int1::Neg | Int1::Abs);
        if !fits || kind.bytes() < if counts { 4 } else { 2 } {
            return self.syntax(format!("{opcode} has no form of this type"));
        }
        let op = Op::Int1 {
            op,
            width: width_of(kind),
            d: self.dest(&operands[0], to)?,
            a: self.source(&operands[1], kind)?,
        };
        Ok((op, Class::Integer))
    }

    fn special_function(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<(Op, Class)> {
        self.count::<2>(operands)?;
        let approximate = m.take("approx");
        let round = m.round();
        let kind = m.kind()?;
        let mode = self.float_mode(m);
        let op = match opcode {
            "rcp" => Float1::Rcp,
            "sqrt" => Float1::Sqrt,
            "rsqrt" => Float1::Rsqrt,
            "sin" => Float1::Sin,
            "cos" => Float1::Cos,
            "ex2" => Float1::Ex2,
            "lg2" => Float1::Lg2,
            _ => Float1::Tanh,
        };
        let exact = matches!(op, Float1::Rcp | Float1::Sqrt) && round == Some(Round::Nearest);
        if approximate == exact {
            return self.syntax(format!("{opcode} needs .approx, or .rn for rcp and sqrt"));
        }
        let half = kind.is_float() && !matches!(kind, Type::F32 | Type::F64);
        let fits = match kind {
            Type::F32 => true,
            Type::F64 => exact,
            _ => half && approximate && matches!(op, Float1::Ex2 | Float1::Tanh),
        };
        if !fits {
            return self.unsupported(format!("{opcode} has no form of this type"));
        }
        if matches!(kind, Type::Bf16 | Type::Bf16x2) {
            self.hopper(&format!("{opcode}.bf16"))?;
        }
        let op = Op::Float1 {
            op,
            kind,
            mode,
            approximate,
            d: self.dest(&operands[0], kind)?,
            a: self.source(&operands[1], kind)?,
        };
        Ok((
            op,
            if exact {
                class_of(kind)
            } else {
                Class::Special
            },
        ))
    }

    fn bit_field(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<(Op, Class)> {
        let op = match opcode {
            "shf" => {
                let left = m.need("a direction", &[("l", true), ("r", false)])?;
                let wrap = m.need("a mode", &[("wrap", true), ("clamp", false)])?;
                match (left, wrap) {
                    (true, true) => Int3::ShfLeftWrap,
                    (true, false) => Int3::ShfLeftClamp,
                    (false, true) => Int3::ShfRightWrap,
                    (false, false) => Int3::ShfRightClamp,
                }
            }
            "prmt" => Int3::Prmt,
            _ => Int3::Lop3(0),
        };
        let kind = m.kind()?;
        if kind.bytes() != 4 || kind.is_float() {
            return self.unsupported(format!("{opcode} is supported for 32 bits"));
        }
        if opcode == "bfi" {
            self.count::<5>(operands)?;
            let op = Op::Insert {
                d: self.dest(&operands[0], kind)?,
                a: self.source(&operands[1], kind)?,
                b: self.source(&operands[2], kind)?,
                start: self.source(&operands[3], Type::U32)?,
                length: self.source(&operands[4], Type::U32)?,
            };
            return Ok((op, Class::Integer));
        }
        let op = match opcode {
            "lop3" => {
                self.count::<5>(operands)?;
                let table = self.immediate(&operands[4])?;
                if table > 255 {
                    return self.syntax(format!("lop3's table {table} has more than 8 bits"));
                }
                Int3::Lop3(table as u8)
            }
            "bfe" if kind.is_signed() => Int3::BfeSigned,
            "bfe" => Int3::BfeUnsigned,
            "sad" if kind.is_signed() => Int3::SadSigned,
            "sad" => Int3::SadUnsigned,
            _ => op,
        };
        if opcode != "lop3" {
            self.count::<4>(operands)?;
        }
        let small = if opcode == "bfe" { Type::U32 } else { kind };
        let op = Op::Int3 {
            op,
            d: self.dest(&operands[0], kind)?,
            a: self.source(&operands[1], kind)?,
            b: self.source(&operands[2], small)?,
            c: self.source(&operands[3], if opcode == "sad" { kind } else { Type::B32 })?,
        };
        Ok((op, Class::Integer))
    }

    /// Refuses comparisons that a type does not have.
    fn comparison(&self, compare: Compare, kind: Type) -> Outcome {
        let unordered = matches!(
            compare,
            Compare::Equ
                | Compare::Neu
                | Compare::Ltu
                | Compare::Leu
                | Compare::Gtu
                | Compare::Geu
                | Compare::Num
                | Compare::Nan
        );
        let equality = matches!(compare, Compare::Eq | Compare::Ne);
        if kind.bytes() < 2
            || unordered && !kind.is_float()
            || kind.is_bits() && !equality
            || matches!(kind, Type::F16x2 | Type::Bf16x2)
        {
            return self.syntax("this type has no such comparison");
        }
        Ok(())
    }

    fn setp(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<(Op, Class)> {
        let logic = m.any(&LOGIC);
        let compare = m.need("a comparison", &COMPARES)?;
        let ftz = m.take("ftz");
        let kind = m.kind()?;
        self.comparison(compare, kind)?;
        match logic {
            Some(_) => self.count::<4>(operands)?,
            None => self.count::<3>(operands)?,
        }
        let (d, not_d) = match &operands[0] {
            Operand::Pair(d, not_d) => (self.pred_dest(d)?, Some(self.pred_dest(not_d)?)),
            d => (self.pred_dest(d)?, None),
        };
        let a = self.source(&operands[1], kind)?;
        let b = self.source(&operands[2], kind)?;
        let combine = match logic {
            Some(logic) => Some((logic, self.pred(&operands[3])?)),
            None => None,
        };
        let op = Op::Setp {
            compare,
            kind,
            ftz,
            d,
            not_d,
            a,
            b,
            combine,
        };
        Ok((op, Class::Predicate))
    }

    fn set(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<(Op, Class)> {
        self.count::<3>(operands)?;
        let compare = m.need("a comparison", &COMPARES)?;
        let ftz = m.take("ftz");
        let to = m.kind()?;
        let kind = m.kind()?;
        self.comparison(compare, kind)?;
        if !matches!(to, Type::U32 | Type::S32 | Type::F32) {
            return self.unsupported("set is supported to .u32, .s32 and .f32");
        }
        let op = Op::Set {
            compare,
            kind,
            ftz,
            float: to == Type::F32,
            d: self.dest(&operands[0], to)?,
            a: self.source(&operands[1], kind)?,
            b: self.source(&operands[2], kind)?,
        };
        Ok((op, Class::Predicate))
    }

    fn selp(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<(Op, Class)> {
        self.count::<4>(operands)?;
        let kind = m.kind()?;
        if kind.bytes() < 2 || kind.bytes() > 8 {
            return self.syntax("selp works on 16, 32 and 64 bits");
        }
        let op = Op::Select {
            width: width_of(kind),
            d: self.dest(&operands[0], kind)?,
            a: self.source(&operands[1], kind)?,
            b: self.source(&operands[2], kind)?,
            p: self.pred(&operands[3])?,
        };
        Ok((op, Class::Predicate))
    }
}
