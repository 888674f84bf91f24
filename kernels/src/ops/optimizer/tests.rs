//! The GPU kernels on the simulated GPU, against the CPU's update.

use super::ptx::{Norm, Portion, Squares, Update, portions};
use super::*;
use crate::ptx::Storage;
use crate::sim::Profile;
use crate::testing::gpu::{assert_moves, decode, encode, stored_values};
use crate::testing::operands::{Operand, simulate};
use crate::testing::to_f64;

const ADAMW: AdamW = AdamW {
    beta1: 0.9,
    beta2: 0.98,
    eps: 1e-6,
    weight_decay: 0.1,
};
const LEARNING_RATE: f64 = 0.01;
const EMA_DECAY: f64 = 0.9;

fn runs(ends: &[(usize, Decay)]) -> Vec<Run> {
    let starts = std::iter::once(0).chain(ends.iter().map(|&(end, _)| end));
    starts
        .zip(ends)
        .map(|(start, &(end, decay))| Run { start, end, decay })
        .collect()
}

/// Runs that begin and end inside chunks and portions.
fn ragged() -> Vec<Run> {
    runs(&[
        (3, Decay::Yes),
        (5, Decay::No),
        (6, Decay::Frozen),
        (7, Decay::Yes),
        (5001, Decay::No),
        (5100, Decay::Frozen),
        (9216, Decay::Yes),
        (9219, Decay::No),
    ])
}

/// The arenas of one state, as bytes of f32.
#[derive(Clone, PartialEq)]
struct State {
    parameters: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    ema: Vec<f32>,
}

impl State {
    fn new(n: usize) -> State {
        let [parameters, m, ema] = [1, 2, 3].map(|seed| stored_values(Storage::F32, n, seed));
        let v = stored_values(Storage::F32, n, 4);
        State {
            parameters,
            m: m.iter().map(|x| 0.1 * x).collect(),
            v: v.iter().map(|x| 0.01 * x * x).collect(),
            ema,
        }
    }
}

fn clip_on_gpu(
    storage: Storage,
    gradient: &[f32],
    scalars: &UpdateScalars,
) -> (Clip, [Profile; 2]) {
    let plan = Squares { storage }
        .config(gradient.len())
        .expect("few elements");
    let partials = plan.grid[0];
    let operands = [
        Operand::Out(8 * partials as usize),
        Operand::In(encode(storage, gradient)),
        Operand::U64(gradient.len() as u64),
    ];
    let (sums, first) = simulate(&plan, &operands);
    let operands = [
        Operand::Out(16),
        Operand::In(sums[0].clone()),
        Operand::In(bytemuck::bytes_of(scalars).to_vec()),
        Operand::U32(partials),
    ];
    let (clip, second) = simulate(&Norm.config(), &operands);
    (bytemuck::pod_read_unaligned(&clip[0]), [first, second])
}

fn update_on_gpu(
    storage: Storage,
    state: &mut State,
    weights: Option<&mut Vec<f32>>,
    gradient: &[f32],
    portions: &[Portion],
    scalars: &UpdateScalars,
    clip: &Clip,
) -> Profile {
    let plan = Update { storage }
        .config(portions.len())
        .expect("few portions");
    let inout = |x: &Vec<f32>| Operand::InOut(encode(Storage::F32, x));
    let operands = [
        inout(&state.parameters),
        inout(&state.m),
        inout(&state.v),
        inout(&state.ema),
        weights.as_ref().map_or(Operand::Absent, |w| {
            Operand::InOut(encode(Storage::Bf16, w))
        }),
        Operand::In(encode(storage, gradient)),
        Operand::In(bytemuck::cast_slice(portions).to_vec()),
        Operand::In(bytemuck::bytes_of(scalars).to_vec()),
        Operand::In(bytemuck::bytes_of(clip).to_vec()),
    ];
    let (outputs, profile) = simulate(&plan, &operands);
    let mut outputs = outputs.iter();
    for arena in [
        &mut state.parameters,
        &mut state.m,
        &mut state.v,
        &mut state.ema,
    ] {
        *arena = decode(
            Storage::F32,
            outputs.next().expect("an output for each arena"),
        );
    }
    if let Some(weights) = weights {
        *weights = decode(Storage::Bf16, outputs.next().expect("weights"));
    }
    profile
}

