//! Samplers held to what is known of them: by hand, by each other, and on a Gaussian, whose denoiser and whose way from noise
//! to data have closed forms.

use tensor::{DType, Device};

use super::*;
use crate::diffusion::{BetaSchedule, VarianceType};

fn tensor(data: &[f64], shape: &[usize]) -> Tensor {
    Tensor::from_f64(data, shape, DType::F64, Device::Cpu)
}

fn silent() -> Result<Tensor> {
    panic!("this step draws no noise")
}

const ALL: [SamplerKind; 4] = [
    SamplerKind::Ancestral,
    SamplerKind::Ddim { eta: 0.5 },
    SamplerKind::DpmSolver,
    SamplerKind::Heun,
];
const DETERMINISTIC: [SamplerKind; 3] = [
    SamplerKind::Ddim { eta: 0.0 },
    SamplerKind::DpmSolver,
    SamplerKind::Heun,
];
const PREDICTIONS: [Prediction; 3] = [
    Prediction::Epsilon,
    Prediction::Sample,
    Prediction::Velocity,
];

/// What a network says that sees the clean sample `x0` in `xt`.
fn told(prediction: Prediction, alpha_bar: f64, xt: f64, x0: f64) -> f64 {
    let (a, b) = prediction.to_x0(alpha_bar);
    (x0 - a * xt) / b
}

/// Walks along a sampler, up to evaluation number `end`, with a network that sees `denoiser`(ᾱ, x_t) in x_t. `z` makes the
/// noise of each evaluation.
fn walk_until(
    end: usize,
    sampler: &mut dyn Sampler,
    config: &SchedulerConfig,
    start: &[f64],
    denoiser: impl Fn(f64, f64) -> f64,
    mut z: impl FnMut(usize) -> f64,
) -> Vec<f64> {
    let schedule = config.schedule();
    let shape = [1, start.len()];
    let mut x = tensor(start, &shape);
    let timesteps = sampler.timesteps()[..end].to_vec();
    for (i, &t) in timesteps.iter().enumerate() {
        let alpha_bar = schedule.alpha_bar(t);
        let output: Vec<f64> = x
            .to_f64_vec()
            .unwrap()
            .iter()
            .map(|&x| told(config.prediction_type, alpha_bar, x, denoiser(alpha_bar, x)))
            .collect();
        let drawn = tensor(&vec![z(i); start.len()], &shape);
        let step = sampler.step(i, &tensor(&output, &shape), &x, &mut || Ok(drawn.clone()));
        x = step.unwrap().sample;
    }
    x.to_f64_vec().unwrap()
}

/// [`walk_until`] the end.
fn walk(
    sampler: &mut dyn Sampler,
    config: &SchedulerConfig,
    start: &[f64],
    denoiser: impl Fn(f64, f64) -> f64,
    z: impl FnMut(usize) -> f64,
) -> Vec<f64> {
    let end = sampler.timesteps().len();
    walk_until(end, sampler, config, start, denoiser, z)
}

/// Data of this mean and deviation.
const MEAN: f64 = 0.3;
const DEVIATION: f64 = 0.5;

/// E[x₀ | x_t] of the Gaussian.
fn gaussian(alpha_bar: f64, xt: f64) -> f64 {
    let variance = DEVIATION * DEVIATION;
    let gain = alpha_bar.sqrt() * variance / (alpha_bar * variance + 1.0 - alpha_bar);
    MEAN + gain * (xt - alpha_bar.sqrt() * MEAN)
}

/// Where the probability flow takes a sample of the Gaussian, from one ᾱ to another: as many deviations from the mean as it
/// was before.
fn flow(from: f64, to: f64, x: f64) -> f64 {
    let spread = |alpha_bar: f64| (alpha_bar * DEVIATION * DEVIATION + 1.0 - alpha_bar).sqrt();
    to.sqrt() * MEAN + spread(to) / spread(from) * (x - from.sqrt() * MEAN)
}

/// So many training steps that rounding to whole ones does not show, and nothing clipped.
fn fine() -> SchedulerConfig {
    SchedulerConfig {
        num_train_timesteps: 1 << 17,
        clip_sample: false,
        ..SchedulerConfig::default()
    }
}

