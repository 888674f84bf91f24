//! Pictures as they come back from the world: blurred, shrunk by some kernel, noisy and compressed, in random order (Zhang et
//! al., "Designing a practical degradation model for deep blind image super-resolution", 2021, section 3). The upsampler to
//! 1024² learns on them (Ramesh et al., 2022, section 2.1), so that it mends what the one before it does wrong. Their model
//! of a camera's sensor is left out.

mod filter;

use autograd::Draw;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageFormat};
use tensor::{DType, Device, Tensor};

pub use filter::Kernel;

use super::random::{Draws, Stream};
use crate::{Error, Result};

/// A square picture, [side, side, 3], on a scale from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Square {
    pub side: usize,
    pub rgb: Vec<f32>,
}

/// What happens to a picture; each happens once, in an order that is drawn, but for what is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wear {
    /// By an isotropic or an elongated Gaussian.
    Blur,
    BlurAgain,
    /// To some size on the way.
    Shrink,
    /// To the small size: after [`Wear::Shrink`].
    Settle,
    Noise,
    Jpeg,
}

const ALL: [Wear; 6] = [
    Wear::Blur,
    Wear::BlurAgain,
    Wear::Shrink,
    Wear::Settle,
    Wear::Noise,
    Wear::Jpeg,
];

/// The published ranges of what is drawn.
mod range {
    /// Deviation of noise, of 255 levels.
    pub const NOISE: (f64, f64) = (2.0, 25.0);
    /// Quality of JPEG, as libjpeg counts.
    pub const QUALITY: (usize, usize) = (30, 95);
    /// Blurring kernels have a side of 7 to 25.
    pub const RADIUS: (usize, usize) = (3, 12);
    /// How often the picture is compressed before the last time.
    pub const COMPRESSED: f64 = 0.9;
    /// How often it shrinks by interpolation, in place of blur and every n-th pixel.
    pub const INTERPOLATED: f64 = 0.75;
}

/// A picture `factor` times smaller, as it might have come back: a function of the picture, the seed and the sample's position
/// alone.
///
/// # Errors
/// If `factor` does not divide the picture's side, or the picture cannot be compressed.
pub fn degrade(picture: &Square, factor: usize, seed: u64, position: u64) -> Result<Square> {
    let side = picture.side;
    if factor == 0
        || side == 0
        || !side.is_multiple_of(factor)
        || picture.rgb.len() != side * side * 3
    {
        return Err(Error::failure(format!(
            "a picture of side {side} with {} numbers cannot be made {factor} times smaller",
            picture.rgb.len()
        )));
    }
    let mut draws = Draws::new(seed, Stream::Degradation, position);
    let mut square = picture.clone();
    for wear in order(&mut draws) {
        square = match wear {
            Wear::Blur | Wear::BlurAgain => blurred(&square, factor, &mut draws),
            Wear::Shrink => shrunk(&square, side, factor, &mut draws),
            Wear::Settle => {
                let kernel = draws.pick(&Kernel::ALL);
                filter::resized(&square, side / factor, kernel)
            }
            Wear::Noise => noisy(&square, seed, position, &mut draws)?,
            Wear::Jpeg if draws.between(0.0, 1.0) < range::COMPRESSED => {
                compressed(&square, &mut draws)?
            }
            Wear::Jpeg => square,
        };
        square.rgb.iter_mut().for_each(|x| *x = x.clamp(0.0, 1.0));
    }
    compressed(&square, &mut draws)
}

/// Any order in which the size on the way comes before the last one.
fn order(draws: &mut Draws) -> [Wear; 6] {
    let mut order = ALL;
    for i in (1..order.len()).rev() {
        order.swap(i, draws.below(i + 1));
    }
    let place = |wear| order.iter().position(|w| *w == wear);
    if let (Some(shrink), Some(settle)) = (place(Wear::Shrink), place(Wear::Settle))
        && settle < shrink
    {
        order.swap(shrink, settle);
    }
    order
}

