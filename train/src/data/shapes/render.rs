//! Shapes as polygons, polygons as exact pixel coverage.
//!
//! Only additions, multiplications and divisions, so that a picture has the same bytes on every machine.

use super::{Place, Shape};

/// A point in shares of the bounding square, centre at the origin, y downwards.
type Point = (f64, f64);

/// Corners of the polygon that stands for a circle: within 0.0002 of the diameter of it, far below one grey level.
const ROUND: usize = 128;

/// `N` points on the circle of diameter 1, clockwise from the top, by repeated rotation through 2π/N.
const fn circle<const N: usize>(cos: f64, sin: f64) -> [Point; N] {
    let mut points = [(0.0, -0.5); N];
    let mut i = 1;
    while i < N {
        let (x, y) = points[i - 1];
        points[i] = (x * cos - y * sin, x * sin + y * cos);
        i += 1;
    }
    points
}

/// Scales every second point (or all, for `step` 1) from index `from` on.
const fn scaled<const N: usize>(
    mut points: [Point; N],
    from: usize,
    step: usize,
    by: f64,
) -> [Point; N] {
    let mut i = from;
    while i < N {
        points[i] = (points[i].0 * by, points[i].1 * by);
        i += step;
    }
    points
}

const fn reversed<const N: usize>(points: [Point; N]) -> [Point; N] {
    let mut out = points;
    let mut i = 0;
    while i < N {
        out[i] = points[N - 1 - i];
        i += 1;
    }
    out
}

// cos and sin of 2π/128 and of 2π/10.
static CIRCLE: [Point; ROUND] = circle(0.998_795_456_205_172_4, 0.049_067_674_327_418_01);
/// The hole of the ring has half its diameter; it runs the other way round, so that its area is subtracted.
static HOLE: [Point; ROUND] = reversed(scaled(
    circle(0.998_795_456_205_172_4, 0.049_067_674_327_418_01),
    0,
    1,
    0.5,
));
static SQUARE: [Point; 4] = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)];
static TRIANGLE: [Point; 3] = [(0.0, -0.5), (0.5, 0.5), (-0.5, 0.5)];
/// A pentagram: the inner corners lie at (3 − √5)/2 of the outer radius, where the lines through the points cross.
static STAR: [Point; 10] = scaled(
    circle(0.809_016_994_374_947_5, 0.587_785_252_292_473_1),
    1,
    2,
    0.381_966_011_250_105_1,
);
/// Half the width of an arm of the cross.
const ARM: f64 = 1.0 / 6.0;
static CROSS: [Point; 12] = [
    (-ARM, -0.5),
    (ARM, -0.5),
    (ARM, -ARM),
    (0.5, -ARM),
    (0.5, ARM),
    (ARM, ARM),
    (ARM, 0.5),
    (-ARM, 0.5),
    (-ARM, ARM),
    (-0.5, ARM),
    (-0.5, -ARM),
    (-ARM, -ARM),
];

impl Shape {
    /// Closed outlines, outer ones clockwise and holes counter-clockwise.
    pub fn outlines(self) -> &'static [&'static [Point]] {
        match self {
            Shape::Circle => const { &[&CIRCLE] },
            Shape::Square => const { &[&SQUARE] },
            Shape::Triangle => const { &[&TRIANGLE] },
            Shape::Star => const { &[&STAR] },
            Shape::Cross => const { &[&CROSS] },
            Shape::Ring => const { &[&CIRCLE, &HOLE] },
        }
    }

    /// Area and centroid (area, x, y) in shares of the bounding square, by the shoelace formula.
    pub fn moments(self) -> (f64, f64, f64) {
        let (mut area, mut x, mut y) = (0.0, 0.0, 0.0);
        for outline in self.outlines() {
            for (i, &(x0, y0)) in outline.iter().enumerate() {
                let (x1, y1) = outline[(i + 1) % outline.len()];
                let cross = x0 * y1 - x1 * y0;
                area += cross / 2.0;
                x += (x0 + x1) * cross / 6.0;
                y += (y0 + y1) * cross / 6.0;
            }
        }
        (area, x / area, y / area)
    }
}

