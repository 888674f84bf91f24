//! Image embeddings as short sequences of whole numbers, for the autoregressive prior (Ramesh et al., 2022, section 2.2):
//! their principal components, largest first, each cut into buckets, behind how near they are to their text.

use tensor::{Check, Result, Tensor};

use crate::embeddings::{cosine, dot};

/// How embeddings become codes: the first says how near image and text are, the others where the image lies along the
/// principal components, in the order of their variance.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// [d]
    pub mean: Vec<f64>,
    /// Orthonormal rows, [components, d].
    pub components: Vec<f64>,
    /// Where the first bucket of each code begins, [1 + components].
    pub low: Vec<f64>,
    /// Where the last one ends.
    pub high: Vec<f64>,
    /// Buckets of a code, all of one width.
    pub buckets: usize,
}

impl Codes {
    /// Finds the components of image embeddings, and the range of each and of the cosines with the texts'.
    ///
    /// # Shapes
    /// images, texts [n, d]
    ///
    /// # Errors
    /// If there are no embeddings, or more components than dimensions are asked for.
    pub fn measure(
        images: &Tensor,
        texts: &Tensor,
        components: usize,
        buckets: usize,
    ) -> Result<Codes> {
        let check = Check::new("codes", &[("images", images), ("texts", texts)]);
        check.rank("images", images, 2)?;
        check.shape("texts", texts, images.dims())?;
        let [n, d] = [images.dims()[0], images.dims()[1]];
        check.require(
            n > 0 && (1..=d).contains(&components) && buckets > 0,
            || format!("{components} components and {buckets} buckets cannot be made of these"),
        )?;
        let (images, texts) = (images.to_f64_vec()?, texts.to_f64_vec()?);
        let mut mean = vec![0.0; d];
        for row in images.chunks(d) {
            mean.iter_mut()
                .zip(row)
                .for_each(|(m, x)| *m += x / n as f64);
        }
        let mut covariance = vec![0.0; d * d];
        for row in images.chunks(d) {
            for (i, line) in covariance.chunks_mut(d).enumerate() {
                let x = (row[i] - mean[i]) / n as f64;
                line.iter_mut()
                    .zip(row.iter().zip(&mean))
                    .for_each(|(c, (y, m))| *c += x * (y - m));
            }
        }
        let mut codes = Codes {
            components: eigenvectors(covariance, d, components),
            mean,
            low: vec![f64::INFINITY; 1 + components],
            high: vec![f64::NEG_INFINITY; 1 + components],
            buckets,
        };
        for (image, text) in images.chunks(d).zip(texts.chunks(d)) {
            for (i, x) in codes.coordinates(image, text).into_iter().enumerate() {
                codes.low[i] = codes.low[i].min(x);
                codes.high[i] = codes.high[i].max(x);
            }
        }
        Ok(codes)
    }

    /// Codes of an embedding: the nearness to its text, and one for each component.
    pub fn count(&self) -> usize {
        self.low.len()
    }

    /// The cosine with the text's embedding, and the image's place along each component.
    fn coordinates(&self, image: &[f64], text: &[f64]) -> Vec<f64> {
        let centred: Vec<f64> = image.iter().zip(&self.mean).map(|(x, m)| x - m).collect();
        let rows = self.components.chunks(self.mean.len());
        std::iter::once(cosine(image, text))
            .chain(rows.map(|row| dot(row, &centred)))
            .collect()
    }

    /// The codes of image embeddings and of their texts'. What lies outside of what was measured gets the nearest.
    ///
    /// # Shapes
    /// images, texts [n, d] → n · [`Codes::count`] codes
    ///
    /// # Errors
    /// If the embeddings are of another width.
    pub fn encode(&self, images: &Tensor, texts: &Tensor) -> Result<Vec<i32>> {
        let (images, texts) = (self.rows(images)?, self.rows(texts)?);
        let d = self.mean.len();
        let code = |(i, x): (usize, f64)| {
            let width = (self.high[i] - self.low[i]) / self.buckets as f64;
            // Of a coordinate that never changed every code means the same.
            let bucket = if width > 0.0 {
                (x - self.low[i]) / width
            } else {
                0.0
            };
            (bucket.floor().max(0.0) as i32).min(self.buckets as i32 - 1)
        };
        let rows = images.chunks(d).zip(texts.chunks(d));
        Ok(rows
            .flat_map(|(image, text)| {
                self.coordinates(image, text)
                    .into_iter()
                    .enumerate()
                    .map(code)
            })
            .collect())
    }

