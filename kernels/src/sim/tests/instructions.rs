//! Every instruction class against a Rust reference.

use half::{bf16, f16};

use super::*;

/// Integers at the edges of what instructions tell apart, and some in between.
const INTEGERS: [u32; 16] = [
    0,
    1,
    2,
    5,
    31,
    32,
    33,
    0x7F,
    0xFF,
    0x8000,
    0xFFFF,
    0x0001_0000,
    0x7FFF_FFFF,
    0x8000_0000,
    0xDEAD_BEEF,
    u32::MAX,
];

const FLOATS: [f32; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    -2.5,
    3.0e-39,
    1.0e38,
    -3.0e38,
    7.25,
    1e-20,
    65504.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

/// 256 combinations of a and b from a list, with c running through it too.
fn combinations<T: Copy>(list: &[T; 16]) -> Vec<[T; 3]> {
    (0..256)
        .map(|i| [list[i % 16], list[i / 16], list[(i * 7 + i / 16 * 3) % 16]])
        .collect()
}

/// Runs `body`, which makes `%d10` of `%r1`, `%r2`, `%r3` (also `%f1`…; and `%d1` = a, b and `%d2` = c, a as low and
/// high words), on every combination.
fn evaluate(arch: Arch, body: &str, inputs: &[[u32; 3]]) -> Vec<u64> {
    let text = format!(
        "
        ld.param.u64 %d20, [out];
        ld.param.u64 %d21, [a];
        mov.u32 %r60, %tid.x;
        mad.wide.u32 %d20, %r60, 8, %d20;
        mad.wide.u32 %d21, %r60, 12, %d21;
        ld.global.u32 %r1, [%d21];
        ld.global.u32 %r2, [%d21+4];
        ld.global.u32 %r3, [%d21+8];
        mov.b32 %f1, %r1; mov.b32 %f2, %r2; mov.b32 %f3, %r3;
        mov.b64 %d1, {{%r1, %r2}}; mov.b64 %d2, {{%r3, %r1}};
        mov.b32 {{%h1, _}}, %r1; mov.b32 {{%h2, _}}, %r2; mov.b32 {{%h3, _}}, %r3;
        {body}
        st.global.u64 [%d20], %d10;
        "
    );
    let bytes: Vec<u8> = inputs
        .iter()
        .flatten()
        .flat_map(|w| w.to_le_bytes())
        .collect();
    let mut out = vec![0; inputs.len() * 8];
    let threads = inputs.len() as u32;
    if let Err(error) = run_block(
        arch,
        threads,
        &text,
        &mut out,
        &[&bytes],
        &Options::default(),
    ) {
        panic!("{error}");
    }
    let words = words(&out);
    words
        .chunks(2)
        .map(|w| u64::from(w[1]) << 32 | u64::from(w[0]))
        .collect()
}

/// `instruction` makes `%r10` of `%r1`, `%r2`, `%r3`.
fn integers(instruction: &str, reference: impl Fn(u32, u32, u32) -> u32) {
    let inputs = combinations(&INTEGERS);
    let got = evaluate(
        Arch::Sm80,
        &format!("{instruction} cvt.u64.u32 %d10, %r10;"),
        &inputs,
    );
    for (&[a, b, c], got) in inputs.iter().zip(got) {
        let want = reference(a, b, c);
        assert_eq!(
            got as u32, want,
            "{instruction} of 0x{a:x}, 0x{b:x}, 0x{c:x}: 0x{got:x}, not 0x{want:x}"
        );
    }
}

/// `instruction` makes `%d10` of `%d1` = b:a and `%d2` = a:c.
fn wide(instruction: &str, reference: impl Fn(u64, u64) -> u64) {
    let inputs = combinations(&INTEGERS);
    let got = evaluate(Arch::Sm80, instruction, &inputs);
    for (&[a, b, c], got) in inputs.iter().zip(got) {
        let (x, y) = (
            u64::from(b) << 32 | u64::from(a),
            u64::from(a) << 32 | u64::from(c),
        );
        let want = reference(x, y);
        assert_eq!(
            got, want,
            "{instruction} of 0x{x:x}, 0x{y:x}: 0x{got:x}, not 0x{want:x}"
        );
    }
}

/// `instruction` makes `%f10` of `%f1`, `%f2`, `%f3`; NaN by its one pattern, everything else to `ulps`.
fn floats(instruction: &str, ulps: i64, reference: impl Fn(f32, f32, f32) -> f32) {
    let inputs = combinations(&FLOATS);
    let bits: Vec<[u32; 3]> = inputs.iter().map(|x| x.map(f32::to_bits)).collect();
    let text = format!("{instruction} mov.b32 %r10, %f10; cvt.u64.u32 %d10, %r10;");
    let got = evaluate(Arch::Sm80, &text, &bits);
    for (&[a, b, c], got) in inputs.iter().zip(got) {
        let (got, want) = (f32::from_bits(got as u32), reference(a, b, c));
        let order = |x: f32| {
            let bits = i64::from(x.to_bits() & 0x7FFF_FFFF);
            if x.is_sign_negative() { -bits } else { bits }
        };
        let same = got.to_bits() == want.to_bits()
            || got.is_nan() && want.is_nan()
            || !got.is_nan()
                && !want.is_nan()
                && (order(got) - order(want)).abs() <= ulps
                && ulps > 0;
        assert!(
            same,
            "{instruction} of {a:e}, {b:e}, {c:e}: {got:e}, not {want:e}"
        );
    }
}

#[test]
fn integer_arithmetic() {
    let s = |x: u32| x as i32;
    integers("add.u32 %r10, %r1, %r2;", |a, b, _| a.wrapping_add(b));
    integers("sub.s32 %r10, %r1, %r2;", |a, b, _| a.wrapping_sub(b));
    integers("mul.lo.u32 %r10, %r1, %r2;", |a, b, _| a.wrapping_mul(b));
    integers("mul.hi.u32 %r10, %r1, %r2;", |a, b, _| {
        ((u64::from(a) * u64::from(b)) >> 32) as u32
    });
    integers("mul.hi.s32 %r10, %r1, %r2;", |a, b, _| {
        ((i64::from(s(a)) * i64::from(s(b))) >> 32) as u32
    });
    integers("mad.lo.s32 %r10, %r1, %r2, %r3;", |a, b, c| {
        a.wrapping_mul(b).wrapping_add(c)
    });
    integers("min.s32 %r10, %r1, %r2;", |a, b, _| s(a).min(s(b)) as u32);
    integers("max.u32 %r10, %r1, %r2;", |a, b, _| a.max(b));
    integers("div.u32 %r10, %r1, %r2;", |a, b, _| {
        a.checked_div(b).unwrap_or(!0)
    });
    integers("rem.s32 %r10, %r1, 7;", |a, _, _| {
        s(a).wrapping_rem(7) as u32
    });
    integers("neg.s32 %r10, %r1;", |a, _, _| a.wrapping_neg());
    integers("abs.s32 %r10, %r1;", |a, _, _| s(a).wrapping_abs() as u32);
    integers("sad.u32 %r10, %r1, %r2, %r3;", |a, b, c| {
        c.wrapping_add(a.abs_diff(b))
    });
    integers(
        "add.cc.u32 %r9, %r1, %r2; addc.u32 %r10, %r3, 0;",
        |a, b, c| c.wrapping_add(u32::from(a.checked_add(b).is_none())),
    );
    integers(
        "add.u16 %h4, %h1, %h2; mov.b32 %r10, {%h4, 0};",
        |a, b, _| a.wrapping_add(b) & 0xFFFF,
    );
    integers("mul.wide.s16 %r10, %h1, %h2;", |a, b, _| {
        (i32::from(a as i16) * i32::from(b as i16)) as u32
    });
    wide("mul.wide.u32 %d10, %r1, %r2;", |x, _| {
        (x & 0xFFFF_FFFF) * (x >> 32)
    });
    wide("mad.wide.s32 %d10, %r1, %r2, %d2;", |x, y| {
        (i64::from(x as i32) * i64::from((x >> 32) as i32)).wrapping_add(y as i64) as u64
    });
    wide("add.s64 %d10, %d1, %d2;", u64::wrapping_add);
    wide("mul.lo.u64 %d10, %d1, %d2;", u64::wrapping_mul);
    wide("mul.hi.u64 %d10, %d1, %d2;", |x, y| {
        ((u128::from(x) * u128::from(y)) >> 64) as u64
    });
    wide("max.s64 %d10, %d1, %d2;", |x, y| {
        (x as i64).max(y as i64) as u64
    });
}

#[test]
fn bits() {
    integers("and.b32 %r10, %r1, %r2;", |a, b, _| a & b);
    integers("xor.b32 %r10, %r1, -1;", |a, _, _| !a);
    integers("not.b32 %r10, %r1;", |a, _, _| !a);
    integers("shl.b32 %r10, %r1, %r2;", |a, b, _| {
        a.checked_shl(b).unwrap_or(0)
    });
    integers("shr.u32 %r10, %r1, %r2;", |a, b, _| {
        a.checked_shr(b).unwrap_or(0)
    });
    integers("shr.s32 %r10, %r1, %r2;", |a, b, _| {
        ((a as i32) >> b.min(31)) as u32
    });
    integers("shr.b32 %r10, %r1, 4;", |a, _, _| a >> 4);
    integers("lop3.b32 %r10, %r1, %r2, %r3, 0x96;", |a, b, c| a ^ b ^ c);
    integers("lop3.b32 %r10, %r1, %r2, %r3, 0xCA;", |a, b, c| {
        a & b | !a & c
    });
    integers("popc.b32 %r10, %r1;", |a, _, _| a.count_ones());
    integers("clz.b32 %r10, %r1;", |a, _, _| a.leading_zeros());
    integers("brev.b32 %r10, %r1;", |a, _, _| a.reverse_bits());
    integers("bfind.u32 %r10, %r1;", |a, _, _| {
        if a == 0 { !0 } else { 31 - a.leading_zeros() }
    });
    integers("bfe.u32 %r10, %r1, 4, 8;", |a, _, _| a >> 4 & 0xFF);
    integers("bfe.s32 %r10, %r1, 4, 8;", |a, _, _| {
        ((a >> 4) as i8) as u32
    });
    integers("bfi.b32 %r10, %r1, %r2, 8, 4;", |a, b, _| {
        (a & 0xF) << 8 | b & !0xF00
    });
    integers("prmt.b32 %r10, %r1, %r2, 0x5410;", |a, b, _| {
        a & 0xFFFF | b << 16
    });
    integers("prmt.b32 %r10, %r1, %r2, 0x0123;", |a, _, _| a.swap_bytes());
    integers("shf.l.wrap.b32 %r10, %r1, %r1, %r2;", |a, b, _| {
        a.rotate_left(b & 31)
    });
    integers("shf.r.clamp.b32 %r10, %r1, %r2, %r3;", |a, b, c| {
        let both = u64::from(b) << 32 | u64::from(a);
        (both >> c.min(32)) as u32
    });
    wide("shl.b64 %d10, %d1, 33;", |x, _| x << 33);
    wide("shr.s64 %d10, %d1, %r1;", |x, _| {
        (x as i64 >> (x as u32).min(63)) as u64
    });
    wide("xor.b64 %d10, %d1, %d2;", |x, y| x ^ y);
    wide("popc.b64 %r9, %d1; cvt.u64.u32 %d10, %r9;", |x, _| {
        u64::from(x.count_ones())
    });
}

#[test]
fn predicates() {
    integers(
        "setp.lt.s32 %p1, %r1, %r2; selp.u32 %r10, %r1, %r3, %p1;",
        |a, b, c| {
            if (a as i32) < b as i32 { a } else { c }
        },
    );
    integers(
        "setp.hi.u32 %p2, %r1, 5; setp.ge.and.u32 %p1|%p3, %r1, %r2, !%p2; selp.b32 %r10, 1, 0, %p1; @%p3 add.u32 %r10, %r10, 2;",
        |a, b, _| {
            let other = a <= 5;
            u32::from(a >= b && other) + 2 * u32::from(a < b && other)
        },
    );
    integers("set.ne.u32.s32 %r10, %r1, %r2;", |a, b, _| {
        if a != b { !0 } else { 0 }
    });
    integers(
        "setp.eq.u32 %p1, %r1, %r2; setp.eq.u32 %p2, %r1, %r3; xor.pred %p3, %p1, %p2; not.pred %p3, %p3; selp.u32 %r10, 7, 9, %p3;",
        |a, b, c| if (a == b) == (a == c) { 7 } else { 9 },
    );
    let name = |text: &str| format!("{text} selp.f32 %f10, 0f3F800000, 0f00000000, %p1;");
    floats(&name("setp.lt.f32 %p1, %f1, %f2;"), 0, |a, b, _| {
        f32::from(u8::from(a < b))
    });
    floats(&name("setp.ne.f32 %p1, %f1, %f2;"), 0, |a, b, _| {
        f32::from(u8::from(!(a.is_nan() || b.is_nan()) && a != b))
    });
    floats(&name("setp.neu.f32 %p1, %f1, %f2;"), 0, |a, b, _| {
        f32::from(u8::from(a != b))
    });
    floats(&name("setp.nan.f32 %p1, %f1, %f2;"), 0, |a, b, _| {
        f32::from(u8::from(a.is_nan() || b.is_nan()))
    });
}

#[test]
fn float_arithmetic() {
    floats("add.f32 %f10, %f1, %f2;", 0, |a, b, _| a + b);
    floats("sub.rn.f32 %f10, %f1, %f2;", 0, |a, b, _| a - b);
    floats("mul.f32 %f10, %f1, %f2;", 0, |a, b, _| a * b);
    floats("fma.rn.f32 %f10, %f1, %f2, %f3;", 0, f32::mul_add);
    floats("div.rn.f32 %f10, %f1, %f2;", 0, |a, b, _| a / b);
    floats("sqrt.rn.f32 %f10, %f1;", 0, |a, _, _| a.sqrt());
    floats("neg.f32 %f10, %f1;", 0, |a, _, _| -a);
    floats("abs.f32 %f10, %f1;", 0, |a, _, _| a.abs());
    floats("min.f32 %f10, %f1, %f2;", 0, |a, b, _| {
        match (a == b, a.is_nan(), b.is_nan()) {
            (true, ..) => {
                if a.is_sign_negative() {
                    a
                } else {
                    b
                }
            }
            (_, true, _) => b,
            (_, _, true) => a,
            _ => {
                if a < b {
                    a
                } else {
                    b
                }
            }
        }
    });
    floats("max.NaN.f32 %f10, %f1, %f2;", 0, |a, b, _| {
        match (a == b, a.is_nan() || b.is_nan()) {
            (true, _) => {
                if a.is_sign_negative() {
                    b
                } else {
                    a
                }
            }
            (_, true) => f32::NAN,
            _ => {
                if a > b {
                    a
                } else {
                    b
                }
            }
        }
    });
    floats("add.ftz.f32 %f10, %f1, %f2;", 0, |a, b, _| {
        let flush = |x: f32| {
            if x.abs() < f32::MIN_POSITIVE {
                0.0f32.copysign(x)
            } else {
                x
            }
        };
        flush(flush(a) + flush(b))
    });
    floats("add.sat.f32 %f10, %f1, %f2;", 0, |a, b, _| {
        let sum = a + b;
        if sum > 0.0 { sum.min(1.0) } else { 0.0 }
    });
    wide(
        "mov.f64 %g1, %d1; mov.f64 %g2, %d2; fma.rn.f64 %g3, %g1, %g2, %g1; mov.b64 %d10, %g3;",
        |x, y| {
            let (x, y) = (f64::from_bits(x), f64::from_bits(y));
            x.mul_add(y, x).to_bits()
        },
    );
}

#[test]
fn special_functions_are_within_their_tolerance() {
    floats("ex2.approx.ftz.f32 %f10, %f1;", 2, |a, _, _| match a {
        a if a.abs() < f32::MIN_POSITIVE => 1.0,
        a => (f64::from(a)).exp2() as f32,
    });
    floats("lg2.approx.f32 %f10, %f1;", 2, |a, _, _| {
        f64::from(a).log2() as f32
    });
    floats("rcp.approx.f32 %f10, %f1;", 1, |a, _, _| 1.0 / a);
    floats("rsqrt.approx.f32 %f10, %f1;", 1, |a, _, _| {
        (1.0 / f64::from(a).sqrt()) as f32
    });
    floats("sqrt.approx.f32 %f10, %f1;", 1, |a, _, _| a.sqrt());
    floats("tanh.approx.f32 %f10, %f1;", 2, |a, _, _| {
        f64::from(a).tanh() as f32
    });
    floats("div.approx.f32 %f10, %f1, %f2;", 2, |a, b, _| a / b);
}

#[test]
fn sixteen_bit_floats() {
    let inputs: Vec<[u32; 3]> = combinations(&FLOATS)
        .into_iter()
        .map(|x| {
            let pair = |v: f32, w: f32| {
                u32::from(bf16::from_f32(w).to_bits()) << 16
                    | u32::from(bf16::from_f32(v).to_bits())
            };
            [pair(x[0], x[1]), pair(x[1], x[2]), pair(x[2], x[0])]
        })
        .collect();
    let parts =
        |v: u32| [v as u16, (v >> 16) as u16].map(|b| f64::from(bf16::from_bits(b).to_f32()));
    let check = |arch, text: &str, reference: &dyn Fn(f64, f64, f64) -> f64| {
        let got = evaluate(arch, &format!("{text} cvt.u64.u32 %d10, %r10;"), &inputs);
        for (&[a, b, c], got) in inputs.iter().zip(got) {
            let (x, y, z) = (parts(a), parts(b), parts(c));
            for half in 0..2 {
                let want = bf16::from_f64(reference(x[half], y[half], z[half]));
                let got = bf16::from_bits((got >> (16 * half)) as u16);
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(
                    same,
                    "{text} of {}, {}, {}: {got}, not {want}",
                    x[half], y[half], z[half]
                );
            }
        }
    };
    check(
        Arch::Sm80,
        "fma.rn.bf16x2 %r10, %r1, %r2, %r3;",
        &|a, b, c| a * b + c,
    );
    check(Arch::Sm80, "neg.bf16x2 %r10, %r1;", &|a, _, _| -a);
    check(Arch::Sm90a, "add.rn.bf16x2 %r10, %r1, %r2;", &|a, b, _| {
        a + b
    });
    check(Arch::Sm90a, "mul.bf16x2 %r10, %r1, %r2;", &|a, b, _| a * b);
}

#[test]
fn conversions() {
    let to_bf16 = |x: f32| u32::from(bf16::from_f32(x).to_bits());
    let bits = |text: &str, reference: &dyn Fn(f32, f32) -> u32, nan: u32| {
        let inputs = combinations(&FLOATS);
        let words: Vec<[u32; 3]> = inputs.iter().map(|x| x.map(f32::to_bits)).collect();
        let got = evaluate(
            Arch::Sm90a,
            &format!("{text} cvt.u64.u32 %d10, %r10;"),
            &words,
        );
        for (&[a, b, _], got) in inputs.iter().zip(got) {
            if a.is_nan() || b.is_nan() {
                assert!(
                    !a.is_nan() || got as u32 & nan == nan,
                    "{text} of NaN: 0x{got:x}"
                );
                continue;
            }
            assert_eq!(got as u32, reference(a, b), "{text} of {a:e}, {b:e}");
        }
    };
    bits(
        "cvt.rn.bf16x2.f32 %r10, %f1, %f2;",
        &|a, b| to_bf16(a) << 16 | to_bf16(b),
        0x7FFF_0000,
    );
    bits(
        "cvt.rn.f16x2.f32 %r10, %f1, %f2;",
        &|a, b| u32::from(f16::from_f32(a).to_bits()) << 16 | u32::from(f16::from_f32(b).to_bits()),
        0x7FFF_0000,
    );
    bits(
        "cvt.rn.bf16.f32 %h4, %f1; mov.b32 %r10, {%h4, 0};",
        &|a, _| to_bf16(a),
        0x7FFF,
    );
    bits("cvt.rzi.s32.f32 %r10, %f1;", &|a, _| a as i32 as u32, 0);
    bits(
        "cvt.rni.u32.f32 %r10, %f1;",
        &|a, _| a.round_ties_even() as u32,
        0,
    );
    bits(
        "cvt.rmi.f32.f32 %f4, %f1; mov.b32 %r10, %f4;",
        &|a, _| a.floor().to_bits(),
        0,
    );
    bits(
        "cvt.rz.f16.f32 %h4, %f1; mov.b32 %r10, {%h4, 0};",
        &|a, _| {
            let near = f16::from_f32(a);
            let far = near.to_f32().abs() > a.abs();
            u32::from(near.to_bits()) - u32::from(far)
        },
        0,
    );
    integers("cvt.s32.s8 %r10, %h1;", |a, _, _| a as i8 as u32);
    integers("cvt.u32.u16 %r10, %h1;", |a, _, _| a & 0xFFFF);
    integers(
        "cvt.sat.u8.s32 %h4, %r1; cvt.u32.u16 %r10, %h4;",
        |a, _, _| (a as i32).clamp(0, 255) as u32,
    );
    integers("cvt.rn.f32.u32 %f4, %r1; mov.b32 %r10, %f4;", |a, _, _| {
        (a as f32).to_bits()
    });
    integers("cvt.rn.f32.s32 %f4, %r1; mov.b32 %r10, %f4;", |a, _, _| {
        (a as i32 as f32).to_bits()
    });
    integers("cvt.f32.bf16 %f4, %h1; mov.b32 %r10, %f4;", |a, _, _| {
        let x = bf16::from_bits(a as u16).to_f32();
        if x.is_nan() { 0x7FFF_FFFF } else { x.to_bits() }
    });
    wide("cvt.rn.f64.s64 %g1, %d1; mov.b64 %d10, %g1;", |x, _| {
        (x as i64 as f64).to_bits()
    });
    wide("cvt.s64.s32 %d10, %r1;", |x, _| i64::from(x as i32) as u64);
}

#[test]
fn moves_pack_and_unpack() {
    integers("mov.b32 %r10, {%h2, %h1};", |a, b, _| a << 16 | b & 0xFFFF);
    integers("mov.b64 {_, %r10}, %d1;", |_, b, _| b);
    wide("mov.b64 %d10, {%h1, %h2, %h2, %h1};", |x, _| {
        let (a, b) = (x & 0xFFFF, x >> 32 & 0xFFFF);
        a | b << 16 | b << 32 | a << 48
    });
    integers(
        "mov.b64 {%h4, %h5, %h6, %h7}, %d1; mov.b32 %r10, {%h5, %h6};",
        |a, b, _| a >> 16 | b << 16,
    );
}

#[test]
fn lanes_exchange() {
    let lanes = |text: &str, reference: &dyn Fn(usize) -> u32| {
        let body = format!(
            "ld.param.u64 %d0, [out]; mov.u32 %r0, %tid.x; mad.wide.u32 %d1, %r0, 4, %d0; mul.lo.u32 %r1, %r0, %r0;
             {text} st.global.u32 [%d1], %r2;"
        );
        let got = passes(Arch::Sm80, 32, &body);
        for (lane, got) in got.iter().take(32).enumerate() {
            assert_eq!(*got, reference(lane), "{text} in lane {lane}");
        }
    };
    let square = |lane: usize| (lane * lane) as u32;
    lanes("shfl.sync.bfly.b32 %r2, %r1, 5, 31, -1;", &|l| {
        square(l ^ 5)
    });
    lanes("shfl.sync.down.b32 %r2, %r1, 3, 31, -1;", &|l| {
        square(if l + 3 < 32 { l + 3 } else { l })
    });
    lanes(
        "shfl.sync.up.b32 %r2|%p0, %r1, 2, 0, -1; @!%p0 mov.u32 %r2, 7;",
        &|l| {
            if l < 2 { 7 } else { square(l - 2) }
        },
    );
    lanes("shfl.sync.idx.b32 %r2, %r1, 3, 0x181f, -1;", &|l| {
        square(l / 8 * 8 + 3)
    });
    lanes("shfl.sync.down.b32 %r2, %r1, 4, 0x181f, -1;", &|l| {
        square(if l % 8 < 4 { l + 4 } else { l })
    });
    lanes(
        "setp.gt.u32 %p0, %r0, 20; vote.sync.ballot.b32 %r2, %p0, -1;",
        &|_| 0xFFE0_0000,
    );
    lanes(
        "setp.gt.u32 %p0, %r0, 20; vote.sync.any.pred %p1, %p0, -1; vote.sync.all.pred %p2, %p0, -1; selp.u32 %r2, 1, 0, %p1; @%p2 add.u32 %r2, %r2, 2;",
        &|_| 1,
    );
    lanes("redux.sync.add.u32 %r2, %r1, -1;", &|_| {
        (0..32).map(square).sum()
    });
    lanes(
        "sub.u32 %r3, 3, %r0; redux.sync.max.s32 %r2, %r3, -1;",
        &|_| 3,
    );
    lanes("redux.sync.xor.b32 %r2, %r1, -1;", &|_| {
        (0..32).map(square).fold(0, |a, b| a ^ b)
    });
    lanes(
        "shr.u32 %r3, %r0, 4; match.any.sync.b32 %r2, %r3, -1;",
        &|l| if l < 16 { 0xFFFF } else { 0xFFFF_0000 },
    );
    lanes("activemask.b32 %r2;", &|_| !0);
    lanes("mov.u32 %r2, %lanemask_lt;", &|l| (1 << l) - 1);
    lanes(
        "mov.u32 %r3, %laneid; mov.u32 %r2, %warpid; mad.lo.u32 %r2, %r2, 32, %r3;",
        &|l| l as u32,
    );
}

#[test]
fn diverged_lanes_meet_again() {
    let body = "
        ld.param.u64 %d0, [out];
        mov.u32 %r0, %tid.x;
        mad.wide.u32 %d1, %r0, 4, %d0;
        mov.u32 %r1, 0;
        mov.u32 %r2, 0;
        LOOP:
        add.u32 %r2, %r2, %r1;
        add.u32 %r1, %r1, 1;
        setp.le.u32 %p0, %r1, %r0;
        @%p0 bra LOOP;
        and.b32 %r3, %r0, 1;
        setp.eq.u32 %p1, %r3, 0;
        @%p1 bra EVEN;
        add.u32 %r2, %r2, 1000;
        bra JOIN;
        EVEN:
        add.u32 %r2, %r2, 2000;
        JOIN:
        shfl.sync.bfly.b32 %r4, %r2, 1, 31, 0xffffffff;
        st.global.u32 [%d1], %r4;
    ";
    let got = passes(Arch::Sm80, 32, body);
    for lane in 0..32u32 {
        let other = lane ^ 1;
        let want = other * (other + 1) / 2 + if other % 2 == 0 { 2000 } else { 1000 };
        assert_eq!(got[lane as usize], want);
    }
}

#[test]
fn atomics() {
    let body = "
        .shared .align 4 .b8 cell[8];
        ld.param.u64 %d0, [out];
        mov.u32 %r0, %tid.x;
        mad.wide.u32 %d1, %r0, 4, %d0;
        mov.u32 %r1, cell;
        setp.eq.u32 %p0, %r0, 0;
        @%p0 st.shared.v2.u32 [%r1], {0, 100};
        bar.sync 0;
        atom.shared.add.u32 %r2, [%r1], %r0;
        red.shared.min.s32 [%r1+4], %r0;
        atom.shared.cas.b32 %r9, [%r1+4], 500, 3;
        bar.sync 0;
        ld.shared.v2.u32 {%r3, %r4}, [%r1];
        mad.lo.u32 %r3, %r4, 100000, %r3;
        st.global.u32 [%d1], %r3;
    ";
    assert_eq!(passes(Arch::Sm80, 128, body)[..128], [127 * 64; 128]);
}

/// 16×16 and 16×8 matrices of small integers through shared memory, ldmatrix and mma, against exact sums.
#[test]
fn matrices_go_through_ldmatrix_and_mma() {
    for transpose in [false, true] {
        let body = format!(
            "
            .shared .align 128 .b8 as[512];
            .shared .align 128 .b8 bs[256];
            ld.param.u64 %d0, [out];
            ld.param.u64 %d2, [a];
            ld.param.u64 %d4, [b];
            mov.u32 %r0, %tid.x;
            mul.lo.u32 %r1, %r0, 16;
            mov.u32 %r2, as;
            mov.u32 %r3, bs;
            add.u32 %r4, %r2, %r1;
            cvt.u64.u32 %d5, %r1;
            add.u64 %d6, %d2, %d5;
            cp.async.cg.shared.global [%r4], [%d6], 16;
            setp.lt.u32 %p0, %r0, 16;
            add.u32 %r5, %r3, %r1;
            add.u64 %d7, %d4, %d5;
            @%p0 cp.async.cg.shared.global [%r5], [%d7], 16;
            cp.async.wait_all;
            bar.warp.sync -1;
            and.b32 %r6, %r0, 15;
            shr.u32 %r7, %r0, 4;
            mad.lo.u32 %r8, %r6, 32, %r2;
            mad.lo.u32 %r8, %r7, 16, %r8;
            ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r8];
            {}
            mov.f32 %f0, 0f3F800000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;
            mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%f0,%f1,%f2,%f3}}, {{%r10,%r11,%r12,%r13}}, {{%r14,%r15}}, {{%f0,%f1,%f2,%f3}};
            shr.u32 %r20, %r0, 2;
            and.b32 %r21, %r0, 3;
            mad.lo.u32 %r22, %r20, 8, %r21;
            add.u32 %r22, %r22, %r21;
            mad.wide.u32 %d8, %r22, 4, %d0;
            st.global.v2.f32 [%d8], {{%f0, %f1}};
            st.global.v2.f32 [%d8+256], {{%f2, %f3}};
            ",
            if transpose {
                // B lies as [k][n]: rows of 16 bytes along n.
                "mad.lo.u32 %r9, %r6, 16, %r3; ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r14, %r15}, [%r9];"
            } else {
                // B lies as [n][k]: rows of 32 bytes along k.
                "and.b32 %r23, %r0, 7; shr.u32 %r24, %r0, 3; and.b32 %r24, %r24, 1; mad.lo.u32 %r9, %r23, 32, %r3;
                 mad.lo.u32 %r9, %r24, 16, %r9; ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r14, %r15}, [%r9];"
            }
        );
        let a: Vec<f32> = (0..256).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
        let b: Vec<f32> = (0..128).map(|i| ((i * 5) % 11) as f32 - 5.0).collect();
        let bytes = |x: &[f32]| -> Vec<u8> {
            x.iter()
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect()
        };
        let mut out = vec![0u8; 512];
        let result = run_block(
            Arch::Sm80,
            32,
            &body,
            &mut out,
            &[&bytes(&a), &bytes(&b)],
            &Options::default(),
        );
        let profile = match result {
            Ok(profile) => profile,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(profile.total().matrix_flops, 2 * 16 * 8 * 16);
        let got: Vec<f32> = words(&out).into_iter().map(f32::from_bits).collect();
        for i in 0..16 {
            for j in 0..8 {
                let sum: f32 = (0..16)
                    .map(|k| {
                        a[i * 16 + k]
                            * if transpose {
                                b[k * 8 + j]
                            } else {
                                b[j * 16 + k]
                            }
                    })
                    .sum();
                assert_eq!(got[i * 8 + j], sum + 1.0, "{i} {j}");
            }
        }
    }
}