/// How much of each pixel of a window a shape covers: exact areas, by summing signed trapezoids along the outline.
#[derive(Default)]
pub struct Coverage {
    /// `[height, width + 2]`: what each pixel adds to the running sum along its row.
    steps: Vec<f64>,
}

impl Coverage {
    /// Calls `put(pixel, share)` for every pixel (row-major) of a window of `width × height` pixels.
    ///
    /// `x`, `y` and `extent` are in pixels of the window. Parts of the shape outside are cut off; pixels at the cut may
    /// be off by a part of one pixel's coverage.
    pub fn fill(
        &mut self,
        shape: Shape,
        (x, y, extent): (f64, f64, f64),
        (width, height): (usize, usize),
        mut put: impl FnMut(usize, f32),
    ) {
        let stride = width + 2;
        self.steps.clear();
        self.steps.resize(stride * height, 0.0);
        for outline in shape.outlines() {
            let corner = |i: usize| {
                let (px, py) = outline[i % outline.len()];
                (x + px * extent, y + py * extent)
            };
            for i in 0..outline.len() {
                self.edge(corner(i), corner(i + 1), (width, height));
            }
        }
        for (row, steps) in self.steps.chunks_exact(stride).enumerate() {
            let mut sum = 0.0;
            for (column, step) in steps[..width].iter().enumerate() {
                sum += step;
                put(row * width + column, sum.clamp(0.0, 1.0) as f32);
            }
        }
    }

    /// Adds what the area right of one edge covers: positive for upward edges, negative for downward ones.
    fn edge(&mut self, a: Point, b: Point, (width, height): (usize, usize)) {
        if a.1 == b.1 {
            return;
        }
        let (sign, top, bottom) = if a.1 < b.1 { (-1.0, a, b) } else { (1.0, b, a) };
        let slope = (bottom.0 - top.0) / (bottom.1 - top.1);
        let (start, end) = (top.1.max(0.0), bottom.1.min(height as f64));
        let mut row = start as usize;
        while row < height && (row as f64) < end {
            let (y0, y1) = (start.max(row as f64), end.min(row as f64 + 1.0));
            let at = |y: f64| (top.0 + (y - top.1) * slope).clamp(0.0, width as f64);
            let (x0, x1) = (at(y0), at(y1));
            let (left, right) = (x0.min(x1), x0.max(x1));
            let rise = sign * (y1 - y0);
            let steps = &mut self.steps[row * (width + 2)..][..width + 2];
            let mut column = left as usize;
            loop {
                let (l, r) = (left.max(column as f64), right.min(column as f64 + 1.0));
                let share = if right > left {
                    rise * (r - l).max(0.0) / (right - left)
                } else {
                    rise
                };
                // Mean distance of this piece from the pixel's left side: so much of the pixel lies left of the edge.
                let inside = ((l + r) / 2.0 - column as f64).clamp(0.0, 1.0);
                steps[column] += share * (1.0 - inside);
                steps[column + 1] += share * inside;
                column += 1;
                if column as f64 >= right {
                    break;
                }
            }
            row += 1;
        }
    }
}

/// A square picture being drawn.
pub struct Canvas {
    size: usize,
    pixels: Vec<u8>,
    coverage: Coverage,
}

impl Canvas {
    pub fn new(size: usize, background: [u8; 3]) -> Self {
        Canvas {
            size,
            pixels: background.repeat(size * size),
            coverage: Coverage::default(),
        }
    }

    /// Blends `color` over what is there by exact coverage, in the picture's own (sRGB) values.
    pub fn draw(&mut self, shape: Shape, place: Place, color: [u8; 3]) {
        let side = self.size as f64;
        let half = place.extent / 2.0;
        let from = |centre: f64| ((centre - half) * side).floor().clamp(0.0, side) as usize;
        let to = |centre: f64| ((centre + half) * side).ceil().clamp(0.0, side) as usize;
        let (x0, y0) = (from(place.x), from(place.y));
        let (width, height) = (to(place.x) - x0, to(place.y) - y0);
        let local = (
            place.x * side - x0 as f64,
            place.y * side - y0 as f64,
            place.extent * side,
        );
        let (size, pixels) = (self.size, &mut self.pixels);
        self.coverage
            .fill(shape, local, (width, height), |i, share| {
                if share == 0.0 {
                    return;
                }
                let at = ((y0 + i / width) * size + x0 + i % width) * 3;
                for (pixel, color) in pixels[at..at + 3].iter_mut().zip(color) {
                    let old = f32::from(*pixel);
                    *pixel = (old + (f32::from(color) - old) * share + 0.5) as u8;
                }
            });
    }

