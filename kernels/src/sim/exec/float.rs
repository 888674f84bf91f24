//! Float arithmetic of every type, on all lanes of a warp at once.
//!
//! f32 and f64 are IEEE; 16-bit floats are computed in f32 (fused multiply-adds in f64) and rounded once. NaN results
//! have the one pattern that hardware gives.

use half::f16;

use super::super::parse::types::Type;
use super::super::program::op::{Compare, Float1, Float2, FloatMode, Op};
use super::approximate;
use super::integer::{map, set_compared, set_register, zip, zip3};
use super::leveled::leveled;
use super::registers::{Registers, Validity, halves, whole};

/// NaN as f32 arithmetic makes it.
pub const NAN32: u32 = 0x7FFF_FFFF;
/// NaN as bf16 arithmetic and conversions make it.
const NAN16: u16 = 0x7FFF;

/// Nearest bf16, ties to even.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { NAN16 } else { rounded as u16 }
}

#[inline(always)]
pub fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

#[inline(always)]
pub fn to_f16(x: f32) -> u16 {
    if x.is_nan() {
        NAN16
    } else {
        f16::from_f32(x).to_bits()
    }
}

#[inline(always)]
pub fn from_f16(x: u16) -> f32 {
    f16::from_bits(x).to_f32()
}

#[inline(always)]
fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE {
        0.0f32.copysign(x)
    } else {
        x
    }
}

/// What the modifiers do to a result.
#[inline(always)]
fn finish(x: f32, mode: FloatMode) -> f32 {
    let x = if mode.ftz { flush(x) } else { x };
    let x = if mode.saturate {
        // NaN becomes 0.
        if x > 0.0 { x.min(1.0) } else { 0.0 }
    } else {
        x
    };
    let x = if mode.relu && x < 0.0 { 0.0 } else { x };
    if x.is_nan() { f32::from_bits(NAN32) } else { x }
}

#[inline(always)]
fn load(bits: u32, mode: FloatMode) -> f32 {
    let x = f32::from_bits(bits);
    if mode.ftz { flush(x) } else { x }
}

macro_rules! min_max {
    ($a:expr, $b:expr, $less:tt, $nan:expr) => {{
        let (a, b) = ($a, $b);
        if a.is_nan() || b.is_nan() {
            if $nan || (a.is_nan() && b.is_nan()) {
                a + b
            } else if a.is_nan() {
                b
            } else {
                a
            }
        } else if a == b {
            // −0 is less than +0.
            if (a.is_sign_negative()) == (0 $less 1) { a } else { b }
        } else if a $less b {
            a
        } else {
            b
        }
    }};
}

#[inline(always)]
fn float2_f32(op: Float2, a: f32, b: f32) -> f32 {
    match op {
        Float2::Add => a + b,
        Float2::Sub => a - b,
        Float2::Mul => a * b,
        Float2::Div => a / b,
        Float2::Min => min_max!(a, b, <, false),
        Float2::Max => min_max!(a, b, >, false),
        Float2::MinNan => min_max!(a, b, <, true),
        Float2::MaxNan => min_max!(a, b, >, true),
    }
}

#[inline(always)]
fn float2_f64(op: Float2, a: f64, b: f64) -> f64 {
    match op {
        Float2::Add => a + b,
        Float2::Sub => a - b,
        Float2::Mul => a * b,
        Float2::Div => a / b,
        Float2::Min => min_max!(a, b, <, false),
        Float2::Max => min_max!(a, b, >, false),
        Float2::MinNan => min_max!(a, b, <, true),
        Float2::MaxNan => min_max!(a, b, >, true),
    }
}

/// Codec of a 16-bit float.
type Codec = (fn(u16) -> f32, fn(f32) -> u16);

#[inline(always)]
fn codec(kind: Type) -> Codec {
    match kind {
        Type::Bf16 | Type::Bf16x2 => (from_bf16, to_bf16),
        _ => (from_f16, to_f16),
    }
}

fn is_pair(kind: Type) -> bool {
    matches!(kind, Type::Bf16x2 | Type::F16x2)
}

/// Applies `f` to each half (or the only one) of 16-bit floats.
#[inline(always)]
fn on_halves(kind: Type, values: [u32; 3], f: impl Fn([f32; 3]) -> f32) -> u32 {
    let (from, to) = codec(kind);
    let low = to(f(values.map(|v| from(v as u16))));
    if !is_pair(kind) {
        return u32::from(low);
    }
    let high = to(f(values.map(|v| from((v >> 16) as u16))));
    u32::from(high) << 16 | u32::from(low)
}

/// Halves stay apart in packed types; everywhere else a value is valid as a whole.
#[inline(always)]
fn joined(kind: Type, validity: Validity) -> Validity {
    if is_pair(kind) {
        validity
    } else {
        halves(whole(validity))
    }
}

