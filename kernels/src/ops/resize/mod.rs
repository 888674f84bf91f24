//! Separable resampling of images: each output row and column is a short weighted sum of input rows and columns.

mod cpu;
pub mod ptx;

pub use cpu::resample;

/// How a picture is resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// PyTorch's `interpolate(mode="bilinear", align_corners=False)`.
    Bilinear,
    /// PyTorch's `interpolate(mode="bicubic", antialias=True, align_corners=False)`: Keys' cubic with a = −1/2, widened
    /// when the picture shrinks.
    BicubicAntialias,
}

/// A banded matrix: output `i` is the sum over `k` of `weights[i][k]` times input `start[i] + k`.
///
/// Starts and ends never decrease with `i`, so that the transpose is banded too.
#[derive(Clone, Debug, PartialEq)]
pub struct Taps {
    inputs: usize,
    /// First input and weights of each output.
    rows: Vec<(usize, Vec<f64>)>,
}

impl Taps {
    pub fn new(inputs: usize, rows: Vec<(usize, Vec<f64>)>) -> Taps {
        Taps { inputs, rows }
    }

    /// The matrix that resizes `inputs` pixels to `outputs`.
    pub fn resize(filter: Filter, inputs: usize, outputs: usize) -> Taps {
        let scale = inputs as f64 / outputs as f64;
        let row = |i: usize| match filter {
            Filter::Bilinear => {
                let at = (scale * (i as f64 + 0.5) - 0.5).max(0.0);
                let first = (at as usize).min(inputs - 1);
                let fraction = at - first as f64;
                if first + 1 < inputs {
                    (first, vec![1.0 - fraction, fraction])
                } else {
                    (first, vec![1.0])
                }
            }
            Filter::BicubicAntialias => {
                let stretch = scale.max(1.0);
                let centre = scale * (i as f64 + 0.5);
                let first = (centre - 2.0 * stretch + 0.5).max(0.0) as usize;
                let end = ((centre + 2.0 * stretch + 0.5) as usize).min(inputs);
                let weight = |j: usize| cubic((j as f64 - centre + 0.5) / stretch);
                let weights: Vec<f64> = (first..end).map(weight).collect();
                let sum: f64 = weights.iter().sum();
                (first, weights.iter().map(|w| w / sum).collect())
            }
        };
        Taps::new(inputs, (0..outputs).map(row).collect())
    }

    pub fn inputs(&self) -> usize {
        self.inputs
    }

    pub fn outputs(&self) -> usize {
        self.rows.len()
    }

    /// First input and weights of output `i`.
    pub fn row(&self, i: usize) -> (usize, &[f64]) {
        let (start, weights) = &self.rows[i];
        (*start, weights)
    }

    /// The matrix of the backward pass.
    pub fn transposed(&self) -> Taps {
        let touches = |i: usize, j: usize| {
            let (start, weights) = &self.rows[i];
            (*start..*start + weights.len()).contains(&j)
        };
        let row = |j: usize| {
            let first = (0..self.outputs()).find(|&i| touches(i, j)).unwrap_or(0);
            let column = (first..self.outputs()).take_while(|&i| touches(i, j));
            let weights = column.map(|i| self.rows[i].1[j - self.rows[i].0]);
            (first, weights.collect())
        };
        Taps::new(self.outputs(), (0..self.inputs).map(row).collect())
    }
}

/// Keys' cubic convolution kernel with a = −1/2 (IEEE Trans. ASSP 29(6), 1981, equation 15).
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        (1.5 * x - 2.5) * x * x + 1.0
    } else if x < 2.0 {
        ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 0, 1, 4, 9, 16 resized by torch 2.15 in f64.
    #[test]
    fn weights_are_those_of_pytorch() {
        let cases: [(Filter, &[f64]); 6] = [
            (
                Filter::BicubicAntialias,
                &[0.169230769231, 4.195348837209, 13.338461538462],
            ),
            (
                Filter::BicubicAntialias,
                &[
                    -0.071955719557,
                    0.243749286448,
                    1.12890625,
                    2.84765625,
                    5.34765625,
                    8.62890625,
                    13.488183582601,
                    16.5036900369,
                ],
            ),
            (Filter::BicubicAntialias, &[1.135135135135, 10.280910832092]),
            (Filter::Bilinear, &[0.333333333333, 4.0, 13.666666666667]),
            (
                Filter::Bilinear,
                &[0.0, 0.4375, 1.1875, 3.0625, 5.5625, 8.6875, 12.9375, 16.0],
            ),
            (Filter::Bilinear, &[0.75, 10.75]),
        ];
        for (filter, want) in cases {
            let taps = Taps::resize(filter, 5, want.len());
            for (i, want) in want.iter().enumerate() {
                let (start, weights) = taps.row(i);
                let terms = weights.iter().enumerate();
                let got: f64 = terms.map(|(k, w)| w * ((start + k) as f64).powi(2)).sum();
                assert!((got - want).abs() < 1e-11, "{filter:?} {i}: {got} {want}");
            }
        }
    }

    #[test]
    fn transposing_twice_changes_no_entry() {
        for (inputs, outputs) in [(1, 1), (1, 7), (7, 1), (5, 13), (64, 16), (9, 4)] {
            for filter in [Filter::Bilinear, Filter::BicubicAntialias] {
                let taps = Taps::resize(filter, inputs, outputs);
                let transposed = taps.transposed();
                let entry = |taps: &Taps, i: usize, j: usize| {
                    let (start, weights) = taps.row(i);
                    let k = j.checked_sub(start);
                    k.and_then(|k| weights.get(k).copied()).unwrap_or(0.0)
                };
                for i in 0..outputs {
                    for j in 0..inputs {
                        assert_eq!(entry(&taps, i, j), entry(&transposed, j, i));
                    }
                }
            }
        }
    }
}
