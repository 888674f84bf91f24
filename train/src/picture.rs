//! Pictures on their way out: from tensors to PNG files that carry how they were made, grids, and captions below them.

use std::path::Path;

use image::ImageEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use tensor::Tensor;

use crate::{Error, Result, files, png_text};

/// 8-bit RGB, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

impl From<models::pipeline::Picture> for Picture {
    fn from(made: models::pipeline::Picture) -> Picture {
        Picture {
            width: made.width,
            height: made.height,
            rgb: made.rgb,
        }
    }
}

/// The page that pictures are laid out on, and the ink of captions.
const PAPER: [u8; 3] = [246, 246, 244];
const INK: [u8; 3] = [40, 40, 40];
/// Pixels between the cells of a grid.
const MARGIN: usize = 6;

impl Picture {
    pub fn filled(width: usize, height: usize, color: [u8; 3]) -> Picture {
        let rgb = color.repeat(width * height);
        Picture { width, height, rgb }
    }

    /// The pictures of a batch.
    ///
    /// # Shapes
    /// x [n, h, w, 3] in −1 to 1; values outside are clipped
    pub fn from_tensor(x: &Tensor) -> Result<Vec<Picture>> {
        let pictures = models::pipeline::Picture::from_tensor(x)?;
        Ok(pictures.into_iter().map(Picture::from).collect())
    }

    /// Every pixel as a square of `factor` pixels.
    pub fn enlarged(&self, factor: usize) -> Picture {
        let mut out = Picture::filled(self.width * factor, self.height * factor, PAPER);
        for y in 0..out.height {
            for x in 0..out.width {
                out.set(x, y, self.get(x / factor, y / factor));
            }
        }
        out
    }

    /// Enlarged by the whole factor that brings it nearest to, and not beyond, `side`.
    fn fitted(&self, side: usize) -> Picture {
        self.enlarged((side / self.width.max(self.height)).max(1))
    }

    fn get(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }

    fn set(&mut self, x: usize, y: usize, color: [u8; 3]) {
        let at = (y * self.width + x) * 3;
        self.rgb[at..at + 3].copy_from_slice(&color);
    }

    /// Copies `other` to (x, y); what does not fit is cut.
    fn paste(&mut self, other: &Picture, x: usize, y: usize) {
        for row in 0..other.height.min(self.height.saturating_sub(y)) {
            for column in 0..other.width.min(self.width.saturating_sub(x)) {
                self.set(x + column, y + row, other.get(column, row));
            }
        }
    }

    /// Draws one line of text with its upper left corner at (x, y).
    fn write(&mut self, text: &str, x: usize, y: usize) {
        for (i, character) in text.chars().enumerate() {
            for (row, bits) in glyph(character).into_iter().enumerate() {
                for column in 0..GLYPH_WIDTH {
                    let (x, y) = (x + i * (GLYPH_WIDTH + 1) + column, y + row);
                    if bits >> (GLYPH_WIDTH - 1 - column) & 1 == 1
                        && x < self.width
                        && y < self.height
                    {
                        self.set(x, y, INK);
                    }
                }
            }
        }
    }

    /// Pictures in rows of `columns`, each enlarged to about `side` pixels, with its caption (if there are any) below.
    pub fn grid(pictures: &[Picture], captions: &[String], columns: usize, side: usize) -> Picture {
        let columns = columns.clamp(1, pictures.len().max(1));
        let per_line = (side / (GLYPH_WIDTH + 1)).max(1);
        let captions: Vec<Vec<String>> = captions.iter().map(|c| wrapped(c, per_line)).collect();
        let lines = captions.iter().map(Vec::len).max().unwrap_or(0);
        let text_height = if lines > 0 {
            lines * LINE_HEIGHT + 3
        } else {
            0
        };
        let (cell_width, cell_height) = (side + MARGIN, side + text_height + MARGIN);
        let mut out = Picture::filled(
            columns * cell_width + MARGIN,
            pictures.len().div_ceil(columns) * cell_height + MARGIN,
            PAPER,
        );
        for (i, picture) in pictures.iter().enumerate() {
            let x = MARGIN + i % columns * cell_width;
            let y = MARGIN + i / columns * cell_height;
            out.paste(&picture.fitted(side), x, y);
            for (line, text) in captions.get(i).into_iter().flatten().enumerate() {
                out.write(text, x, y + side + 3 + line * LINE_HEIGHT);
            }
        }
        out
    }