/// A fused multiply-add of 16-bit floats: exact in f64 up to its own last bit, which a rounding to 11 bits never sees
/// but on ties of operands 2⁴⁰ apart.
#[inline(always)]
fn fused(x: [f32; 3]) -> f32 {
    let [a, b, c] = x.map(f64::from);
    odd_f32(a * b + c)
}

/// The f32 next to `x` with an odd last bit unless exact, so that a second rounding decides rightly.
#[inline(always)]
pub fn odd_f32(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) == x || near.is_nan() || near.is_infinite() || near.to_bits() & 1 == 1 {
        return near;
    }
    let outward = (f64::from(near) < x) == (near > 0.0);
    let step = if outward { 1 } else { u32::MAX };
    f32::from_bits(near.to_bits().wrapping_add(step))
}

leveled! {
    /// Executes `op` if it is f32 arithmetic, on the lanes of `mask`.
    pub fn execute(r: &mut Registers, op: &Op, mask: u32) -> bool {
        match *op {
            Op::Fma { kind: Type::F32, mode, d, a, b, c, .. } => {
                let (av, bv, cv) = (r.get(a), r.get(b), r.get(c));
                let value = zip3(av, bv, cv, |a, b, c| {
                    finish(load(a, mode).mul_add(load(b, mode), load(c, mode)), mode).to_bits()
                });
                let validity = r.validity(a) & r.validity(b) & r.validity(c);
                r.set(d, &value, joined(Type::F32, validity), mask);
            }
            Op::Float2 { op, kind: Type::F32, mode, d, a, b, .. } => {
                let (av, bv) = (r.get(a), r.get(b));
                macro_rules! each {
                    ($($op:ident),*) => {
                        match op {
                            $(Float2::$op => zip(av, bv, |a, b| {
                                let value = float2_f32(Float2::$op, load(a, mode), load(b, mode));
                                finish(value, mode).to_bits()
                            }),)*
                        }
                    };
                }
                let value = each!(Add, Sub, Mul, Div, Min, Max, MinNan, MaxNan);
                let validity = r.validity(a) & r.validity(b);
                r.set(d, &value, joined(Type::F32, validity), mask);
            }
            Op::Float1 { op, kind: Type::F32, mode, d, a, .. } => {
                let value = float1(op, r.get(a), mode);
                r.set(d, &value, joined(Type::F32, r.validity(a)), mask);
            }
            _ => return false,
        }
        true
    }
}

/// Executes `op` if it is other float arithmetic: of f64 and of 16 bits, and comparisons.
pub fn execute_other(r: &mut Registers, op: &Op, mask: u32) -> bool {
    match *op {
        Op::Fma {
            kind: Type::F64,
            d,
            a,
            b,
            c,
            ..
        } => {
            let [x, y, z] = [a, b, c].map(|s| map(r.get64(s), f64::from_bits));
            let value = zip3(&x, &y, &z, |a, b, c| a.mul_add(b, c).to_bits());
            let valid = r.valid64(a) & r.valid64(b) & r.valid64(c);
            r.set64(d, &value, valid, mask);
        }
        Op::Float2 {
            op,
            kind: Type::F64,
            d,
            a,
            b,
            ..
        } => {
            let [x, y] = [a, b].map(|s| map(r.get64(s), f64::from_bits));
            let value = zip(&x, &y, |a, b| float2_f64(op, a, b).to_bits());
            let valid = r.valid64(a) & r.valid64(b);
            r.set64(d, &value, valid, mask);
        }
        Op::Float1 {
            op,
            kind: Type::F64,
            d,
            a,
            ..
        } => {
            let x = map(r.get64(a), f64::from_bits);
            let value = map(&x, |x| {
                let y = match op {
                    Float1::Neg => -x,
                    Float1::Abs => x.abs(),
                    Float1::Rcp => 1.0 / x,
                    // Decoding lets nothing else through for f64.
                    _ => x.sqrt(),
                };
                y.to_bits()
            });
            let valid = r.valid64(a);
            r.set64(d, &value, valid, mask);
        }
        Op::Fma {
            kind,
            mode,
            d,
            a,
            b,
            c,
            ..
        } => {
            let value = zip3(r.get(a), r.get(b), r.get(c), |a, b, c| {
                on_halves(kind, [a, b, c], |x| {
                    finish(fused(x), FloatMode { ftz: false, ..mode })
                })
            });
            let validity = r.validity(a) & r.validity(b) & r.validity(c);
            r.set(d, &value, joined(kind, validity), mask);
        }
        Op::Float2 {
            op,
            kind,
            mode,
            d,
            a,
            b,
            ..
        } => {
            let value = zip(r.get(a), r.get(b), |a, b| {
                on_halves(kind, [a, b, 0], |[a, b, _]| {
                    finish(float2_f32(op, a, b), FloatMode { ftz: false, ..mode })
                })
            });
            let validity = r.validity(a) & r.validity(b);
            r.set(d, &value, joined(kind, validity), mask);
        }
        Op::Float1 { op, kind, d, a, .. } => {
            let signs = if is_pair(kind) { 0x8000_8000 } else { 0x8000 };
            let value = map(r.get(a), |a| match op {
                Float1::Neg => a ^ signs,
                Float1::Abs => a & !signs,
                Float1::Ex2 => on_halves(kind, [a, 0, 0], |[x, ..]| {
                    approximate::exp2(f64::from(x)) as f32
                }),
                // Decoding lets nothing else through for 16 bits.
                _ => on_halves(kind, [a, 0, 0], |[x, ..]| {
                    approximate::tanh(f64::from(x)) as f32
                }),
            });
            let validity = r.validity(a);
            r.set(d, &value, joined(kind, validity), mask);
        }
        Op::Setp {
            compare,
            kind,
            ftz,
            d,
            not_d,
            a,
            b,
            combine,
        } if kind.is_float() => {
            let (holds, valid) = compare_floats(r, compare, kind, ftz, a, b);
            set_compared(r, holds, valid, d, not_d, combine, mask);
        }
        Op::Set {
            compare,
            kind,
            ftz,
            float,
            d,
            a,
            b,
        } if kind.is_float() => {
            let (holds, valid) = compare_floats(r, compare, kind, ftz, a, b);
            set_register(r, holds, valid, float, d, mask);
        }
        _ => return false,
    }
    true
}

