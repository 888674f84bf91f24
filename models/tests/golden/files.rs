//! The files of `data`, and how far apart two lists of numbers are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;

pub fn path(name: &str) -> PathBuf {
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data");
    data.join(name)
}

pub fn json<T: DeserializeOwned>(name: &str) -> T {
    let bytes = std::fs::read(path(name)).unwrap();
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The floating-point tensors of a file.
pub fn tensors(name: &str) -> BTreeMap<String, Vec<f64>> {
    let bytes = std::fs::read(path(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |view: &safetensors::tensor::TensorView| -> Vec<f64> {
        match view.dtype() {
            Dtype::F64 => view
                .data()
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            Dtype::F32 => view
                .data()
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                .collect(),
            other => panic!("{name} holds {other:?}"),
        }
    };
    file.iter()
        .map(|(key, view)| (key.to_owned(), read(&view)))
        .collect()
}

/// 64-bit integers of a file.
pub fn integers(name: &str, key: &str) -> Vec<u64> {
    let bytes = std::fs::read(path(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = file.tensor(key).unwrap();
    let numbers = numbers.data().chunks_exact(8);
    numbers
        .map(|b| u64::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

pub fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// The largest difference; infinite if the lengths differ or something is not a number.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |m, d| {
        if d <= m {
            m
        } else if d.is_nan() {
            f64::INFINITY
        } else {
            d
        }
    })
}

/// Differences that were measured against what is allowed: all of them, before any fails.
#[derive(Default)]
pub struct Report {
    failures: Vec<String>,
    worst: BTreeMap<&'static str, f64>,
}

impl Report {
    /// `kind` groups what is printed together.
    pub fn compare(
        &mut self,
        kind: &'static str,
        name: &str,
        (got, want): (&[f64], &[f64]),
        scale: f64,
        tolerance: f64,
    ) {
        let relative = distance(got, want) / scale.max(f64::MIN_POSITIVE);
        let worst = self.worst.entry(kind).or_default();
        *worst = worst.max(relative);
        if relative > tolerance || relative.is_nan() {
            self.failures.push(format!(
                "{name}: {relative:.2e} of the largest value, {tolerance:.0e} is allowed"
            ));
        }
    }

    pub fn finish(self, title: &str) {
        let worst = self.worst.iter().map(|(kind, d)| format!("{kind} {d:.1e}"));
        println!("{title}: {}", worst.collect::<Vec<_>>().join(", "));
        assert!(
            self.failures.is_empty(),
            "{title}:\n    {}",
            self.failures.join("\n    ")
        );
    }
}
