//! Training: noise in, losses out.

use autograd::ops::variational_bound::{self, Coefficients};
use autograd::ops::{affine, binary, mse, split};
use autograd::{DType, Device, Draw, Result, Tape, Tensor, Var};
use tensor::Check;

use super::{Prediction, Schedule};

/// One time step, of `steps`, for each of `n` samples: uniform, and spread evenly over the batch, so that the loss varies
/// less (Kingma et al., "Variational diffusion models", 2021, appendix I.1).
///
/// The points of one step are a golden-ratio sequence over the samples' global indices from a start that is drawn, so
/// that a batch in parts gets what it would get whole.
pub fn uniform_timesteps(draw: &Draw, n: usize, steps: usize) -> Vec<usize> {
    /// 2³² divided by the golden ratio.
    const GOLDEN: u32 = 0x9E37_79B9;
    let first = Draw {
        first_sample: 0,
        ..*draw
    };
    let start = first.words(0, 0)[0];
    (0..n as u32)
        .map(|i| {
            let sample = draw.first_sample.wrapping_add(i);
            let point = start.wrapping_add(sample.wrapping_mul(GOLDEN));
            ((u64::from(point) * steps as u64) >> 32) as usize
        })
        .collect()
}

/// Time steps as networks take them, [n].
pub fn timesteps(steps: &[usize], dtype: DType, device: Device) -> Tensor {
    let values: Vec<f64> = steps.iter().map(|&t| t as f64).collect();
    Tensor::from_f64(&values, [values.len()], dtype, device)
}

/// x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε, every sample at its own step.
///
/// # Shapes
/// x0 and noise [n, ..], n steps → [n, ..]
pub fn add_noise(
    t: &Tape,
    schedule: &Schedule,
    x0: &Var,
    noise: &Var,
    steps: &[usize],
) -> Result<Var> {
    mix(t, schedule, x0, noise, steps, |alpha_bar| {
        (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt())
    })
}

/// a·x₀ + b·ε with (a, b) a function of ᾱ.
fn mix(
    t: &Tape,
    schedule: &Schedule,
    x0: &Var,
    noise: &Var,
    steps: &[usize],
    factors: impl Fn(f64) -> (f64, f64),
) -> Result<Var> {
    check_steps(schedule, x0, steps)?;
    let (a, b): (Vec<f64>, Vec<f64>) = steps
        .iter()
        .map(|&s| factors(schedule.alpha_bar(s)))
        .unzip();
    let mut shape = vec![1; x0.dims().len()];
    shape[0] = steps.len();
    let column =
        |values: &[f64]| t.constant(Tensor::from_f64(values, &shape, x0.dtype(), x0.device())); // [n, 1, ..]
    let signal = binary::mul(t, x0, &column(&a))?; // [n, ..]
    binary::add(t, &signal, &binary::mul(t, noise, &column(&b))?) // [n, ..]
}

fn check_steps(schedule: &Schedule, x: &Var, steps: &[usize]) -> Result<()> {
    let check = Check::new("diffusion", &[("x", x.tensor())]);
    check.require(x.dims().first() == Some(&steps.len()), || {
        format!(
            "{} time steps were given, one for each sample is needed",
            steps.len()
        )
    })?;
    check.require(steps.iter().all(|&s| s < schedule.steps()), || {
        format!("a time step is not below {}", schedule.steps())
    })
}

/// How much the squared error of a time step counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weighting {
    Uniform,
    /// Hang et al., "Efficient diffusion training via min-SNR weighting strategy" (2023): min(SNR, γ) on the error of
    /// x₀, whatever the network predicts.
    MinSnr {
        gamma: f64,
    },
    /// Salimans and Ho, "Progressive distillation for fast sampling of diffusion models" (2022), with a ceiling:
    /// min(max(SNR, 1), ceiling) on the error of x₀, so that steps of much noise count too.
    TruncatedSnr {
        ceiling: f64,
    },
}

