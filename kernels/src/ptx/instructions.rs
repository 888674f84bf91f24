//! Kernels that hold every instruction once, and NVIDIA's own assembler to take them.

use super::*;
use crate::launch::{Arch, Swizzle};
use crate::ptxas;
use crate::real::Real;

/// What writes a kernel's body.
pub type Write = fn(&Assembler);

/// Every instruction that sm_80 has.
pub fn every_sm80_instruction(k: &Assembler) {
    let x = k.buffer::<F32>("x");
    let y = k.buffer::<F32>("y");
    let halves = k.buffer::<Bf16>("halves");
    let words = k.buffer::<U32>("words");
    let n = k.parameter::<U32>("n");
    let f = k.parameter::<F32>("f");
    let s = k.parameter::<S32>("s");
    let wide = k.parameter::<U64>("wide");
    let t = k.thread_x();
    let out = std::cell::Cell::new(0u32);
    let keep = |v: Value<F32>| {
        y.at(t).byte_offset(i64::from(out.get()) * 512).store(v);
        out.set(out.get() + 1);
    };
    let keep_word = |v: Value<U32>| keep(v.to_f32_bits());

    k.comment("special registers");
    for v in [
        k.thread_y(),
        k.thread_z(),
        k.cta_x(),
        k.cta_y(),
        k.cta_z(),
        k.grid_x(),
        k.grid_y(),
        k.grid_z(),
        k.multiprocessor(),
        k.lane(),
        k.warp(),
    ] {
        keep_word(v);
    }

    k.comment("integers");
    let b = n.cast::<B32>();
    for v in [
        n + t,
        n - t,
        n * t,
        n / t,
        n % t,
        n & t,
        n | t,
        n ^ t,
        n << 3,
        n >> 3,
        n.min(t),
        n.max(t),
        n.mul_add(t, 7),
        n.mul_hi(t),
        n.bit_field(3, 4),
        n.shift_right_by(t),
        words.cast::<U8>().at(n).load().cast(),
        n.invert(),
        k.popc(b),
        k.clz(b),
        k.lop3(b, t.cast(), s.cast(), 0x96).cast(),
        k.prmt(b, t.cast(), 0x5410).cast(),
        k.bfi(b, t.cast(), 4, 8).cast(),
        k.shf_left(b, t.cast(), 5).cast(),
        (s + -3).cast(),
        (s - 1).cast(),
        (s * 5).cast(),
        (s >> 2).cast(),
        s.min(4).cast(),
        (s / 3).cast(),
        n.mul_wide(t).truncate(),
        (n.widen() + wide).truncate(),
        (wide << 3).truncate(),
        (wide >> 3).truncate(),
        (wide / 5u64).truncate(),
        (wide & 0xFF00u64).truncate(),
        wide.min(9u64).truncate(),
    ] {
        keep_word(v);
    }

    k.comment("floats");
    let a = x.at(t).load();
    for v in [
        a + f,
        a - f,
        a * f,
        a / f,
        -a,
        a.mul_add(f, 1.0),
        a.min(f),
        a.max(f),
        k.abs(a),
        k.sqrt_rn(a),
        k.rcp_rn(a),
        k.rcp_approx(a),
        k.rsqrt_approx(a),
        k.sqrt_approx(a),
        k.ex2_approx(a),
        k.lg2_approx(a),
        k.tanh_approx(a),
        k.sin_approx(a),
        k.cos_approx(a),
        k.div_full(a, f),
        n.to_f32(),
        s.to_f32(),
        a.round_to_s32().to_f32(),
    ] {
        keep(v);
    }
    for p in [
        a.lt(f),
        a.le(f),
        a.gt(f),
        a.ge(f),
        a.eq(f),
        a.ne(f),
        a.is_nan(),
        n.lt(3),
        s.ge(-1),
        wide.ne(0u64),
        a.lt(f) & n.lt(3),
        a.lt(f) | n.lt(3),
        a.lt(f) ^ n.lt(3),
    ] {
        keep(p.select(a, 2.0));
    }
    let p = a.lt(f);
    keep_word(p.select(n, 3));
    keep_word(p.select(wide, 3u64).truncate());

    k.comment("bf16");
    let h = halves.at(t).load();
    let pair = halves.at(t * 2).cast::<Bf16x2>().load();
    let [low, high] = pair.unpack();
    keep(h.to_f32() + low.to_f32() + high.to_f32());
    k.comment("double precision");
    let [d, e] = [a.widen(), n.to_f64()];
    for v in [
        d + e,
        d - e,
        d * e,
        d / e,
        -d,
        d.mul_add(e, 1.5),
        d.min(e).max(-1.0),
        Real::sqrt(d),
        Real::abs(d),
        Real::exp(d),
        Real::ln(d),
        d.lt(e).select(d, e),
        Real::is_nan(d).select(0.0, d),
        s.to_f64(),
        d.round_to_s32().to_f64(),
        d.to_u64_bits().to_f64_bits(),
    ] {
        keep(v.narrow());
    }
    pair.to_f32().into_iter().for_each(keep);
    halves.at(t).store(a.to_bf16());
    halves.at(t).store(p.select(h, low));
    let packed = k.pack_bf16(a, f);
    for v in [
        packed.cast(),
        k.pack(low, high).cast(),
        k.fma_bf16x2(pair, packed, pair).cast(),
        k.max_bf16x2(pair, packed).cast(),
    ] {
        keep_word(v);
    }

    k.comment("memory");
    let [c, d] = x.at(t * 2).read_only().load_vector::<2>();
    let [e, g, i, j] = x.at(t * 4).streaming().load_vector::<4>();
    y.at(t * 2).store_vector([c, d]);
    y.at(t * 4).store_vector([e, g, i, j]);
    let array = k.shared_array::<F32>(512);
    array.at(t).store(a);
    array.at(t * 4).store_vector([a, c, d, e]);
    k.barrier();
    keep(array.at(t ^ 1).load());
    let four = array.at(t * 4).load_vector::<4>();
    four.into_iter().for_each(keep);
    let counter = words.at(0);
    for v in [
        counter.load_acquire(),
        counter.atomic_add(1),
        counter.atomic_min(1),
        counter.atomic_max(1),
        counter.atomic_exchange(1),
        counter.atomic_compare_exchange(1, 2),
    ] {
        keep_word(v);
    }
    counter.reduce_add(n);
    counter.store_release(n);
    let shared_counter = array.cast::<U32>();
    keep_word(shared_counter.atomic_add(1));

    k.comment("warps");
    for v in [
        k.shuffle_xor(a, 1),
        k.shuffle_up(a, 2),
        k.shuffle_down(a, 4),
        k.shuffle_index(a, 0),
    ] {
        keep(v);
    }
    for v in [
        k.ballot(p).cast(),
        k.active_lanes().cast(),
        k.redux_add(n),
        k.redux_min(n),
        k.redux_max(n),
        k.match_any(n).cast(),
    ] {
        keep_word(v);
    }
    keep(k.vote_any(p).select(a, 1.0));
    keep(k.vote_all(p).select(a, 1.0));
    k.warp_barrier();

    k.comment("CTAs");
    k.named_barrier_arrive(1, 128);
    k.named_barrier_sync(1, 128);
    k.fence(Scope::Cta);
    k.fence(Scope::Gpu);
    k.fence_sc(Scope::Gpu);
    k.nanosleep(20);

    k.comment("copies");
    let valid = p.select::<U32>(16, 0);
    k.cp_async_16(array.at(t * 4), x.at(t * 4), Some(valid));
    k.cp_async_16(array.at(t * 4), x.at(t * 4), None);
    k.cp_async_8(array.at(t * 2), x.at(t * 2), None);
    k.cp_async_4(array.at(t), x.at(t), Some(p.select::<U32>(4, 0)));
    k.cp_async_commit();
    k.cp_async_wait(1);
    k.cp_async_wait_all();
    let barrier = k.shared_mbarriers(2).barrier(1);
    barrier.init(128);
    k.barrier();
    k.cp_async_mbarrier_arrive(barrier);
    let phase = barrier.arrive();
    keep(barrier.test(phase).select(a, 1.0));
    keep(barrier.test_parity(0).select(a, 1.0));
    barrier.wait(0);
    barrier.invalidate();

    k.comment("matrices");
    let layout = Layout::<Bf16>::swizzled(64, 32);
    let tile = k.shared_tile(layout);
    let lane = k.lane();
    let place = layout.chunk(lane & 15, lane >> 4);
    let a4 = k.ldmatrix::<4>(tile.at(place));
    let b2 = k.ldmatrix_transposed::<2>(tile.at(place.right(2).down(16)));
    let [one] = k.ldmatrix::<1>(tile.at(place));
    keep_word(k.movmatrix(one).cast());
    let sums = [0.0f32; 4].map(|zero| k.variable(zero));
    k.mma_m16n8k16(sums, a4, b2);
    k.mma_m16n8k8(sums, [a4[0], a4[1]], [one]);
    sums.into_iter().for_each(|sum| keep(sum.get()));

    k.comment("control");
    let v = k.variable(n);
    k.if_else(p, || v.set(1), || v.set(2));
    k.if_(!p, || v.set(v + 1));
    k.when(!p, || v.set(v + 1));
    k.while_(|| v.lt(100), || v.set(v * 3));
    k.do_while(|| {
        v.set(v - 1);
        v.gt(50)
    });
    k.for_(0, n, 4, |i| words.at(i).store(i));
    k.if_(v.eq(77), || k.trap());
    k.exit_if(v.eq(3));
    keep_word(v.get());
}

