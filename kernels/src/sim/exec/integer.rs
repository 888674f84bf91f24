//! Integer arithmetic and bits, on all lanes of a warp at once.

use super::super::parse::types::Type;
use super::super::program::op::{Compare, Int1, Int2, Int3, Logic, Op, Width};
use super::registers::{Registers, Validity, halves, whole};

/// An unsigned integer of a register's width, and its signed twin.
trait Word: Copy + Default {
    fn binary(op: Int2, a: &[Self; 32], b: &[Self; 32]) -> [Self; 32];
    fn unary(op: Int1, a: &[Self; 32]) -> [Self; 32];
    fn mad(high: bool, signed: bool, a: &[Self; 32], b: &[Self; 32], c: &[Self; 32]) -> [Self; 32];
}

#[inline(always)]
pub fn map<A: Copy, R: Copy + Default>(a: &[A; 32], f: impl Fn(A) -> R) -> [R; 32] {
    let mut r = [R::default(); 32];
    for lane in 0..32 {
        r[lane] = f(a[lane]);
    }
    r
}

#[inline(always)]
pub fn zip<A: Copy, B: Copy, R: Copy + Default>(
    a: &[A; 32],
    b: &[B; 32],
    f: impl Fn(A, B) -> R,
) -> [R; 32] {
    let mut r = [R::default(); 32];
    for lane in 0..32 {
        r[lane] = f(a[lane], b[lane]);
    }
    r
}

#[inline(always)]
pub fn zip3<A: Copy, B: Copy, C: Copy, R: Copy + Default>(
    a: &[A; 32],
    b: &[B; 32],
    c: &[C; 32],
    f: impl Fn(A, B, C) -> R,
) -> [R; 32] {
    let mut r = [R::default(); 32];
    for lane in 0..32 {
        r[lane] = f(a[lane], b[lane], c[lane]);
    }
    r
}

macro_rules! word {
    ($unsigned:ty, $signed:ty, $double:ty, $double_signed:ty) => {
        impl Word for $unsigned {
            #[inline(always)]
            fn binary(op: Int2, a: &[Self; 32], b: &[Self; 32]) -> [Self; 32] {
                const BITS: u32 = <$unsigned>::BITS;
                type S = $signed;
                match op {
                    Int2::Add => zip(a, b, |a, b| a.wrapping_add(b)),
                    Int2::Sub => zip(a, b, |a, b| a.wrapping_sub(b)),
                    Int2::MulLo => zip(a, b, |a, b| a.wrapping_mul(b)),
                    Int2::MulHiUnsigned => zip(a, b, |a, b| {
                        (a as $double * b as $double >> BITS) as $unsigned
                    }),
                    Int2::MulHiSigned => zip(a, b, |a, b| {
                        (a as S as $double_signed * b as S as $double_signed >> BITS) as $unsigned
                    }),
                    Int2::MinUnsigned => zip(a, b, |a, b| a.min(b)),
                    Int2::MaxUnsigned => zip(a, b, |a, b| a.max(b)),
                    Int2::MinSigned => zip(a, b, |a, b| (a as S).min(b as S) as $unsigned),
                    Int2::MaxSigned => zip(a, b, |a, b| (a as S).max(b as S) as $unsigned),
                    Int2::And => zip(a, b, |a, b| a & b),
                    Int2::Or => zip(a, b, |a, b| a | b),
                    Int2::Xor => zip(a, b, |a, b| a ^ b),
                    // Shifts by the width and more are defined in PTX: the amount is clamped.
                    Int2::Shl => zip(a, b, |a, b| if b < BITS as $unsigned { a << b } else { 0 }),
                    Int2::ShrUnsigned => {
                        zip(a, b, |a, b| if b < BITS as $unsigned { a >> b } else { 0 })
                    }
                    Int2::ShrSigned => zip(a, b, |a, b| {
                        (a as S >> b.min(BITS as $unsigned - 1)) as $unsigned
                    }),
                    // Division by zero gives unspecified bits; all ones are what the hardware's sequence gives.
                    Int2::DivUnsigned => zip(a, b, |a, b| a.checked_div(b).unwrap_or(!0)),
                    Int2::RemUnsigned => zip(a, b, |a, b| a.checked_rem(b).unwrap_or(a)),
                    Int2::DivSigned => zip(a, b, |a, b| {
                        if b == 0 {
                            !0
                        } else {
                            (a as S).wrapping_div(b as S) as $unsigned
                        }
                    }),
                    Int2::RemSigned => zip(a, b, |a, b| {
                        if b == 0 {
                            a
                        } else {
                            (a as S).wrapping_rem(b as S) as $unsigned
                        }
                    }),
                }
            }

            #[inline(always)]
            fn unary(op: Int1, a: &[Self; 32]) -> [Self; 32] {
                const BITS: u32 = <$unsigned>::BITS;
                let find = |a: $unsigned| match a {
                    0 => !0,
                    a => (BITS - 1 - a.leading_zeros()) as $unsigned,
                };
                match op {
                    Int1::Not => map(a, |a| !a),
                    Int1::Neg => map(a, |a| a.wrapping_neg()),
                    Int1::Abs => map(a, |a| (a as $signed).wrapping_abs() as $unsigned),
                    Int1::Popc => map(a, |a| a.count_ones() as $unsigned),
                    Int1::Clz => map(a, |a| a.leading_zeros() as $unsigned),
                    Int1::Brev => map(a, |a| a.reverse_bits()),
                    Int1::FindUnsigned => map(a, find),
                    Int1::FindSigned => map(a, |a| find(if (a as $signed) < 0 { !a } else { a })),
                }
            }

            #[inline(always)]
            fn mad(
                high: bool,
                signed: bool,
                a: &[Self; 32],
                b: &[Self; 32],
                c: &[Self; 32],
            ) -> [Self; 32] {
                let product = match (high, signed) {
                    (false, _) => Self::binary(Int2::MulLo, a, b),
                    (true, false) => Self::binary(Int2::MulHiUnsigned, a, b),
                    (true, true) => Self::binary(Int2::MulHiSigned, a, b),
                };
                zip(&product, c, |p, c| p.wrapping_add(c))
            }
        }
    };
}