    /// The image embedding in the middle of the buckets that its components' codes name; components beyond the given codes
    /// are at their mean.
    pub fn decode(&self, codes: &[i32]) -> Vec<f64> {
        let mut image = self.mean.clone();
        let rows = self.components.chunks(self.mean.len());
        for ((i, code), row) in codes.iter().enumerate().zip(rows) {
            let (low, high) = (self.low[i + 1], self.high[i + 1]);
            let x = low + (high - low) * (f64::from(*code) + 0.5) / self.buckets as f64;
            image.iter_mut().zip(row).for_each(|(z, r)| *z += x * r);
        }
        image
    }

    /// What is left out by codes, as a share of the embeddings' variance.
    ///
    /// # Shapes
    /// images [n, d]
    ///
    /// # Errors
    /// If the embeddings are of another width.
    pub fn lost(&self, images: &Tensor) -> Result<f64> {
        let values = self.rows(images)?;
        let (mut lost, mut variance) = (0.0, 0.0);
        let squares =
            |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum() };
        let codes = self.encode(images, images)?;
        let rows = values.chunks(self.mean.len());
        for (image, codes) in rows.zip(codes.chunks(self.count())) {
            lost += squares(image, &self.decode(&codes[1..]));
            variance += squares(image, &self.mean);
        }
        Ok(if variance > 0.0 { lost / variance } else { 0.0 })
    }

    fn rows(&self, embeddings: &Tensor) -> Result<Vec<f64>> {
        let d = self.mean.len();
        Check::new("codes", &[("embeddings", embeddings)])
            .require(embeddings.rank() == 2 && embeddings.dims()[1] == d, || {
                format!("embeddings must be [n, {d}]")
            })?;
        embeddings.to_f64_vec()
    }
}

/// The eigenvectors of a symmetric matrix [d, d] with the `count` largest eigenvalues, largest first, as rows of length 1
/// whose largest entry is positive: cyclic Jacobi rotations (Golub and Van Loan, "Matrix computations", section 8.5).
fn eigenvectors(mut a: Vec<f64>, d: usize, count: usize) -> Vec<f64> {
    /// Far more than ever needed: convergence is quadratic.
    const SWEEPS: usize = 60;
    // Rows of `v` turn into the eigenvectors.
    let mut v = vec![0.0; d * d];
    (0..d).for_each(|i| v[i * d + i] = 1.0);
    let whole = dot(&a, &a);
    for _ in 0..SWEEPS {
        let above = (0..d).flat_map(|p| &a[p * d + p + 1..(p + 1) * d]);
        if above.map(|x| x * x).sum::<f64>() <= 1e-30 * whole {
            break;
        }
        for p in 0..d {
            for q in p + 1..d {
                let off = a[p * d + q];
                if off == 0.0 {
                    continue;
                }
                let theta = (a[q * d + q] - a[p * d + p]) / (2.0 * off);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let t = if theta == 0.0 { 1.0 } else { t };
                let c = 1.0 / t.hypot(1.0);
                let s = t * c;
                rotate_rows(&mut a, d, p, q, c, s);
                for row in a.chunks_mut(d) {
                    let (x, y) = (row[p], row[q]);
                    (row[p], row[q]) = (c * x - s * y, s * x + c * y);
                }
                rotate_rows(&mut v, d, p, q, c, s);
            }
        }
    }
    let mut order: Vec<usize> = (0..d).collect();
    order.sort_by(|&i, &j| a[j * d + j].total_cmp(&a[i * d + i]));
    let mut vectors = Vec::with_capacity(count * d);
    for &i in &order[..count] {
        let row = &v[i * d..][..d];
        let largest = row
            .iter()
            .fold(0.0f64, |m, x| if x.abs() > m.abs() { *x } else { m });
        vectors.extend(row.iter().map(|x| x * largest.signum()));
    }
    vectors
}