/// Every instruction that sm_90a adds, but those of warp groups.
fn every_sm90a_instruction(k: &Assembler) {
    let x = k.buffer::<F32>("x");
    let map = k.tensor_map("map");
    let n = k.parameter::<U32>("n");
    k.cluster([2, 1, 1]);
    let t = k.thread_x();
    let barriers = k.shared_mbarriers(4);
    let layout = Layout::<Bf16>::swizzled(64, 64);
    let tiles = k.shared_tiles(layout, 2);
    let tile = tiles.tile(0);

    k.griddepcontrol_wait();
    k.prefetch_tensor_map(map);
    let first = t.eq(0);
    k.if_(first, || {
        (0..4).for_each(|i| barriers.barrier(i).init(1));
        k.fence_mbarrier_init();
        k.fence_proxy_async_shared();
    });
    k.cluster_arrive_relaxed();
    k.cluster_wait();
    let full = barriers.barrier(0);
    k.if_(k.elect(), || {
        full.expect(64);
        full.arrive_expect(8192);
        let zero: Value<S32> = 0.into_value();
        let at = [n.cast::<S32>(), zero, zero, zero, zero];
        let everyone: Value<B16> = 3u16.into_value();
        for rank in 1..=5 {
            k.tensor_load(tile.base(), map, &at[..rank], full, None);
        }
        k.tensor_load(tile.base(), map, &at[..2], full, Some(everyone));
        let offsets = [1u16, 2].map(IntoValue::into_value);
        k.tensor_load_im2col(tile.base(), map, &at[..4], full, &offsets);
        k.bulk_load(tile.base().cast(), x, 256, full);
    });
    full.wait(0);
    let words = k.ldmatrix::<4>(tile.at(layout.chunk(k.lane(), 0)));
    k.stmatrix(tile.at(layout.chunk(k.lane(), 1)), words);
    k.stmatrix_transposed(tile.at(layout.chunk(k.lane(), 2)), words);
    let sum = k.add_bf16x2(words[0], words[1]);
    let product = k.mul_bf16x2(sum, words[2]);
    x.at(t).cast::<Bf16x2>().store(product);
    k.fence_proxy_async_shared();
    k.fence_proxy_async_global();
    k.fence(Scope::Cluster);
    k.fence_sc(Scope::Cluster);
    k.barrier();
    let peer = k.cluster_cta_rank() ^ 1;
    k.if_(first, || {
        let at = [n.cast::<S32>(), k.cluster_x().cast()];
        k.tensor_store(map, &at, tile.base());
        k.bulk_store(x, tile.base().cast(), 256);
        k.bulk_commit();
        k.bulk_wait_read(1);
        k.bulk_wait(0);
        let theirs = k.map_to_cta(barriers.barrier(1).pointer(), peer);
        k.bulk_send(k.map_to_cta(tile.base(), peer), tile.base(), 256, theirs);
        k.mbarrier_arrive_remote(theirs);
    });
    let remote = k.map_to_cta(k.shared_array::<F32>(128), peer);
    remote.at(t).store(1.0);
    k.griddepcontrol_launch_dependents();
    k.cluster_arrive();
    k.cluster_wait();
}