impl Weighting {
    /// The weight of each sample's mean squared error; `None` where all are 1.
    fn weights(
        self,
        schedule: &Schedule,
        prediction: Prediction,
        steps: &[usize],
        like: &Var,
    ) -> Option<Tensor> {
        if self == Weighting::Uniform {
            return None;
        }
        let weights: Vec<f64> = steps
            .iter()
            .map(|&s| {
                let snr = schedule.snr(s);
                let of_x0 = match self {
                    Weighting::MinSnr { gamma } => snr.min(gamma),
                    Weighting::TruncatedSnr { ceiling } => snr.max(1.0).min(ceiling),
                    Weighting::Uniform => 1.0,
                };
                match prediction {
                    Prediction::Sample => of_x0,
                    Prediction::Epsilon => of_x0 / snr,
                    Prediction::Velocity => of_x0 / (snr + 1.0),
                }
            })
            .collect();
        Some(Tensor::from_f64(
            &weights,
            [weights.len()],
            like.dtype(),
            like.device(),
        ))
    }
}

/// What the network is to say: ε, x₀ or v.
///
/// # Shapes
/// x0 and noise [n, ..], n steps → [n, ..]
pub fn target(
    t: &Tape,
    schedule: &Schedule,
    prediction: Prediction,
    x0: &Var,
    noise: &Var,
    steps: &[usize],
) -> Result<Var> {
    match prediction {
        Prediction::Epsilon => Ok(noise.clone()),
        Prediction::Sample => Ok(x0.clone()),
        Prediction::Velocity => mix(t, schedule, x0, noise, steps, |alpha_bar| {
            prediction.target(alpha_bar)
        }),
    }
}

/// The mean squared error of what the network predicts: the prior's loss (x₀) and the upsamplers' (ε).
///
/// # Shapes
/// output, x0 and noise [n, ..], n steps → scalar
#[allow(clippy::too_many_arguments)]
pub fn denoising_loss(
    t: &Tape,
    schedule: &Schedule,
    prediction: Prediction,
    weighting: Weighting,
    output: &Var,
    x0: &Var,
    noise: &Var,
    steps: &[usize],
) -> Result<Var> {
    let target = target(t, schedule, prediction, x0, noise, steps)?; // [n, ..]
    check_steps(schedule, output, steps)?;
    let weights = weighting.weights(schedule, prediction, steps, output);
    mse::mse(t, output, &target.detach(), weights.as_ref())
}

/// The decoder's loss and its two parts, all scalar.
pub struct HybridLoss {
    /// `error` + T/1000 · `bound`.
    pub total: Var,
    /// The mean squared error of what the network predicts.
    pub error: Var,
    /// The variational bound in bits per dimension, which trains the variance alone.
    pub bound: Var,
}

/// The loss of a network that predicts a mean (as noise or as x₀) and a variance (Nichol and Dhariwal, 2021, equation 16).
///
/// Their λ = 0.001 weighs a sum over T steps; one step drawn at random stands for T of them, which gives T/1000.
///
/// # Shapes
/// output [n, .., 2c], x0, noise and xt [n, .., c], n steps
#[allow(clippy::too_many_arguments)]
pub fn hybrid_loss(
    t: &Tape,
    schedule: &Schedule,
    prediction: Prediction,
    weighting: Weighting,
    output: &Var,
    x0: &Var,
    noise: &Var,
    xt: &Var,
    steps: &[usize],
) -> Result<HybridLoss> {
    check_steps(schedule, output, steps)?;
    let rank = output.dims().len();
    let c = x0.tensor().shape().last_dim();
    let parts = split::split(t, output, rank - 1, &[c, c])?; // each [n, .., c]
    let (mean, variance) = (&parts[0], &parts[1]);
    let error = denoising_loss(t, schedule, prediction, weighting, mean, x0, noise, steps)?;
    // The bound trains the variance alone: it sees the predicted noise as a constant.
    let eps = prediction_to_noise(schedule, prediction, mean, xt, steps)?;
    let coefficients: Vec<Coefficients> =
        steps.iter().map(|&s| coefficients(schedule, s)).collect();
    let bound = variational_bound::variational_bound(
        t,
        variance,
        &eps,
        x0.tensor(),
        xt.tensor(),
        &coefficients,
        None,
    )?;
    let scaled = affine::affine(t, &bound, schedule.steps() as f64 / 1000.0, 0.0)?;
    Ok(HybridLoss {
        total: binary::add(t, &error, &scaled)?,
        error,
        bound,
    })
}

