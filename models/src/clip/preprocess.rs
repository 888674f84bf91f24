//! From a picture's bytes to what CLIP's image tower takes: transformers' `CLIPImageProcessor`, to the last bit of the
//! resized bytes.

use autograd::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::resample::bicubic;
use crate::config::{Checks, Extra};
use crate::folder::Folder;
use crate::weights::{load_object, parse};
use crate::{Error, Result};

/// The folder that holds an image processor, in directories for image variation.
pub const FEATURE_EXTRACTOR: &str = "feature_extractor";
const FILE: &str = "preprocessor_config.json";
const CLASS: &str = "CLIPImageProcessor";
/// PIL's number of the bicubic filter.
const BICUBIC: u32 = 3;

/// Mean and deviation of each colour that CLIP's pictures are normalised by, on a scale of 0 to 1.
pub const PIXEL_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
pub const PIXEL_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// A picture is not enlarged beyond this.
const MOST_PIXELS: usize = 1 << 26;

/// A size as the files of several releases write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PixelSize {
    Number(usize),
    ShortestEdge { shortest_edge: usize },
    HeightWidth { height: usize, width: usize },
}

/// `preprocessor_config.json`, with the defaults of OpenAI's CLIP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageProcessorConfig {
    pub do_resize: bool,
    /// A number is the shortest edge.
    pub size: PixelSize,
    pub resample: u32,
    pub do_center_crop: bool,
    /// A number is a square's side.
    pub crop_size: PixelSize,
    pub do_rescale: bool,
    pub rescale_factor: f64,
    pub do_normalize: bool,
    pub image_mean: [f64; 3],
    pub image_std: [f64; 3],
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for ImageProcessorConfig {
    fn default() -> ImageProcessorConfig {
        ImageProcessorConfig::of_size(224)
    }
}

impl ImageProcessorConfig {
    /// That of an image tower which reads squares of this side.
    pub fn of_size(side: usize) -> ImageProcessorConfig {
        ImageProcessorConfig {
            do_resize: true,
            size: PixelSize::ShortestEdge {
                shortest_edge: side,
            },
            resample: BICUBIC,
            do_center_crop: true,
            crop_size: PixelSize::HeightWidth {
                height: side,
                width: side,
            },
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: PIXEL_MEAN,
            image_std: PIXEL_STD,
            extra: Extra::new(),
        }
    }

    /// Reads `preprocessor_config.json` of a folder.
    pub fn load(dir: &Folder) -> Result<ImageProcessorConfig> {
        let config: ImageProcessorConfig = parse(load_object(dir, FILE)?, dir.path(FILE))?;
        config.check()?;
        Ok(config)
    }

    /// Whether a folder has one.
    pub fn is_in(dir: &Folder) -> bool {
        dir.has(FILE)
    }

    fn check(&self) -> Result<()> {
        let checks = Checks(CLASS);
        checks.neutral(&self.extra, &[("do_pad", json!(false))])?;
        checks.require(!self.do_resize || self.resample == BICUBIC, || {
            format!(
                "resample = {} is not supported (only {BICUBIC}, bicubic)",
                self.resample
            )
        })?;
        let sides = [self.size, self.crop_size].map(|size| match size {
            PixelSize::Number(side)
            | PixelSize::ShortestEdge {
                shortest_edge: side,
            } => [side, side],
            PixelSize::HeightWidth { height, width } => [height, width],
        });
        let sane = sides
            .concat()
            .iter()
            .all(|side| (1..=1 << 14).contains(side));
        checks.require(sane, || {
            format!("size and crop_size must be from 1 to {}", 1 << 14)
        })?;
        let scales = [
            [self.rescale_factor; 3],
            self.image_mean,
            self.image_std.map(|std| 1.0 / std),
        ];
        checks.require(scales.concat().iter().all(|v| v.is_finite()), || {
            "rescale_factor, image_mean and image_std must be finite, and image_std not 0".into()
        })
    }

    /// # Shapes
    /// rgb [height, width, 3] → [1, h, w, 3], where h and w are of `crop_size`
    ///
    /// # Errors
    /// If the picture is smaller than what is cut out of it.
    pub fn pixels(&self, [height, width]: [usize; 2], rgb: &[u8]) -> Result<Tensor> {
        if height * width * 3 != rgb.len() || rgb.is_empty() {
            return Err(Error::Request(format!(
                "a picture of {width} × {height} pixels does not have {} bytes",
                rgb.len()
            )));
        }
        let [new_height, new_width] = match self.do_resize {
            true => self.resized([height, width]),
            false => [height, width],
        };
        if new_height.saturating_mul(new_width) > MOST_PIXELS {
            return Err(Error::Request(format!(
                "a picture of {width} × {height} pixels is too narrow: CLIP would read it at {new_width} × {new_height}"
            )));
        }
        let resized = bicubic(rgb, [height, width], [new_height, new_width]);
        let [crop_height, crop_width] = match (self.do_center_crop, self.crop_size) {
            (false, _) => [new_height, new_width],
            (true, PixelSize::HeightWidth { height, width }) => [height, width],
            (true, PixelSize::Number(side))
            | (
                true,
                PixelSize::ShortestEdge {
                    shortest_edge: side,
                },
            ) => [side, side],
        };
        if crop_height > new_height || crop_width > new_width {
            return Err(Error::Request(format!(
                "a picture of {new_width} × {new_height} pixels is smaller than the {crop_width} × {crop_height} that CLIP reads"
            )));
        }
        let (top, left) = ((new_height - crop_height) / 2, (new_width - crop_width) / 2);
        let mut out = Vec::with_capacity(crop_height * crop_width * 3);
        for row in resized
            .chunks_exact(new_width * 3)
            .skip(top)
            .take(crop_height)
        {
            for pixel in row[left * 3..(left + crop_width) * 3].chunks_exact(3) {
                for (c, &byte) in pixel.iter().enumerate() {
                    // In the precision of transformers: its numbers are f32 between the two.
                    let mut value = f32::from(byte);
                    if self.do_rescale {
                        value = (f64::from(byte) * self.rescale_factor) as f32;
                    }
                    if self.do_normalize {
                        value = (value - self.image_mean[c] as f32) / self.image_std[c] as f32;
                    }
                    out.push(value);
                }
            }
        }
        let shape = [1, crop_height, crop_width, 3];
        Ok(Tensor::from_slice(&out, shape, Device::Cpu))
    }

    /// The size to which a picture is resized.
    fn resized(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        match self.size {
            PixelSize::HeightWidth { height, width } => [height, width],
            PixelSize::Number(shortest)
            | PixelSize::ShortestEdge {
                shortest_edge: shortest,
            } => {
                let longest = |long: usize, short: usize| {
                    (shortest as f64 * long as f64 / short as f64) as usize
                };
                match width <= height {
                    true => [longest(height, width), shortest],
                    false => [shortest, longest(width, height)],
                }
            }
        }
    }
}
