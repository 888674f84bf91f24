//! Every rule: a kernel that breaks it, the error, and the kernel mended.

use super::*;
use crate::sim::Rule;

/// Thread number in `%r0`, the output's address for this thread in `%d1`, the input's in `%d3`.
const START: &str = "
    .shared .align 128 .b8 tile[2048];
    ld.param.u64 %d0, [out];
    ld.param.u64 %d2, [a];
    mov.u32 %r0, %tid.x;
    mad.wide.u32 %d1, %r0, 4, %d0;
    mad.wide.u32 %d3, %r0, 4, %d2;
    mov.u32 %r2, tile;
    mad.lo.u32 %r3, %r0, 4, %r2;
";

fn body(rest: &str) -> String {
    format!("{START}{rest}")
}

/// Asserts that the kernel breaks `rule` at the line that contains `at`, for a reason that contains `why`, and that it
/// is well with `with` in place of `without`.
#[track_caller]
fn rule(
    arch: Arch,
    threads: u32,
    rule: Rule,
    at: &str,
    why: &str,
    text: &str,
    mend: Option<(&str, &str)>,
) {
    let text = body(text);
    let error = breaks(arch, threads, &text);
    assert_eq!(error.rule, rule, "{error}");
    assert!(error.text.contains(at), "{error}");
    assert!(error.why.contains(why), "{error}");
    assert!(error.line.is_some());
    if let Some((without, with)) = mend {
        assert!(text.contains(without), "nothing to mend");
        passes(arch, threads, &text.replace(without, with));
    }
}

const EXCHANGE: &str = "
    st.shared.u32 [%r3], %r0;
    // here
    xor.b32 %r4, %r3, 4;
    ld.shared.u32 %r5, [%r4];
    st.global.u32 [%d1], %r5;
";

#[test]
fn a_missing_warp_barrier_is_a_race_within_the_warp() {
    let mend = Some(("// here", "bar.warp.sync 0xffffffff;"));
    rule(
        Arch::Sm80,
        32,
        Rule::Race,
        "ld.shared.u32 %r5",
        "written at line",
        EXCHANGE,
        mend,
    );
}

#[test]
fn a_missing_barrier_is_a_race_between_warps() {
    let begin = "st.shared.u32 [%r3], 0; bar.sync 0;";
    let text = format!("{begin}{}", EXCHANGE.replace("%r3, 4;", "%r3, 256;"));
    // Which of the two unordered accesses comes first is chance; it is a race both ways.
    for seed in 0..20 {
        let options = Options {
            seed,
            ..Options::default()
        };
        let (mut out, input) = (vec![0; 4096], vec![0; 4096]);
        match run_block(Arch::Sm80, 128, &body(&text), &mut out, &[&input], &options) {
            Ok(_) => panic!("seed {seed} misses the race"),
            Err(error) => {
                assert_eq!(error.rule, Rule::Race, "{error}");
            }
        }
    }
    passes(
        Arch::Sm80,
        128,
        &body(&text.replace("// here", "bar.sync 0;")),
    );
}

#[test]
fn a_write_after_an_unordered_read_is_a_race() {
    let text = "
        st.shared.u32 [%r3], %r0;
        bar.sync 0;
        xor.b32 %r4, %r3, 256;
        ld.shared.u32 %r5, [%r4];
        // here
        st.shared.u32 [%r3], %r5;
        st.global.u32 [%d1], %r5;
    ";
    let mend = Some(("// here", "bar.sync 0;"));
    rule(
        Arch::Sm80,
        128,
        Rule::Race,
        "%r",
        "nothing orders the two",
        text,
        mend,
    );
}

#[test]
fn lanes_that_write_different_values_to_one_place_race() {
    let text = "st.shared.u32 [%r2], %r0; st.global.u32 [%d1], %r0;";
    let mend = Some(("st.shared.u32 [%r2], %r0", "st.shared.u32 [%r2], 7"));
    rule(
        Arch::Sm80,
        32,
        Rule::Race,
        "st.shared.u32 [%r2]",
        "written at line",
        text,
        mend,
    );
}

