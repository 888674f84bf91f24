//! Blurs and resizing of square pictures, plain loops: the bits depend on nothing but the picture.

use super::Square;

/// How a picture is sampled at another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Between the two nearest pixels, in a straight line.
    Bilinear,
    /// Between the four nearest, by Keys' cubic with a = −1/2.
    Bicubic,
    /// The mean of the area that a pixel covers.
    Area,
}

impl Kernel {
    pub const ALL: [Kernel; 3] = [Kernel::Bilinear, Kernel::Bicubic, Kernel::Area];

    /// Which pixels of a line of `from` make pixel `i` of one of `to`, and their weights, which add up to 1.
    fn taps(self, i: usize, from: usize, to: usize) -> Vec<(usize, f32)> {
        let scale = from as f64 / to as f64;
        let inside = |k: i64| k.clamp(0, from as i64 - 1) as usize;
        match self {
            Kernel::Area => {
                // Enlarged, a pixel covers less than one.
                let (begin, end) = (i as f64 * scale, (i + 1) as f64 * scale);
                let pixels = begin as i64..(end.ceil() as i64).max(begin as i64 + 1);
                let covered = |k: i64| (end.min(k as f64 + 1.0) - begin.max(k as f64)) / scale;
                pixels
                    .map(|k| (inside(k), covered(k) as f32))
                    .filter(|(_, weight)| *weight > 0.0)
                    .collect()
            }
            Kernel::Bilinear | Kernel::Bicubic => {
                let centre = (i as f64 + 0.5) * scale - 0.5;
                let first = centre.floor() as i64;
                let reach = if self == Kernel::Bilinear { 0 } else { 1 };
                let weight = |k: i64| {
                    let x = (centre - k as f64).abs();
                    match (self, x) {
                        (Kernel::Bilinear, x) => 1.0 - x,
                        (_, x) if x <= 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
                        (_, x) => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
                    }
                };
                (first - reach..=first + 1 + reach)
                    .map(|k| (inside(k), weight(k) as f32))
                    .collect()
            }
        }
    }
}

/// The picture at another size.
pub fn resized(square: &Square, side: usize, kernel: Kernel) -> Square {
    if side == square.side {
        return square.clone();
    }
    let taps: Vec<_> = (0..side)
        .map(|i| kernel.taps(i, square.side, side))
        .collect();
    weighted(square, side, &taps)
}

/// Every `step`-th pixel.
pub fn every(square: &Square, step: usize) -> Square {
    let side = square.side.div_ceil(step);
    let taps: Vec<_> = (0..side).map(|i| vec![(i * step, 1.0)]).collect();
    weighted(square, side, &taps)
}

/// Blurs by a Gaussian of this deviation; 0 leaves the picture as it is.
pub fn isotropic(square: &Square, radius: usize, deviation: f64) -> Square {
    let weights: Vec<f64> = (-(radius as i64)..=radius as i64)
        .map(|k| gaussian((k * k) as f64, deviation * deviation))
        .collect();
    let total: f64 = weights.iter().sum();
    let taps: Vec<_> = (0..square.side)
        .map(|i| {
            let weighed = weights.iter().zip(0..);
            weighed
                .map(|(w, k)| {
                    (
                        mirrored(i as i64 + k - radius as i64, square.side),
                        (w / total) as f32,
                    )
                })
                .collect()
        })
        .collect();
    weighted(square, square.side, &taps)
}

/// Blurs by a Gaussian with these variances along an axis at `angle` and across it.
pub fn elongated(square: &Square, radius: usize, angle: f64, variances: [f64; 2]) -> Square {
    let reach = radius as i64;
    let (sin, cos) = angle.sin_cos();
    let mut kernel = Vec::new();
    let mut total = 0.0;
    for dy in -reach..=reach {
        for dx in -reach..=reach {
            let along = cos * dx as f64 + sin * dy as f64;
            let across = cos * dy as f64 - sin * dx as f64;
            let weight =
                gaussian(along * along, variances[0]) * gaussian(across * across, variances[1]);
            // What an 8-bit picture cannot show costs time.
            if weight > 1e-5 {
                total += weight;
                kernel.push((dy, dx, weight));
            }
        }
    }
    let side = square.side;
    let mut rgb = vec![0f32; square.rgb.len()];
    for (i, pixel) in rgb.chunks_mut(3).enumerate() {
        let (y, x) = ((i / side) as i64, (i % side) as i64);
        for &(dy, dx, weight) in &kernel {
            let at = mirrored(y + dy, side) * side + mirrored(x + dx, side);
            let weight = (weight / total) as f32;
            for (value, seen) in pixel.iter_mut().zip(&square.rgb[3 * at..]) {
                *value += weight * seen;
            }
        }
    }
    Square { side, rgb }
}

