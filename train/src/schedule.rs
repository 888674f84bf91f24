//! The learning rate as a pure function of the step.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// The base rate to the end.
    Constant,
    /// Half a cosine from the base rate down to its `floor` share.
    Cosine,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    pub base: f64,
    pub decay: Decay,
    /// Steps over which the rate rises linearly to `base`.
    pub warmup: u64,
    pub steps: u64,
    /// The share of `base` that the cosine ends at.
    pub floor: f64,
}

impl LearningRate {
    /// The rate of step `step`, counted from 0. The first step's is above zero, the last's is `floor · base`.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.base * (step + 1) as f64 / self.warmup as f64;
        }
        match self.decay {
            Decay::Constant => self.base,
            Decay::Cosine => {
                let span = self.steps.saturating_sub(self.warmup + 1).max(1) as f64;
                let progress = ((step - self.warmup) as f64 / span).min(1.0);
                let share = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
                self.base * (self.floor + (1.0 - self.floor) * share)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_then_follows_half_a_cosine_to_the_floor() {
        let rate = LearningRate {
            base: 2e-3,
            decay: Decay::Cosine,
            warmup: 10,
            steps: 111,
            floor: 0.1,
        };
        assert!((rate.at(0) - 2e-4).abs() < 1e-15);
        assert!((rate.at(9) - 2e-3).abs() < 1e-15);
        assert!((rate.at(10) - 2e-3).abs() < 1e-15);
        // Halfway: (1 + floor) / 2.
        assert!((rate.at(60) - 1.1e-3).abs() < 1e-12);
        assert!((rate.at(110) - 2e-4).abs() < 1e-15);
        assert!((rate.at(1000) - 2e-4).abs() < 1e-15);
        assert!((10..110).all(|s| rate.at(s + 1) <= rate.at(s)));
    }

    #[test]
    fn constant_stays_and_no_warmup_starts_at_the_base() {
        let rate = LearningRate {
            base: 1e-3,
            decay: Decay::Constant,
            warmup: 0,
            steps: 1,
            floor: 0.0,
        };
        assert_eq!(rate.at(0), 1e-3);
        assert_eq!(rate.at(99), 1e-3);
        let one_step = LearningRate {
            decay: Decay::Cosine,
            ..rate
        };
        assert_eq!(one_step.at(0), 1e-3);
    }
}