/// The distance from the exact flow after three quarters of the steps. The last step of all, to the clean sample, is of
/// first order in every sampler.
fn error(kind: SamplerKind, config: &SchedulerConfig, steps: usize) -> f64 {
    let mut sampler = kind.sampler(config, steps).unwrap();
    let times = sampler.timesteps();
    let (first, quarter) = (times[0], times[0] / 4);
    // Where a time comes twice, the sample is corrected at the second.
    let end = times
        .iter()
        .rposition(|t| t.abs_diff(quarter) <= 1)
        .unwrap();
    let last = times[end];
    let start = [1.7, -0.6];
    let made = walk_until(end, &mut *sampler, config, &start, gaussian, |_| 0.0);
    let [from, to] = [first, last].map(|t| config.schedule().alpha_bar(t));
    let far = made
        .iter()
        .zip(start)
        .map(|(x, x_t)| (x - flow(from, to, x_t)).abs());
    far.fold(0.0, f64::max)
}

#[test]
fn solvers_converge_with_their_order_on_a_gaussian() {
    // So many steps that a quarter of them is left at a quarter of the time.
    let steps = |kind: SamplerKind, n: usize| match kind {
        SamplerKind::Ddim { .. } => n + 1,
        _ => n,
    };
    for (kind, order) in [
        (SamplerKind::Ddim { eta: 0.0 }, 1.0),
        (SamplerKind::DpmSolver, 2.0),
        (SamplerKind::Heun, 2.0),
    ] {
        for prediction_type in PREDICTIONS {
            let config = SchedulerConfig {
                prediction_type,
                ..fine()
            };
            let [coarse, half] = [256, 512].map(|n| error(kind, &config, steps(kind, n)));
            let found = (coarse / half).log2();
            assert!(
                (found - order).abs() < 0.1,
                "{kind:?}: {found} ({coarse}, {half})"
            );
        }
    }
    // And the orders mean something: at about as many evaluations of the network the second is ahead.
    let first_order = error(SamplerKind::Ddim { eta: 0.0 }, &fine(), 81);
    for (kind, n) in [(SamplerKind::DpmSolver, 80), (SamplerKind::Heun, 40)] {
        let second_order = error(kind, &fine(), n);
        assert!(
            second_order < 0.5 * first_order,
            "{kind:?} {second_order} {first_order}"
        );
    }
}

/// The mean and variance that a sampler turns a standard normal into. On a Gaussian every step is a straight line in the
/// sample and in the noise, which three walks find.
fn moments(kind: SamplerKind, config: &SchedulerConfig, steps: usize) -> (f64, f64) {
    let run = |start: f64, noisy: Option<usize>| {
        let mut sampler = kind.sampler(config, steps).unwrap();
        let z = |i| if Some(i) == noisy { 1.0 } else { 0.0 };
        walk(&mut *sampler, config, &[start], gaussian, z)[0]
    };
    let mean = run(0.0, None);
    let mut variance = (run(1.0, None) - mean).powi(2);
    for i in 0..steps {
        variance += (run(0.0, Some(i)) - mean).powi(2);
    }
    (mean, variance)
}

#[test]
fn stochastic_samplers_draw_from_the_gaussian() {
    for kind in [
        SamplerKind::Ancestral,
        SamplerKind::Ddim { eta: 1.0 },
        SamplerKind::Ddim { eta: 0.5 },
    ] {
        let config = SchedulerConfig {
            num_train_timesteps: 1 << 13,
            ..fine()
        };
        let far = |steps: usize| {
            let (mean, variance) = moments(kind, &config, steps);
            assert!((mean - MEAN).abs() < 1e-6, "{kind:?}: {mean}");
            (variance.sqrt() - DEVIATION).abs()
        };
        // The spread is exact to first order in the step.
        let (coarse, half) = (far(100), far(200));
        let order = (coarse / half).log2();
        assert!(
            (order - 1.0).abs() < 0.2,
            "{kind:?}: {order} ({coarse}, {half})"
        );
    }
}

#[test]
fn ddim_with_eta_1_is_ancestral_sampling_step_by_step() {
    for prediction_type in PREDICTIONS {
        // Clipping is active: x₀ of the Gaussian goes beyond ±0.5.
        let config = SchedulerConfig {
            prediction_type,
            clip_sample_range: 0.5,
            ..SchedulerConfig::default()
        };
        let [ancestral, ddim] =
            [SamplerKind::Ancestral, SamplerKind::Ddim { eta: 1.0 }].map(|kind| {
                let mut sampler = kind.sampler(&config, 12).unwrap();
                let z = |i: usize| ((i * 7) % 5) as f64 / 2.0 - 1.0;
                walk(&mut *sampler, &config, &[1.2, -0.9], gaussian, z)
            });
        for (a, b) in ancestral.iter().zip(&ddim) {
            assert!((a - b).abs() < 1e-9, "{prediction_type:?}: {a} {b}");
        }
    }
}

