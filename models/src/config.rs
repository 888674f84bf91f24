//! What all configurations share: values that files write in two ways, and checks whose errors say what is wrong.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// Fields of a file that no struct names: kept, so that a configuration is saved as it was read.
pub type Extra = BTreeMap<String, Value>;

/// A value for every level of a network, or one for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerLevel<T> {
    All(T),
    Each(Vec<T>),
}

impl<T: Copy> PerLevel<T> {
    /// The values of `levels` levels.
    pub(crate) fn expand(&self, class: &'static str, field: &str, levels: usize) -> Result<Vec<T>> {
        match self {
            PerLevel::All(value) => Ok(vec![*value; levels]),
            PerLevel::Each(values) if values.len() == levels => Ok(values.clone()),
            PerLevel::Each(values) => Err(Error::config(
                class,
                format!(
                    "{field} has {} values, block_out_channels {levels}",
                    values.len()
                ),
            )),
        }
    }
}

/// Height and width; files write one number for a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Extent {
    Square(usize),
    HeightWidth([usize; 2]),
}

impl Extent {
    pub fn height_width(self) -> [usize; 2] {
        match self {
            Extent::Square(side) => [side, side],
            Extent::HeightWidth(extent) => extent,
        }
    }
}

/// Above any real network, and small enough that no product of sizes overflows.
const LARGEST: usize = 1 << 20;

/// Checks of one class's configuration.
#[derive(Clone, Copy)]
pub(crate) struct Checks(pub &'static str);

impl Checks {
    pub fn require(self, holds: bool, reason: impl FnOnce() -> String) -> Result<()> {
        if holds {
            Ok(())
        } else {
            Err(Error::config(self.0, reason()))
        }
    }

    /// Requires sizes from which a network can be built.
    pub fn sizes(self, fields: &[(&str, usize)]) -> Result<()> {
        fields.iter().try_for_each(|&(field, value)| {
            self.require((1..=LARGEST).contains(&value), || {
                format!("{field} must be from 1 to {LARGEST}, it is {value}")
            })
        })
    }

    /// Requires `parts` to divide `whole`.
    pub fn divides(
        self,
        (part_field, part): (&str, usize),
        (field, whole): (&str, usize),
    ) -> Result<()> {
        self.require(part > 0 && whole.is_multiple_of(part), || {
            format!("{part_field} ({part}) must divide {field} ({whole})")
        })
    }

    /// Requires an ε that a normalisation can use.
    pub fn epsilon(self, field: &str, value: f64) -> Result<()> {
        self.require(value.is_finite() && value > 0.0, || {
            format!("{field} must be positive and finite, it is {value}")
        })
    }

    /// Requires a dropout probability.
    pub fn probability(self, field: &str, value: f64) -> Result<()> {
        self.require((0.0..1.0).contains(&value), || {
            format!("{field} must be in [0, 1), it is {value}")
        })
    }

    /// Refuses fields that would change the network in a way this program does not follow: each has to keep the
    /// value in which it changes nothing.
    pub fn neutral(self, extra: &Extra, fields: &[(&str, Value)]) -> Result<()> {
        fields.iter().try_for_each(|(field, neutral)| {
            let kept = extra.get(*field).is_none_or(|value| value == neutral);
            self.require(kept, || {
                format!(
                    "{field} = {} is not supported (only {neutral})",
                    extra[*field]
                )
            })
        })
    }
}
