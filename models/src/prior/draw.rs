//! How the autoregressive prior chooses a code from its logits.

use kernels::math::erf_f64;

use crate::{Error, Result};

/// How codes are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeSampling {
    /// 1 switches guidance off.
    pub guidance_scale: f64,
    /// Logits are divided by it; 0 takes the most probable code.
    pub temperature: f64,
    /// The share of the probability that is kept, the most probable codes first (Holtzman et al., "The curious case of neural
    /// text degeneration", 2020).
    pub top_p: f64,
    /// The share of its distribution, from the lowest, that the nearness to the text is not drawn from.
    pub nearness_percentile: f64,
}

impl CodeSampling {
    pub fn check(&self) -> Result<()> {
        let refused = |reason: String| Err(Error::Request(reason));
        if !(self.guidance_scale >= 0.0 && self.guidance_scale.is_finite()) {
            return refused(format!(
                "the guidance scale must be a number from 0 on, it is {}",
                self.guidance_scale
            ));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refused(format!(
                "the temperature must be a number from 0 on, it is {}",
                self.temperature
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refused(format!(
                "top_p must be above 0 and at most 1, it is {}",
                self.top_p
            ));
        }
        if !(0.0..1.0).contains(&self.nearness_percentile) {
            return refused(format!(
                "the percentile of the nearness must be from 0 to below 1, it is {}",
                self.nearness_percentile
            ));
        }
        Ok(())
    }

    /// The code that a standard normal `z` chooses, by the code's logits under the text and, where guidance compares the two,
    /// without it. Higher z mean higher codes.
    pub(super) fn choose(
        &self,
        logits: &[f64],
        without: Option<&[f64]>,
        nearness: bool,
        z: f64,
    ) -> usize {
        let mut p = match without {
            Some(without) => {
                let pairs = logits.iter().zip(without);
                let guided =
                    pairs.map(|(with, without)| without + self.guidance_scale * (with - without));
                self.probabilities(guided.collect())
            }
            None => self.probabilities(logits.to_vec()),
        };
        if self.top_p < 1.0 {
            keep_top(&mut p, self.top_p);
        }
        // Φ(z) is uniform.
        let mut u = 0.5 + 0.5 * erf_f64(z * std::f64::consts::FRAC_1_SQRT_2);
        if nearness {
            u = self.nearness_percentile + (1.0 - self.nearness_percentile) * u;
        }
        let total: f64 = p.iter().sum();
        let mut seen = 0.0;
        let mut last = 0;
        for (code, p) in p.iter().enumerate().filter(|(_, p)| **p > 0.0) {
            seen += p;
            last = code;
            if u * total < seen {
                break;
            }
        }
        last
    }

    /// Up to a factor.
    fn probabilities(&self, logits: Vec<f64>) -> Vec<f64> {
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weight = |x: f64| match self.temperature {
            0.0 => f64::from(x == most),
            temperature => ((x - most) / temperature).exp(),
        };
        logits.into_iter().map(weight).collect()
    }
}

/// Keeps the most probable codes that together have the share `top_p`, the lower first where two are alike.
fn keep_top(p: &mut [f64], top_p: f64) {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
    let total: f64 = p.iter().sum();
    let mut seen = 0.0;
    for code in order {
        if seen >= top_p * total {
            p[code] = 0.0;
        }
        seen += p[code];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: CodeSampling = CodeSampling {
        guidance_scale: 1.0,
        temperature: 1.0,
        top_p: 1.0,
        nearness_percentile: 0.5,
    };
    /// Logits of the probabilities 0.1, 0.2, 0.3 and 0.4.
    fn logits() -> Vec<f64> {
        [0.1f64, 0.2, 0.3, 0.4].map(f64::ln).to_vec()
    }

    /// Shares of each code under normals at evenly spaced quantiles.
    fn shares(sampling: CodeSampling, without: Option<&[f64]>, nearness: bool) -> [f64; 4] {
        let mut shares = [0.0; 4];
        let (from, steps) = (-8.0, 16_000);
        for i in 0..steps {
            // The mass of a short interval of the normal.
            let z = |i: usize| from + 16.0 * i as f64 / steps as f64;
            let phi = |z: f64| 0.5 + 0.5 * erf_f64(z * std::f64::consts::FRAC_1_SQRT_2);
            let mass = phi(z(i + 1)) - phi(z(i));
            let middle = 0.5 * (z(i) + z(i + 1));
            shares[sampling.choose(&logits(), without, nearness, middle)] += mass;
        }
        shares
    }

    fn near(got: [f64; 4], want: [f64; 4]) {
        for (g, w) in got.iter().zip(want) {
            // An interval's mass at most.
            assert!((g - w).abs() < 1e-3, "{got:?} {want:?}");
        }
    }

    #[test]
    fn codes_come_as_often_as_their_probability() {
        near(shares(PLAIN, None, false), [0.1, 0.2, 0.3, 0.4]);
        let cold = CodeSampling {
            temperature: 0.5,
            ..PLAIN
        };
        near(
            shares(cold, None, false),
            [1.0, 4.0, 9.0, 16.0].map(|p| p / 30.0),
        );
        let greedy = CodeSampling {
            temperature: 0.0,
            ..PLAIN
        };
        near(shares(greedy, None, false), [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn top_p_keeps_the_most_probable() {
        let half = CodeSampling {
            top_p: 0.6,
            ..PLAIN
        };
        near(shares(half, None, false), [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        let one = CodeSampling {
            top_p: 0.4,
            ..PLAIN
        };
        near(shares(one, None, false), [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn guidance_moves_away_from_what_comes_without_the_text() {
        let twice = CodeSampling {
            guidance_scale: 2.0,
            ..PLAIN
        };
        let flat = [0.0; 4];
        near(
            shares(twice, Some(&flat), false),
            [1.0, 4.0, 9.0, 16.0].map(|p| p / 30.0),
        );
        let none = CodeSampling {
            guidance_scale: 0.0,
            ..PLAIN
        };
        near(shares(none, Some(&flat), false), [0.25; 4]);
    }

    /// The lower half of the distribution is 0.1, 0.2 and two thirds of 0.3.
    #[test]
    fn nearness_comes_from_the_upper_part() {
        near(shares(PLAIN, None, true), [0.0, 0.0, 0.2, 0.8]);
    }

    #[test]
    fn what_cannot_be_drawn_with_is_refused() {
        let refused = |s: CodeSampling| s.check().is_err();
        assert!(!refused(PLAIN));
        assert!(refused(CodeSampling {
            temperature: -1.0,
            ..PLAIN
        }));
        assert!(refused(CodeSampling {
            top_p: 0.0,
            ..PLAIN
        }));
        assert!(refused(CodeSampling {
            nearness_percentile: 1.0,
            ..PLAIN
        }));
        assert!(refused(CodeSampling {
            guidance_scale: f64::NAN,
            ..PLAIN
        }));
        // No normal is so extreme that there is no code for it.
        for z in [-40.0, 40.0] {
            assert!(PLAIN.choose(&logits(), None, false, z) < 4);
        }
    }
}
