//! The text of small kernels, and what does not assemble.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::instructions::{Write, every_sm80_instruction};
use super::*;
use crate::launch::Arch;

fn kernel(block: u32) -> Assembler {
    Assembler::new("kernel", Arch::Sm80, [block, 1, 1])
}

/// What a kernel's body looks like, without what surrounds every kernel.
fn body(write: impl FnOnce(&Assembler)) -> Vec<String> {
    let k = kernel(128);
    write(&k);
    let text = k.finish().kernel.text;
    let (_, body) = text.split_once("{\n").expect("a body");
    let is_code = |line: &&str| !line.is_empty() && !line.contains(".reg") && *line != "}";
    body.lines()
        .map(str::trim)
        .filter(is_code)
        .map(String::from)
        .collect()
}

#[test]
fn a_whole_kernel() {
    let k = &kernel(256);
    k.contract("y = 2x, one thread an element.\nGrid: ceil(n / 256).");
    let y = k.buffer::<F32>("y");
    let x = k.buffer::<F32>("x");
    let n = k.parameter::<U32>("n");
    k.comment("this thread's element");
    let i = k.cta_x() * 256 + k.thread_x();
    k.if_(i.lt(n), || y.at(i).store(x.at(i).load() * 2.0));
    let assembled = k.finish();
    let want = "\
.version 7.8
.target sm_80
.address_size 64

// y = 2x, one thread an element.
// Grid: ceil(n / 256).
.visible .entry kernel(
    .param .u64 .ptr .global .align 256 y,
    .param .u64 .ptr .global .align 256 x,
    .param .u32 n
)
.reqntid 256, 1, 1
{
    .reg .pred %p<1>;
    .reg .b32 %r<5>;
    .reg .b64 %d<6>;
    .reg .f32 %f<2>;

    ld.param.u64 %d0, [y];
    cvta.to.global.u64 %d1, %d0;
    ld.param.u64 %d2, [x];
    cvta.to.global.u64 %d3, %d2;
    ld.param.u32 %r0, [n];
    // this thread's element
    mov.u32 %r1, %ctaid.x;
    mul.lo.u32 %r2, %r1, 256;
    mov.u32 %r3, %tid.x;
    add.u32 %r4, %r2, %r3;
    setp.lt.u32 %p0, %r4, %r0;
    @!%p0 bra IF_END_1;
        mad.wide.u32 %d4, %r4, 4, %d1;
        mad.wide.u32 %d5, %r4, 4, %d3;
        ld.global.f32 %f0, [%d5];
        mul.rn.f32 %f1, %f0, 0f40000000;
        st.global.f32 [%d4], %f1;
IF_END_1:
    ret;
}
";
    assert_eq!(assembled.kernel.text, want);
    assert_eq!(assembled.launch([7, 1, 1]).block, [256, 1, 1]);
}

#[test]
fn constants_fold_and_identities_vanish() {
    let lines = body(|k| {
        let i = k.thread_x();
        let three: Value<U32> = 1u32.into_value() + 2;
        let _ = (i + 0) * 1 + three * 4;
        // A float keeps its zero: −0 + 0 is 0, and NaN · 0 is NaN.
        let _ = i.to_f32() + 0.0;
    });
    let want = [
        "mov.u32 %r0, %tid.x;",
        "add.u32 %r1, %r0, 12;",
        "cvt.rn.f32.u32 %f0, %r0;",
        "add.rn.f32 %f1, %f0, 0f00000000;",
        "ret;",
    ];
    assert_eq!(lines, want);
}

#[test]
fn loops_and_variables() {
    let lines = body(|k| {
        let sum = k.variable(0.0f32);
        k.for_(0, 10, 2, |i| sum.set(i.to_f32().mul_add(0.5, sum)));
        k.when(sum.gt(1.0), || sum.set(1.0));
    });
    let want = [
        "mov.f32 %f0, 0f00000000;",
        "mov.u32 %r0, 0;",
        "LOOP_1:",
        "setp.lt.u32 %p0, %r0, 10;",
        "@!%p0 bra LOOP_END_2;",
        "cvt.rn.f32.u32 %f1, %r0;",
        "fma.rn.f32 %f0, %f1, 0f3F000000, %f0;",
        "add.u32 %r0, %r0, 2;",
        "bra LOOP_1;",
        "LOOP_END_2:",
        "setp.gt.f32 %p1, %f0, 0f3F800000;",
        "@%p1 mov.f32 %f0, 0f3F800000;",
        "ret;",
    ];
    assert_eq!(lines, want);
}