/// Rows p < q of a matrix with d columns, turned.
fn rotate_rows(a: &mut [f64], d: usize, p: usize, q: usize, c: f64, s: f64) {
    let (above, below) = a.split_at_mut(q * d);
    let (p, q) = (&mut above[p * d..][..d], &mut below[..d]);
    for (x, y) in p.iter_mut().zip(q) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

#[cfg(test)]
mod tests {
    use tensor::ops::random::{Draw, fill_normal};
    use tensor::{DType, Device};

    use super::*;

    /// Embeddings [n, d] that vary by 1/(1 + i) along dimension i, turned.
    fn embeddings(n: usize, d: usize) -> Tensor {
        let mut x = Tensor::uninit([n, d], DType::F64, Device::Cpu);
        fill_normal(&mut x, &Draw::named(3, "codes", 0), 1.0).unwrap();
        let mut values = x.to_f64_vec().unwrap();
        for row in values.chunks_mut(d) {
            row.iter_mut()
                .enumerate()
                .for_each(|(i, x)| *x /= 1.0 + i as f64);
            for i in 0..d - 1 {
                let (x, y) = (row[i], row[i + 1]);
                (row[i], row[i + 1]) = (0.6 * x - 0.8 * y + 0.3, 0.8 * x + 0.6 * y);
            }
        }
        Tensor::from_f64(&values, [n, d], DType::F64, Device::Cpu)
    }

    #[test]
    fn eigenvectors_are_orthonormal_and_diagonalise() {
        let d = 12;
        let x = embeddings(d, d).to_f64_vec().unwrap();
        let entry = |i: usize, j: usize| dot(&x[i * d..][..d], &x[j * d..][..d]);
        let a: Vec<f64> = (0..d * d).map(|k| entry(k / d, k % d)).collect();
        let v = eigenvectors(a.clone(), d, d);
        let mut before = f64::INFINITY;
        for (i, vi) in v.chunks(d).enumerate() {
            let av: Vec<f64> = a.chunks(d).map(|row| dot(row, vi)).collect();
            let value = dot(vi, &av);
            assert!(value <= before && value > -1e-12);
            before = value;
            for (j, vj) in v.chunks(d).enumerate() {
                let one = f64::from(i == j);
                assert!((dot(vi, vj) - one).abs() < 1e-13);
                assert!((dot(vj, &av) - one * value).abs() < 1e-12 * entry(0, 0).max(1.0));
            }
        }
    }

    #[test]
    fn all_components_and_many_buckets_lose_next_to_nothing_and_fewer_lose_the_rest_of_the_variance()
     {
        let (n, d) = (200, 16);
        let x = embeddings(n, d);
        let lost = |components, buckets| {
            let codes = Codes::measure(&x, &x, components, buckets).unwrap();
            assert_eq!(codes.count(), 1 + components);
            codes.lost(&x).unwrap()
        };
        assert!(lost(d, 1 << 20) < 1e-9);
        let [all, half, two] = [d, d / 2, 2].map(|k| lost(k, 1024));
        assert!(all < half && half < two, "{all} {half} {two}");
        assert!(lost(d, 8) > 10.0 * all);
    }

    #[test]
    fn codes_come_back_and_stay_in_range() {
        let x = embeddings(50, 6);
        let codes = Codes::measure(&x, &x, 6, 32).unwrap();
        let first = codes.encode(&x, &x).unwrap();
        assert!(first.iter().all(|c| (0..32).contains(c)));
        for row in first.chunks(7) {
            let back = codes.decode(&row[1..]);
            let back = Tensor::from_f64(&back, [1, 6], DType::F64, Device::Cpu);
            assert_eq!(codes.encode(&back, &back).unwrap()[1..], row[1..]);
        }
        // Far outside of what was measured.
        let far = Tensor::full([1, 6], 1e9, DType::F64, Device::Cpu);
        let far = codes.encode(&far, &x.narrow(0, 0, 1).unwrap()).unwrap();
        assert!(far.iter().all(|c| (0..32).contains(c)));
        assert!(Codes::measure(&x, &x, 7, 32).is_err());
    }

    /// The coordinate that never changes has no width to divide by.
    #[test]
    fn a_constant_coordinate_is_coded() {
        let x = Tensor::full([3, 2], 0.5, DType::F64, Device::Cpu);
        let codes = Codes::measure(&x, &x, 2, 4).unwrap();
        assert_eq!(codes.encode(&x, &x).unwrap(), [0; 9]);
        assert_eq!(codes.decode(&[0, 0]), [0.5, 0.5]);
    }
}