#[test]
fn named_barriers_order_only_those_that_meet_there() {
    // Warps 0 and 1 meet at barrier 1, warps 2 and 3 at barrier 2; warp 0 reads what warp 3 wrote.
    let text = "
        st.shared.u32 [%r3], %r0;
        shr.u32 %r6, %r0, 6;
        add.u32 %r6, %r6, 1;
        bar.sync %r6, 64;
        xor.b32 %r4, %r3, 384;
        ld.shared.u32 %r5, [%r4];
        st.global.u32 [%d1], %r5;
    ";
    let mend = Some(("xor.b32 %r4, %r3, 384;", "xor.b32 %r4, %r3, 128;"));
    rule(
        Arch::Sm80,
        128,
        Rule::Race,
        "ld.shared.u32 %r5",
        "warp",
        text,
        mend,
    );
}

#[test]
fn what_nobody_wrote_may_be_read_but_not_used() {
    let at = "st.global.u32 [%d1], %r5";
    let text = "ld.shared.u32 %r5, [%r3]; add.u32 %r5, %r5, 1;\n st.global.u32 [%d1], %r5;";
    let mend = Some((
        "ld.shared.u32 %r5, [%r3];",
        "st.shared.u32 [%r3], 1; ld.shared.u32 %r5, [%r3];",
    ));
    rule(
        Arch::Sm80,
        32,
        Rule::Uninitialised,
        at,
        "nobody wrote",
        text,
        mend,
    );
    let branch = "setp.eq.u32 %p0, %r9, 0;\n @%p0 bra END; st.global.u32 [%d1], 1; END:";
    let mend = Some(("setp.eq.u32 %p0, %r9, 0;", "setp.eq.u32 %p0, %r0, 0;"));
    rule(
        Arch::Sm80,
        32,
        Rule::Uninitialised,
        "bra END",
        "guard",
        branch,
        mend,
    );
    let address =
        "mad.wide.u32 %d4, %r9, 4, %d2;\n ld.global.u32 %r5, [%d4]; st.global.u32 [%d1], 1;";
    let mend = Some(("%r9", "%r0"));
    rule(
        Arch::Sm80,
        32,
        Rule::Uninitialised,
        "ld.global.u32 %r5",
        "address",
        address,
        mend,
    );
    let output = "ld.global.u32 %r5, [%d1];\n st.global.u32 [%d1], %r5;";
    rule(
        Arch::Sm80,
        32,
        Rule::Uninitialised,
        "st.global",
        "nobody wrote",
        output,
        None,
    );
}

#[test]
fn one_valid_half_of_a_pair_may_be_used() {
    let text = "
        mov.u16 %h0, 7;
        mov.b32 %r5, {%h0, %h1};
        shl.b32 %r6, %r5, 16;
        st.global.u32 [%d1], %r6;
    ";
    passes(Arch::Sm80, 32, &body(text));
    let high = text.replace("shl.b32 %r6, %r5, 16;", "and.b32 %r6, %r5, 0xffff0000;");
    assert_eq!(
        breaks(Arch::Sm80, 32, &body(&high)).rule,
        Rule::Uninitialised
    );
}