/// The noise that a prediction stands for: of x_t = a·x₀ + b·ε, what is left when a·x₀ is taken out. Not recorded.
///
/// Where ᾱ is zero, the noise is all that there is and says nothing about x₀: there it is x₀ itself, as [`coefficients`]
/// expects.
fn prediction_to_noise(
    schedule: &Schedule,
    prediction: Prediction,
    predicted: &Var,
    xt: &Var,
    steps: &[usize],
) -> Result<Tensor> {
    let t = &Tape::inference(None);
    let (predicted, xt) = (predicted.detach(), xt.detach());
    let noise = match prediction {
        Prediction::Epsilon => predicted,
        _ => mix(t, schedule, &xt, &predicted, steps, |alpha_bar| {
            let (signal, noise) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
            match prediction {
                _ if alpha_bar == 0.0 => prediction.to_x0(alpha_bar),
                Prediction::Sample => (1.0 / noise, -signal / noise),
                // v = a·ε − b·x₀ and x_t = a·x₀ + b·ε give ε = b·x_t + a·v.
                _ => (noise, signal),
            }
        })?,
    };
    Ok(noise.tensor().clone())
}

/// The constants of a training step from t to t − 1.
fn coefficients(schedule: &Schedule, t: usize) -> Coefficients {
    let alpha_bar = schedule.alpha_bar(t);
    let posterior = schedule.posterior(t, t.checked_sub(1));
    // At t = 0 the posterior's variance is zero: its logarithm is taken one step later.
    let low = if t == 0 && schedule.steps() > 1 {
        schedule.posterior(1, Some(0)).variance
    } else {
        posterior.variance
    };
    let (x0_from_xt, x0_from_eps) = match alpha_bar == 0.0 {
        true => (0.0, -1.0),
        false => ((1.0 / alpha_bar).sqrt(), (1.0 / alpha_bar - 1.0).sqrt()),
    };
    Coefficients {
        x0_from_xt,
        x0_from_eps,
        mean_from_x0: posterior.x0,
        mean_from_xt: posterior.xt,
        log_variance_low: low.max(1e-20).ln(),
        log_variance_high: posterior.beta.ln(),
        first: if t == 0 { 1.0 } else { 0.0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::SchedulerConfig;
    use autograd::ops::concat;

    const SHAPE: [usize; 4] = [3, 2, 2, 3];
    const STEPS: [usize; 3] = [0, 130, 900];

    fn normal(name: &str) -> Tensor {
        let mut out = Tensor::zeros(SHAPE, DType::F64, Device::Cpu);
        let draw = Draw::named(5, name, 0);
        tensor::ops::random::fill_normal(&mut out, &draw, 1.0).unwrap();
        out
    }

    /// The loss of one and the same wrong guess, told as noise, as x₀ or as v.
    fn loss(prediction: Prediction, weighting: Weighting) -> (f64, f64) {
        let t = &Tape::inference(None);
        let schedule = SchedulerConfig::decoder().schedule();
        let [x0, noise, variance, guess] =
            ["x0", "noise", "variance", "guess"].map(|name| t.constant(normal(name)));
        let xt = add_noise(t, &schedule, &x0, &noise, &STEPS).unwrap();
        let told = match prediction {
            Prediction::Epsilon => guess.clone(),
            Prediction::Sample => mix(t, &schedule, &xt, &guess, &STEPS, |alpha_bar| {
                let a = alpha_bar.sqrt();
                (1.0 / a, -(1.0 - alpha_bar).sqrt() / a)
            })
            .unwrap(),
            Prediction::Velocity => mix(t, &schedule, &guess, &xt, &STEPS, |alpha_bar| {
                let a = alpha_bar.sqrt();
                (1.0 / a, -(1.0 - alpha_bar).sqrt() / a)
            })
            .unwrap(),
        };
        let output = concat::concat(t, &[&told, &variance], 3).unwrap();
        let loss = hybrid_loss(
            t, &schedule, prediction, weighting, &output, &x0, &noise, &xt, &STEPS,
        )
        .unwrap();
        let value = |v: &Var| v.tensor().item().unwrap();
        assert!((value(&loss.total) - value(&loss.error) - value(&loss.bound)).abs() < 1e-12);
        (value(&loss.error), value(&loss.bound))
    }

    /// Weights are on the error of x₀, and the bound is on the distribution: neither knows how the network speaks.
    #[test]
    fn weighted_errors_and_the_bound_do_not_depend_on_the_parameterisation() {
        for weighting in [
            Weighting::MinSnr { gamma: 5.0 },
            Weighting::TruncatedSnr { ceiling: 5.0 },
        ] {
            let (error, bound) = loss(Prediction::Epsilon, weighting);
            for prediction in [Prediction::Sample, Prediction::Velocity] {
                let (e, b) = loss(prediction, weighting);
                assert!(
                    (e - error).abs() < 1e-9 * error,
                    "{prediction:?}: {e} {error}"
                );
                assert!(
                    (b - bound).abs() < 1e-9 * bound.abs(),
                    "{prediction:?}: {b} {bound}"
                );
            }
        }
    }

    /// At the last step of such a schedule x_t is the noise alone.
    #[test]
    fn without_any_signal_the_loss_is_still_that_of_x0() {
        let t = &Tape::inference(None);
        let schedule = SchedulerConfig::decoder()
            .schedule()
            .with_zero_terminal_snr();
        let steps = [999, 998, 999];
        let [x0, noise, variance, guess] =
            ["x0", "noise", "variance", "guess"].map(|name| t.constant(normal(name)));
        let xt = add_noise(t, &schedule, &x0, &noise, &steps).unwrap();
        let loss = |prediction: Prediction| {
            let told = mix(t, &schedule, &guess, &xt, &steps, |alpha_bar| {
                let (signal, rest) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
                match prediction {
                    Prediction::Velocity => (-1.0 / rest, signal / rest),
                    _ => (1.0, 0.0),
                }
            });
            let output = concat::concat(t, &[&told.unwrap(), &variance], 3).unwrap();
            let weighting = Weighting::TruncatedSnr { ceiling: 5.0 };
            let loss = hybrid_loss(
                t, &schedule, prediction, weighting, &output, &x0, &noise, &xt, &steps,
            );
            let loss = loss.unwrap();
            [loss.error, loss.bound].map(|v| v.tensor().item().unwrap())
        };
        let (sample, velocity) = (loss(Prediction::Sample), loss(Prediction::Velocity));
        for (a, b) in sample.into_iter().zip(velocity) {
            assert!(a.is_finite() && a > 0.0);
            assert!((a - b).abs() < 1e-9 * a, "{a} {b}");
        }
    }

    #[test]
    fn timesteps_are_uniform_spread_over_a_batch_and_the_same_in_parts() {
        let draw = |step, first_sample| Draw {
            step,
            first_sample,
            ..Draw::named(3, "timesteps", 0)
        };
        let mut counts = [0u32; 10];
        for step in 0..500 {
            let whole = uniform_timesteps(&draw(step, 0), 32, 1000);
            let mut parts = uniform_timesteps(&draw(step, 0), 12, 1000);
            parts.extend(uniform_timesteps(&draw(step, 12), 20, 1000));
            assert_eq!(whole, parts);
            // Neighbours of 32 even points are 31 apart; of golden-ratio points never twice the golden ratio of that.
            let mut sorted = whole.clone();
            sorted.sort_unstable();
            assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] <= 63));
            whole.iter().for_each(|t| counts[t / 100] += 1);
        }
        // 16,000 samples: 1,600 in each tenth, and even batches leave less than two a batch to chance.
        assert!(counts.iter().all(|&n| n.abs_diff(1600) < 60), "{counts:?}");
    }

    #[test]
    fn a_truncated_weight_lies_between_one_and_its_ceiling() {
        let schedule = SchedulerConfig::decoder().schedule();
        let like = Tape::inference(None).constant(normal("like"));
        let weighting = Weighting::TruncatedSnr { ceiling: 5.0 };
        let weights = weighting.weights(&schedule, Prediction::Sample, &[0, 999], &like);
        assert_eq!(weights.unwrap().to_f64_vec().unwrap(), [5.0, 1.0]);
    }
}
