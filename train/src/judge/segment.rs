//! Which pixels are background, and which belong to which object.

use crate::data::shapes::{Background, Color, Shape, Size};

/// How far (largest difference of a channel) the border's median may be from a background's colour.
const BACKGROUND_TOLERANCE: f32 = 40.0;
/// How far (Euclidean) an object's median may be from a colour; the nearest two colours are 70 apart.
const COLOR_TOLERANCE: f32 = 45.0;
/// A pixel this far of the way from background to object colour belongs to an object. More than half, so that the narrow
/// gap between two objects stays open in a blurred picture.
const FOREGROUND: f32 = 0.6;
/// Connected pixels are an object from this share of the smallest object's area on; less is left to be unexplained.
const LEAST_AREA: f64 = 0.4;

/// A picture taken apart.
pub struct Segmentation {
    pub size: usize,
    /// The border's median colour, and the background that it is.
    pub ground: [f32; 3],
    pub background: Option<Background>,
    /// Object-sized connected regions, largest first.
    pub components: Vec<Component>,
    /// The object that each pixel belongs to: an index into `components`.
    pub owner: Vec<Option<u32>>,
    /// The picture after one pass of [`smooth`], channel by channel.
    pub smoothed: [Vec<f32>; 3],
}

/// A connected region of the colour of an object.
pub struct Component {
    pub pixels: Vec<u32>,
    /// Median colour of its inner pixels.
    pub paint: [f32; 3],
    /// The object colour that this is.
    pub color: Option<Color>,
    /// Bounds (left, top, right, bottom), the last two exclusive.
    pub bounds: [usize; 4],
}

/// Area of the smallest object that a scene holds, in shares of the picture: a small star or ring, 5 % below its size.
pub fn least_object_area() -> f64 {
    let extent = Size::Small.extent() * (1.0 - Size::TOLERANCE);
    let share = |shape: &Shape| shape.moments().0 * extent * extent;
    Shape::ALL.iter().map(share).fold(1.0, f64::min)
}

fn rgb(pixel: &[u8]) -> [f32; 3] {
    [0, 1, 2].map(|i| f32::from(pixel[i]))
}

fn minus(a: [f32; 3], b: [f32; 3]) -> [f32; 3] {
    [0, 1, 2].map(|i| a[i] - b[i])
}

fn dot(a: [f32; 3], b: [f32; 3]) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn median(mut values: Vec<f32>) -> f32 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
}

/// Median of each channel; `pixels` must not be empty.
fn median_color(pixels: &[[f32; 3]]) -> [f32; 3] {
    [0, 1, 2].map(|i| median(pixels.iter().map(|p| p[i]).collect()))
}

impl Segmentation {
    pub fn of(pixels: &[u8], size: usize) -> Segmentation {
        let picture: Vec<[f32; 3]> = pixels.chunks_exact(3).map(rgb).collect();
        let border: Vec<[f32; 3]> = (0..size)
            .flat_map(|i| [i, (size - 1) * size + i, i * size, i * size + size - 1])
            .map(|at| picture[at])
            .collect();
        let ground = median_color(&border);
        let background = Background::ALL.iter().copied().find(|b| {
            let off = minus(rgb(&b.rgb()), ground);
            off.iter().all(|d| d.abs() <= BACKGROUND_TOLERANCE)
        });
        let smoothed = [0, 1, 2].map(|i| {
            let mut plane: Vec<f32> = picture.iter().map(|p| p[i]).collect();
            smooth(&mut plane, size);
            plane
        });
        let inked: Vec<bool> = {
            let ways = Color::ALL.iter().map(|c| minus(rgb(&c.rgb()), ground));
            let ways: Vec<([f32; 3], f32)> = ways.map(|way| (way, dot(way, way))).collect();
            picture
                .iter()
                .map(|pixel| is_ink(minus(*pixel, ground), &ways))
                .collect()
        };
        let least = LEAST_AREA * least_object_area() * (size * size) as f64;
        let mut components: Vec<Component> = connected(&inked, size)
            .into_iter()
            .filter(|region| region.len() as f64 >= least)
            .map(|region| Component::of(region, &picture, &inked, ground, size))
            .collect();
        components.sort_by_key(|c| std::cmp::Reverse(c.pixels.len()));
        let mut owner = vec![None; size * size];
        for (i, component) in components.iter().enumerate() {
            for &at in &component.pixels {
                owner[at as usize] = Some(i as u32);
            }
        }
        Segmentation {
            size,
            ground,
            background,
            components,
            owner,
            smoothed,
        }
    }

    /// How far pixel `at` of the smoothed picture lies on the way from the background to `paint`.
    pub fn share(&self, at: usize, paint: [f32; 3]) -> f32 {
        let way = minus(paint, self.ground);
        let off = minus(self.smoothed_at(at), self.ground);
        dot(off, way) / dot(way, way).max(1.0)
    }

