//! Whole pipelines, right and then with one synchronising line taken out at a time: every mutant that can change a
//! result must be caught.

use half::bf16;

use super::*;
use crate::launch::{MapElement, Swizzle, TensorMap};
use crate::sim::Rule;

/// What makes a line synchronise.
const SYNCHRONISING: [&str; 11] = [
    "bar.",
    "barrier.",
    "fence",
    "membar",
    "wait",
    "commit",
    "mbarrier.init",
    "mbarrier.arrive",
    "mbarrier.expect_tx",
    "wgmma.fence",
    "setmaxnreg",
];

/// The text without one of its synchronising instructions, for each of them; with the line that went.
pub fn mutants(text: &str) -> Vec<(u32, String, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut all = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or("").trim();
        let instruction = code
            .split_whitespace()
            .find(|w| !w.starts_with('@'))
            .unwrap_or("");
        if !code.ends_with(';') || code.starts_with('.') {
            continue;
        }
        if SYNCHRONISING.iter().any(|s| instruction.contains(s)) {
            let mut rest = lines.clone();
            rest[i] = "";
            all.push((i as u32 + 1, code.to_string(), rest.join("\n")));
        }
    }
    all
}

/// Lines whose removal no seed and no completion notices: neither an error nor another result.
pub fn survivors(
    kernel: &Kernel,
    go: impl Fn(&Kernel, &Options) -> Result<Vec<u8>, Error>,
) -> Vec<String> {
    let want = match go(kernel, &Options::default()) {
        Ok(want) => want,
        Err(error) => panic!("{error}"),
    };
    let mut alive = Vec::new();
    for (_, line, text) in mutants(&kernel.text) {
        let mutant = Kernel {
            text,
            ..kernel.clone()
        };
        let caught = all_options().iter().any(|options| {
            let options = Options {
                max_warp_instructions: 1 << 20,
                ..*options
            };
            go(&mutant, &options).is_err()
        });
        if !caught {
            // A mutant that passes must at least compute the same.
            assert_eq!(
                go(&mutant, &Options::default()).ok(),
                Some(want.clone()),
                "without {line}"
            );
            alive.push(line);
        }
    }
    alive
}

fn bytes(x: &[f32]) -> Vec<u8> {
    x.iter()
        .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
        .collect()
}

fn operand(n: usize, step: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * step) % 13) as f32 - 6.0).collect()
}

/// C[m, n] = A[m, k] · B[n, k]ᵀ of small integers, exactly.
fn product(a: &[f32], b: &[f32], n: usize, k: usize) -> Vec<f32> {
    let rows = a.chunks(k);
    rows.flat_map(|row| {
        b.chunks(k)
            .take(n)
            .map(|col| row.iter().zip(col).map(|(x, y)| x * y).sum())
    })
    .collect()
}