#[test]
fn bounds_alignment_and_permission() {
    let text = "st.global.u32 [%d1+4000], %r0;";
    rule(
        Arch::Sm80,
        32,
        Rule::Bounds,
        "st.global",
        "offset 4096 of argument 0",
        text,
        Some(("4000", "3968")),
    );
    let text = "ld.global.u32 %r5, [%d3-4]; st.global.u32 [%d1], %r5;";
    rule(
        Arch::Sm80,
        32,
        Rule::Bounds,
        "ld.global",
        "offset -4 of argument 1",
        text,
        Some(("-4", "+4")),
    );
    let text = "st.shared.u32 [%r3+2048], %r0; st.global.u32 [%d1], %r0;";
    rule(
        Arch::Sm80,
        32,
        Rule::Bounds,
        "st.shared",
        "2048 bytes",
        text,
        Some(("+2048", "+1920")),
    );
    let text = "ld.global.v2.u32 {%r5, %r6}, [%d3]; st.global.u32 [%d1], %r5;";
    rule(
        Arch::Sm80,
        32,
        Rule::Alignment,
        "ld.global.v2",
        "multiple of 8",
        text,
        None,
    );
    let text = "st.global.u32 [%d3], %r0; st.global.u32 [%d1], %r0;";
    rule(
        Arch::Sm80,
        32,
        Rule::Permission,
        "st.global.u32 [%d3]",
        "argument 1, which is read-only",
        text,
        None,
    );
    let text = "mov.u64 %d4, 0; ld.global.u32 %r5, [%d4]; st.global.u32 [%d1], %r5;";
    rule(
        Arch::Sm80,
        32,
        Rule::Bounds,
        "ld.global",
        "null address",
        text,
        None,
    );
}

const COPY: &str = "
    cp.async.ca.shared.global [%r3], [%d3], 4;
    cp.async.commit_group;
    cp.async.wait_group 0;
    bar.sync 0;
    xor.b32 %r4, %r3, 256;
    ld.shared.u32 %r5, [%r4];
    st.global.u32 [%d1], %r5;
";

#[test]
fn asynchronous_copies_need_their_commit_their_wait_and_a_barrier() {
    passes(Arch::Sm80, 128, &body(COPY));
    for (line, wanted) in [
        ("cp.async.commit_group;", Rule::InFlight),
        ("cp.async.wait_group 0;", Rule::InFlight),
        ("bar.sync 0;", Rule::Race),
    ] {
        let error = breaks(Arch::Sm80, 128, &body(&COPY.replace(line, "")));
        // Without the barrier, the other warp's copy may not even have been waited for.
        let either = matches!(
            error.rule,
            Rule::InFlight | Rule::Race | Rule::Uninitialised
        );
        assert!(
            error.rule == wanted || line == "bar.sync 0;" && either,
            "{error}"
        );
    }
    let early = COPY.replace("wait_group 0", "wait_group 1");
    assert_eq!(breaks(Arch::Sm80, 128, &body(&early)).rule, Rule::InFlight);
    // Overwriting what is on its way is as bad as reading it.
    let overwrite = COPY.replace(
        "cp.async.commit_group;",
        "st.shared.u32 [%r3], 0; cp.async.commit_group;",
    );
    assert_eq!(
        breaks(Arch::Sm80, 128, &body(&overwrite)).rule,
        Rule::InFlight
    );
    let abandoned = "cp.async.ca.shared.global [%r3], [%d3], 4;\n st.global.u32 [%d1], 1;";
    assert_eq!(
        breaks(Arch::Sm80, 128, &body(abandoned)).rule,
        Rule::InFlight
    );
}

#[test]
fn partial_copies_fill_with_zeros_and_read_nothing_else() {
    let text = "
        mov.u32 %r6, 0;
        setp.lt.u32 %p0, %r0, 16;
        @%p0 mov.u32 %r6, 4;
        add.u64 %d4, %d3, 4032;
        cp.async.ca.shared.global [%r3], [%d4], 4, %r6;
        cp.async.wait_all;
        ld.shared.u32 %r5, [%r3];
        st.global.u32 [%d1], %r5;
    ";
    let out = passes(Arch::Sm80, 32, &body(text));
    assert_eq!(out[0], 0xC3C2_C1C0);
    assert_eq!(out[16..32], [0; 16]);
}