#[inline(always)]
fn float1(op: Float1, a: &[u32; 32], mode: FloatMode) -> [u32; 32] {
    let by = |f: &dyn Fn(f32) -> f32| map(a, |a| finish(f(load(a, mode)), mode).to_bits());
    // Exact in f64 and rounded to f32.
    macro_rules! in_f64 {
        ($x:ident, $f:expr) => {
            map(a, |a| {
                let $x = f64::from(load(a, mode));
                finish($f as f32, mode).to_bits()
            })
        };
    }
    match op {
        // Signs are bits: NaN keeps its payload.
        Float1::Neg => map(a, |a| load(a, mode).to_bits() ^ 1 << 31),
        Float1::Abs => map(a, |a| load(a, mode).to_bits() & !(1 << 31)),
        Float1::Rcp => by(&|x| 1.0 / x),
        Float1::Sqrt => by(&f32::sqrt),
        Float1::Rsqrt => in_f64!(x, 1.0 / x.sqrt()),
        Float1::Sin => in_f64!(x, approximate::sin_cos(x).0),
        Float1::Cos => in_f64!(x, approximate::sin_cos(x).1),
        Float1::Ex2 => in_f64!(x, approximate::exp2(x)),
        Float1::Lg2 => in_f64!(x, approximate::log2(x)),
        Float1::Tanh => in_f64!(x, approximate::tanh(x)),
    }
}

#[inline(always)]
fn holds(compare: Compare, a: f64, b: f64) -> bool {
    let unordered = a.is_nan() || b.is_nan();
    match compare {
        Compare::Eq => a == b,
        Compare::Ne => !unordered && a != b,
        Compare::Lt => a < b,
        Compare::Le => a <= b,
        Compare::Gt => a > b,
        Compare::Ge => a >= b,
        Compare::Equ => unordered || a == b,
        Compare::Neu => a != b,
        Compare::Ltu => unordered || a < b,
        Compare::Leu => unordered || a <= b,
        Compare::Gtu => unordered || a > b,
        Compare::Geu => unordered || a >= b,
        Compare::Num => !unordered,
        Compare::Nan => unordered,
    }
}

#[inline(always)]
fn compare_floats(
    r: &Registers,
    compare: Compare,
    kind: Type,
    ftz: bool,
    a: u32,
    b: u32,
) -> (u32, u32) {
    let mode = FloatMode {
        ftz,
        saturate: false,
        relu: false,
    };
    let fetch = |slot: u32| -> [f64; 32] {
        match kind {
            Type::F64 => map(r.get64(slot), f64::from_bits),
            Type::F32 => map(r.get(slot), |v| f64::from(load(v, mode))),
            _ => map(r.get(slot), |v| f64::from(codec(kind).0(v as u16))),
        }
    };
    let (x, y) = (fetch(a), fetch(b));
    let holds = (0..32).fold(0, |m, l| m | u32::from(holds(compare, x[l], y[l])) << l);
    let valid = match kind {
        Type::F64 => r.valid64(a) & r.valid64(b),
        _ => r.valid(a) & r.valid(b),
    };
    (holds, valid)
}