/// C[32, 8] = A[32, 64] · B[8, 64]ᵀ by two warps, in two stages of cp.async.
const AMPERE: &str = "
    .shared .align 128 .b8 stages[2560];
    ld.param.u64 %d0, [out];
    ld.param.u64 %d2, [a];
    ld.param.u64 %d4, [b];
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, stages;
    // This thread's 16 bytes of a stage: row %r2, half %r3 of A; of B for the first 16 threads.
    shr.u32 %r2, %r0, 1;
    and.b32 %r3, %r0, 1;
    shl.b32 %r3, %r3, 4;
    mad.lo.u32 %r4, %r2, 128, %r3;
    cvt.u64.u32 %d6, %r4;
    add.u64 %d7, %d2, %d6;
    add.u64 %d8, %d4, %d6;
    mad.lo.u32 %r5, %r2, 32, %r3;
    add.u32 %r5, %r1, %r5;
    setp.lt.u32 %p0, %r0, 16;
    cp.async.cg.shared.global [%r5], [%d7], 16;
    @%p0 cp.async.cg.shared.global [%r5+1024], [%d8], 16;
    cp.async.commit_group;
    // Rows that this lane gives to ldmatrix.
    and.b32 %r6, %r0, 15;
    shr.u32 %r7, %r0, 5;
    mad.lo.u32 %r6, %r7, 16, %r6;
    shr.u32 %r8, %r0, 4;
    and.b32 %r8, %r8, 1;
    shl.b32 %r8, %r8, 4;
    mad.lo.u32 %r9, %r6, 32, %r8;
    add.u32 %r9, %r1, %r9;
    and.b32 %r10, %r0, 7;
    shr.u32 %r11, %r0, 3;
    and.b32 %r11, %r11, 1;
    shl.b32 %r11, %r11, 4;
    mad.lo.u32 %r12, %r10, 32, %r11;
    add.u32 %r12, %r1, %r12;
    add.u32 %r12, %r12, 1024;
    mov.f32 %f0, 0f00000000;
    mov.f32 %f1, %f0;
    mov.f32 %f2, %f0;
    mov.f32 %f3, %f0;
    mov.u32 %r13, 0;
    LOOP:
    add.u32 %r14, %r13, 1;
    setp.lt.u32 %p1, %r14, 4;
    and.pred %p2, %p0, %p1;
    and.b32 %r15, %r14, 1;
    mad.lo.u32 %r16, %r15, 1280, %r5;
    add.u64 %d7, %d7, 32;
    add.u64 %d8, %d8, 32;
    @%p1 cp.async.cg.shared.global [%r16], [%d7], 16;
    @%p2 cp.async.cg.shared.global [%r16+1024], [%d8], 16;
    cp.async.commit_group;
    cp.async.wait_group 1;
    bar.sync 0;
    and.b32 %r17, %r13, 1;
    mad.lo.u32 %r18, %r17, 1280, %r9;
    mad.lo.u32 %r19, %r17, 1280, %r12;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r18];
    ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r24, %r25}, [%r19];
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, {%r20,%r21,%r22,%r23}, {%r24,%r25}, {%f0,%f1,%f2,%f3};
    bar.sync 0;
    mov.u32 %r13, %r14;
    @%p1 bra LOOP;
    and.b32 %r30, %r0, 31;
    shr.u32 %r31, %r30, 2;
    mad.lo.u32 %r31, %r7, 16, %r31;
    and.b32 %r32, %r30, 3;
    shl.b32 %r32, %r32, 1;
    mad.lo.u32 %r33, %r31, 8, %r32;
    mad.wide.u32 %d9, %r33, 4, %d0;
    st.global.v2.f32 [%d9], {%f0, %f1};
    st.global.v2.f32 [%d9+256], {%f2, %f3};
";

fn run_ampere(kernel: &Kernel, options: &Options) -> Result<Vec<u8>, Error> {
    let (a, b) = (bytes(&operand(32 * 64, 7)), bytes(&operand(8 * 64, 5)));
    let mut out = vec![0; 32 * 8 * 4];
    let mut arguments = [
        Argument::Write(&mut out),
        Argument::Read(&a),
        Argument::Read(&b),
    ];
    run(kernel, &Launch::linear(1, 64), &mut arguments, options)?;
    Ok(out)
}

#[test]
fn every_mutant_of_the_ampere_pipeline_is_caught() {
    let kernel = kernel(Arch::Sm80, &[".u64 out", ".u64 a", ".u64 b"], AMPERE);
    let want = product(&operand(32 * 64, 7), &operand(8 * 64, 5), 8, 64);
    for options in all_options() {
        match run_ampere(&kernel, &options) {
            Ok(out) => {
                let got: Vec<f32> = words(&out).into_iter().map(f32::from_bits).collect();
                assert_eq!(got, want, "{options:?}");
            }
            Err(error) => panic!("{options:?}: {error}"),
        }
    }
    assert_eq!(mutants(&kernel.text).len(), 5);
    assert_eq!(survivors(&kernel, run_ampere), Vec::<String>::new());
}

