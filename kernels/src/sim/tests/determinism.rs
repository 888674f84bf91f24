//! The same seed gives the same bits, profile and errors on any number of host threads; other seeds the same bits.

use super::*;

/// Squares of the CTA's inputs summed in shared memory; every CTA has its own output.
const SUMS: &str = "
    .shared .align 16 .b8 tile[512];
    ld.param.u64 %d0, [out];
    ld.param.u64 %d2, [a];
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, %ctaid.x;
    mad.lo.u32 %r2, %r1, 128, %r0;
    mad.wide.u32 %d3, %r2, 4, %d2;
    ld.global.f32 %f0, [%d3];
    mul.f32 %f0, %f0, %f0;
    mov.u32 %r3, tile;
    mad.lo.u32 %r4, %r0, 4, %r3;
    st.shared.f32 [%r4], %f0;
    mov.u32 %r5, 64;
    HALVE:
    bar.sync 0;
    setp.lt.u32 %p0, %r0, %r5;
    mad.lo.u32 %r6, %r5, 4, %r4;
    @%p0 ld.shared.f32 %f1, [%r6];
    @%p0 ld.shared.f32 %f2, [%r4];
    @%p0 add.f32 %f2, %f2, %f1;
    @%p0 st.shared.f32 [%r4], %f2;
    shr.u32 %r5, %r5, 1;
    setp.ne.u32 %p1, %r5, 0;
    @%p1 bra HALVE;
    setp.eq.u32 %p2, %r0, 0;
    mad.wide.u32 %d1, %r1, 4, %d0;
    @%p2 st.global.f32 [%d1], %f2;
";

fn go(text: &str, threads: usize, seed: u64) -> (Result<Profile, Error>, Vec<u8>) {
    let kernel = kernel(Arch::Sm80, &[".u64 out", ".u64 a"], text);
    let input: Vec<u8> = (0..200 * 128)
        .flat_map(|i| (i as f32 * 0.001).to_le_bytes())
        .collect();
    let mut out = vec![0; 200 * 4];
    let options = Options {
        seed,
        ..Options::default()
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let result = match pool {
        Ok(pool) => pool.install(|| {
            let mut arguments = [Argument::Write(&mut out), Argument::Read(&input)];
            run(&kernel, &Launch::linear(200, 128), &mut arguments, &options)
        }),
        Err(error) => panic!("{error}"),
    };
    (result, out)
}

#[test]
fn threads_and_seeds_change_nothing() {
    let first = go(SUMS, 1, 0);
    if let Err(error) = &first.0 {
        panic!("{error}");
    }
    for threads in 2..=4 {
        assert_eq!(go(SUMS, threads, 0), first);
    }
    for seed in 1..4 {
        assert_eq!(go(SUMS, 2, seed), first, "seed {seed}");
    }
}

#[test]
fn errors_are_the_same_on_any_number_of_threads() {
    let broken = SUMS.replace("bar.sync 0;", "");
    let first = go(&broken, 1, 5).0;
    assert!(first.is_err());
    for threads in 2..=4 {
        assert_eq!(go(&broken, threads, 5).0, first);
    }
}