    /// PNG bytes, a function of the pixels and the texts alone.
    pub fn png(&self, texts: &[(&str, &str)]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, FilterType::Adaptive)
            .write_image(
                &self.rgb,
                self.width as u32,
                self.height as u32,
                image::ExtendedColorType::Rgb8,
            )
            .map_err(|e| Error::failure(format!("cannot encode a PNG: {e}")))?;
        png_text::insert(&mut bytes, texts);
        Ok(bytes)
    }

    /// Writes a PNG in one step that a crash cannot tear.
    pub fn save(&self, path: &Path, texts: &[(&str, &str)]) -> Result<()> {
        files::create_dir(files::parent(path))?;
        files::replace(path, &self.png(texts)?)
    }
}

const GLYPH_WIDTH: usize = 3;
const LINE_HEIGHT: usize = 7;

/// Five rows of three bits: letters, digits and the signs that captions use; anything else is a box.
fn glyph(character: char) -> [u8; 5] {
    let rows: u32 = match character.to_ascii_lowercase() {
        ' ' => 0o00000,
        'a' => 0o25755,
        'b' => 0o65656,
        'c' => 0o34443,
        'd' => 0o65556,
        'e' => 0o74647,
        'f' => 0o74644,
        'g' => 0o34553,
        'h' => 0o55755,
        'i' => 0o72227,
        'j' => 0o11152,
        'k' => 0o55655,
        'l' => 0o44447,
        'm' => 0o57755,
        'n' => 0o65555,
        'o' => 0o25552,
        'p' => 0o65644,
        'q' => 0o25573,
        'r' => 0o65655,
        's' => 0o34216,
        't' => 0o72222,
        'u' => 0o55557,
        'v' => 0o55552,
        'w' => 0o55775,
        'x' => 0o55255,
        'y' => 0o55222,
        'z' => 0o71247,
        '0' => 0o75557,
        '1' => 0o26227,
        '2' => 0o61247,
        '3' => 0o61216,
        '4' => 0o55711,
        '5' => 0o74616,
        '6' => 0o34757,
        '7' => 0o71222,
        '8' => 0o75757,
        '9' => 0o75716,
        '.' => 0o00002,
        ',' => 0o00024,
        '-' => 0o00700,
        ':' => 0o02020,
        '%' => 0o51245,
        '/' => 0o11244,
        '(' => 0o24442,
        ')' => 0o42224,
        '\'' => 0o22000,
        _ => 0o77777,
    };
    [12, 9, 6, 3, 0].map(|shift| (rows >> shift & 0o7) as u8)
}

/// Lines of at most `width` characters, broken at spaces where there are any.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        for piece in letters.chunks(width) {
            let piece: String = piece.iter().collect();
            match lines.last_mut() {
                Some(line) if line.chars().count() + 1 + piece.chars().count() <= width => {
                    line.push(' ');
                    line.push_str(&piece);
                }
                _ => lines.push(piece),
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::{DType, Device};

    #[test]
    fn tensors_become_pixels() {
        let x = Tensor::from_f64(
            &[-1.0, 0.0, 1.0, -3.0, 0.5, 9.0],
            [1, 1, 2, 3],
            DType::F32,
            Device::Cpu,
        );
        let pictures = Picture::from_tensor(&x).unwrap();
        assert_eq!(pictures[0].rgb, [0, 128, 255, 0, 191, 255]);
        assert!(Picture::from_tensor(&x.reshape([6]).unwrap()).is_err());
    }

    #[test]
    fn a_png_reads_back_and_carries_its_texts() {
        let mut picture = Picture::filled(5, 4, [1, 2, 3]);
        picture.write("a", 0, 0);
        let png = picture
            .png(&[("parameters", "a star\nSteps: 3"), ("title", "größe 星")])
            .unwrap();
        let back = image::load_from_memory(&png).unwrap().into_rgb8();
        assert_eq!(back.as_raw(), &picture.rgb);
        let find = |needle: &[u8]| png.windows(needle.len()).any(|w| w == needle);
        assert!(find(b"tEXtparameters\0a star\nSteps: 3"));
        assert!(find("iTXttitle\0\0\0\0\0größe 星".as_bytes()));
    }

    #[test]
    fn grids_hold_every_picture_and_caption() {
        let pictures = vec![Picture::filled(16, 16, [9, 9, 9]); 5];
        let captions = vec!["a large red circle on a white background".to_owned(); 5];
        let grid = Picture::grid(&pictures, &captions, 3, 64);
        assert_eq!(grid.width, 3 * 70 + 6);
        assert_eq!(grid.get(MARGIN + 63, MARGIN + 63), [9, 9, 9]);
        assert!(grid.rgb.chunks(3).any(|p| p == INK));
        assert_eq!(Picture::grid(&pictures, &[], 5, 16).height, 16 + 2 * MARGIN);
    }

    #[test]
    fn captions_wrap_at_spaces() {
        assert_eq!(
            wrapped("a large red circle", 8),
            ["a large", "red", "circle"]
        );
        assert_eq!(wrapped("incomprehensible", 8), ["incompre", "hensible"]);
    }
}
