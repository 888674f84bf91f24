//! Image files to squares of pixels, with limits that are checked before anything large is allocated.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

/// Decodes, orients, crops and resizes; keeps the resizer's memory between pictures.
pub struct Decoder {
    size: usize,
    max_pixels: u64,
    resizer: Resizer,
}

impl Decoder {
    /// For squares of `size` pixels from files of at most `max_pixels`.
    pub fn new(size: usize, max_pixels: u64) -> Self {
        Decoder {
            size,
            max_pixels,
            resizer: Resizer::new(),
        }
    }

    /// RGB `[size, size, 3]` of the largest centred square, reduced or enlarged bicubically (as CLIP does).
    ///
    /// # Errors
    /// One clause that says what is wrong with the file. Nothing is allocated for a picture of too many pixels.
    pub fn square(&mut self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let (width, height, rgb) = rgb(bytes, self.max_pixels)?;
        let (size, side) = (self.size, width.min(height));
        if (width, height) == (size as u32, size as u32) {
            return Ok(rgb);
        }
        let fail = |reason: &dyn std::fmt::Display| format!("it cannot be resized: {reason}");
        let source = ImageRef::new(width, height, &rgb, PixelType::U8x3).map_err(|e| fail(&e))?;
        let mut target = Image::new(size as u32, size as u32, PixelType::U8x3);
        let (left, top) = ((width - side) / 2, (height - side) / 2);
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
            .crop(left.into(), top.into(), side.into(), side.into());
        self.resizer
            .resize(&source, &mut target, &options)
            .map_err(|e| fail(&e))?;
        Ok(target.into_vec())
    }
}

/// Width, height and RGB bytes of a file of at most `max_pixels`; transparent parts show white.
///
/// # Errors
/// One clause that says what is wrong with the file.
pub fn rgb(bytes: &[u8], max_pixels: u64) -> Result<(u32, u32, Vec<u8>), String> {
    // The decoders are not ours: should one fail an assertion on a hostile file, that is one bad sample and not the end
    // of a run.
    catch_unwind(AssertUnwindSafe(|| decode(bytes, max_pixels)))
        .unwrap_or_else(|_| Err("its decoder gave up".into()))
}