fn blurred(square: &Square, factor: usize, draws: &mut Draws) -> Square {
    let radius = range::RADIUS.0 + draws.below(range::RADIUS.1 - range::RADIUS.0 + 1);
    let factor = factor as f64;
    if draws.below(2) == 0 {
        let deviation = draws.between(0.0, 2.0 + 0.2 * factor);
        filter::isotropic(square, radius, deviation)
    } else {
        let widest = 4.0 + factor;
        let angle = draws.between(0.0, std::f64::consts::PI);
        // Variances along both axes.
        let variances = [draws.between(0.0, widest), draws.between(0.0, widest)];
        filter::elongated(square, radius, angle, variances)
    }
}

fn shrunk(square: &Square, full: usize, factor: usize, draws: &mut Draws) -> Square {
    if draws.between(0.0, 1.0) < range::INTERPOLATED {
        let scale = draws.between(1.0, 2.0 * factor as f64);
        let side = ((full as f64 / scale) as usize).max(1);
        return filter::resized(square, side, draws.pick(&Kernel::ALL));
    }
    let deviation = draws.between(0.1, 0.6 * factor as f64);
    let blurred = filter::isotropic(square, range::RADIUS.1, deviation);
    filter::every(&blurred, factor)
}

/// Noise of each colour alone, the same in all, or mixed between them.
fn noisy(square: &Square, seed: u64, position: u64, draws: &mut Draws) -> Result<Square> {
    let deviation = draws.between(range::NOISE.0, range::NOISE.1) / 255.0;
    // Row i: what of three normals makes colour i.
    let mixing = match draws.between(0.0, 1.0) {
        u if u > 0.6 => [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        u if u < 0.4 => [[1.0, 0.0, 0.0]; 3],
        _ => mixed(draws),
    };
    let pixels = square.side * square.side;
    let mut normals = Tensor::uninit([pixels, 3], DType::F32, Device::Cpu);
    let draw = Draw {
        step: (position >> 32) as u32,
        first_sample: 0,
        ..Draw::named(seed, "degradation.noise", position as u32)
    };
    tensor::ops::random::fill_normal(&mut normals, &draw, deviation)?;
    let mut rgb = square.rgb.clone();
    for (pixel, z) in rgb.chunks_mut(3).zip(normals.as_slice::<f32>()?.chunks(3)) {
        for (value, row) in pixel.iter_mut().zip(&mixing) {
            let noise: f64 = row.iter().zip(z).map(|(m, z)| m * f64::from(*z)).sum();
            *value += noise as f32;
        }
    }
    Ok(Square {
        side: square.side,
        rgb,
    })
}

/// √D·Q, with a random rotation Q and random variances D in [0, 1), so that colours vary together: Qᵀ·D·Q.
fn mixed(draws: &mut Draws) -> [[f64; 3]; 3] {
    let mut rows = [[0.0f64; 3]; 3];
    for i in 0..3 {
        let mut row = [0; 3].map(|_| draws.between(-1.0, 1.0));
        for done in &rows[..i] {
            let along: f64 = row.iter().zip(done).map(|(a, b)| a * b).sum();
            row.iter_mut().zip(done).for_each(|(a, b)| *a -= along * b);
        }
        let length = row.iter().map(|a| a * a).sum::<f64>().sqrt();
        // Three draws in a plane: as good as never, and then a plain axis less.
        rows[i] = if length > 1e-6 {
            row.map(|a| a / length)
        } else {
            [0.0; 3]
        };
    }
    let spread = [0; 3].map(|_| draws.between(0.0, 1.0).sqrt());
    let mut mixing = [[0.0; 3]; 3];
    for (colour, out) in mixing.iter_mut().enumerate() {
        for k in 0..3 {
            out[k] = rows[k][colour] * spread[k];
        }
    }
    mixing
}

fn compressed(square: &Square, draws: &mut Draws) -> Result<Square> {
    let (low, high) = range::QUALITY;
    let quality = low + draws.below(high - low + 1);
    let bytes: Vec<u8> = square
        .rgb
        .iter()
        .map(|x| (x.clamp(0.0, 1.0) * 255.0).round() as u8)
        .collect();
    let side = square.side as u32;
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, quality as u8)
        .encode(&bytes, side, side, ExtendedColorType::Rgb8)
        .map_err(|e| Error::failure(format!("cannot compress a picture: {e}")))?;
    let read = image::load_from_memory_with_format(&file, ImageFormat::Jpeg)
        .map_err(|e| Error::failure(format!("cannot read a compressed picture: {e}")))?;
    let rgb = read.into_rgb8().into_raw();
    Ok(Square {
        side: square.side,
        rgb: rgb.iter().map(|&b| f32::from(b) / 255.0).collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A disc on a slope of colours.
    fn picture(side: usize) -> Square {
        let pixel = |i: usize| {
            let (y, x) = (
                (i / side) as f32 / side as f32,
                (i % side) as f32 / side as f32,
            );
            let inside = (x - 0.5).hypot(y - 0.5) < 0.3;
            if inside {
                [0.9, 0.2, 0.1]
            } else {
                [0.2 + 0.4 * x, 0.3 + 0.4 * y, 0.6]
            }
        };
        Square {
            side,
            rgb: (0..side * side).flat_map(pixel).collect(),
        }
    }

    fn difference(a: &Square, b: &Square) -> f64 {
        let squares = a
            .rgb
            .iter()
            .zip(&b.rgb)
            .map(|(a, b)| f64::from(a - b).powi(2));
        (squares.sum::<f64>() / a.rgb.len() as f64).sqrt()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn any_picture_is_the_same_again_of_the_right_size_and_in_range(
            (low, factor) in (1usize..9, 1usize..6), seed: u64, position: u64,
        ) {
            let picture = picture(low * factor);
            let worn = degrade(&picture, factor, seed, position).unwrap();
            prop_assert_eq!(worn.side, low);
            prop_assert_eq!(worn.rgb.len(), low * low * 3);
            prop_assert!(worn.rgb.iter().all(|x| (0.0..=1.0).contains(x)));
            prop_assert_eq!(&worn, &degrade(&picture, factor, seed, position).unwrap());
        }
    }

    #[test]
    fn each_position_and_seed_wears_it_otherwise_and_none_beyond_recognition() {
        let picture = picture(64);
        let clean = filter::resized(&picture, 16, Kernel::Area);
        let worn: Vec<Square> = (0..40)
            .map(|i| degrade(&picture, 4, 3, i).unwrap())
            .collect();
        for (i, a) in worn.iter().enumerate() {
            assert!(worn[..i].iter().all(|b| a != b), "{i} is like another");
            let off = difference(a, &clean);
            // Measured: 0.02 to 0.14; grey alone is 0.25 from it.
            assert!(off > 0.005 && off < 0.2, "{i}: {off}");
        }
        assert_ne!(worn[0], degrade(&picture, 4, 4, 0).unwrap());
        assert_ne!(worn[0], degrade(&picture, 4, 3, 1 << 32).unwrap());
    }

    #[test]
    fn every_order_settles_after_it_shrinks_and_all_orders_come() {
        let mut seen = std::collections::BTreeSet::new();
        for position in 0..20_000 {
            let order = order(&mut Draws::new(1, Stream::Degradation, position));
            let place = |wear| order.iter().position(|w| *w == wear);
            assert!(place(Wear::Shrink) < place(Wear::Settle));
            seen.insert(order.map(|w| w as u8));
        }
        // Half of 6!.
        assert_eq!(seen.len(), 360);
    }

    /// Noise of the three forms has the covariance that is meant.
    #[test]
    fn mixing_rotates_and_never_adds() {
        for i in 0..50 {
            let m = mixed(&mut Draws::new(7, Stream::Degradation, i));
            let variance = |row: &[f64; 3]| row.iter().map(|x| x * x).sum::<f64>();
            let total: f64 = m.iter().map(variance).sum();
            assert!(m.iter().all(|row| variance(row) <= 1.0 + 1e-12) && total < 3.0);
        }
    }

    #[test]
    fn what_cannot_be_shrunk_is_refused() {
        assert!(degrade(&picture(10), 4, 0, 0).is_err());
        assert!(degrade(&picture(10), 0, 0, 0).is_err());
        let cut = Square {
            side: 4,
            rgb: vec![0.0; 5],
        };
        assert!(degrade(&cut, 2, 0, 0).is_err());
    }
}