/// C[64, 16] = A[64, 64] · B[16, 64]ᵀ: a producer warp fills two stages by tensor maps, a warpgroup multiplies.
const HOPPER: &str = "
    .shared .align 1024 .b8 stages[5120];
    .shared .align 8 .b8 full[16];
    .shared .align 8 .b8 empty[16];
    ld.param.u64 %d0, [out];
    mov.u64 %d2, map_a;
    cvta.param.u64 %d2, %d2;
    mov.u64 %d3, map_b;
    cvta.param.u64 %d3, %d3;
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, stages;
    mov.u32 %r2, full;
    mov.u32 %r3, empty;
    shr.u32 %r4, %r0, 5;
    setp.eq.u32 %p0, %r0, 0;
    @!%p0 bra READY;
    mbarrier.init.shared.b64 [%r2], 1;
    mbarrier.init.shared.b64 [%r2+8], 1;
    mbarrier.init.shared.b64 [%r3], 4;
    mbarrier.init.shared.b64 [%r3+8], 4;
    fence.mbarrier_init.release.cluster;
    READY:
    bar.sync 0;
    mov.u32 %r5, 0;
    setp.lt.u32 %p1, %r4, 4;
    @%p1 bra CONSUME;
    setmaxnreg.dec.sync.aligned.u32 24;
    elect.sync _|%p2, -1;
    @!%p2 bra END;
    PRODUCE:
    and.b32 %r6, %r5, 1;
    shr.u32 %r7, %r5, 1;
    and.b32 %r7, %r7, 1;
    xor.b32 %r8, %r7, 1;
    shl.b32 %r9, %r6, 3;
    add.u32 %r10, %r2, %r9;
    add.u32 %r11, %r3, %r9;
    FREE:
    mbarrier.try_wait.parity.shared.b64 %p3, [%r11], %r8;
    @!%p3 bra FREE;
    mbarrier.arrive.expect_tx.shared.b64 _, [%r10], 2560;
    mad.lo.u32 %r12, %r6, 2560, %r1;
    shl.b32 %r13, %r5, 4;
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r12], [%d2, {%r13, 0}], [%r10];
    cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r12+2048], [%d3, {%r13, 0}], [%r10];
    add.u32 %r5, %r5, 1;
    setp.lt.u32 %p4, %r5, 4;
    @%p4 bra PRODUCE;
    bra END;
    CONSUME:
    setmaxnreg.inc.sync.aligned.u32 232;
    and.b32 %r20, %r0, 31;
    setp.eq.u32 %p5, %r20, 0;
    mov.f32 %f0, 0f00000000;
    mov.f32 %f1, %f0;
    mov.f32 %f2, %f0;
    mov.f32 %f3, %f0;
    mov.f32 %f4, %f0;
    mov.f32 %f5, %f0;
    mov.f32 %f6, %f0;
    mov.f32 %f7, %f0;
    MULTIPLY:
    and.b32 %r6, %r5, 1;
    shr.u32 %r7, %r5, 1;
    and.b32 %r7, %r7, 1;
    shl.b32 %r9, %r6, 3;
    add.u32 %r10, %r2, %r9;
    add.u32 %r11, %r3, %r9;
    BROUGHT:
    mbarrier.try_wait.parity.shared.b64 %p3, [%r10], %r7;
    @!%p3 bra BROUGHT;
    mad.lo.u32 %r12, %r6, 2560, %r1;
    shr.u32 %r14, %r12, 4;
    cvt.u64.u32 %d5, %r14;
    // 32-byte swizzle, 256 bytes from eight rows to the next.
    or.b64 %d5, %d5, 0xC000001000010000;
    add.u64 %d6, %d5, 128;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%f0,%f1,%f2,%f3,%f4,%f5,%f6,%f7}, %d5, %d6, 1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    @%p5 mbarrier.arrive.shared.b64 _, [%r11];
    add.u32 %r5, %r5, 1;
    setp.lt.u32 %p4, %r5, 4;
    @%p4 bra MULTIPLY;
    shr.u32 %r21, %r20, 2;
    mad.lo.u32 %r21, %r4, 16, %r21;
    and.b32 %r22, %r20, 3;
    shl.b32 %r22, %r22, 1;
    mad.lo.u32 %r23, %r21, 16, %r22;
    mad.wide.u32 %d9, %r23, 4, %d0;
    st.global.v2.f32 [%d9], {%f0, %f1};
    st.global.v2.f32 [%d9+512], {%f2, %f3};
    st.global.v2.f32 [%d9+32], {%f4, %f5};
    st.global.v2.f32 [%d9+544], {%f6, %f7};
    END:
    ret;
";