/// ε, x₀ and v are three ways to say the same: all samplers end in the same place.
#[test]
fn samples_do_not_depend_on_what_the_network_predicts() {
    for kind in ALL {
        let ends = PREDICTIONS.map(|prediction_type| {
            let config = SchedulerConfig {
                prediction_type,
                ..SchedulerConfig::default()
            };
            let mut sampler = kind.sampler(&config, 9).unwrap();
            let z = |i: usize| (i as f64).sin();
            walk(&mut *sampler, &config, &[0.8, -1.4], gaussian, z)
        });
        for end in &ends[1..] {
            for (a, b) in ends[0].iter().zip(end) {
                // ᾱ at the first step is 2.4e-9, which magnifies rounding by 2e4.
                assert!((a - b).abs() < 1e-9, "{kind:?}: {a} {b}");
            }
        }
    }
}

#[test]
fn deterministic_samplers_recover_x0_from_perfect_noise() {
    let config = SchedulerConfig::upsampler();
    let clean = 0.3;
    for kind in DETERMINISTIC {
        for steps in [1, 2, 7, 25] {
            let mut sampler = kind.sampler(&config, steps).unwrap();
            let start = [1.1, -0.4, 0.2, -2.0];
            for x in walk(&mut *sampler, &config, &start, |_, _| clean, |_| 0.0) {
                assert!((x - clean).abs() < 1e-10, "{kind:?} {steps} {x}");
            }
        }
    }
}

#[test]
fn a_schedule_without_terminal_signal_is_sampled_from_its_very_end() {
    for beta_schedule in [BetaSchedule::Cosine, BetaSchedule::Linear] {
        let config = SchedulerConfig {
            beta_schedule,
            prediction_type: Prediction::Velocity,
            rescale_betas_zero_snr: true,
            clip_sample: false,
            ..SchedulerConfig::default()
        };
        for kind in ALL {
            let mut sampler = kind.sampler(&config, 200).unwrap();
            let end = walk(&mut *sampler, &config, &[0.9], gaussian, |_| 0.0)[0];
            assert!(end.is_finite());
            if DETERMINISTIC.contains(&kind) {
                let first = config.schedule().alpha_bar(sampler.timesteps()[0]);
                assert!(
                    (end - flow(first, 1.0, 0.9)).abs() < 0.01,
                    "{kind:?}: {end}"
                );
            }
        }
        let ancestral = SamplerKind::Ancestral.sampler(&config, 10).unwrap();
        assert_eq!(ancestral.timesteps()[0], 999);
    }
    let noise = SchedulerConfig {
        rescale_betas_zero_snr: true,
        ..SchedulerConfig::default()
    };
    let said = SamplerKind::Ancestral.sampler(&noise, 5).err().unwrap();
    assert!(
        said.to_string().contains("sample or v_prediction"),
        "{said}"
    );
}

/// A denoiser that no straight line describes: of two Gaussians, one twice as likely as the other.
fn mixture(alpha_bar: f64, xt: f64) -> f64 {
    let signal = alpha_bar.sqrt();
    let spread = alpha_bar * 0.09 + 1.0 - alpha_bar;
    let mode = |mean: f64, share: f64| {
        let off = xt - signal * mean;
        let weight = share * (-off * off / (2.0 * spread)).exp();
        (weight, mean + signal * 0.09 / spread * off)
    };
    let [(a, x), (b, y)] = [mode(-0.7, 1.0), mode(0.9, 2.0)];
    (a * x + b * y) / (a + b)
}

const CLEAN: [f64; 4] = [-0.8, 0.1, 0.6, 0.85];

/// How far from a clean sample its inversion and sampling ends.
fn returns(config: &SchedulerConfig, steps: usize, iterations: usize) -> f64 {
    let mut inversion = Inversion::new(config, steps, iterations).unwrap();
    let noise = walk(&mut inversion, config, &CLEAN, mixture, |_| 0.0);
    let mut ddim = Ddim::new(config, steps, 0.0);
    let back = walk(&mut ddim, config, &noise, mixture, |_| 0.0);
    let far = back.iter().zip(CLEAN).map(|(a, b)| (a - b).abs());
    far.fold(0.0, f64::max)
}

