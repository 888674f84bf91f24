//! Conversions between types, and moves that only rearrange bits.

use super::super::parse::types::Type;
use super::super::program::op::{Op, Round, SINK, Width};
use super::float::{NAN32, from_bf16, from_f16, odd_f32, to_bf16, to_f16};
use super::integer::{map, zip};
use super::registers::{Registers, Validity, halves, whole};

/// A value between types: integers exactly, floats as f64.
#[derive(Clone, Copy)]
enum Value {
    Int(i128),
    Float(f64),
}

/// Executes `op` if it converts or moves between registers, on the lanes of `mask`.
pub fn execute(r: &mut Registers, op: &Op, mask: u32) -> bool {
    match *op {
        Op::Move {
            width: Width::W64,
            d,
            a,
        } => {
            let (value, valid) = (*r.get64(a), r.valid64(a));
            // A half-valid pair stays half valid.
            let parts = [r.validity(a), r.validity(a + 1)];
            r.set64(d, &value, valid, mask);
            if valid & mask != mask {
                let value = [*r.get(d), *r.get(d + 1)];
                r.set(d, &value[0], parts[0], mask);
                r.set(d + 1, &value[1], parts[1], mask);
            }
        }
        Op::Move { d, a, .. } => {
            let (value, validity) = (*r.get(a), r.validity(a));
            r.set(d, &value, validity, mask);
        }
        Op::Pack16 { d, a: [low, high] } => {
            let value = zip(r.get(low), r.get(high), |l, h| l & 0xFFFF | h << 16);
            let validity = low_half(r, low) | low_half(r, high) << 32;
            r.set(d, &value, validity, mask);
        }
        Op::Unpack16 { d: [low, high], a } => {
            let (value, validity) = (*r.get(a), r.validity(a));
            set16(r, low, &map(&value, |v| v & 0xFFFF), validity as u32, mask);
            set16(
                r,
                high,
                &map(&value, |v| v >> 16),
                (validity >> 32) as u32,
                mask,
            );
        }
        Op::Pack32 { d, a: [low, high] } => {
            let value = zip(r.get(low), r.get(high), |l, h| {
                u64::from(h) << 32 | u64::from(l)
            });
            let parts = [r.validity(low), r.validity(high)];
            set_parts(r, d, &value, parts, mask);
        }
        Op::Unpack32 { d: [low, high], a } => {
            let value = *r.get64(a);
            let parts = [r.validity(a), r.validity(a + 1)];
            // 64-bit registers keep both words' validity, each under its own slot.
            if low != SINK {
                r.set(low, &map(&value, |v| v as u32), parts[0], mask);
            }
            if high != SINK {
                r.set(high, &map(&value, |v| (v >> 32) as u32), parts[1], mask);
            }
        }
        Op::Pack4x16 { d, a } => {
            let mut value = [0u64; 32];
            for (i, slot) in a.into_iter().enumerate() {
                for (value, part) in value.iter_mut().zip(r.get(slot)) {
                    *value |= u64::from(part & 0xFFFF) << (16 * i);
                }
            }
            let half = a.map(|slot| low_half(r, slot));
            let parts = [half[0] | half[1] << 32, half[2] | half[3] << 32];
            set_parts(r, d, &value, parts, mask);
        }
        Op::Unpack4x16 { d, a } => {
            let value = *r.get64(a);
            let parts = [r.validity(a), r.validity(a + 1)];
            for (i, slot) in d.into_iter().enumerate() {
                let valid = (parts[i / 2] >> (32 * (i % 2))) as u32;
                let part = map(&value, |v| (v >> (16 * i)) as u32 & 0xFFFF);
                set16(r, slot, &part, valid, mask);
            }
        }
        Op::Select {
            width: Width::W64,
            d,
            a,
            b,
            p,
        } => {
            let (p, p_valid) = r.pred(p);
            let (x, y) = (*r.get64(a), *r.get64(b));
            let mut value = y;
            for lane in 0..32 {
                if p >> lane & 1 != 0 {
                    value[lane] = x[lane];
                }
            }
            let valid = (r.valid64(a) & p | r.valid64(b) & !p) & p_valid;
            r.set64(d, &value, valid, mask);
        }
        Op::Select { d, a, b, p, .. } => {
            let (p, p_valid) = r.pred(p);
            let (x, y) = (r.get(a), r.get(b));
            let mut value = [0; 32];
            for lane in 0..32 {
                let keep = (p >> lane & 1).wrapping_neg();
                value[lane] = x[lane] & keep | y[lane] & !keep;
            }
            let p = halves(p);
            let validity = (r.validity(a) & p | r.validity(b) & !p) & halves(p_valid);
            r.set(d, &value, validity, mask);
        }
        Op::MovePred { d, a } => {
            let (value, valid) = r.pred(a);
            r.set_pred(d, value, valid, mask);
        }
        Op::LogicPred { logic, d, a, b } => {
            use super::super::program::op::Logic;
            let ((x, x_valid), (y, y_valid)) = (r.pred(a), r.pred(b));
            let value = match logic {
                Logic::And => x & y,
                Logic::Or => x | y,
                Logic::Xor => x ^ y,
            };
            r.set_pred(d, value, x_valid & y_valid, mask);
        }
        Op::AddressAdd { d, a, window, .. } => {
            let value = map(r.get64(a), |a| a.wrapping_add(window));
            let valid = r.valid64(a);
            r.set64(d, &value, valid, mask);
        }
        Op::AddressSub { d, a, window, .. } => {
            let value = map(r.get64(a), |a| a.wrapping_sub(window));
            let valid = r.valid64(a);
            r.set64(d, &value, valid, mask);
        }
        Op::ConvertPair {
            to,
            round,
            relu,
            d,
            high,
            low,
        } => {
            let to_half = |bits: u32| {
                let x = f32::from_bits(bits);
                let x = if relu && x < 0.0 { 0.0 } else { x };
                u32::from(narrow16(to, round, x))
            };
            let value = zip(r.get(high), r.get(low), |h, l| {
                to_half(h) << 16 | to_half(l)
            });
            let validity = u64::from(r.valid(low)) | u64::from(r.valid(high)) << 32;
            r.set(d, &value, validity, mask);
        }
        Op::Convert {
            from,
            to,
            round,
            integer_round,
            mode,
            d,
            a,
        } => {
            let plain = !mode.saturate && !mode.relu && !mode.ftz && !integer_round;
            let near = round == Round::Nearest;
            let valid = match from.bytes() {
                8 => r.valid64(a),
                4 => r.valid(a),
                _ => r.validity(a) as u32,
            };
            match (from, to) {
                (Type::Bf16, Type::F32) if plain => {
                    let value = map(r.get(a), |v| canonical(from_bf16(v as u16)));
                    r.set(d, &value, halves(valid), mask);
                }
                (Type::F32, Type::Bf16) if plain && near => {
                    let value = map(r.get(a), |v| u32::from(to_bf16(f32::from_bits(v))));
                    r.set(d, &value, halves(valid), mask);
                }
                (Type::U32, Type::F32) if plain && near => {
                    let value = map(r.get(a), |v| (v as f32).to_bits());
                    r.set(d, &value, halves(valid), mask);
                }
                (Type::S32, Type::F32) if plain && near => {
                    let value = map(r.get(a), |v| (v as i32 as f32).to_bits());
                    r.set(d, &value, halves(valid), mask);
                }
                (Type::U32, Type::U64) if plain => {
                    let value = map(r.get(a), u64::from);
                    r.set64(d, &value, valid, mask);
                }
                (Type::S32, Type::S64) if plain => {
                    let value = map(r.get(a), |v| v as i32 as i64 as u64);
                    r.set64(d, &value, valid, mask);
                }
                (Type::U64 | Type::S64, Type::U32 | Type::S32) if plain => {
                    let value = map(r.get64(a), |v| v as u32);
                    r.set(d, &value, halves(valid), mask);
                }
                _ => any(r, op, valid, mask),
            }
        }
        _ => return false,
    }
    true
}