word!(u16, i16, u32, i32);
word!(u32, i32, u64, i64);
word!(u64, i64, u128, i128);

fn narrow(a: &[u32; 32]) -> [u16; 32] {
    map(a, |a| a as u16)
}

fn widen(a: [u16; 32]) -> [u32; 32] {
    map(&a, u32::from)
}

/// Valid where all halves of both are.
#[inline(always)]
fn both(a: Validity, b: Validity) -> Validity {
    halves(whole(a & b))
}

/// Executes `op` if it is integer arithmetic, on the lanes of `mask`.
pub fn execute(r: &mut Registers, op: &Op, mask: u32) -> bool {
    match *op {
        Op::Int2 {
            op,
            width: Width::W32,
            d,
            a,
            b,
        } => {
            let validity = int2_validity(r, op, a, b);
            let value = u32::binary(op, r.get(a), r.get(b));
            r.set(d, &value, validity, mask);
        }
        Op::Int2 {
            op,
            width: Width::W64,
            d,
            a,
            b,
        } => {
            let shift = matches!(op, Int2::Shl | Int2::ShrSigned | Int2::ShrUnsigned);
            let (value, valid) = if shift {
                let amount = map(r.get(b), u64::from);
                (
                    u64::binary(op, r.get64(a), &amount),
                    r.valid64(a) & r.valid(b),
                )
            } else {
                (
                    u64::binary(op, r.get64(a), r.get64(b)),
                    r.valid64(a) & r.valid64(b),
                )
            };
            r.set64(d, &value, valid, mask);
        }
        Op::Int2 {
            op,
            width: Width::W16,
            d,
            a,
            b,
        } => {
            let amounts = map(r.get(b), |b| b.min(0xFFFF) as u16);
            let shift = matches!(op, Int2::Shl | Int2::ShrSigned | Int2::ShrUnsigned);
            let b16 = if shift { amounts } else { narrow(r.get(b)) };
            let value = widen(u16::binary(op, &narrow(r.get(a)), &b16));
            r.set(d, &value, both(r.validity(a), r.validity(b)), mask);
        }
        Op::Int1 {
            op,
            width: Width::W32,
            d,
            a,
        } => {
            let value = u32::unary(op, r.get(a));
            r.set(d, &value, both(r.validity(a), !0), mask);
        }
        Op::Int1 {
            op,
            width: Width::W16,
            d,
            a,
        } => {
            let value = widen(u16::unary(op, &narrow(r.get(a))));
            r.set(d, &value, both(r.validity(a), !0), mask);
        }
        Op::Int1 {
            op,
            width: Width::W64,
            d,
            a,
        } => {
            let (value, valid) = (u64::unary(op, r.get64(a)), r.valid64(a));
            if matches!(op, Int1::Not | Int1::Neg | Int1::Abs | Int1::Brev) {
                r.set64(d, &value, valid, mask);
            } else {
                r.set(d, &map(&value, |v| v as u32), halves(valid), mask);
            }
        }
        Op::Int3 { op, d, a, b, c } => {
            let validity = match op {
                Int3::Lop3(_) => r.validity(a) & r.validity(b) & r.validity(c),
                _ => both(r.validity(a) & r.validity(b), r.validity(c)),
            };
            let value = int3(op, r.get(a), r.get(b), r.get(c));
            let validity = match op {
                Int3::Prmt => permuted_validity(r, a, b, c),
                _ => validity,
            };
            r.set(d, &value, validity, mask);
        }
        Op::Insert {
            d,
            a,
            b,
            start,
            length,
        } => {
            let mut value = [0; 32];
            let (av, bv, sv, lv) = (r.get(a), r.get(b), r.get(start), r.get(length));
            for lane in 0..32 {
                let (start, length) = (sv[lane] & 0xFF, lv[lane] & 0xFF);
                let field = ((1u64 << length.min(32)) - 1) << start.min(63);
                let moved = u64::from(av[lane]) << start.min(63);
                value[lane] = (moved & field) as u32 | bv[lane] & !(field as u32);
            }
            let validity = both(
                r.validity(a) & r.validity(b),
                r.validity(start) & r.validity(length),
            );
            r.set(d, &value, validity, mask);
        }
        Op::Mad {
            high,
            signed,
            width: Width::W32,
            d,
            a,
            b,
            c,
        } => {
            let value = u32::mad(high, signed, r.get(a), r.get(b), r.get(c));
            let validity = both(r.validity(a) & r.validity(b), r.validity(c));
            r.set(d, &value, validity, mask);
        }
        Op::Mad {
            high,
            signed,
            width: Width::W16,
            d,
            a,
            b,
            c,
        } => {
            let [x, y, z] = [a, b, c].map(|s| narrow(r.get(s)));
            let value = widen(u16::mad(high, signed, &x, &y, &z));
            let validity = both(r.validity(a) & r.validity(b), r.validity(c));
            r.set(d, &value, validity, mask);
        }
        Op::Mad {
            high,
            signed,
            width: Width::W64,
            d,
            a,
            b,
            c,
        } => {
            let value = u64::mad(high, signed, r.get64(a), r.get64(b), r.get64(c));
            let valid = r.valid64(a) & r.valid64(b) & r.valid64(c);
            r.set64(d, &value, valid, mask);
        }
        Op::MulWide {
            from: Width::W16,
            signed,
            d,
            a,
            b,
            c,
        } => {
            let product = zip(r.get(a), r.get(b), |a, b| {
                if signed {
                    (i32::from(a as i16) * i32::from(b as i16)) as u32
                } else {
                    (a & 0xFFFF) * (b & 0xFFFF)
                }
            });
            let (value, third) = match c {
                Some(c) => (
                    zip(&product, r.get(c), |p, c| p.wrapping_add(c)),
                    r.validity(c),
                ),
                None => (product, !0),
            };
            r.set(d, &value, both(r.validity(a) & r.validity(b), third), mask);
        }
        Op::MulWide {
            signed, d, a, b, c, ..
        } => {
            let product = zip(r.get(a), r.get(b), |a, b| {
                if signed {
                    (i64::from(a as i32) * i64::from(b as i32)) as u64
                } else {
                    u64::from(a) * u64::from(b)
                }
            });
            let (value, third) = match c {
                Some(c) => (
                    zip(&product, r.get64(c), |p, c| p.wrapping_add(c)),
                    r.valid64(c),
                ),
                None => (product, !0),
            };
            r.set64(d, &value, r.valid(a) & r.valid(b) & third, mask);
        }
        Op::Carry {
            subtract,
            carry_in,
            carry_out,
            d,
            a,
            b,
        } => {
            let (mut value, mut carry) = ([0; 32], 0);
            let (av, bv) = (r.get(a), r.get(b));
            for lane in 0..32 {
                let c = u64::from(carry_in && r.carry >> lane & 1 != 0);
                let (x, y) = (u64::from(av[lane]), u64::from(bv[lane]));
                let sum = if subtract {
                    x.wrapping_sub(y).wrapping_sub(c)
                } else {
                    x + y + c
                };
                value[lane] = sum as u32;
                carry |= u32::from(sum >> 32 != 0) << lane;
            }
            if carry_out {
                r.carry = carry & mask | r.carry & !mask;
            }
            r.set(d, &value, both(r.validity(a), r.validity(b)), mask);
        }
        Op::Setp {
            compare,
            kind,
            d,
            not_d,
            a,
            b,
            combine,
            ..
        } if !kind.is_float() => {
            let valid = compare_valid(r, kind, a, b);
            let holds = compare_integers(r, compare, kind, a, b);
            set_compared(r, holds, valid, d, not_d, combine, mask);
        }
        Op::Set {
            compare,
            kind,
            float,
            d,
            a,
            b,
            ..
        } if !kind.is_float() => {
            let valid = compare_valid(r, kind, a, b);
            let holds = compare_integers(r, compare, kind, a, b);
            set_register(r, holds, valid, float, d, mask);
        }
        _ => return false,
    }
    true
}

