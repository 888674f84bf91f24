//! Training: noise in, losses out.

use autograd::ops::variational_bound::{self, Coefficients};
use autograd::ops::{affine, binary, mse, split};
use autograd::{DType, Device, Draw, Result, Tape, Tensor, Var};
use tensor::Check;

use super::{Prediction, Schedule};

/// One uniform time step for each of `n` samples, of `steps`: a function of the draw and the sample's global index.
pub fn uniform_timesteps(draw: &Draw, n: usize, steps: usize) -> Vec<usize> {
    (0..n)
        .map(|sample| {
            let word = draw.words(sample as u32, 0)[0];
            ((u64::from(word) * steps as u64) >> 32) as usize
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
        let Weighting::MinSnr { gamma } = self else {
            return None;
        };
        let weights: Vec<f64> = steps
            .iter()
            .map(|&s| {
                let snr = schedule.snr(s);
                let of_x0 = snr.min(gamma);
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
    let target = match prediction {
        Prediction::Epsilon => noise.clone(),
        Prediction::Sample => x0.clone(),
        Prediction::Velocity => mix(t, schedule, x0, noise, steps, |alpha_bar| {
            prediction.target(alpha_bar)
        })?,
    }; // [n, ..]
    check_steps(schedule, output, steps)?;
    let weights = weighting.weights(schedule, prediction, steps, output);
    mse::mse(t, output, &target.detach(), weights.as_ref())
}

/// The decoder's loss and its two parts, all scalar.
pub struct HybridLoss {
    /// `noise` + T/1000 · `bound`.
    pub total: Var,
    /// The mean squared error of the noise.
    pub noise: Var,
    /// The variational bound in bits per dimension, which trains the variance alone.
    pub bound: Var,
}

/// The loss of a network that predicts noise and a variance (Nichol and Dhariwal, 2021, equation 16).
///
/// Their λ = 0.001 weighs a sum over T steps; one step drawn at random stands for T of them, which gives T/1000.
///
/// # Shapes
/// output [n, .., 2c], x0, noise and xt [n, .., c], n steps
#[allow(clippy::too_many_arguments)]
pub fn hybrid_loss(
    t: &Tape,
    schedule: &Schedule,
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
    let (eps, variance) = (&parts[0], &parts[1]);
    let weights = weighting.weights(schedule, Prediction::Epsilon, steps, output);
    let noise_error = mse::mse(t, eps, &noise.detach(), weights.as_ref())?;
    let coefficients: Vec<Coefficients> =
        steps.iter().map(|&s| coefficients(schedule, s)).collect();
    let bound = variational_bound::variational_bound(
        t,
        variance,
        eps.tensor(),
        x0.tensor(),
        xt.tensor(),
        &coefficients,
        None,
    )?;
    let scaled = affine::affine(t, &bound, schedule.steps() as f64 / 1000.0, 0.0)?;
    Ok(HybridLoss {
        total: binary::add(t, &noise_error, &scaled)?,
        noise: noise_error,
        bound,
    })
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
    Coefficients {
        x0_from_xt: (1.0 / alpha_bar).sqrt(),
        x0_from_eps: (1.0 / alpha_bar - 1.0).sqrt(),
        mean_from_x0: posterior.x0,
        mean_from_xt: posterior.xt,
        log_variance_low: low.max(1e-20).ln(),
        log_variance_high: posterior.beta.ln(),
        first: if t == 0 { 1.0 } else { 0.0 },
    }
}
