//! Noise schedules, in f64.

use serde::{Deserialize, Serialize};

/// How much noise each of the T steps adds; the names are diffusers'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BetaSchedule {
    /// Nichol and Dhariwal (2021), equation 17: ᾱ follows cos².
    #[serde(rename = "squaredcos_cap_v2")]
    Cosine,
    /// Ho et al. (2020): β from 1e-4 to 0.02 in a straight line, scaled so that the sum does not depend on T.
    #[serde(rename = "linear")]
    Linear,
}

/// What a network's output means; the names are diffusers'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prediction {
    /// The noise ε.
    #[serde(rename = "epsilon")]
    Epsilon,
    /// The clean sample x₀.
    #[serde(rename = "sample")]
    Sample,
    /// √ᾱ·ε − √(1 − ᾱ)·x₀ (Salimans and Ho, 2022).
    #[serde(rename = "v_prediction")]
    Velocity,
}

impl Prediction {
    /// (a, b) such that x₀ = a·x_t + b·output.
    pub fn to_x0(self, alpha_bar: f64) -> (f64, f64) {
        let (signal, noise) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        match self {
            Prediction::Epsilon => (1.0 / signal, -noise / signal),
            Prediction::Sample => (0.0, 1.0),
            Prediction::Velocity => (signal, -noise),
        }
    }

    /// (a, b) such that the output to learn is a·x₀ + b·ε.
    pub fn target(self, alpha_bar: f64) -> (f64, f64) {
        match self {
            Prediction::Epsilon => (0.0, 1.0),
            Prediction::Sample => (1.0, 0.0),
            Prediction::Velocity => (-(1.0 - alpha_bar).sqrt(), alpha_bar.sqrt()),
        }
    }
}

/// q(x_prev | x_t, x₀) = N(x0·x₀ + xt·x_t, variance): Ho et al. (2020), equations 6 and 7, for any earlier step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Posterior {
    /// Factor of x₀ in the mean.
    pub x0: f64,
    /// Factor of x_t in the mean.
    pub xt: f64,
    /// The variance β̃.
    pub variance: f64,
    /// β of the step as taken: 1 − ᾱ_t/ᾱ_prev.
    pub beta: f64,
}

/// The tables of a schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    betas: Vec<f64>,
    alphas_cumprod: Vec<f64>,
}

impl Schedule {
    /// A schedule of `steps` steps.
    pub fn new(kind: BetaSchedule, steps: usize) -> Schedule {
        let total = steps as f64;
        let betas = (0..steps).map(|i| match kind {
            BetaSchedule::Cosine => {
                let alpha_bar = |u: f64| {
                    ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                        .cos()
                        .powi(2)
                };
                (1.0 - alpha_bar((i + 1) as f64 / total) / alpha_bar(i as f64 / total)).min(0.999)
            }
            BetaSchedule::Linear => {
                let scale = 1000.0 / total;
                let position = if steps > 1 {
                    i as f64 / (total - 1.0)
                } else {
                    0.0
                };
                (scale * (1e-4 + (0.02 - 1e-4) * position)).min(0.999)
            }
        });
        let betas: Vec<f64> = betas.collect();
        let mut product = 1.0;
        let alphas_cumprod = betas.iter().map(|beta| {
            product *= 1.0 - beta;
            product
        });
        Schedule {
            alphas_cumprod: alphas_cumprod.collect(),
            betas,
        }
    }

    /// The same schedule without any signal in its last step: √ᾱ is shifted so that it ends at zero, and stretched so that
    /// it begins where it did (Lin et al., "Common diffusion noise schedules and sample steps are flawed", 2023, algorithm
    /// 1). Of one step there is nothing to shift.
    pub fn with_zero_terminal_snr(self) -> Schedule {
        let (Some(first), Some(last)) = (self.alphas_cumprod.first(), self.alphas_cumprod.last())
        else {
            return self;
        };
        let (first, last) = (first.sqrt(), last.sqrt());
        if first == last {
            return self;
        }
        let stretch = first / (first - last);
        let alphas_cumprod = self.alphas_cumprod.iter();
        let alphas_cumprod: Vec<f64> = alphas_cumprod
            .map(|alpha_bar| ((alpha_bar.sqrt() - last) * stretch).powi(2))
            .collect();
        let before = std::iter::once(&1.0).chain(&alphas_cumprod);
        let betas = alphas_cumprod.iter().zip(before);
        Schedule {
            betas: betas.map(|(now, before)| 1.0 - now / before).collect(),
            alphas_cumprod,
        }
    }

    /// T, the number of training steps.
    pub fn steps(&self) -> usize {
        self.betas.len()
    }

    /// β_t.
    pub fn beta(&self, t: usize) -> f64 {
        self.betas[t]
    }

    /// ᾱ_t; 1 for `None`, which stands for the clean sample.
    pub fn alpha_bar(&self, t: impl Into<Option<usize>>) -> f64 {
        t.into().map_or(1.0, |t| self.alphas_cumprod[t])
    }

