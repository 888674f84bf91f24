//! How vectors are spread: what an initialisation needs to treat all their directions alike.

use autograd::Tensor;

/// Mean and covariance of vectors.
pub(crate) struct Spread {
    mean: Vec<f64>,
    /// The lower triangular L with L·Lᵀ = covariance + [`FLOOR`]·mean variance·I, row by row.
    factor: Vec<f64>,
}

/// Directions with less than this share of the mean variance are not made as large as the others: they hold noise, and
/// what the prior cannot predict.
const FLOOR: f64 = 0.01;

impl Spread {
    /// # Shapes
    /// samples [n, d]
    pub fn of(samples: &Tensor) -> Spread {
        let (n, d) = (samples.dims()[0], samples.dims()[1]);
        let mut rows = samples.to_f64_vec();
        let mut mean = vec![0.0; d];
        for row in rows.chunks(d) {
            mean.iter_mut()
                .zip(row)
                .for_each(|(m, x)| *m += x / n as f64);
        }
        let mut factor = vec![0.0; d * d];
        for row in rows.chunks_mut(d) {
            row.iter_mut().zip(&mean).for_each(|(x, m)| *x -= m);
            for (i, x) in row.iter().enumerate() {
                let covariances = &mut factor[i * d..][..=i];
                covariances
                    .iter_mut()
                    .zip(&*row)
                    .for_each(|(c, y)| *c += x * y / n as f64);
            }
        }
        let variance = (0..d).map(|i| factor[i * d + i]).sum::<f64>() / d as f64;
        // Vectors that are all the same have no spread to divide by.
        let floor = if variance > 0.0 {
            FLOOR * variance
        } else {
            1.0
        };
        (0..d).for_each(|i| factor[i * d + i] += floor);
        cholesky(&mut factor, d);
        Spread { mean, factor }
    }

    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// w ← w·L⁻¹, so that w·(x − mean) is what w was for a whitened x.
    pub fn compose(&self, w: &mut [f64]) {
        let d = w.len();
        for j in (0..d).rev() {
            let known: f64 = (j + 1..d).map(|i| w[i] * self.factor[i * d + j]).sum();
            w[j] = (w[j] - known) / self.factor[j * d + j];
        }
    }
}

/// The lower triangle of a positive definite matrix becomes its Cholesky factor.
fn cholesky(a: &mut [f64], d: usize) {
    for i in 0..d {
        let (above, row) = a.split_at_mut(i * d);
        for j in 0..i {
            let other = &above[j * d..];
            let known: f64 = row[..j].iter().zip(other).map(|(x, y)| x * y).sum();
            row[j] = (row[j] - known) / other[j];
        }
        row[i] = (row[i] - row[..i].iter().map(|x| x * x).sum::<f64>()).sqrt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use autograd::{DType, Device};

    /// Directions whose spreads are 100 : 1 : 0.3, mixed, come out of a whitened projection as if they were equal.
    #[test]
    fn whitened_projections_see_every_direction_alike() {
        let n = 4000;
        let mut random = 1u64;
        let mut uniform = || {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (random >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        };
        let samples: Vec<f64> = (0..n)
            .flat_map(|_| {
                let (a, b, c) = (100.0 * uniform(), 10.0 * uniform(), 8.0 * uniform());
                [a + b + 3.0, a - b, c - 0.5 * a]
            })
            .collect();
        let spread = Spread::of(&Tensor::from_f64(&samples, [n, 3], DType::F64, Device::Cpu));
        let rows = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8]];
        for mut row in rows {
            spread.compose(&mut row);
            let centred = samples.chunks(3).map(|x| {
                row.iter()
                    .zip(x.iter().zip(&spread.mean))
                    .map(|(w, (x, m))| w * (x - m))
                    .sum::<f64>()
            });
            let variance = centred.map(|y| y * y).sum::<f64>() / n as f64;
            assert!((0.3..=1.001).contains(&variance), "{row:?} {variance}");
        }
    }

    #[test]
    fn vectors_that_are_all_alike_stay_finite() {
        let spread = Spread::of(&Tensor::full([5, 2], 3.0, DType::F64, Device::Cpu));
        let mut row = [1.0, 2.0];
        spread.compose(&mut row);
        assert_eq!((spread.mean, row), (vec![3.0, 3.0], [1.0, 2.0]));
    }
}