/// What is valid after `a op b`: masks and shifts by constants may drop the invalid half.
#[inline(always)]
fn int2_validity(r: &Registers, op: Int2, a: u32, b: u32) -> Validity {
    let (va, vb) = (r.validity(a), r.validity(b));
    if va & vb == !0 {
        return !0;
    }
    match op {
        Int2::Or | Int2::Xor => va & vb,
        Int2::And => {
            // A half ANDed with a valid zero is a valid zero.
            let zero = |slot| {
                let value = r.get(slot);
                (0..32).fold(0, |z: u64, lane| {
                    z | u64::from(value[lane] & 0xFFFF == 0) << lane
                        | u64::from(value[lane] >> 16 == 0) << (32 + lane)
                })
            };
            va & vb | va & zero(a) | vb & zero(b)
        }
        Int2::Shl | Int2::ShrUnsigned if va != !0 => {
            let amounts = r.get(b);
            let (low, high) = (va as u32, (va >> 32) as u32);
            let moved = |lane: usize| amounts[lane] >= 16 && amounts[lane] < 32;
            let sixteen = (0..32).fold(0u32, |m, lane| m | u32::from(moved(lane)) << lane);
            let valid = match op {
                Int2::Shl => low & sixteen | low & high,
                _ => high & sixteen | low & high,
            };
            halves(valid & whole(vb))
        }
        _ => both(va, vb),
    }
}