#[test]
fn warp_instructions_need_the_warp_together() {
    let text =
        "setp.lt.u32 %p0, %r0, 16;\n @%p0 bra SKIP; bar.sync 0;\n SKIP: st.global.u32 [%d1], 1;";
    rule(
        Arch::Sm80,
        32,
        Rule::Divergence,
        "bar.sync",
        "some are elsewhere",
        text,
        None,
    );
    let text = "setp.lt.u32 %p0, %r0, 16;\n @%p0 shfl.sync.bfly.b32 %r5, %r0, 1, 31, 0xffffffff; st.global.u32 [%d1], 1;";
    rule(
        Arch::Sm80,
        32,
        Rule::Divergence,
        "shfl.sync",
        "elsewhere",
        text,
        Some(("0xffffffff", "0xffff")),
    );
    let text = "setp.lt.u32 %p0, %r0, 16;\n mov.u32 %r9, 0x3f803f80; mov.f32 %f0, 0f00000000;
        @%p0 mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f0,%f0,%f0,%f0}, {%r9,%r9}, {%r9}, {%f0,%f0,%f0,%f0};
        st.global.u32 [%d1], 1;";
    rule(
        Arch::Sm80,
        32,
        Rule::Divergence,
        "mma.sync",
        "predicate",
        text,
        Some(("@%p0", "")),
    );
}

#[test]
fn shuffles_read_only_from_lanes_that_take_part() {
    let text = "
        setp.lt.u32 %p0, %r0, 16;
        @%p0 shfl.sync.idx.b32 %r5, %r0, 20, 31, 0x0000ffff;
        @%p0 st.global.u32 [%d1], %r5;
    ";
    rule(
        Arch::Sm80,
        32,
        Rule::Uninitialised,
        "st.global",
        "nobody wrote",
        text,
        Some(("20, 31", "2, 31")),
    );
}

#[test]
fn deadlock_and_endless_loops_end() {
    let text = "setp.lt.u32 %p0, %r0, 32;\n @%p0 bra SKIP; bar.sync 1, 128;\n SKIP: st.global.u32 [%d1], 1;";
    rule(
        Arch::Sm80,
        128,
        Rule::Deadlock,
        "bar.sync",
        "warps 1, 2, 3 for a barrier",
        text,
        Some(("1, 128", "1, 96")),
    );
    let text = body("LOOP: bra LOOP;");
    let options = Options {
        max_warp_instructions: 10_000,
        ..Options::default()
    };
    let mut out = vec![0; 4096];
    let input = vec![0; 4096];
    let error = run_block(Arch::Sm80, 32, &text, &mut out, &[&input], &options).err();
    assert_eq!(error.map(|e| e.rule), Some(Rule::Budget));
}

#[test]
fn conflicts_between_ctas_are_races() {
    let text = "
        ld.param.u64 %d0, [out];
        mov.u32 %r0, %ctaid.x;
        mov.u32 %r1, %tid.x;
        mad.lo.u32 %r2, %r0, 16, %r1;
        mad.wide.u32 %d1, %r2, 4, %d0;
        st.global.u32 [%d1], %r2;
    ";
    let launch = Launch::linear(8, 32);
    let go = |text: &str| {
        let mut out = vec![0u8; 4096];
        let kernel = kernel(Arch::Sm80, &[".u64 out"], text);
        run(
            &kernel,
            &launch,
            &mut [Argument::Write(&mut out)],
            &Options::default(),
        )
    };
    let first = go(text).err();
    for _ in 0..5 {
        assert_eq!(
            go(text).err(),
            first,
            "the error depends on the host's threads"
        );
    }
    let error = match first {
        Some(error) => error,
        None => panic!("overlapping CTAs pass"),
    };
    assert_eq!(error.rule, Rule::Race);
    assert!(error.why.contains("CTA (0, 0, 0)"), "{error}");
    assert!(go(&text.replace("%r0, 16, %r1", "%r0, 32, %r1")).is_ok());
}

