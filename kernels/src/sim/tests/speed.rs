//! How fast the simulator is. Prints; asserts only that it is not absurdly slow.

use std::time::Instant;

use super::*;

/// A loop of 16 fused multiply-adds: what f32 kernels mostly are.
#[test]
fn lane_instructions_per_second() {
    let mut body = String::from(
        "
        ld.param.u64 %d0, [out];
        mov.u32 %r0, %tid.x;
        mad.wide.u32 %d1, %r0, 4, %d0;
        cvt.rn.f32.u32 %f0, %r0;
        mov.u32 %r1, 0;
        loop:
        ",
    );
    for i in 0..16 {
        body.push_str(&format!(
            "fma.rn.f32 %f{}, %f{}, 0f3F7FFFF0, %f0;\n",
            i + 1,
            i
        ));
    }
    body.push_str(
        "
        add.u32 %r1, %r1, 1;
        setp.lt.u32 %p0, %r1, 1000;
        @%p0 bra loop;
        st.global.f32 [%d1], %f16;
        ",
    );
    let mut out = vec![0u8; 4 * 256];
    let start = Instant::now();
    let profile = run_block(Arch::Sm80, 256, &body, &mut out, &[], &Options::default());
    let seconds = start.elapsed().as_secs_f64();
    let lanes = profile.map(|p| p.total().lanes).unwrap_or(0) as f64;
    println!(
        "fma loop: {:.0} M lane instructions/s",
        lanes / seconds / 1e6
    );
    assert!(lanes > 4e6 && lanes / seconds > 5e6);
}

/// Loads and stores of global and shared memory, with everything that is checked about them.
#[test]
fn memory_lane_instructions_per_second() {
    let body = "
        .shared .align 16 .b8 tile[4096];
        ld.param.u64 %d0, [out];
        ld.param.u64 %d2, [a];
        mov.u32 %r0, %tid.x;
        mad.wide.u32 %d1, %r0, 4, %d0;
        mad.wide.u32 %d3, %r0, 16, %d2;
        mov.u32 %r2, tile;
        mad.lo.u32 %r3, %r0, 16, %r2;
        mov.u32 %r1, 0;
        mov.u32 %r9, 0;
        loop:
        ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%d3];
        st.shared.v4.u32 [%r3], {%r4, %r5, %r6, %r7};
        bar.sync 0;
        xor.b32 %r8, %r3, 16;
        ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r8];
        bar.sync 0;
        add.u32 %r9, %r9, %r10;
        add.u32 %r1, %r1, 1;
        setp.lt.u32 %p0, %r1, 500;
        @%p0 bra loop;
        st.global.u32 [%d1], %r9;
    ";
    let mut out = vec![0u8; 4 * 256];
    let input = vec![1u8; 16 * 256];
    let start = Instant::now();
    let profile = run_block(
        Arch::Sm80,
        256,
        body,
        &mut out,
        &[&input],
        &Options::default(),
    );
    let seconds = start.elapsed().as_secs_f64();
    let profile = match profile {
        Ok(profile) => profile,
        Err(error) => panic!("{error}"),
    };
    let lanes = profile.total().lanes as f64;
    println!(
        "memory loop: {:.0} M lane instructions/s",
        lanes / seconds / 1e6
    );
    assert!(lanes / seconds > 1e6);
    assert!(profile.bank_conflicts().is_empty());
}

#[test]
fn matrix_flops_per_second() {
    let body = "
        ld.param.u64 %d0, [out];
        mov.u32 %r0, %tid.x;
        mad.wide.u32 %d1, %r0, 4, %d0;
        mov.b32 %r1, 0x3F803F80;
        mov.f32 %f0, 0f00000000;
        mov.f32 %f1, %f0;
        mov.f32 %f2, %f0;
        mov.f32 %f3, %f0;
        mov.u32 %r2, 0;
        loop:
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, {%r1,%r1,%r1,%r1}, {%r1,%r1}, {%f0,%f1,%f2,%f3};
        add.u32 %r2, %r2, 1;
        setp.lt.u32 %p0, %r2, 1000;
        @%p0 bra loop;
        st.global.f32 [%d1], %f0;
    ";
    let mut out = vec![0u8; 4 * 128];
    let start = Instant::now();
    let profile = run_block(Arch::Sm80, 128, body, &mut out, &[], &Options::default());
    let seconds = start.elapsed().as_secs_f64();
    let flops = profile.map(|p| p.total().matrix_flops).unwrap_or(0) as f64;
    println!("mma loop: {:.2} GFLOP/s", flops / seconds / 1e9);
    assert_eq!(f32::from_bits(words(&out)[0]), 16000.0);
    assert!(flops / seconds > 1e7);
}