/// e^(−d²/2σ²); of a deviation of nearly 0 all but the middle is 0.
fn gaussian(distance_squared: f64, variance: f64) -> f64 {
    (-0.5 * distance_squared / variance.max(1e-6)).exp()
}

/// The pixel that place `k` beyond the border shows, the border pixel not twice.
fn mirrored(k: i64, side: usize) -> usize {
    let period = (2 * side as i64 - 2).max(1);
    let k = k.rem_euclid(period);
    (if k < side as i64 { k } else { period - k }) as usize
}

/// Columns, then rows, of `side` pixels, each a weighted sum.
fn weighted(square: &Square, side: usize, taps: &[Vec<(usize, f32)>]) -> Square {
    let from = square.side;
    let mut lines = vec![0f32; from * side * 3];
    for (line, out) in square.rgb.chunks(from * 3).zip(lines.chunks_mut(side * 3)) {
        for (pixel, taps) in out.chunks_mut(3).zip(taps) {
            for &(k, weight) in taps {
                for (value, seen) in pixel.iter_mut().zip(&line[3 * k..]) {
                    *value += weight * seen;
                }
            }
        }
    }
    let mut rgb = vec![0f32; side * side * 3];
    for (out, taps) in rgb.chunks_mut(side * 3).zip(taps) {
        for &(k, weight) in taps {
            for (value, seen) in out.iter_mut().zip(&lines[k * side * 3..]) {
                *value += weight * seen;
            }
        }
    }
    Square { side, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(side: usize) -> Square {
        let value = |i: usize| (i * 2_654_435_761 % 1009) as f32 / 1009.0;
        Square {
            side,
            rgb: (0..side * side * 3).map(value).collect(),
        }
    }

    fn worst(a: &Square, b: &Square) -> f32 {
        let off = a.rgb.iter().zip(&b.rgb).map(|(a, b)| (a - b).abs());
        off.fold(0.0, f32::max)
    }

    #[test]
    fn an_even_picture_stays_as_it_is() {
        for side in [1, 2, 7, 16] {
            let even = |side: usize| Square {
                side,
                rgb: [0.3, 0.6, 0.9].repeat(side * side),
            };
            for kernel in Kernel::ALL {
                for to in [1, 3, 16, 20] {
                    let got = resized(&even(side), to, kernel);
                    assert!(worst(&got, &even(to)) < 1e-5, "{kernel:?} {side} to {to}");
                }
            }
            assert!(worst(&isotropic(&even(side), 12, 2.0), &even(side)) < 1e-5);
            assert!(worst(&elongated(&even(side), 12, 0.7, [8.0, 0.5]), &even(side)) < 1e-5);
        }
    }

    #[test]
    fn no_blur_changes_nothing_and_area_is_the_mean() {
        let picture = noise(12);
        assert!(worst(&isotropic(&picture, 5, 0.0), &picture) < 1e-6);
        assert!(worst(&elongated(&picture, 5, 1.0, [0.0, 0.0]), &picture) < 1e-6);
        let half = resized(&picture, 6, Kernel::Area);
        let mean = [0, 3, 36, 39].map(|i| picture.rgb[i]).iter().sum::<f32>() / 4.0;
        assert!((half.rgb[0] - mean).abs() < 1e-6);
        assert_eq!(every(&picture, 3).rgb[3], picture.rgb[9]);
    }

    /// A round elongated kernel is the isotropic one, and a long one blurs along its axis alone.
    #[test]
    fn the_elongated_kernel_follows_its_axis() {
        let picture = noise(20);
        let round = elongated(&picture, 12, 0.4, [4.0, 4.0]);
        assert!(worst(&round, &isotropic(&picture, 12, 2.0)) < 2e-3);
        let stripes = Square {
            side: 20,
            rgb: (0..1200).map(|i| (i / 60 % 2) as f32).collect(),
        };
        // Along the stripes nothing changes, across them they melt.
        assert!(worst(&elongated(&stripes, 12, 0.0, [9.0, 0.0]), &stripes) < 1e-3);
        let across = elongated(&stripes, 12, std::f64::consts::FRAC_PI_2, [9.0, 0.0]);
        assert!(across.rgb.iter().all(|x| (0.4..0.6).contains(x)));
    }

    #[test]
    fn borders_mirror() {
        let got: Vec<usize> = (-3..7).map(|k| mirrored(k, 4)).collect();
        assert_eq!(got, [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]);
        assert_eq!(mirrored(-5, 1), 0);
    }
}