#[test]
fn norms_and_clips_are_the_cpus() {
    for storage in Storage::ALL {
        for n in [1, 7, 4096, 70_001] {
            let gradient = stored_values(storage, n, 5);
            for max_norm in [0.5, 1e9] {
                let scalars =
                    UpdateScalars::new(&ADAMW.at(1, LEARNING_RATE, 1.0, EMA_DECAY), max_norm);
                let (clip, profiles) = clip_on_gpu(storage, &gradient, &scalars);
                let norm = gradient_norm(&gradient);
                // Both add in f64, in another order.
                assert!(
                    (clip.norm - norm).abs() <= 1e-14 * norm,
                    "{n}: {} {norm}",
                    clip.norm
                );
                let factor = clip_factor(clip.norm, max_norm) as f32;
                assert_eq!(clip.gradient_scale, factor, "{storage:?} {n}");
                if n > 70_000 {
                    assert_moves("squares", &profiles[0], n * storage.bytes() as usize);
                }
            }
        }
    }
    // Squares of f32 that f32 does not hold.
    let scalars = UpdateScalars::new(&ADAMW.at(1, LEARNING_RATE, 1.0, EMA_DECAY), 1.0);
    let (clip, _) = clip_on_gpu(Storage::F32, &[1e30; 4], &scalars);
    assert_eq!(clip.norm, 2.0 * f64::from(1e30f32));
    for worst in [f32::NAN, f32::INFINITY] {
        let (clip, _) = clip_on_gpu(Storage::F32, &[1.0, worst], &scalars);
        assert!(!clip.norm.is_finite() && clip.gradient_scale.is_nan());
    }
}

#[test]
fn three_steps_are_the_cpus() {
    let runs = ragged();
    let n = 9219;
    let portions = portions(&runs).expect("few elements");
    for storage in Storage::ALL {
        let mut state = State::new(n);
        let mut weights = vec![7.0; n];
        let mut cpu = state.clone();
        let [mut p, mut m, mut v, mut ema] =
            [&state.parameters, &state.m, &state.v, &state.ema].map(|x| to_f64(x));
        for step in 1..=3 {
            let gradient = stored_values(storage, n, 10 + step);
            let scalars = ADAMW.at(step, LEARNING_RATE, 1.0, EMA_DECAY);
            let on_device = UpdateScalars::new(&scalars, 0.5);
            let (clip, _) = clip_on_gpu(storage, &gradient, &on_device);
            update_on_gpu(
                storage,
                &mut state,
                Some(&mut weights),
                &gradient,
                &portions,
                &on_device,
                &clip,
            );

            let scalars = StepScalars {
                gradient_scale: clip_factor(gradient_norm(&gradient), 0.5),
                ..scalars
            };
            let arenas = Arenas {
                parameters: &mut cpu.parameters,
                gradient: &gradient,
                m: &mut cpu.m,
                v: &mut cpu.v,
                ema: Some(&mut cpu.ema),
            };
            update(arenas, &scalars, &runs);
            // Given the same scale, every bit; the scales' norms may differ in the last place of f64.
            assert_eq!(clip.gradient_scale, scalars.gradient_scale as f32);
            assert!(
                state == cpu,
                "{storage:?}: other bits than the CPU's after step {step}"
            );

            let before = [&p, &m, &v, &ema].map(|x| x.clone());
            let wide = to_f64(&gradient);
            let arenas = Arenas {
                parameters: &mut p,
                gradient: &wide,
                m: &mut m,
                v: &mut v,
                ema: Some(&mut ema),
            };
            update(arenas, &scalars, &runs);
            // The documented bounds, of one step from the same state.
            let step_size = scalars.learning_rate / scalars.bias_correction1;
            for i in 0..n {
                let [p_old, m_old, _, ema_old] = before.each_ref().map(|x| x[i]);
                let m_terms = m_old.abs() + (scalars.gradient_scale * wide[i] - m_old).abs();
                let denominator = (v[i] / scalars.bias_correction2).sqrt() + scalars.eps;
                let p_terms = 3.0 * p_old.abs() + 16.0 * step_size * m_terms / denominator;
                for (what, got, exact, bound) in [
                    ("p", state.parameters[i], p[i], p_terms),
                    ("m", state.m[i], m[i], 5.0 * m_terms),
                    ("v", state.v[i], v[i], 7.0 * v[i]),
                    (
                        "ema",
                        state.ema[i],
                        ema[i],
                        p_terms + 3.0 * (ema_old.abs() + p[i].abs()),
                    ),
                ] {
                    let error = (f64::from(got) - exact).abs() / 2f64.powi(-24);
                    assert!(
                        error <= bound,
                        "{what} {i} at step {step}: {error} u, bound {bound} u"
                    );
                }
            }
            // The next step starts from what f32 holds.
            [p, m, v, ema] = [&state.parameters, &state.m, &state.v, &state.ema].map(|x| to_f64(x));
        }
        for run in &runs {
            let pairs = weights.iter().zip(&state.parameters);
            for (weight, p) in pairs.take(run.end).skip(run.start) {
                let expected = match run.decay {
                    Decay::Frozen => 7.0,
                    _ => half::bf16::from_f32(*p).to_f32(),
                };
                assert_eq!(*weight, expected, "{run:?}");
            }
        }
    }
}