    /// Signal-to-noise ratio ᾱ/(1 − ᾱ).
    pub fn snr(&self, t: usize) -> f64 {
        let alpha_bar = self.alphas_cumprod[t];
        alpha_bar / (1.0 - alpha_bar)
    }

    /// λ = ln(√ᾱ/√(1 − ᾱ)), half the logarithm of the signal-to-noise ratio; ∞ for the clean sample.
    pub fn lambda(&self, t: impl Into<Option<usize>>) -> f64 {
        let alpha_bar = self.alpha_bar(t);
        0.5 * (alpha_bar / (1.0 - alpha_bar)).ln()
    }

    /// The posterior of a step from `t` to `previous`, `None` for the clean sample.
    pub fn posterior(&self, t: usize, previous: Option<usize>) -> Posterior {
        let (alpha_bar, before) = (self.alpha_bar(t), self.alpha_bar(previous));
        let neighbours = previous == t.checked_sub(1);
        let beta = if neighbours {
            self.betas[t]
        } else {
            1.0 - alpha_bar / before
        };
        Posterior {
            x0: before.sqrt() * beta / (1.0 - alpha_bar),
            xt: (1.0 - beta).sqrt() * (1.0 - before) / (1.0 - alpha_bar),
            variance: (1.0 - before) / (1.0 - alpha_bar) * beta,
            beta,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_ends_where_the_reference_says() {
        let cosine = Schedule::new(BetaSchedule::Cosine, 1000);
        assert!((cosine.alpha_bar(0) - 0.99996).abs() < 5e-6);
        assert!((cosine.alpha_bar(999) / 2.4e-9 - 1.0).abs() < 0.02);
        let linear = Schedule::new(BetaSchedule::Linear, 1000);
        assert!((linear.alpha_bar(999) / 4.0e-5 - 1.0).abs() < 0.02);
    }

    #[test]
    fn zero_terminal_snr_moves_the_end_and_keeps_the_beginning() {
        for kind in [BetaSchedule::Cosine, BetaSchedule::Linear] {
            let plain = Schedule::new(kind, 1000);
            let moved = plain.clone().with_zero_terminal_snr();
            assert_eq!(moved.alpha_bar(999), 0.0);
            assert_eq!((moved.snr(999), moved.beta(999)), (0.0, 1.0));
            assert!((moved.alpha_bar(0) - plain.alpha_bar(0)).abs() < 1e-15);
            // √ᾱ goes through a straight line.
            let slope = |s: &Schedule, t| s.alpha_bar(t).sqrt() - s.alpha_bar(t + 1).sqrt();
            let stretch = slope(&moved, 10) / slope(&plain, 10);
            for t in [100, 500, 998] {
                assert!((slope(&moved, t) / slope(&plain, t) / stretch - 1.0).abs() < 1e-9);
            }
            // And β still leads from each ᾱ to the next.
            let mut product = 1.0;
            for t in 0..1000 {
                product *= 1.0 - moved.beta(t);
                assert!((product - moved.alpha_bar(t)).abs() < 1e-12);
            }
        }
        let one = Schedule::new(BetaSchedule::Cosine, 1);
        assert_eq!(one.clone().with_zero_terminal_snr(), one);
    }

    #[test]
    fn posterior_is_bayes_rule() {
        let schedule = Schedule::new(BetaSchedule::Cosine, 1000);
        for (t, previous) in [(999, Some(500)), (500, Some(499)), (3, Some(1)), (0, None)] {
            let p = schedule.posterior(t, previous);
            let (a, b) = (schedule.alpha_bar(t), schedule.alpha_bar(previous));
            // x_t = √(a/b)·x_prev + √(1 − a/b)·ε and x_prev = √b·x₀ + √(1 − b)·ε: precision is the sum of both.
            let step = a / b;
            if b < 1.0 {
                let precision = step / (1.0 - step) + 1.0 / (1.0 - b);
                assert!((p.variance * precision - 1.0).abs() < 1e-9, "{t}");
                assert!(
                    (p.xt - step.sqrt() / (1.0 - step) / precision).abs() < 1e-9,
                    "{t}"
                );
                assert!(
                    (p.x0 - b.sqrt() / (1.0 - b) / precision).abs() < 1e-9,
                    "{t}"
                );
            } else {
                assert_eq!((p.variance, p.xt), (0.0, 0.0));
                assert!((p.x0 - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn predictions_invert_their_targets() {
        for prediction in [
            Prediction::Epsilon,
            Prediction::Sample,
            Prediction::Velocity,
        ] {
            for alpha_bar in [0.9f64, 0.5, 1e-3] {
                let (x0, noise) = (0.7, -1.3);
                let xt = alpha_bar.sqrt() * x0 + (1.0 - alpha_bar).sqrt() * noise;
                let (a, b) = prediction.target(alpha_bar);
                let (c, d) = prediction.to_x0(alpha_bar);
                assert!((c * xt + d * (a * x0 + b * noise) - x0).abs() < 1e-12);
            }
        }
    }
}