/// Two products of a warp group, one with each source of a.
fn warp_group_products(k: &Assembler) {
    let y = k.buffer::<F32>("y");
    let x = k.buffer::<Bf16x2>("x");
    k.min_ctas(1);
    let layout = Layout::<Bf16>::swizzled(64, 64);
    let tiles = k.shared_tiles(layout, 2);
    let t = k.thread_x();
    k.if_(t.lt(128), || {
        k.setmaxnreg_inc(232);
        let a = [0, 1, 2, 3].map(|i| x.at(t * 4 + i).load());
        let sums: Vec<Variable<F32>> = (0..32).map(|_| k.variable(0.0f32)).collect();
        let [da, db] =
            [0, 1].map(|i| k.matrix_descriptor(tiles.tile(i).base(), 16, 1024, Swizzle::B128));
        let yes = t.ge(0);
        k.wgmma_fence();
        for step in 0..4u64 {
            k.wgmma(&sums, da + step * 2, db + step * 2, yes, [false, false]);
        }
        k.wgmma(&sums, da, db, yes, [true, true]);
        k.wgmma_from_registers(&sums, a, db, yes, true);
        k.wgmma_commit();
        k.wgmma_wait(0);
        for (i, sum) in sums.iter().enumerate() {
            y.at(t * 32 + i as u32).store(*sum);
        }
    });
    k.if_(t.ge(128), || k.setmaxnreg_dec(40));
}

#[test]
fn nvidias_assembler_takes_every_instruction() {
    let Some(ptxas) = ptxas::for_tests() else {
        return;
    };
    let table: [(Arch, u32, Write); 3] = [
        (Arch::Sm80, 128, every_sm80_instruction),
        (Arch::Sm90a, 128, every_sm90a_instruction),
        (Arch::Sm90a, 256, warp_group_products),
    ];
    for (arch, block, write) in table {
        let k = Assembler::new("kernel", arch, [block, 1, 1]);
        write(&k);
        let kernel = k.finish().kernel;
        let report = ptxas.assemble(&kernel);
        let report = report.unwrap_or_else(|error| panic!("{error}\n{}", numbered(&kernel.text)));
        assert_eq!(report.defects(), [""; 0], "{}", kernel.text);
    }
}

fn numbered(text: &str) -> String {
    let lines = text.lines().enumerate();
    lines
        .map(|(i, line)| format!("{:4} {line}\n", i + 1))
        .collect()
}