/// Each half of a permutation is valid if the halves that its two bytes come from are.
#[inline(always)]
fn permuted_validity(r: &Registers, a: u32, b: u32, c: u32) -> Validity {
    let (va, vb, vc) = (r.validity(a), r.validity(b), r.validity(c));
    if va & vb & vc == !0 {
        return !0;
    }
    let selectors = r.get(c);
    let mut validity = 0;
    for lane in 0..32 {
        let half_of = |selector: u32| {
            let byte = selector & 7;
            let from = if byte < 4 { va } else { vb };
            from >> (lane + if byte & 2 == 0 { 0 } else { 32 }) & 1
        };
        let s = selectors[lane];
        validity |= (half_of(s) & half_of(s >> 4)) << lane;
        validity |= (half_of(s >> 8) & half_of(s >> 12)) << (lane + 32);
    }
    validity & halves(whole(vc))
}

#[inline(always)]
fn int3(op: Int3, a: &[u32; 32], b: &[u32; 32], c: &[u32; 32]) -> [u32; 32] {
    let funnel = |a: u32, b: u32| u64::from(b) << 32 | u64::from(a);
    match op {
        Int3::Lop3(table) => {
            let mut value = [0; 32];
            for row in 0..8u32 {
                if table >> row & 1 == 0 {
                    continue;
                }
                let flip = |bit: u32| if row & bit != 0 { 0 } else { !0 };
                for lane in 0..32 {
                    value[lane] |= (a[lane] ^ flip(4)) & (b[lane] ^ flip(2)) & (c[lane] ^ flip(1));
                }
            }
            value
        }
        Int3::BfeUnsigned => zip3(a, b, c, |a, b, c| {
            let (start, length) = (b & 0xFF, c & 0xFF);
            let moved = u64::from(a) >> start.min(63);
            (moved & ((1 << length.min(32)) - 1)) as u32
        }),
        Int3::BfeSigned => zip3(a, b, c, |a, b, c| {
            let (start, length) = ((b & 0xFF).min(63), (c & 0xFF).min(32));
            if length == 0 {
                return 0;
            }
            // Bits past the top repeat the sign.
            let moved = i64::from(a as i32) >> start;
            (moved << (64 - length) >> (64 - length)) as u32
        }),
        Int3::Prmt => zip3(a, b, c, |a, b, c| {
            let bytes = funnel(a, b).to_le_bytes();
            let mut value = [0u8; 4];
            for (i, out) in value.iter_mut().enumerate() {
                let selector = c >> (4 * i) & 0xF;
                let byte = bytes[(selector & 7) as usize];
                *out = if selector & 8 != 0 {
                    (byte as i8 >> 7) as u8
                } else {
                    byte
                };
            }
            u32::from_le_bytes(value)
        }),
        Int3::ShfLeftWrap => zip3(a, b, c, |a, b, c| (funnel(a, b) << (c & 31) >> 32) as u32),
        Int3::ShfLeftClamp => zip3(a, b, c, |a, b, c| (funnel(a, b) << c.min(32) >> 32) as u32),
        Int3::ShfRightWrap => zip3(a, b, c, |a, b, c| (funnel(a, b) >> (c & 31)) as u32),
        Int3::ShfRightClamp => zip3(a, b, c, |a, b, c| (funnel(a, b) >> c.min(32)) as u32),
        Int3::SadUnsigned => zip3(a, b, c, |a, b, c| c.wrapping_add(a.abs_diff(b))),
        Int3::SadSigned => zip3(a, b, c, |a, b, c| {
            c.wrapping_add((a as i32).abs_diff(b as i32))
        }),
    }
}

