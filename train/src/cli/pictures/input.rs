//! Pictures and masks that a user gives, as the model sees them.

use std::io::Cursor;
use std::path::Path;

use image::ImageReader;
use models::pipeline::{Known, Pipeline, Region};
use tensor::Tensor;

use crate::data::decode::{self, Decoder};
use crate::picture::Picture;
use crate::record::short_hash;
use crate::stages::source;
use crate::{Error, Result};

/// A larger file is not read, and a picture of more pixels not decoded.
const MAX_BYTES: u64 = 1 << 28;
const MAX_PIXELS: u64 = 64 << 20;

/// A picture, cut to its centred square.
pub struct Input {
    /// Its file's name and a hash of what is in it.
    pub name: String,
    path: String,
    bytes: Vec<u8>,
    /// Side of the pictures that the upsampler draws, and the decoder.
    large: usize,
    small: usize,
}

impl Input {
    pub fn read(path: &Path, pipeline: &Pipeline) -> Result<Input> {
        let unreadable = Error::io("read", path);
        let bytes = match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() > MAX_BYTES => {
                return Err(Error::usage(format!(
                    "{} is too large for a picture ({} bytes)",
                    path.display(),
                    metadata.len()
                )));
            }
            Ok(_) => std::fs::read(path).map_err(unreadable)?,
            Err(e) => return Err(unreadable(e)),
        };
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let input = Input {
            name: format!("{file} {}", short_hash([&*bytes])),
            path: path.display().to_string(),
            large: side(pipeline.large_size()?)?,
            small: side(pipeline.small_size()?)?,
            bytes,
        };
        input.square(1)?; // what cannot be decoded is refused before anything else is done
        Ok(input)
    }

    /// RGB of the centred square, `side` pixels wide.
    pub fn square(&self, side: usize) -> Result<Vec<u8>> {
        let square = Decoder::new(side, MAX_PIXELS).square(&self.bytes);
        square.map_err(|reason| Error::usage(format!("{} cannot be used: {reason}", self.path)))
    }

    /// Height and width of the whole picture, and its pixels.
    pub fn rgb(&self) -> Result<([usize; 2], Vec<u8>)> {
        let (width, height, rgb) = decode::rgb(&self.bytes, MAX_PIXELS)
            .map_err(|reason| Error::usage(format!("{} cannot be used: {reason}", self.path)))?;
        Ok(([height as usize, width as usize], rgb))
    }

    /// As the upsampler would draw it.
    pub fn picture(&self) -> Result<Picture> {
        Ok(Picture {
            width: self.large,
            height: self.large,
            rgb: self.square(self.large)?,
        })
    }

    /// As the decoder would draw it: each pixel the mean of what it covers, as in training.
    ///
    /// # Shapes
    /// → [1, small, small, 3] in −1 to 1
    pub fn small(&self) -> Result<Tensor> {
        let from = match self.large.is_multiple_of(self.small) {
            true => self.large,
            false => self.small,
        };
        Ok(source::shrunk(&self.square(from)?, from, self.small))
    }

    /// What a mask leaves of this picture: all but where it is white.
    ///
    /// # Errors
    /// If the mask has another size, or is white nowhere.
    pub fn outside(&self, mask: &Input, resamples: usize) -> Result<Known> {
        let [own, other] = [self.dimensions()?, mask.dimensions()?];
        if own != other {
            return Err(Error::usage(format!(
                "{} is {} × {} pixels and {} {} × {}: a mask must have its picture's size",
                mask.path, other.0, other.1, self.path, own.0, own.1
            )));
        }
        let rgb = mask.square(self.large)?;
        let kept: Vec<bool> = rgb
            .chunks(3)
            .map(|pixel| pixel.iter().map(|&v| u32::from(v)).sum::<u32>() < 3 * 128)
            .collect();
        if kept.iter().all(|&kept| kept) {
            return Err(Error::usage(format!(
                "{} is black everywhere: paint white what is to be drawn anew",
                mask.path
            )));
        }
        let large = source::shrunk(&self.square(self.large)?, self.large, self.large);
        Ok(Known {
            small: Region::new(&self.small()?, shrunk(&kept, self.large, self.small))?,
            large: Region::new(&large, kept)?,
            resamples,
        })
    }

    fn dimensions(&self) -> Result<(u32, u32)> {
        let reader = ImageReader::new(Cursor::new(&self.bytes)).with_guessed_format();
        let dimensions = reader
            .map_err(image::ImageError::from)
            .and_then(|r| r.into_dimensions());
        dimensions.map_err(|e| Error::usage(format!("{} cannot be used: {e}", self.path)))
    }
}

fn side([height, width]: [usize; 2]) -> Result<usize> {
    match height == width {
        true => Ok(width),
        false => Err(Error::usage(format!(
            "this model draws {width} × {height} pixels; pictures can be given only to one that draws squares"
        ))),
    }
}

/// A small pixel is known where all that it covers is.
fn shrunk(kept: &[bool], large: usize, small: usize) -> Vec<bool> {
    let covered = |i: usize| i * large / small..((i + 1) * large).div_ceil(small);
    let known = |y: usize, x: usize| covered(y).all(|y| covered(x).all(|x| kept[y * large + x]));
    let pixels = (0..small * small).map(|i| known(i / small, i % small));
    pixels.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_pixel_is_known_where_all_that_it_covers_is() {
        let mut kept = vec![true; 36];
        kept[2 * 6 + 3] = false; // row 2, column 3 of 6 × 6
        let small = shrunk(&kept, 6, 3);
        assert_eq!(small.iter().position(|&k| !k), Some(4));
        assert_eq!(small.iter().filter(|&&k| !k).count(), 1);
        // Where sizes do not divide, a pixel lies in two.
        let small = shrunk(&kept, 6, 4);
        let unknown: Vec<usize> = (0..16).filter(|&i| !small[i]).collect();
        assert_eq!(unknown, [6]);
    }
}