#[test]
fn what_is_inverted_and_sampled_comes_back() {
    for prediction_type in PREDICTIONS {
        for clip_sample_range in [100.0, 0.9] {
            let config = SchedulerConfig {
                prediction_type,
                clip_sample_range,
                ..SchedulerConfig::default()
            };
            let [once, thrice, often] = [1, 3, 20].map(|n| returns(&config, 25, n));
            assert!(
                often < 1e-6,
                "{prediction_type:?} ±{clip_sample_range}: {often}"
            );
            assert!(often < thrice && thrice < once, "{once} {thrice} {often}");
        }
    }
    // One iteration is the explicit method of first order.
    let [coarse, half] = [100, 200].map(|steps| returns(&fine(), steps, 1));
    assert!(coarse / half > 1.8, "{coarse} {half}");
}

#[test]
fn inversion_goes_up_the_exact_flow() {
    let config = fine();
    let last = config.schedule().alpha_bar(config.num_train_timesteps - 1);
    let far = |steps: usize| {
        let mut inversion = Inversion::new(&config, steps, 8).unwrap();
        assert!(inversion.timesteps().is_sorted());
        let noise = walk(&mut inversion, &config, &[0.7], gaussian, |_| 0.0)[0];
        (flow(last, 1.0, noise) - 0.7).abs()
    };
    let (coarse, half) = (far(64), far(128));
    assert!(
        half < 0.02 && (1.7..2.3).contains(&(coarse / half)),
        "{coarse} {half}"
    );
    let none = Inversion::new(&config, 5, 0).err().unwrap();
    assert!(none.to_string().contains("at least 1 iteration"));
}

#[test]
fn dynamic_thresholding_brings_each_sample_back_to_the_range() {
    let config = SchedulerConfig {
        prediction_type: Prediction::Sample,
        dynamic_thresholding_ratio: Some(0.75),
        ..SchedulerConfig::default()
    };
    let seen = |config: &SchedulerConfig| {
        // The first sample is far out of the range, the second within it.
        let output = tensor(
            &[-4.0, 2.0, 1.0, 0.5, 3.0, 0.1, 0.5, -0.5, 0.9, -0.9],
            &[2, 5],
        );
        let mut sampler = SamplerKind::Ddim { eta: 0.0 }.sampler(config, 4).unwrap();
        let step = sampler.step(0, &output, &tensor(&[0.0; 10], &[2, 5]), &mut silent);
        step.unwrap().x0.to_f64_vec().unwrap()
    };
    // Of 0.5, 1, 2, 3, 4 three quarters lie up to 3.
    let third = 1.0 / 3.0;
    let want = [
        -1.0,
        2.0 * third,
        third,
        0.5 * third,
        1.0,
        0.1,
        0.5,
        -0.5,
        0.9,
        -0.9,
    ];
    for (x, want) in seen(&config).iter().zip(want) {
        assert!((x - want).abs() < 1e-15, "{x} {want}");
    }
    let clipped = SchedulerConfig {
        dynamic_thresholding_ratio: None,
        ..config.clone()
    };
    assert_eq!(seen(&clipped)[..5], [-1.0, 1.0, 1.0, 0.5, 1.0]);
    // Between two magnitudes in a straight line; never below the range.
    assert_eq!(quantile(&[1.0, -3.0], 0.25), 1.5);
    assert_eq!(quantile(&[], 0.5), 0.0);
    let beyond = SchedulerConfig {
        dynamic_thresholding_ratio: Some(1.5),
        ..config
    };
    let said = SamplerKind::DpmSolver.sampler(&beyond, 4).err().unwrap();
    assert!(said.to_string().contains("above 0 and at most 1"), "{said}");
}

#[test]
fn respacing_keeps_both_ends() {
    assert_eq!(respaced(1000, 7), [999, 832, 666, 500, 333, 166, 0]);
    let many = respaced(1000, 25);
    assert_eq!((many[0], many[1], many[23], many[24]), (999, 957, 42, 0));
    assert_eq!(respaced(1000, 1), [999]);
}