fn canonical(x: f32) -> u32 {
    if x.is_nan() { NAN32 } else { x.to_bits() }
}

/// Validity of the low halves, as low word.
fn low_half(r: &Registers, slot: u32) -> Validity {
    r.validity(slot) & 0xFFFF_FFFF
}

fn set16(r: &mut Registers, slot: u32, value: &[u32; 32], valid: u32, mask: u32) {
    if slot != SINK {
        r.set(slot, value, halves(valid), mask);
    }
}

/// Writes a 64-bit register of which each word has a validity of its own.
fn set_parts(r: &mut Registers, d: u32, value: &[u64; 32], parts: [Validity; 2], mask: u32) {
    let valid = whole(parts[0] & parts[1]);
    r.set64(d, value, valid, mask);
    if valid & mask != mask {
        let written = [*r.get(d), *r.get(d + 1)];
        r.set(d, &written[0], parts[0], mask);
        r.set(d + 1, &written[1], parts[1], mask);
    }
}

/// An f32 as a 16-bit float.
fn narrow16(to: Type, round: Round, x: f32) -> u16 {
    let bf16 = matches!(to, Type::Bf16 | Type::Bf16x2);
    match round {
        Round::Nearest if bf16 => to_bf16(x),
        Round::Nearest => to_f16(x),
        _ if bf16 && x.is_nan() => 0x7FFF,
        _ if bf16 => (x.to_bits() >> 16) as u16,
        // Towards zero: the nearest, and one step back where that went too far.
        _ => {
            let near = to_f16(x);
            let too_far = from_f16(near).abs() > x.abs();
            near - u16::from(too_far)
        }
    }
}