#[inline(always)]
fn compare_valid(r: &Registers, kind: Type, a: u32, b: u32) -> u32 {
    match kind.bytes() {
        8 => r.valid64(a) & r.valid64(b),
        _ => r.valid(a) & r.valid(b),
    }
}

#[inline(always)]
fn ordered<T: PartialOrd + Copy>(compare: Compare, a: &[T; 32], b: &[T; 32]) -> u32 {
    let collect = |f: &dyn Fn(T, T) -> bool| {
        (0..32).fold(0, |m, lane| m | u32::from(f(a[lane], b[lane])) << lane)
    };
    match compare {
        Compare::Eq => collect(&|a, b| a == b),
        Compare::Lt => collect(&|a, b| a < b),
        Compare::Le => collect(&|a, b| a <= b),
        Compare::Gt => collect(&|a, b| a > b),
        Compare::Ge => collect(&|a, b| a >= b),
        // Integers have no unordered comparisons, so what is left is `ne`.
        _ => collect(&|a, b| a != b),
    }
}

#[inline(always)]
fn compare_integers(r: &Registers, compare: Compare, kind: Type, a: u32, b: u32) -> u32 {
    match (kind.bytes(), kind.is_signed()) {
        (2, true) => ordered(
            compare,
            &map(r.get(a), |v| v as i16),
            &map(r.get(b), |v| v as i16),
        ),
        (2, false) => ordered(compare, &narrow(r.get(a)), &narrow(r.get(b))),
        (8, true) => ordered(
            compare,
            &map(r.get64(a), |v| v as i64),
            &map(r.get64(b), |v| v as i64),
        ),
        (8, false) => ordered(compare, r.get64(a), r.get64(b)),
        (_, true) => ordered(
            compare,
            &map(r.get(a), |v| v as i32),
            &map(r.get(b), |v| v as i32),
        ),
        (_, false) => ordered(compare, r.get(a), r.get(b)),
    }
}

/// The second half of `setp`: combines with a predicate, writes one or two.
pub(super) fn set_compared(
    r: &mut Registers,
    holds: u32,
    mut valid: u32,
    d: u32,
    not_d: Option<u32>,
    combine: Option<(Logic, super::super::program::op::PredSource)>,
    mask: u32,
) {
    let (mut yes, mut no) = (holds, !holds);
    if let Some((logic, source)) = combine {
        let (p, p_valid) = r.pred(source);
        valid &= p_valid;
        (yes, no) = match logic {
            Logic::And => (yes & p, no & p),
            Logic::Or => (yes | p, no | p),
            Logic::Xor => (yes ^ p, no ^ p),
        };
    }
    r.set_pred(d, yes, valid, mask);
    if let Some(not_d) = not_d {
        r.set_pred(not_d, no, valid, mask);
    }
}

/// The second half of `set`.
pub(super) fn set_register(
    r: &mut Registers,
    holds: u32,
    valid: u32,
    float: bool,
    d: u32,
    mask: u32,
) {
    let one = if float { 1.0f32.to_bits() } else { !0 };
    let mut value = [0; 32];
    for (lane, value) in value.iter_mut().enumerate() {
        *value = if holds >> lane & 1 != 0 { one } else { 0 };
    }
    r.set(d, &value, halves(valid), mask);
}
