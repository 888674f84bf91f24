//! Text that is and that is not PTX.

use proptest::prelude::*;

use super::*;
use crate::sim::{Rule, parse, program};

/// What a text says that is wrong: rule, line, reason.
fn refusal(arch: Arch, body: &str) -> Option<(Rule, Option<u32>, String)> {
    let kernel = kernel(arch, &[".u64 out", ".u32 n"], body);
    let result = parse::parse(&kernel.text)
        .and_then(|module| program::decode(&module, &module.entries[0], arch, 1).map(|_| ()));
    result.err().map(|f| (f.rule, f.line, f.why))
}

#[test]
fn errors_name_the_line_and_the_mistake() {
    // The body's first line is the text's tenth.
    let cases = [
        ("add.u32 %r0, %r1;", Rule::Syntax, "takes 3 operands"),
        (
            "add.u32 %r0, %r1, %f0;",
            Rule::Syntax,
            ".u32 is needed, the register is .f32",
        ),
        (
            "add.u32 %r0, %r1, %q0;",
            Rule::Syntax,
            "%q0 is not a declared register",
        ),
        ("add.u32 %r0, %r1, %r64;", Rule::Syntax, "%r64"),
        ("frobnicate.u32 %r0;", Rule::Unsupported, "frobnicate"),
        ("add.wat.u32 %r0, %r1, %r2;", Rule::Unsupported, ".wat"),
        ("bra NOWHERE;", Rule::Syntax, "NOWHERE"),
        ("@%r0 bra END; END:", Rule::Syntax, "predicate"),
        ("mov.u32 %r0, {", Rule::Syntax, "expected an operand"),
        ("ld.global.u32 %r0, [%r1];", Rule::Syntax, "64 bits"),
        ("ld.param.u64 %d0, [n];", Rule::Syntax, "leaves it"),
        ("mul.u32 %r0, %r1, %r2;", Rule::Syntax, ".lo, .hi or .wide"),
        ("cvt.f32.u32 %f0, %r0;", Rule::Syntax, "rounding"),
        ("add.rz.f32 %f0, %f1, %f2;", Rule::Unsupported, "rounding"),
        ("call foo;", Rule::Unsupported, "inline it"),
        (
            "mov.u32 %r0, 99999999999999999999;",
            Rule::Syntax,
            "is not a number",
        ),
        ("elect.sync %r0|%p0, -1;", Rule::Unsupported, "sm_90"),
        (
            "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r0], {%r1};",
            Rule::Unsupported,
            "sm_90",
        ),
        ("add.bf16x2 %r0, %r1, %r2;", Rule::Unsupported, "sm_90"),
        ("wgmma.fence.sync.aligned;", Rule::Unsupported, "sm_90"),
    ];
    for (text, rule, why) in cases {
        match refusal(Arch::Sm80, text) {
            None => panic!("{text} passes"),
            Some((found, line, reason)) => {
                assert_eq!(found, rule, "{text}: {reason}");
                assert!(line.is_some_and(|l| l >= 10), "{text}: line {line:?}");
                assert!(reason.contains(why), "{text}: {reason}");
            }
        }
    }
}

#[test]
fn other_forms_of_the_same_text_pass() {
    let cases = [
        "{ .reg .u32 %r0; mov.u32 %r0, 0x1F; } mov.u32 %r0, 017; mov.u32 %r1, 0b101;",
        "/* a comment\n over lines */ mov.f32 %f0, 1.5; mov.f32 %f1, -2e-3; // the end",
        ".pragma \"nounroll\"; L1: L2: @!%p0 bra.uni L1;",
        ".loc 1 2 3\n mov.b64 %d0, {%r0, %r1}; mov.b64 {%r2, _}, %d0;",
        "setp.lt.and.s32 %p0|%p1, %r0, -5, !%p2;",
        "ld.global.nc.L1::no_allocate.L2::128B.v4.f32 {%f0, _, %f2, %f3}, [%d0+-16];",
        "mov.u32 %r1, %ntid.y; mad.lo.s32 %r1, %r1, %ctaid.x, %tid.x;",
        "membar.gl; nanosleep.u32 20; prefetch.global.L2 [%d0];",
    ];
    for text in cases {
        assert_eq!(refusal(Arch::Sm80, text), None, "{text}");
    }
}