    fn smoothed_at(&self, at: usize) -> [f32; 3] {
        [0, 1, 2].map(|i| self.smoothed[i][at])
    }
}

/// Whether a pixel, as a difference from the background, lies far enough on the way to the colour whose way it is
/// nearest to; `ways` come with their squared lengths.
fn is_ink(off: [f32; 3], ways: &[([f32; 3], f32)]) -> bool {
    let squared = dot(off, off);
    let (mut best, mut nearest) = (0.0, f32::INFINITY);
    for (way, length) in ways {
        let share = dot(off, *way) / length;
        let distance = squared - share * share * length;
        if distance < nearest {
            (best, nearest) = (share, distance);
        }
    }
    best > FOREGROUND
}

/// Regions of set pixels that share sides.
fn connected(set: &[bool], size: usize) -> Vec<Vec<u32>> {
    let mut seen = vec![false; set.len()];
    let mut regions = Vec::new();
    for start in 0..set.len() {
        if seen[start] || !set[start] {
            continue;
        }
        seen[start] = true;
        let mut region = vec![start as u32];
        let mut next = 0;
        while next < region.len() {
            for neighbour in neighbours(region[next] as usize, size) {
                if set[neighbour] && !seen[neighbour] {
                    seen[neighbour] = true;
                    region.push(neighbour as u32);
                }
            }
            next += 1;
        }
        regions.push(region);
    }
    regions
}

/// The up to four pixels that share a side with one.
fn neighbours(at: usize, size: usize) -> impl Iterator<Item = usize> {
    let (x, y) = (at % size, at / size);
    [
        (x > 0).then(|| at - 1),
        (x + 1 < size).then_some(at + 1),
        (y > 0).then(|| at.wrapping_sub(size)),
        (y + 1 < size).then_some(at + size),
    ]
    .into_iter()
    .flatten()
}

impl Component {
    fn of(
        pixels: Vec<u32>,
        picture: &[[f32; 3]],
        inked: &[bool],
        ground: [f32; 3],
        size: usize,
    ) -> Component {
        let mut inner: Vec<[f32; 3]> = pixels
            .iter()
            .map(|&at| at as usize)
            .filter(|&at| neighbours(at, size).filter(|&n| inked[n]).count() == 4)
            .map(|at| picture[at])
            .collect();
        if inner.len() < 8 {
            // A region so thin that it has no inside: its pixels farthest from the background.
            inner = pixels.iter().map(|&at| picture[at as usize]).collect();
            let far = |p: &[f32; 3]| dot(minus(*p, ground), minus(*p, ground));
            inner.sort_by(|a, b| far(b).total_cmp(&far(a)));
            inner.truncate(inner.len().div_ceil(3));
        }
        let paint = median_color(&inner);
        let distance = |c: Color| dot(minus(rgb(&c.rgb()), paint), minus(rgb(&c.rgb()), paint));
        let color = Color::ALL
            .iter()
            .copied()
            .min_by(|a, b| distance(*a).total_cmp(&distance(*b)))
            .filter(|c| distance(*c) <= COLOR_TOLERANCE * COLOR_TOLERANCE);
        let mut bounds = [size, size, 0, 0];
        for &at in &pixels {
            let (x, y) = (at as usize % size, at as usize / size);
            bounds[0] = bounds[0].min(x);
            bounds[1] = bounds[1].min(y);
            bounds[2] = bounds[2].max(x + 1);
            bounds[3] = bounds[3].max(y + 1);
        }
        Component {
            pixels,
            paint,
            color,
            bounds,
        }
    }

    /// Longer side of its bounds, in pixels.
    pub fn longer_side(&self) -> usize {
        let [left, top, right, bottom] = self.bounds;
        (right - left).max(bottom - top)
    }

    /// Middle of its bounds, in pixels.
    pub fn middle(&self) -> (f64, f64) {
        let [left, top, right, bottom] = self.bounds;
        ((left + right) as f64 / 2.0, (top + bottom) as f64 / 2.0)
    }
}

/// One pass of the kernel [1 2 1] / 4 along both axes (σ = 0.71 pixels), the border repeated.
pub fn smooth(plane: &mut [f32], width: usize) {
    for row in plane.chunks_exact_mut(width) {
        let mut before = row[0];
        for x in 0..width {
            let (here, after) = (row[x], row[(x + 1).min(width - 1)]);
            row[x] = (before + 2.0 * here + after) * 0.25;
            before = here;
        }
    }
    let height = plane.len() / width;
    let mut above = plane[..width].to_vec();
    for y in 0..height {
        let (head, tail) = plane.split_at_mut((y + 1) * width);
        let row = &mut head[y * width..];
        for x in 0..width {
            let here = row[x];
            let below = tail.get(x).copied().unwrap_or(here);
            row[x] = (above[x] + 2.0 * here + below) * 0.25;
            above[x] = here;
        }
    }
}