    /// RGB, `[size, size, 3]`.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Coverage of a window by counting which of 64 × 64 points per pixel lie inside (even–odd rule).
    fn supersampled(shape: Shape, place: (f64, f64, f64), size: usize) -> Vec<f64> {
        const N: usize = 64;
        let inside = |px: f64, py: f64| {
            let (px, py) = ((px - place.0) / place.2, (py - place.1) / place.2);
            let mut odd = false;
            for outline in shape.outlines() {
                for (i, &(x0, y0)) in outline.iter().enumerate() {
                    let (x1, y1) = outline[(i + 1) % outline.len()];
                    if (y0 > py) != (y1 > py) && px < x0 + (py - y0) / (y1 - y0) * (x1 - x0) {
                        odd = !odd;
                    }
                }
            }
            odd
        };
        (0..size * size)
            .map(|i| {
                let at = |base: usize, k: usize| base as f64 + (k as f64 + 0.5) / N as f64;
                let hits = (0..N * N)
                    .filter(|k| inside(at(i % size, k % N), at(i / size, k / N)))
                    .count();
                hits as f64 / (N * N) as f64
            })
            .collect()
    }

    #[test]
    fn coverage_is_exact() {
        let mut coverage = Coverage::default();
        for &shape in Shape::ALL {
            let place = (5.3, 4.9, 7.7);
            let want = supersampled(shape, place, 10);
            let mut worst = 0.0f64;
            let mut total = 0.0;
            coverage.fill(shape, place, (10, 10), |i, share| {
                worst = worst.max((f64::from(share) - want[i]).abs());
                total += f64::from(share);
            });
            // 64 × 64 points resolve an edge to about 1/64 of a pixel.
            assert!(worst < 0.02, "{shape}: {worst}");
            let area = shape.moments().0 * place.2 * place.2;
            assert!(
                (total - area).abs() < 1e-5 * area,
                "{shape}: {total} {area}"
            );
        }
    }

    #[test]
    fn parts_outside_the_window_are_cut() {
        let mut coverage = Coverage::default();
        for &shape in Shape::ALL {
            for (x, y) in [
                (0.0, 0.0),
                (10.0, 5.0),
                (5.0, 10.0),
                (-30.0, 5.0),
                (5.0, 40.0),
            ] {
                let want = supersampled(shape, (x, y, 12.0), 10);
                coverage.fill(shape, (x, y, 12.0), (10, 10), |i, share| {
                    let border = [0, 9].contains(&(i % 10)) || [0, 9].contains(&(i / 10));
                    let off = (f64::from(share) - want[i]).abs();
                    assert!(off < 0.02 || border, "{shape} at {x},{y}: {off} in {i}");
                });
            }
        }
    }

    #[test]
    fn the_hole_of_a_ring_and_the_apex_of_a_triangle() {
        let draw = |shape| {
            let mut canvas = Canvas::new(64, [255; 3]);
            let place = Place {
                x: 0.5,
                y: 0.5,
                extent: 0.5,
            };
            canvas.draw(shape, place, [220, 40, 40]);
            canvas.into_pixels()
        };
        let red = |pixels: &[u8], x: usize, y: usize| pixels[(y * 64 + x) * 3 + 1] == 40;
        let ring = draw(Shape::Ring);
        assert!(!red(&ring, 32, 32) && red(&ring, 32, 20));
        let triangle = draw(Shape::Triangle);
        assert!(red(&triangle, 32, 20) && !red(&triangle, 22, 20) && red(&triangle, 20, 46));
    }
}