fn hopper() -> Kernel {
    let params = [
        ".u64 out",
        ".align 64 .b8 map_a[128]",
        ".align 64 .b8 map_b[128]",
        ".u64 a",
        ".u64 b",
    ];
    let mut kernel = kernel(Arch::Sm90a, &params, HOPPER);
    kernel.text = kernel
        .text
        .replace(")\n{", ")\n.maxntid 160, 1, 1\n.minnctapersm 1\n{");
    kernel
}

fn map(buffer: usize, rows: u32) -> TensorMap {
    TensorMap {
        buffer,
        offset: 0,
        element: MapElement::Bf16,
        dims: vec![64, u64::from(rows)],
        strides: vec![128],
        tile: vec![16, rows],
        swizzle: Swizzle::B32,
    }
}

fn run_hopper(kernel: &Kernel, options: &Options) -> Result<Vec<u8>, Error> {
    let (a, b) = (bytes(&operand(64 * 64, 7)), bytes(&operand(16 * 64, 5)));
    let mut out = vec![0; 64 * 16 * 4];
    let mut arguments = [
        Argument::Write(&mut out),
        Argument::TensorMap(map(3, 64)),
        Argument::TensorMap(map(4, 16)),
        Argument::Read(&a),
        Argument::Read(&b),
    ];
    run(kernel, &Launch::linear(1, 160), &mut arguments, options)?;
    Ok(out)
}

#[test]
fn every_mutant_of_the_hopper_pipeline_is_caught() {
    let kernel = hopper();
    let want = product(&operand(64 * 64, 7), &operand(16 * 64, 5), 16, 64);
    for options in all_options() {
        match run_hopper(&kernel, &options) {
            Ok(out) => {
                let got: Vec<f32> = words(&out).into_iter().map(f32::from_bits).collect();
                assert_eq!(got, want, "{options:?}");
            }
            Err(error) => panic!("{options:?}: {error}"),
        }
    }
    assert_eq!(mutants(&kernel.text).len(), 15);
    // Registers per thread are the hardware's to share out: without setmaxnreg the kernel is only slower.
    let unneeded = [
        "setmaxnreg.dec.sync.aligned.u32 24;",
        "setmaxnreg.inc.sync.aligned.u32 232;",
    ];
    assert_eq!(survivors(&kernel, run_hopper), unneeded);
}

#[test]
fn what_the_asynchronous_proxy_reads_must_be_fenced() {
    let body = "
        .shared .align 128 .b8 tile[512];
        ld.param.u64 %d0, [out];
        mov.u32 %r0, %tid.x;
        mov.u32 %r1, tile;
        mad.lo.u32 %r2, %r0, 4, %r1;
        st.shared.u32 [%r2], %r0;
        fence.proxy.async.shared::cta;
        bar.sync 0;
        setp.eq.u32 %p0, %r0, 0;
        @!%p0 bra END;
        cp.async.bulk.global.shared::cta.bulk_group [%d0], [%r1], 512;
        cp.async.bulk.commit_group;
        cp.async.bulk.wait_group.read 0;
        END:
        ret;
    ";
    assert_eq!(
        passes(Arch::Sm90a, 128, body)[..128],
        (0..128).collect::<Vec<u32>>()
    );
    for (line, rule) in [
        ("fence.proxy.async.shared::cta;", Rule::ProxyFence),
        ("cp.async.bulk.commit_group;", Rule::InFlight),
        ("cp.async.bulk.wait_group.read 0;", Rule::InFlight),
    ] {
        let error = breaks(Arch::Sm90a, 128, &body.replace(line, ""));
        assert_eq!(error.rule, rule, "{error}");
    }
}

