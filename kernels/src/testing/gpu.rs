//! GPU kernels in tests: on the simulated GPU, beside the CPU's.

use super::{to_f64, values};
use crate::Accum;
use crate::cuda::{self, Context};
use crate::launch::{Argument, Kernel, Launch};
use crate::ops::geometry::Call;
use crate::ops::variants::{Plan, Variant};
use crate::ptx::Storage;
use crate::sim::{self, Completion, Options, Profile};

/// `n` values in [−1, 1) that the storage holds exactly.
pub fn stored_values(storage: Storage, n: usize, seed: u64) -> Vec<f32> {
    decode(storage, &encode(storage, &values::<f32>(n, seed)))
}

/// As the storage holds them, rounded to nearest.
pub fn encode(storage: Storage, x: &[f32]) -> Vec<u8> {
    match storage {
        Storage::F32 => bytemuck::cast_slice(x).to_vec(),
        Storage::Bf16 => x
            .iter()
            .flat_map(|&x| half::bf16::from_f32(x).to_le_bytes())
            .collect(),
    }
}

pub fn decode(storage: Storage, bytes: &[u8]) -> Vec<f32> {
    match storage {
        Storage::F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        Storage::Bf16 => bytes
            .chunks_exact(2)
            .map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
    }
}

/// A destination as a kernel that accumulates takes it.
pub fn destination(accum: Accum, bytes: &mut [u8]) -> Argument<'_> {
    match accum {
        Accum::Replace => Argument::Write(bytes),
        Accum::Add => Argument::Update(bytes),
    }
}

/// Runs a call on the simulated GPU.
pub fn run<V: Variant>(call: &Call<V>, operands: Vec<Argument<'_>>) -> Profile {
    run_plan(&call.plan, call.arguments(operands))
}

/// Runs a plan on the simulated GPU, under one seed and with late completion; under `UNCLIP_TESTS=full` also under others and
/// with early completion, which must not change a bit. Where `UNCLIP_DEVICE=cuda:0` names a GPU, what that makes of it is left
/// in the arguments.
pub fn run_plan<V: Variant>(plan: &Plan<V>, mut arguments: Vec<Argument<'_>>) -> Profile {
    let (assembled, launch) = plan.assemble();
    let simulate = |arguments: &mut [Argument<'_>], seed, completion| {
        let options = Options {
            seed,
            completion,
            ..Options::default()
        };
        match sim::run(&assembled.kernel, &launch, arguments, &options) {
            Ok(profile) => profile,
            Err(error) => panic!("{:?}, seed {seed}, {completion:?}: {error}", plan.variant),
        }
    };
    let before: Vec<Vec<u8>> = arguments.iter().map(|a| contents(a).to_vec()).collect();
    let profile = simulate(&mut arguments, 0, Completion::Late);
    if let Some(context) = hardware(&assembled.kernel) {
        let mut after = before.clone();
        on_hardware(
            context,
            &assembled.kernel,
            &launch,
            &mut arguments,
            &mut after,
        );
        return profile;
    }
    if std::env::var_os("UNCLIP_TESTS").is_none_or(|tests| tests != "full") {
        return profile;
    }
    for seed in 0..3 {
        for completion in [Completion::Late, Completion::Early] {
            let mut after = before.clone();
            let buffers = arguments.iter().zip(&mut after);
            let mut again: Vec<_> = buffers.map(|(a, buffer)| with_buffer(a, buffer)).collect();
            simulate(&mut again, seed, completion);
            drop(again);
            let same = arguments.iter().zip(&after).all(|(a, b)| contents(a) == b);
            assert!(
                same,
                "{:?}: seed {seed} with {completion:?} completion gives other bits",
                plan.variant
            );
        }
    }
    profile
}

/// The GPU that `UNCLIP_DEVICE` names, if it runs the kernel.
fn hardware(kernel: &Kernel) -> Option<&'static Context> {
    let name = std::env::var("UNCLIP_DEVICE").ok()?;
    let number = name.strip_prefix("cuda")?.trim_start_matches(':');
    let number = if number.is_empty() { "0" } else { number };
    let context = number.parse().map_err(|_| "no number".to_owned());
    let context = context.and_then(|n| Context::open(n).map_err(|e| e.to_string()));
    let context = context.unwrap_or_else(|why| panic!("UNCLIP_DEVICE={name}: {why}"));
    (context.gpu().arch() >= Some(kernel.arch)).then_some(context)
}