#[test]
fn the_same_kernel_has_the_same_text() {
    let write = || body(every_sm80_instruction);
    assert_eq!(write(), write());
}

/// The message with which `write` does not assemble.
fn mistake(write: impl FnOnce(&Assembler)) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| body(write))).expect_err("a mistake");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(other) => other
            .downcast::<&str>()
            .map_or(String::new(), |s| s.to_string()),
    }
}

#[test]
fn mistakes_do_not_assemble() {
    let table: [(&str, Write); 15] = [
        ("only known to be one of 4", |k| {
            k.buffer::<F32>("x").at(k.thread_x()).load_vector::<4>();
        }),
        ("outside of the block", |k| {
            let hidden = std::cell::Cell::new(None);
            let i = k.thread_x();
            k.if_(i.lt(3), || hidden.set(Some(i + 1)));
            let _ = hidden.get().map(|v| v + 1);
        }),
        ("outside of the block", |k| {
            let hidden = std::cell::Cell::new(None);
            let i = k.thread_x();
            k.when(i.lt(3), || hidden.set(Some(i + 1)));
            let _ = hidden.get().map(|v| v + 1);
        }),
        ("set again", |k| {
            let v = k.variable::<U32>(1);
            let old = v.get();
            v.set(2);
            let _ = old + 1;
        }),
        ("the second time round", |k| {
            let v = k.variable::<U32>(1);
            let before = v.get();
            k.for_(0, 4, 1, |_| v.set(before + 1));
        }),
        ("moved into a variable", |k| {
            let v = k.variable::<U32>(1);
            let next = k.thread_x() + 1;
            v.set(next);
            let _ = next + 1;
        }),
        ("stays a multiple of 16", |k| {
            let v = k.variable_multiple_of(0u32, 16);
            v.set(k.thread_x() * 8);
        }),
        ("stmatrix needs sm_90a", |k| {
            let words = [k.thread_x().cast()];
            k.stmatrix(k.shared_array(64), words);
        }),
        ("wgmma needs sm_90a", Assembler::wgmma_fence),
        ("declared twice", |k| {
            k.parameter::<U32>("n");
            k.parameter::<F32>("n");
        }),
        ("inside when()", |k| {
            let p = k.thread_x().lt(3);
            k.when(p, || k.barrier());
        }),
        ("a row of a shared tile that has 64", |k| {
            Layout::<Bf16>::swizzled(64, 32).chunk(k.thread_x(), 0);
        }),
        ("a chunk of a shared tile that has 4", |k| {
            Layout::<Bf16>::swizzled(64, 32).chunk(k.lane(), k.lane() & 7);
        }),
        ("bytes of shared memory; sm_80 has 166912", |k| {
            k.shared_array::<F32>(50_000);
        }),
        ("barriers 0 to 15", |k| k.named_barrier_sync(16, 64)),
    ];
    for (want, write) in table {
        let got = mistake(write);
        assert!(got.contains(want), "{want}: {got}");
        assert!(got.starts_with("kernel kernel (sm_80), after \""), "{got}");
    }
    let no_identifier = catch_unwind(|| Assembler::new("no name", Arch::Sm80, [32, 1, 1]));
    assert!(no_identifier.is_err());
}

#[test]
fn facts_follow_arithmetic() {
    let k = &kernel(128);
    let facts = |v: Value<U32>| (v.facts().multiple(), v.facts().below);
    let t = k.thread_x();
    assert_eq!(facts(t), (1, 128));
    assert_eq!(facts(t * 8), (8, 127 * 8 + 1));
    assert_eq!(facts((t >> 5) * 64 + (t & 15)), (1, 3 * 64 + 15 + 1));
    assert_eq!(facts((t / 4) * 32 + 16), (16, 31 * 32 + 16 + 1));
    assert_eq!(facts(t % 10), (1, 10));
    assert_eq!(facts((t & 7) ^ 8), (1, 16));
    // Where bits cannot meet, a sum keeps the gaps between them.
    assert_eq!(((t >> 5) * 64 + (t & 3)).facts().bits, 0b1100_0011);
    // What may wrap has no bound, and still its power of two.
    assert_eq!(facts(k.cta_x() * 256), (256, u64::MAX));
    assert_eq!(
        facts(k.cta_x().assume_below(1 << 20) * (1 << 16)).1,
        u64::MAX
    );
    assert_eq!(facts(t * 16 - 32).0, 16);
}