#[test]
fn boxes_beyond_the_tensor_are_zero_and_swizzled() {
    let body = "
        .shared .align 1024 .b8 tile[1024];
        .shared .align 8 .b8 full[8];
        ld.param.u64 %d0, [out];
        mov.u64 %d2, map;
        cvta.param.u64 %d2, %d2;
        mov.u32 %r0, %tid.x;
        mov.u32 %r1, tile;
        mov.u32 %r2, full;
        setp.eq.u32 %p0, %r0, 0;
        @%p0 mbarrier.init.shared.b64 [%r2], 1;
        @%p0 fence.proxy.async;
        bar.warp.sync -1;
        @%p0 mbarrier.arrive.expect_tx.shared.b64 _, [%r2], 1024;
        @%p0 cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%d2, {-8, 1}], [%r2];
        WAIT:
        mbarrier.try_wait.parity.shared.b64 %p1, [%r2], 0;
        @!%p1 bra WAIT;
        mad.lo.u32 %r3, %r0, 32, %r1;
        mad.wide.u32 %d1, %r0, 32, %d0;
        ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r3];
        st.global.v4.u32 [%d1], {%r4, %r5, %r6, %r7};
        ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r3+16];
        st.global.v4.u32 [%d1+16], {%r4, %r5, %r6, %r7};
    ";
    let kernel = kernel(
        Arch::Sm90a,
        &[".u64 out", ".align 64 .b8 map[128]", ".u64 a"],
        body,
    );
    let input: Vec<u8> = (0..64 * 4u16).flat_map(|i| (i + 1).to_le_bytes()).collect();
    let mut out = vec![0; 1024];
    let tensor = TensorMap {
        buffer: 2,
        offset: 0,
        element: MapElement::U16,
        dims: vec![64, 4],
        strides: vec![128],
        tile: vec![64, 8],
        swizzle: Swizzle::B128,
    };
    let mut arguments = [
        Argument::Write(&mut out),
        Argument::TensorMap(tensor),
        Argument::Read(&input),
    ];
    if let Err(error) = run(
        &kernel,
        &Launch::linear(1, 32),
        &mut arguments,
        &Options::default(),
    ) {
        panic!("{error}");
    }
    for row in 0..8 {
        for column in 0..64 {
            let chunk = (column / 8) ^ row;
            let at = row * 128 + chunk * 16 + column % 8 * 2;
            let got = u16::from_le_bytes([out[at], out[at + 1]]);
            let inside = row < 3 && column >= 8;
            let want = if inside {
                (row as u16 + 1) * 64 + column as u16 - 8 + 1
            } else {
                0
            };
            assert_eq!(got, want, "{row} {column}");
        }
    }
}

#[test]
fn clusters_share_memory_and_outlive_their_peers() {
    let body = "
        .shared .align 4 .b8 cell[4];
        ld.param.u64 %d0, [out];
        mov.u32 %r0, %cluster_ctarank;
        mov.u32 %r1, cell;
        add.u32 %r2, %r0, 100;
        mov.u32 %r9, %tid.x;
        setp.eq.u32 %p0, %r9, 0;
        @%p0 st.shared.u32 [%r1], %r2;
        barrier.cluster.arrive.release.aligned;
        barrier.cluster.wait.acquire.aligned;
        xor.b32 %r3, %r0, 1;
        mapa.shared::cluster.u32 %r4, %r1, %r3;
        ld.shared::cluster.u32 %r5, [%r4];
        // end
        mov.u32 %r6, %ctaid.x;
        mad.wide.u32 %d1, %r6, 4, %d0;
        @%p0 st.global.u32 [%d1], %r5;
    ";
    let go = |body: &str, seed: u64| {
        let kernel = kernel(Arch::Sm90a, &[".u64 out"], body);
        let mut out = vec![0; 16];
        let launch = Launch {
            cluster: [2, 1, 1],
            ..Launch::linear(4, 32)
        };
        let options = Options {
            seed,
            ..Options::default()
        };
        run(&kernel, &launch, &mut [Argument::Write(&mut out)], &options).map(|_| words(&out))
    };
    let closed = body.replace(
        "// end",
        "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
    );
    for seed in 0..4 {
        assert_eq!(go(&closed, seed).ok(), Some(vec![101, 100, 101, 100]));
    }
    // One CTA may exit while the other still reads from it, under some order.
    let rules: Vec<Option<Rule>> = (0..20)
        .map(|seed| go(body, seed).err().map(|e| e.rule))
        .collect();
    assert!(rules.contains(&Some(Rule::Bounds)), "{rules:?}");
    let unordered = closed.replacen(
        "barrier.cluster.arrive.release.aligned;",
        "barrier.cluster.arrive.relaxed.aligned;",
        1,
    );
    let rules: Vec<Option<Rule>> = (0..4)
        .map(|seed| go(&unordered, seed).err().map(|e| e.rule))
        .collect();
    assert!(rules.iter().all(|r| *r == Some(Rule::Race)), "{rules:?}");
}