#[test]
fn an_update_reads_and_writes_everything_once() {
    let n = 3 * 4096;
    let portions = portions(&runs(&[(n, Decay::Yes)])).expect("few elements");
    assert_eq!(portions.len(), 3);
    let scalars = UpdateScalars::new(&ADAMW.at(1, LEARNING_RATE, 1.0, EMA_DECAY), 1.0);
    let clip = Clip {
        norm: 1.0,
        gradient_scale: 1.0,
        padding: 0,
    };
    for storage in Storage::ALL {
        let gradient = stored_values(storage, n, 5);
        let mut weights = vec![0.0; n];
        let profile = update_on_gpu(
            storage,
            &mut State::new(n),
            Some(&mut weights),
            &gradient,
            &portions,
            &scalars,
            &clip,
        );
        assert_moves(
            "update",
            &profile,
            n * (8 * 4 + 2 + storage.bytes() as usize),
        );
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let runs = ragged();
    let portions = portions(&runs).expect("few elements");
    let mut gradient = stored_values(Storage::F32, 9219, 5);
    gradient[5000] = f32::INFINITY;
    let scalars = UpdateScalars::new(&ADAMW.at(1, LEARNING_RATE, 1.0, EMA_DECAY), 1.0);
    let (clip, _) = clip_on_gpu(Storage::F32, &gradient, &scalars);
    assert_eq!(clip.norm, f64::INFINITY);
    let mut state = State::new(9219);
    let before = state.clone();
    update_on_gpu(
        Storage::F32,
        &mut state,
        None,
        &gradient,
        &portions,
        &scalars,
        &clip,
    );
    assert!(state == before);
}

#[test]
fn portions_cover_every_run_and_nothing_else() {
    for run in [
        ragged(),
        runs(&[(1, Decay::No)]),
        runs(&[(4096, Decay::Yes)]),
    ] {
        let n = run.last().expect("a run").end;
        let mut seen = vec![None; n];
        for portion in portions(&run).expect("few elements") {
            assert!(portion.begin < 4 && portion.end <= 4096);
            for i in portion.begin..portion.end {
                let i = (portion.chunk * 4 + i) as usize;
                assert_eq!(seen[i].replace(portion.decays == 1), None, "{i} twice");
            }
        }
        for run in run {
            for (i, seen) in seen.iter().enumerate().take(run.end).skip(run.start) {
                let expected = match run.decay {
                    Decay::Frozen => None,
                    decay => Some(decay == Decay::Yes),
                };
                assert_eq!(*seen, expected, "element {i}");
            }
        }
    }
    let far = Run {
        start: 1 << 34,
        end: (1 << 34) + 1,
        decay: Decay::No,
    };
    assert!(portions(&[far]).is_err());
}