#[test]
fn movmatrix_transposes() {
    let body = "
        ld.param.u64 %d0, [out];
        mov.u32 %r0, %tid.x;
        mad.wide.u32 %d1, %r0, 4, %d0;
        shl.b32 %r1, %r0, 1;
        add.u32 %r2, %r1, 1;
        shl.b32 %r2, %r2, 16;
        or.b32 %r1, %r1, %r2;
        movmatrix.sync.aligned.m8n8.trans.b16 %r3, %r1;
        st.global.u32 [%d1], %r3;
    ";
    // Element (r, c) is 8r + c.
    let got = passes(Arch::Sm80, 32, body);
    for lane in 0..32u32 {
        let (row, column) = (lane / 4, lane % 4 * 2);
        let want = (8 * (column + 1) + row) << 16 | (8 * column + row);
        assert_eq!(got[lane as usize], want);
    }
}

#[test]
fn profiles_count_sectors_conflicts_and_bytes() {
    let body = "
        .shared .align 128 .b8 tile[8192];
        ld.param.u64 %d0, [out];
        ld.param.u64 %d2, [a];
        mov.u32 %r0, %tid.x;
        mad.wide.u32 %d1, %r0, 4, %d0;
        mad.wide.u32 %d3, %r0, 128, %d2;
        ld.global.u32 %r1, [%d3];
        mov.u32 %r2, tile;
        mad.lo.u32 %r3, %r0, 128, %r2;
        st.shared.u32 [%r3], %r1;
        mad.lo.u32 %r4, %r0, 132, %r2;
        st.shared.u32 [%r4+4], %r1;
        st.global.u32 [%d1], %r1;
    ";
    let (mut out, input) = (vec![0; 128], vec![1; 4096]);
    let profile = match run_block(
        Arch::Sm80,
        32,
        body,
        &mut out,
        &[&input],
        &Options::default(),
    ) {
        Ok(profile) => profile,
        Err(error) => panic!("{error}"),
    };
    let sectors: Vec<(u64, u64)> = profile
        .lines
        .iter()
        .filter(|l| l.counts.sectors > 0)
        .map(|l| (l.counts.sectors, l.counts.least_sectors))
        .collect();
    assert_eq!(sectors, [(32, 4), (4, 4)]);
    let conflicts: Vec<u64> = profile.bank_conflicts().iter().map(|c| c.1).collect();
    assert_eq!(conflicts, [31]);
    assert_eq!(
        (profile.unique_read(), profile.unique_written()),
        (128, 128)
    );
    assert_eq!(profile.buffers[1].bytes, 4096);
    let text = profile.to_string();
    assert!(text.contains("31 extra passes"), "{text}");
}