/// Every other conversion, by way of [`Value`].
fn any(r: &mut Registers, op: &Op, valid: u32, mask: u32) {
    let Op::Convert {
        from,
        to,
        round,
        integer_round,
        mode,
        d,
        a,
    } = *op
    else {
        return;
    };
    let source = |lane: usize| -> u64 {
        match from.bytes() {
            8 => r.get64(a)[lane],
            _ => u64::from(r.get(a)[lane]),
        }
    };
    let mut value = [0u64; 32];
    for (lane, value) in value.iter_mut().enumerate() {
        let flushed = |x: f64, kind: Type| {
            let tiny = mode.ftz && kind == Type::F32 && x.abs() < f64::from(f32::MIN_POSITIVE);
            if tiny { 0.0f64.copysign(x) } else { x }
        };
        let mut v = match read(source(lane), from) {
            Value::Float(x) => Value::Float(flushed(x, from)),
            v => v,
        };
        if let Value::Float(x) = v
            && (integer_round || !to.is_float())
        {
            let rounded = match round {
                Round::Nearest => x.round_ties_even(),
                Round::Zero => x.trunc(),
                Round::Down => x.floor(),
                Round::Up => x.ceil(),
            };
            v = Value::Float(rounded);
        }
        if let Value::Float(x) = v
            && to.is_float()
        {
            let x = if mode.saturate {
                if x > 0.0 { x.min(1.0) } else { 0.0 }
            } else {
                x
            };
            let x = if mode.relu && x < 0.0 { 0.0 } else { x };
            v = Value::Float(flushed(x, to));
        }
        *value = write(v, to, round, mode.saturate);
    }
    if to.bytes() == 8 {
        r.set64(d, &value, valid, mask);
    } else {
        r.set(d, &map(&value, |v| v as u32), halves(valid), mask);
    }
}

fn read(bits: u64, kind: Type) -> Value {
    match kind {
        Type::F64 => Value::Float(f64::from_bits(bits)),
        Type::F32 => Value::Float(f64::from(f32::from_bits(bits as u32))),
        Type::Bf16 => Value::Float(f64::from(from_bf16(bits as u16))),
        Type::F16 => Value::Float(f64::from(from_f16(bits as u16))),
        _ => {
            let unused = 64 - 8 * kind.bytes();
            Value::Int(if kind.is_signed() {
                i128::from((bits << unused) as i64 >> unused)
            } else {
                i128::from(bits << unused >> unused)
            })
        }
    }
}

/// Bits of `value` in type `to`, extended by its sign to 64 bits.
fn write(value: Value, to: Type, round: Round, saturate: bool) -> u64 {
    let bits = 8 * to.bytes();
    let (low, high) = if to.is_signed() {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    };
    match (value, to) {
        (Value::Int(v), Type::F64) => (v as f64).to_bits(),
        (Value::Int(v), Type::F32) => u64::from((v as f32).to_bits()),
        // Integers of up to 24 bits are exact in f32, larger ones overflow f16 or keep 8 bits in bf16.
        (Value::Int(v), Type::F16 | Type::Bf16) => {
            u64::from(narrow16(to, round, odd_f32(v as f64)))
        }
        (Value::Float(x), Type::F64) => x.to_bits(),
        (Value::Float(x), Type::F32) => u64::from(canonical(x as f32)),
        (Value::Float(x), Type::F16 | Type::Bf16) => u64::from(narrow16(to, round, odd_f32(x))),
        (Value::Int(v), _) if saturate => v.clamp(low, high) as u64,
        (Value::Int(v), _) if to.is_signed() => (v << (128 - bits) >> (128 - bits)) as u64,
        (Value::Int(v), _) => v as u64 & high as u64,
        // A conversion from float clamps, and takes NaN as 0.
        (Value::Float(x), _) => (x as i128).clamp(low, high) as u64,
    }
}
