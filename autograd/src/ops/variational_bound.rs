//! The variational bound of a diffusion step whose variance is learned (Nichol & Dhariwal, arXiv 2102.09672).

pub use tensor::ops::variational_bound::{Bound, Coefficients};

use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// The term L of the hybrid loss that trains the variance alone, in bits per dimension: the mean over samples of
/// weight · mean over the sample of
///
/// - KL(q(xₜ₋₁ | xₜ, x₀) ‖ N(mean(xₜ, ε), Σ)) for t > 0,
/// - −log₂ of the probability that N(mean(xₜ, ε), Σ) gives to the 8-bit level of x₀ at t = 0,
///
/// with ln Σ = (v + 1)/2 · ln β + (1 − v)/2 · ln β̃ (equation 15). ε is a tensor and not a variable: the mean gets no
/// gradient from here. Each sample has one term of the sum over T steps, so the hybrid loss weighs this by T/1000.
///
/// # Shapes
/// variance (v), eps, x0, xt [n, ..], coefficients n, weight [n] → scalar
pub fn variational_bound(
    t: &Tape,
    variance: &Var,
    eps: &Tensor,
    x0: &Tensor,
    xt: &Tensor,
    coefficients: &[Coefficients],
    weight: Option<&Tensor>,
) -> Result<Var> {
    let bound = Bound {
        variance: variance.tensor.clone(),
        eps: eps.clone(),
        x0: x0.clone(),
        xt: xt.clone(),
        coefficients: coefficients.to_vec(),
        weight: weight.cloned(),
    };
    let loss = bound.forward()?;
    t.record("variational_bound", &[variance], loss, || {
        VariationalBoundBackward {
            bound,
            to: variance.id,
        }
    })
}

/// Saves the operands: the derivative is as cheap as the term.
struct VariationalBoundBackward {
    bound: Bound,
    to: Option<VarId>,
}

impl Backward for VariationalBoundBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.to, &self.bound.variance, |dvariance, accum| {
            self.bound.backward(dvariance, accum, &dy)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "variational_bound"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(&[1], &[0], false),
            case(&[3, 7], &[0, 1, 5], true),
            case(&[2, 33, 31, 3], &[0, 9], false),
            case(&[4, 5, 3, 1], &[1, 2, 0, 7], true),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(&[4, 64, 64, 3], &[0, 1, 5, 9], true)]
    }
}

fn case(shape: &[usize], steps: &[usize], weighted: bool) -> Case {
    let constant = |low, high| Fill::Constant { low, high };
    let mut inputs = vec![
        Input::normal("variance", shape),
        Input::new("eps", shape, constant(-1.0, 1.0)),
        // Beyond ±0.999 in places, where the outermost levels are open.
        Input::new("x0", shape, constant(-1.2, 1.2)),
        Input::new("xt", shape, constant(-1.0, 1.0)),
    ];
    if weighted {
        inputs.push(Input::new("weight", &shape[..1], constant(0.5, 2.0)));
    }
    let elements = shape.iter().product::<usize>() as f64;
    let coefficients: Vec<Coefficients> = steps.iter().map(|&t| schedule(t)).collect();
    let suffix = if weighted { ",weight" } else { "" };
    Case {
        name: format!("x={shape:?},t={steps:?}{suffix}"),
        inputs,
        run: Box::new({
            let coefficients = coefficients.clone();
            move |t, x| {
                let [eps, x0, xt] = [x[1].tensor(), x[2].tensor(), x[3].tensor()];
                let weight = x.get(4).map(Var::tensor);
                let loss = variational_bound(t, &x[0], eps, x0, xt, &coefficients, weight)?;
                Ok(vec![loss])
            }
        }),
        reference: Box::new(move |x: &[Array]| {
            let per_sample = x[0].data.len() / coefficients.len();
            let terms = (0..x[0].data.len()).map(|i| {
                let weight = x.get(4).map_or(1.0, |w| w.data[i / per_sample]);
                let [v, eps, x0, xt] = [0, 1, 2, 3].map(|k| x[k].data[i]);
                weight * reference(&coefficients[i / per_sample], v, eps, x0, xt)
            });
            vec![Array {
                shape: vec![],
                data: vec![terms.sum::<f64>() / x[0].data.len() as f64],
            }]
        }),
        cost: Cost {
            flops: 30.0 * elements,
            elements: 4.0 * elements,
        },
    }
}

/// The constants of step t of a linear schedule of 10 steps from β = 0.05 to 0.5: so coarse that few likelihoods of
/// unrelated pictures are cut off.
fn schedule(t: usize) -> Coefficients {
    let beta = |t: usize| 0.05 + 0.45 * t as f64 / 9.0;
    let alpha_bar = |steps: usize| (0..steps).map(|t| 1.0 - beta(t)).product::<f64>();
    let (bar, before) = (alpha_bar(t + 1), alpha_bar(t));
    let posterior = |t: usize| beta(t) * (1.0 - alpha_bar(t)) / (1.0 - alpha_bar(t + 1));
    Coefficients {
        x0_from_xt: (1.0 / bar).sqrt(),
        x0_from_eps: (1.0 / bar - 1.0).sqrt(),
        mean_from_x0: beta(t) * before.sqrt() / (1.0 - bar),
        mean_from_xt: (1.0 - before) * (1.0 - beta(t)).sqrt() / (1.0 - bar),
        log_variance_low: posterior(t.max(1)).ln(),
        log_variance_high: beta(t).ln(),
        first: if t == 0 { 1.0 } else { 0.0 },
    }
}

/// One element in bits, from the definitions.
fn reference(k: &Coefficients, v: f64, eps: f64, x0: f64, xt: f64) -> f64 {
    let mean = |x0: f64| k.mean_from_x0 * x0 + k.mean_from_xt * xt;
    let predicted = mean(k.x0_from_xt * xt - k.x0_from_eps * eps);
    let share = (v + 1.0) / 2.0;
    let variance = (share * k.log_variance_high + (1.0 - share) * k.log_variance_low).exp();
    let nats = if k.first == 0.0 {
        let truth = k.log_variance_low.exp();
        let apart = (mean(x0) - predicted).powi(2);
        0.5 * ((variance / truth).ln() + (truth + apart) / variance - 1.0)
    } else {
        // Mirrored to below the mean, where differences of the distribution function lose nothing.
        let side = if x0 > predicted { -1.0 } else { 1.0 };
        let (x0, predicted) = (side * x0, side * predicted);
        let below = |x: f64| {
            let z = (x - predicted) / variance.sqrt();
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3));
            1.0 / (1.0 + (-2.0 * inner).exp())
        };
        let (low, high) = (below(x0 - 1.0 / 255.0), below(x0 + 1.0 / 255.0));
        let probability = match x0 {
            ..-0.999 => high,
            x0 if x0 > 0.999 => 1.0 - low,
            _ => high - low,
        };
        -probability.max(1e-12).ln()
    };
    nats / 2f64.ln()
}