fn decode(bytes: &[u8], max_pixels: u64) -> Result<(u32, u32, Vec<u8>), String> {
    let fail = |reason: image::ImageError| format!("it cannot be decoded: {reason}");
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|reason| format!("it cannot be read: {reason}"))?;
    match reader.format() {
        Some(ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP) => {}
        _ => return Err("it is not a PNG, JPEG or WebP file".into()),
    }
    let mut limits = Limits::no_limits();
    // 16-bit RGBA, and the decoder's own rows beside it.
    limits.max_alloc = Some(max_pixels.saturating_mul(16).saturating_add(1 << 20));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(fail)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > max_pixels {
        return Err(format!(
            "it has {width} × {height} pixels, and max_image_pixels is {max_pixels}"
        ));
    }
    let orientation = decoder.orientation().map_err(fail)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(fail)?;
    image.apply_orientation(orientation);
    let (width, height) = (image.width(), image.height());
    if !image.color().has_alpha() {
        return Ok((width, height, image.into_rgb8().into_raw()));
    }
    let rgba = image.into_rgba8();
    let over_white = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let rgb = rgba
        .pixels()
        .flat_map(|p| [0, 1, 2].map(|i| over_white(p.0[i], p.0[3])))
        .collect();
    Ok((width, height, rgb))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use image::{ImageEncoder, Rgba, RgbaImage};
    use proptest::prelude::*;

    pub(crate) fn png(width: u32, height: u32, rgb: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes)
            .write_image(rgb, width, height, image::ExtendedColorType::Rgb8)
            .unwrap();
        bytes
    }

    fn gradient(width: u32, height: u32) -> DynamicImage {
        DynamicImage::ImageRgb8(image::RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([x as u8, y as u8, 77])
        }))
    }

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn decodes_the_three_formats() {
        let picture = gradient(40, 40);
        let want = picture.to_rgb8().into_raw();
        for (format, tolerance) in [
            (ImageFormat::Png, 0),
            (ImageFormat::WebP, 0),
            (ImageFormat::Jpeg, 24),
        ] {
            let got = Decoder::new(40, 1600)
                .square(&encoded(&picture, format))
                .unwrap();
            let worst = got.iter().zip(&want).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(tolerance), "{format:?}: {worst:?}");
        }
    }

    #[test]
    fn crops_the_centre_and_resizes() {
        // A wide picture: x runs 0..=199, so the centred square holds 50..150.
        let bytes = encoded(&gradient(200, 100), ImageFormat::Png);
        let got = Decoder::new(10, 1 << 20).square(&bytes).unwrap();
        assert_eq!(got.len(), 300);
        for (i, pixel) in got.chunks_exact(3).enumerate() {
            let (x, y) = ((i % 10) as f64, (i / 10) as f64);
            // Each output pixel is the mean of ten: 50 + 10·x + 4.5.
            assert!((f64::from(pixel[0]) - (54.5 + 10.0 * x)).abs() <= 2.0);
            assert!((f64::from(pixel[1]) - (4.5 + 10.0 * y)).abs() <= 2.0);
            assert_eq!(pixel[2], 77);
        }
        let enlarged = Decoder::new(300, 1 << 20).square(&bytes).unwrap();
        assert_eq!(enlarged.len(), 300 * 300 * 3);
    }

    #[test]
    fn transparency_shows_white() {
        let mut picture = RgbaImage::from_pixel(2, 2, Rgba([200, 0, 0, 0]));
        picture.put_pixel(1, 0, Rgba([200, 0, 0, 255]));
        picture.put_pixel(0, 1, Rgba([200, 0, 0, 128]));
        let bytes = encoded(&DynamicImage::ImageRgba8(picture), ImageFormat::Png);
        let got = Decoder::new(2, 4).square(&bytes).unwrap();
        assert_eq!(got[..9], [255, 255, 255, 200, 0, 0, 227, 127, 127]);
    }

    #[test]
    fn hostile_files_are_one_clause_each() {
        let good = encoded(&gradient(64, 64), ImageFormat::Png);
        // A header that claims 2³¹ − 1 squared pixels, with a valid checksum.
        let mut bomb = good[..33].to_vec();
        bomb[16..24].copy_from_slice(&[0x7F, 0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF]);
        let crc = crc32(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        let bomb = [&bomb[..], &good[33..]].concat();
        let mut flipped = good.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0xFF;
        for (name, bytes, says) in [
            ("empty", vec![], "not a PNG"),
            ("text", b"hello".to_vec(), "not a PNG"),
            (
                "gif",
                b"GIF89a\x01\x00\x01\x00\x00\x00\x00;".to_vec(),
                "not a PNG",
            ),
            ("cut", good[..good.len() / 2].to_vec(), "decoded"),
            ("signature only", good[..8].to_vec(), "decoded"),
            ("flipped byte", flipped, "decoded"),
            ("bomb", bomb, "limit"),
            (
                "large",
                encoded(&gradient(65, 64), ImageFormat::Png),
                "65 × 64",
            ),
        ] {
            let error = Decoder::new(64, 64 * 64).square(&bytes).unwrap_err();
            assert!(error.contains(says), "{name}: {error}");
        }
    }

    /// The checksum of PNG chunks (ISO 3309), bit by bit.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| {
                (c >> 1) ^ (0xEDB8_8320 & (c & 1).wrapping_neg())
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn damaged_files_never_panic(
            format in 0usize..3,
            edits in prop::collection::vec((any::<usize>(), any::<u8>()), 1..8),
            cut in any::<usize>(),
        ) {
            let format = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP][format];
            let mut bytes = encoded(&gradient(24, 16), format);
            for (at, value) in edits {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            if cut % 3 == 0 {
                bytes.truncate(cut % bytes.len());
            }
            // Decoded directly, so that a panic is not turned into an error.
            if let Ok((width, height, rgb)) = decode(&bytes, 1 << 16) {
                prop_assert_eq!(rgb.len() as u64, u64::from(width) * u64::from(height) * 3);
            }
        }
    }
}