#[test]
fn modules_have_variables_and_several_entries() {
    let text = "
        .version 7.8 .target sm_80, debug .address_size 64
        .const .align 8 .f32 table[4] = {0f3F800000, 0f40000000, 0f40400000, 0f40800000};
        .global .u32 counter;
        .extern .shared .align 16 .b8 dynamic[];
        .visible .entry other() { ret; }
        .visible .entry test(.param .u64 .ptr .global .align 4 out, .param .align 8 .b8 by_value[12])
        .maxntid 64, 1, 1
        {
            .reg .b32 %r<4>; .reg .b64 %d<4>; .reg .f32 %f<2>; .reg .pred %p;
            ld.param.u64 %d0, [out];
            cvta.to.global.u64 %d0, %d0;
            mov.u32 %r0, %tid.x;
            mov.u64 %d1, table;
            and.b32 %r1, %r0, 3;
            mad.wide.u32 %d1, %r1, 4, %d1;
            ld.const.f32 %f0, [%d1];
            ld.param.s16 %r2, [by_value+10];
            cvt.rn.f32.s32 %f1, %r2;
            add.f32 %f0, %f0, %f1;
            mad.wide.u32 %d2, %r0, 4, %d0;
            st.global.f32 [%d2], %f0;
        }";
    let kernel = Kernel {
        name: "test".into(),
        arch: Arch::Sm80,
        text: text.into(),
    };
    let mut out = [0u8; 128];
    let mut by_value = [0u8; 12];
    by_value[10..].copy_from_slice(&(-3i16).to_le_bytes());
    let mut arguments = [Argument::Write(&mut out), Argument::Bytes(&by_value)];
    if let Err(error) = run(
        &kernel,
        &Launch::linear(1, 32),
        &mut arguments,
        &Options::default(),
    ) {
        panic!("{error}");
    }
    let floats: Vec<f32> = words(&out).into_iter().map(f32::from_bits).collect();
    assert_eq!(floats[..5], [-2.0, -1.0, 0.0, 1.0, -2.0]);
}

/// A text with most of the grammar in it, for mutations.
fn sample() -> String {
    let body = "
        .shared .align 128 .b8 tile[2048];
        ld.param.u64 %d0, [out];
        mov.u32 %r0, %tid.x;
        mad.wide.u32 %d1, %r0, 4, %d0;
        @%p0 bra SKIP;
        cp.async.cg.shared.global [%r1], [%d1+16], 16, %r2;
        cp.async.commit_group;
        cp.async.wait_group 0;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r0, %r1, %r2, %r3}, [%r4];
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, {%r0,%r1,%r2,%r3}, {%r4,%r5}, {%f0,%f1,%f2,%f3};
        SKIP:
        setp.ge.and.s32 %p1|%p2, %r0, -7, !%p3;
        shfl.sync.bfly.b32 %r6|%p4, %r7, 1, 31, 0xffffffff;
        st.global.v2.f32 [%d1], {%f0, 0f3F800000};
    ";
    kernel(Arch::Sm80, &[".u64 out", ".u32 n"], body).text
}

/// Parses, decodes and runs whatever it is; the result does not matter, only that there is one.
fn survive(text: &str) {
    let kernel = Kernel {
        name: "test".into(),
        arch: Arch::Sm80,
        text: text.into(),
    };
    let mut out = [0u8; 256];
    let mut arguments = [Argument::Write(&mut out), Argument::U32(3)];
    let options = Options {
        max_warp_instructions: 2000,
        ..Options::default()
    };
    let _ = run(&kernel, &Launch::linear(1, 32), &mut arguments, &options);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_text_never_panics(edits in prop::collection::vec((0usize..4, 0usize..2000, any::<u8>()), 1..6)) {
        let mut text = sample().into_bytes();
        for (kind, at, byte) in edits {
            let at = at % text.len();
            let other = usize::from(byte) * 7 % text.len();
            match kind {
                0 => text[at] = byte % 127,
                1 => { text.remove(at); }
                2 => text.insert(at, b" {}[];,.:%0-@!|"[usize::from(byte) % 15]),
                _ => text.swap(at, other),
            }
        }
        survive(&String::from_utf8_lossy(&text));
    }

    #[test]
    fn shuffled_lines_never_panic(order in prop::collection::vec(any::<u16>(), 40)) {
        let text = sample();
        let lines: Vec<&str> = text.lines().collect();
        let head = lines[..9].join("\n");
        let body: Vec<&str> = order.iter().map(|&i| lines[9 + usize::from(i) % (lines.len() - 10)]).collect();
        survive(&format!("{head}\n{}\n}}", body.join("\n")));
    }

    #[test]
    fn any_text_never_panics(text in "\\PC{0,200}") {
        survive(&text);
        survive(&format!(".version 7.8\n.target sm_80\n.entry test({text}"));
    }
}