/// Runs a kernel on a GPU, from what the buffers that it writes held before.
fn on_hardware(
    context: &'static Context,
    kernel: &Kernel,
    launch: &Launch,
    arguments: &mut [Argument<'_>],
    buffers: &mut [Vec<u8>],
) {
    let pairs = arguments.iter().zip(buffers.iter_mut());
    let mut again: Vec<_> = pairs.map(|(a, buffer)| with_buffer(a, buffer)).collect();
    if let Err(error) = cuda::run(context, kernel, launch, &mut again) {
        panic!("{} on {}: {error}", kernel.name, context.gpu());
    }
    drop(again);
    for (argument, buffer) in arguments.iter_mut().zip(buffers) {
        if let Argument::Write(memory) | Argument::Update(memory) = argument {
            memory.copy_from_slice(buffer);
        }
    }
}

/// What a buffer argument that kernels write holds; nothing of the others.
fn contents<'a>(argument: &'a Argument<'_>) -> &'a [u8] {
    match argument {
        Argument::Write(memory) | Argument::Update(memory) => memory,
        _ => &[],
    }
}

/// The same argument, with other memory where kernels write it.
fn with_buffer<'a>(argument: &'a Argument<'_>, buffer: &'a mut [u8]) -> Argument<'a> {
    match argument {
        Argument::Read(memory) => Argument::Read(memory),
        Argument::Write(_) => Argument::Write(buffer),
        Argument::Update(_) => Argument::Update(buffer),
        Argument::Null => Argument::Null,
        Argument::U32(x) => Argument::U32(*x),
        Argument::I32(x) => Argument::I32(*x),
        Argument::F32(x) => Argument::F32(*x),
        Argument::U64(x) => Argument::U64(*x),
        Argument::Bytes(bytes) => Argument::Bytes(bytes),
        Argument::TensorMap(map) => Argument::TensorMap(map.clone()),
    }
}

/// Runs `kernel` on a destination of as many elements as `cpu` writes, and asserts that both give the same bits. `cpu` writes
/// into the old contents in f32, which are rounded to the storage only at the end.
pub fn assert_same_bits(
    case: &str,
    storage: Storage,
    accum: Accum,
    n: usize,
    cpu: impl FnOnce(&mut [f32]),
    kernel: impl FnOnce(Argument<'_>) -> Profile,
) -> Profile {
    let old = stored_values(storage, n, 99);
    let mut expected = old.clone();
    cpu(&mut expected);
    let mut bytes = encode(storage, &old);
    let profile = kernel(destination(accum, &mut bytes));
    let expected = encode(storage, &expected);
    if bytes != expected {
        let (got, expected) = (decode(storage, &bytes), decode(storage, &expected));
        let at = (0..n).find(|&i| got[i].to_bits() != expected[i].to_bits());
        let at = at.unwrap_or(0);
        panic!(
            "{case} {storage:?} {accum:?}: element {at} of {n} is {}, {} on the CPU",
            got[at], expected[at]
        );
    }
    profile
}

/// Asserts that a kernel moved at most 1.1 times the bytes that it must, counted in whole sectors without a cache.
pub fn assert_moves(case: &str, profile: &Profile, least: usize) {
    let moved = profile.moved_bytes();
    assert!(
        moved as f64 <= 1.1 * least as f64,
        "{case}: {moved} bytes moved, {least} needed\n{profile}"
    );
}

/// Runs `kernel` and asserts that its errors stay within twice those of the CPU's f32 and two steps of the storage: where
/// both add in another order. `naive` and `exact` are the CPU's kernel in f32 and in f64.
pub fn assert_close(
    case: &str,
    storage: Storage,
    accum: Accum,
    n: usize,
    naive: impl FnOnce(&mut [f32]),
    exact: impl FnOnce(&mut [f64]),
    kernel: impl FnOnce(Argument<'_>) -> Profile,
) -> Profile {
    let old = stored_values(storage, n, 99);
    let mut bytes = encode(storage, &old);
    let profile = kernel(destination(accum, &mut bytes));
    let got = to_f64(&decode(storage, &bytes));
    let mut reference = to_f64(&old);
    exact(&mut reference);
    let mut naive_result = old;
    naive(&mut naive_result);
    let naive = to_f64(&decode(storage, &encode(storage, &naive_result)));
    let worst = |x: &[f64]| {
        let errors = x.iter().zip(&reference).map(|(x, e)| (x - e).abs());
        errors.fold(
            0.0,
            |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) },
        )
    };
    let largest = reference.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    let ulp = match storage {
        Storage::F32 => f64::from(f32::EPSILON),
        Storage::Bf16 => 2f64.powi(-7),
    };
    let (error, budget) = (worst(&got), 2.0 * worst(&naive) + 2.0 * ulp * largest);
    assert!(
        error <= budget,
        "{case} {storage:?} {accum:?}: error {error:.2e}, budget {budget:.2e}"
    );
    profile
}
