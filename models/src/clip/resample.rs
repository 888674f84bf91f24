//! The resizing of PIL, which CLIP's training and all its evaluations used: bicubic with a = −½, widened where pictures
//! shrink, rounded to bytes after each direction, the horizontal one first. (From its release 13 on PIL may go the other way
//! first, which moves what is clipped in between.)

/// Bits after the point of PIL's coefficients.
const PRECISION: u32 = 22;

/// RGB bytes of another size.
///
/// # Shapes
/// rgb [height, width, 3] → [new height, new width, 3]
pub(super) fn bicubic(
    rgb: &[u8],
    [height, width]: [usize; 2],
    [new_height, new_width]: [usize; 2],
) -> Vec<u8> {
    let rows: Vec<u8> = match new_width == width {
        true => rgb.to_vec(),
        false => {
            let taps = taps(width, new_width);
            let rows = rgb.chunks_exact(width * 3);
            let pixels = rows.flat_map(|row| {
                let pixel = |tap: &Tap| [0, 1, 2].map(|c| tap.apply(|i| row[i * 3 + c]));
                taps.iter().flat_map(pixel).collect::<Vec<u8>>()
            });
            pixels.collect()
        }
    };
    if new_height == height {
        return rows;
    }
    let stride = new_width * 3;
    let taps = taps(height, new_height);
    let pixels = taps
        .iter()
        .flat_map(|tap| (0..stride).map(|column| tap.apply(|i| rows[i * stride + column])));
    pixels.collect()
}

/// What one new pixel is made of.
struct Tap {
    first: usize,
    /// Fixed-point, of pixels `first` on.
    weights: Vec<i64>,
}

impl Tap {
    fn apply(&self, pixel: impl Fn(usize) -> u8) -> u8 {
        let half = 1 << (PRECISION - 1);
        let weighted = self.weights.iter().enumerate();
        let sum: i64 = weighted
            .map(|(i, weight)| weight * i64::from(pixel(self.first + i)))
            .sum();
        ((sum + half) >> PRECISION).clamp(0, 255) as u8
    }
}

fn taps(size: usize, new_size: usize) -> Vec<Tap> {
    let scale = size as f64 / new_size as f64;
    let widened = scale.max(1.0);
    let support = 2.0 * widened;
    let tap = |new: usize| {
        let centre = (new as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(size);
        let inverse = 1.0 / widened;
        let weight = |i: usize| kernel((i as f64 - centre + 0.5) * inverse);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let scaled = weight * (1.0 / sum) * f64::from(1 << PRECISION);
            (scaled + 0.5f64.copysign(scaled)) as i64
        };
        Tap {
            first,
            weights: weights.iter().map(fixed).collect(),
        }
    };
    (0..new_size).map(tap).collect()
}

/// Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = −½.
fn kernel(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}