#[test]
fn solvers_of_second_order_begin_where_there_is_signal() {
    let config = SchedulerConfig::decoder();
    let schedule = config.schedule();
    let first = DpmSolver::new(&config, 10).timesteps()[0];
    assert!(schedule.lambda(first) >= -5.1 && schedule.lambda(first + 1) < -5.1);
    let times = Heun::new(&config, 3).timesteps().to_vec();
    assert_eq!(times[0], first);
    assert_eq!((times[1], times[3]), (times[2], times[4]));
    assert_eq!(times.len(), SamplerKind::Heun.evaluations(3));
    assert!(times[4] > 0 && times.is_sorted_by(|a, b| a >= b));
}

#[test]
fn ancestral_steps_follow_the_posterior() {
    let config = SchedulerConfig::decoder();
    let schedule = config.schedule();
    let mut sampler = Ancestral::new(&config, 25);
    let (t, next) = (sampler.timesteps()[3], sampler.timesteps()[4]);
    let (xt, eps, v, z) = (0.4, 0.5, 0.2, -1.5);
    let alpha_bar = schedule.alpha_bar(t);
    let before = schedule.alpha_bar(next);
    let beta = 1.0 - alpha_bar / before;
    let x0 = ((xt - (1.0 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()).clamp(-1.0, 1.0);
    let mean =
        (before.sqrt() * beta * x0 + (1.0 - beta).sqrt() * (1.0 - before) * xt) / (1.0 - alpha_bar);
    let small: f64 = (1.0 - before) / (1.0 - alpha_bar) * beta;
    let std = (small.powf(0.4) * beta.powf(0.6)).sqrt();
    let mut noise = || Ok(tensor(&[z], &[1, 1]));
    let step = sampler
        .step(
            3,
            &tensor(&[eps, v], &[1, 2]),
            &tensor(&[xt], &[1, 1]),
            &mut noise,
        )
        .unwrap();
    assert!((step.sample.item().unwrap() - (mean + std * z)).abs() < 1e-12);
    assert!((step.x0.item().unwrap() - x0).abs() < 1e-12);
}

/// The other samplers take the mean of a network that says mean and variance, and leave the variance.
#[test]
fn the_variance_is_dropped_where_it_is_not_asked() {
    let config = SchedulerConfig::decoder();
    for kind in DETERMINISTIC {
        let step = |output: Tensor| {
            let mut sampler = kind.sampler(&config, 5).unwrap();
            let sample = tensor(&[0.3, -0.8, 1.2, 0.4], &[1, 2, 2]);
            sampler.step(0, &output, &sample, &mut silent).unwrap()
        };
        let plain = step(tensor(&[0.1, 0.2, 0.3, 0.4], &[1, 2, 2]));
        let both = [0.1, 0.2, 9.0, -9.0, 0.3, 0.4, f64::NAN, 7.0];
        let with_variance = step(tensor(&both, &[1, 2, 4]));
        assert!(plain.sample.bit_equal(&with_variance.sample), "{kind:?}");
    }
    let mut ancestral = Ancestral::new(&config, 5);
    let x = tensor(&[0.3, -0.8], &[1, 2]);
    let without = ancestral.step(0, &x, &x, &mut || Ok(x.clone()));
    assert_eq!(config.variance_type, VarianceType::LearnedRange);
    assert!(
        without
            .err()
            .unwrap()
            .to_string()
            .contains("twice the sample's channels")
    );
}

#[test]
fn the_last_ancestral_step_draws_nothing_and_is_x0() {
    let mut sampler = Ancestral::new(&SchedulerConfig::prior(), 4);
    let out = tensor(&[7.0, -0.5], &[1, 2]);
    let step = sampler
        .step(3, &out, &tensor(&[0.1, 0.2], &[1, 2]), &mut silent)
        .unwrap();
    let x = step.sample.to_f64_vec().unwrap();
    assert!((x[0] - 5.0).abs() < 1e-12 && (x[1] + 0.5).abs() < 1e-12);
}

#[test]
fn steps_and_eta_out_of_range_are_refused_in_words() {
    let said = |kind: SamplerKind, steps: usize| {
        let refused = kind.sampler(&SchedulerConfig::default(), steps);
        refused.err().unwrap().to_string()
    };
    for kind in ALL {
        assert!(said(kind, 1001).contains("from 1 to 1000, it is 1001"));
        assert!(said(kind, 0).contains("it is 0"));
    }
    for eta in [-0.1, 1.1, f64::NAN] {
        assert!(said(SamplerKind::Ddim { eta }, 5).contains("eta must be from 0 to 1"));
    }
}