/// The last CTA adds what all have written: right with fences on both sides of the atomic.
const LAST_CTA: &str = "
    .shared .align 4 .b8 last[4];
    ld.param.u64 %d0, [out];
    ld.param.u64 %d2, [counter];
    mov.u32 %r0, %ctaid.x;
    mov.u32 %r1, %tid.x;
    mad.wide.u32 %d1, %r0, 4, %d0;
    setp.ne.u32 %p0, %r1, 0;
    @%p0 bra WAIT;
    add.u32 %r2, %r0, 1;
    st.global.u32 [%d1+4], %r2;
    fence.acq_rel.gpu;
    atom.global.add.u32 %r3, [%d2], 1;
    fence.acq_rel.gpu;
    mov.u32 %r4, last;
    st.shared.u32 [%r4], %r3;
    WAIT:
    bar.sync 0;
    mov.u32 %r4, last;
    ld.shared.u32 %r5, [%r4];
    mov.u32 %r6, %nctaid.x;
    sub.u32 %r6, %r6, 1;
    setp.ne.u32 %p1, %r5, %r6;
    @%p1 bra END;
    @%p0 bra END;
    mov.u32 %r7, 0;
    mov.u32 %r8, 0;
    SUM:
    mad.wide.u32 %d3, %r8, 4, %d0;
    ld.global.u32 %r9, [%d3+4];
    add.u32 %r7, %r7, %r9;
    add.u32 %r8, %r8, 1;
    setp.le.u32 %p2, %r8, %r6;
    @%p2 bra SUM;
    st.global.u32 [%d0], %r7;
    END:
    ret;
";

#[test]
fn fences_and_atomics_order_ctas() {
    let go = |text: &str, seed: u64| {
        let (mut out, mut counter) = (vec![0u8; 4 * 21], vec![0u8; 4]);
        let kernel = kernel(Arch::Sm80, &[".u64 out", ".u64 counter"], text);
        let mut arguments = [Argument::Write(&mut out), Argument::Update(&mut counter)];
        let options = Options {
            seed,
            ..Options::default()
        };
        run(&kernel, &Launch::linear(20, 64), &mut arguments, &options).map(|_| words(&out)[0])
    };
    for seed in 0..4 {
        match go(LAST_CTA, seed) {
            Ok(sum) => assert_eq!(sum, 210),
            Err(error) => panic!("{error}"),
        }
    }
    for fence in [0, 1] {
        let mut parts = LAST_CTA.splitn(3, "fence.acq_rel.gpu;");
        let parts: Vec<&str> = parts.by_ref().collect();
        let text = match fence {
            0 => format!("{}{}fence.acq_rel.gpu;{}", parts[0], parts[1], parts[2]),
            _ => format!("{}fence.acq_rel.gpu;{}{}", parts[0], parts[1], parts[2]),
        };
        let error = go(&text, 1).err();
        assert_eq!(
            error.map(|e| e.rule),
            Some(Rule::Race),
            "without fence {fence}"
        );
    }
}

#[test]
fn launches_that_do_not_fit_are_refused() {
    let kernel = kernel(Arch::Sm80, &[".u64 out", ".u32 n"], "ret;");
    let mut out = [0u8; 16];
    let options = Options::default();
    let refused = |launch: &Launch, arguments: &mut [Argument<'_>]| {
        run(&kernel, launch, arguments, &options)
            .err()
            .map(|e| e.rule)
    };
    let one = Launch::linear(1, 32);
    assert_eq!(
        refused(&one, &mut [Argument::Write(&mut out), Argument::U32(1)]),
        None
    );
    assert_eq!(
        refused(&one, &mut [Argument::Write(&mut out)]),
        Some(Rule::Launch)
    );
    assert_eq!(
        refused(&one, &mut [Argument::Write(&mut out), Argument::F32(1.0)]),
        Some(Rule::Launch)
    );
    let huge = Launch::linear(1, 2048);
    assert_eq!(
        refused(&huge, &mut [Argument::Write(&mut out), Argument::U32(1)]),
        Some(Rule::Launch)
    );
    let other = Kernel {
        name: "other".into(),
        ..kernel.clone()
    };
    let error = run(&other, &one, &mut [], &options).err();
    assert!(error.is_some_and(|e| e.why.contains("it has test")));
}
