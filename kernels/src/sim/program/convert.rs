//! Decoding of conversions between types and between address spaces.

use super::super::error::Outcome;
use super::super::parse::Operand;
use super::super::parse::types::Type;
use super::decode::{Decoder, Place};
use super::modifiers::Modifiers;
use super::op::{FloatMode, Op, Round};
use super::{Class, PARAM_WINDOW, SHARED_WINDOW};

impl<'t> Decoder<'_, 't> {
    pub(super) fn conversion(
        &mut self,
        opcode: &str,
        m: &mut Modifiers<'t>,
        operands: &[Operand<'t>],
    ) -> Outcome<Option<(Op, Class)>> {
        match opcode {
            "cvt" => Ok(Some((self.cvt(m, operands)?, Class::Convert))),
            "cvta" => Ok(Some((self.cvta(m, operands)?, Class::Move))),
            _ => Ok(None),
        }
    }

    fn cvt(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<Op> {
        let integer_round = m.any(&[
            ("rni", Round::Nearest),
            ("rzi", Round::Zero),
            ("rmi", Round::Down),
            ("rpi", Round::Up),
        ]);
        let float_round = m.round();
        let mode = FloatMode {
            ftz: m.take("ftz"),
            saturate: m.take("sat"),
            relu: m.take("relu"),
        };
        let to = m.kind()?;
        let from = m.kind()?;
        if matches!(to, Type::Bf16x2 | Type::F16x2) {
            self.count::<3>(operands)?;
            let Some(round @ (Round::Nearest | Round::Zero)) = float_round else {
                return self.syntax("a conversion to two halves needs .rn or .rz");
            };
            if from != Type::F32 || mode.ftz || mode.saturate {
                return self
                    .unsupported("two halves are made from two .f32, without .ftz and .sat");
            }
            return Ok(Op::ConvertPair {
                to,
                round,
                relu: mode.relu,
                d: self.dest(&operands[0], to)?,
                high: self.source(&operands[1], Type::F32)?,
                low: self.source(&operands[2], Type::F32)?,
            });
        }
        self.count::<2>(operands)?;
        if matches!(to, Type::Pred | Type::B128) || matches!(from, Type::Pred | Type::B128) {
            return self.syntax("cvt works on integers and floats");
        }
        let to_integer = !to.is_float() && from.is_float();
        let rounds = match (from.is_float(), to.is_float()) {
            // Between floats: only towards fewer bits, or to an integer value of the same type.
            (true, true) => to.bytes() < from.bytes() || integer_round.is_some(),
            (false, true) | (true, false) => true,
            (false, false) => false,
        };
        let round = match (integer_round, float_round) {
            (Some(round), None) if to_integer || from.is_float() && to == from => round,
            (None, Some(round)) if to.is_float() && rounds => round,
            (None, None) if !rounds => Round::Nearest,
            (None, None) => {
                return self.syntax("this conversion needs a rounding such as .rn or .rzi");
            }
            _ => return self.syntax("this conversion does not take that rounding"),
        };
        let bf16_and_integers =
            |x: Type, y: Type| x == Type::Bf16 && !matches!(y, Type::F32 | Type::Bf16);
        if bf16_and_integers(to, from) || bf16_and_integers(from, to) {
            self.hopper("conversion between bf16 and anything but f32")?;
        }
        let (d, _) = self.relaxed_dest(&operands[0], to)?;
        let (a, _) = self.relaxed(&operands[1], from)?;
        Ok(Op::Convert {
            from,
            to,
            round,
            integer_round: integer_round.is_some(),
            mode,
            d,
            a,
        })
    }

    fn cvta(&mut self, m: &mut Modifiers<'t>, operands: &[Operand<'t>]) -> Outcome<Op> {
        self.count::<2>(operands)?;
        let to_space = m.take("to");
        let window = m.need(
            "a state space",
            &[
                ("global", 0),
                ("const", 0),
                ("shared", SHARED_WINDOW),
                ("shared::cta", SHARED_WINDOW),
                ("shared::cluster", SHARED_WINDOW),
                ("param", PARAM_WINDOW),
                ("param::entry", PARAM_WINDOW),
            ],
        )?;
        let kind = m.kind()?;
        if kind != Type::U64 {
            return self.unsupported("addresses have 64 bits: use cvta.….u64");
        }
        let d = self.dest(&operands[0], kind)?;
        let a = match &operands[1] {
            Operand::Name(name, None) if !to_space => match self.place(name) {
                Some(Place::Shared(address)) => self.constant(u64::from(address), true)?,
                Some(Place::Global(address) | Place::Const(address)) => {
                    self.constant(address, true)?
                }
                Some(Place::Param(offset, _)) => self.constant(u64::from(offset), true)?,
                None => return self.syntax(format!("{name} is not declared")),
            },
            operand => self.source(operand, kind)?,
        };
        Ok(if to_space {
            Op::AddressSub {
                d,
                a,
                wide: true,
                window,
            }
        } else {
            Op::AddressAdd {
                d,
                a,
                wide: true,
                window,
            }
        })
    }
}
