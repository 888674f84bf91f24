//! The shape, place and extent that explain a region best, by least squares.

use super::segment::{Component, Segmentation, smooth};
use crate::data::shapes::Shape;
use crate::data::shapes::render::Coverage;

/// Pixels around a region that belong to its window: as far as the softest drawing reaches.
const MARGIN: usize = 4;
/// Passes of smoothing tried on a drawing: one is what the picture got; four are a picture soft by σ = 1.2 pixels.
const SOFTEST: usize = 4;
/// Passes with which the shapes are compared first: between sharp and softest.
const FIRST: usize = 2;
/// Steps of Gauss and Newton's method for each candidate.
const STEPS: usize = 4;

/// A shape drawn where it explains a region best; lengths in pixels.
pub struct Fit {
    pub shape: Shape,
    pub x: f64,
    pub y: f64,
    pub extent: f64,
    /// Σ(region − drawing)² / Σ drawing².
    pub unexplained: f64,
    /// How much of the way to another shape the region lies: near 0 for a shape, near 0.5 for a blend of two.
    pub blend: f64,
    window: [usize; 4],
    /// The drawing: share of object colour for each pixel of the window.
    drawing: Vec<f32>,
}

impl Fit {
    /// The pixels of the picture that the drawing touches, with its share in each.
    pub fn shares(&self, size: usize) -> impl Iterator<Item = (usize, f32)> {
        let [left, top, right, _] = self.window;
        let width = right - left;
        self.drawing
            .iter()
            .enumerate()
            .map(move |(i, &share)| ((top + i / width) * size + left + i % width, share))
    }
}

/// Fits every shape to component `index` and returns the best.
pub fn best(segmentation: &Segmentation, index: usize) -> Fit {
    let mut problem = Problem::new(segmentation, index);
    let mut candidates: Vec<Candidate> = Shape::ALL
        .iter()
        .map(|&shape| problem.refine(problem.start(shape), FIRST))
        .collect();
    candidates.sort_by(|a, b| a.unexplained.total_cmp(&b.unexplained));
    // Softness moves the losses of different shapes by different amounts: the runner-up, if close, chooses its own too.
    let mut best = candidates[0];
    let close = 2.0 * best.unexplained + 0.01;
    for candidate in candidates[..2].iter().filter(|c| c.unexplained <= close) {
        for passes in (1..=SOFTEST).filter(|&p| p != FIRST) {
            let refined = problem.refine(*candidate, passes);
            if refined.unexplained < best.unexplained {
                best = refined;
            }
        }
    }
    let drawing = problem.draw(best);
    let blend = candidates
        .iter()
        .filter(|other| other.shape != best.shape)
        .map(|other| {
            let passes = best.passes;
            problem.blend(&drawing, Candidate { passes, ..*other })
        })
        .fold(0.0, f64::max);
    let [left, top, ..] = problem.window;
    Fit {
        shape: best.shape,
        x: best.at[0] + left as f64,
        y: best.at[1] + top as f64,
        extent: best.at[2],
        unexplained: best.unexplained,
        blend,
        window: problem.window,
        drawing,
    }
}

#[derive(Clone, Copy)]
struct Candidate {
    shape: Shape,
    /// x, y and extent in pixels of the window.
    at: [f64; 3],
    passes: usize,
    unexplained: f64,
}

struct Problem {
    window: [usize; 4],
    /// Share of object colour in each pixel of the window.
    region: Vec<f32>,
    /// Whether a pixel counts: those at another object do not.
    counts: Vec<bool>,
    coverage: Coverage,
}

impl Problem {
    fn new(segmentation: &Segmentation, index: usize) -> Problem {
        let size = segmentation.size;
        let component: &Component = &segmentation.components[index];
        let [left, top, right, bottom] = component.bounds;
        let window = [
            left.saturating_sub(MARGIN),
            top.saturating_sub(MARGIN),
            (right + MARGIN).min(size),
            (bottom + MARGIN).min(size),
        ];
        let [left, top, right, bottom] = window;
        let pixels = (top..bottom).flat_map(|y| (left..right).map(move |x| (x, y)));
        let region = pixels
            .clone()
            .map(|(x, y)| segmentation.share(y * size + x, component.paint))
            .collect();
        let foreign = |x: usize, y: usize| matches!(segmentation.owner[y * size + x], Some(owner) if owner as usize != index);
        // Two pixels are as far as smoothing carries a neighbour's colour with any weight.
        let counts = pixels
            .map(|(x, y)| {
                let near = |v: usize| v.saturating_sub(2)..=(v + 2).min(size - 1);
                !near(y).any(|ny| near(x).any(|nx| foreign(nx, ny)))
            })
            .collect();
        Problem {
            window,
            region,
            counts,
            coverage: Coverage::default(),
        }
    }

    fn width(&self) -> usize {
        self.window[2] - self.window[0]
    }

    /// `shape` with the area and centroid of the region.
    fn start(&self, shape: Shape) -> Candidate {
        let (mut area, mut x, mut y) = (0.0, 0.0, 0.0);
        for (i, &share) in self.region.iter().enumerate() {
            if self.counts[i] {
                let share = f64::from(share);
                area += share;
                x += share * ((i % self.width()) as f64 + 0.5);
                y += share * ((i / self.width()) as f64 + 0.5);
            }
        }
        let area = area.max(1.0);
        let (unit_area, unit_x, unit_y) = shape.moments();
        let extent = (area / unit_area).sqrt();
        Candidate {
            shape,
            at: [
                x / area - unit_x * extent,
                y / area - unit_y * extent,
                extent,
            ],
            passes: FIRST,
            unexplained: f64::INFINITY,
        }
    }

    fn draw(&mut self, candidate: Candidate) -> Vec<f32> {
        let (width, len) = (self.width(), self.region.len());
        let mut drawing = vec![0.0; len];
        let [x, y, extent] = candidate.at;
        self.coverage.fill(
            candidate.shape,
            (x, y, extent),
            (width, len / width),
            |i, share| drawing[i] = share,
        );
        for _ in 0..candidate.passes {
            smooth(&mut drawing, width);
        }
        drawing
    }

    /// Gauss–Newton on centre and extent, with derivatives by differences of a quarter pixel.
    fn refine(&mut self, start: Candidate, passes: usize) -> Candidate {
        const STEP: f64 = 0.25;
        let mut best = Candidate {
            passes,
            unexplained: f64::INFINITY,
            ..start
        };
        let mut trial = best;
        for _ in 0..STEPS {
            let drawing = self.draw(trial);
            trial.unexplained = self.unexplained(&drawing);
            let gain = best.unexplained - trial.unexplained;
            if gain <= 0.0 {
                break;
            }
            let converged = gain < 1e-3 * trial.unexplained + 1e-5;
            best = trial;
            if converged {
                break;
            }
            let slopes = [0, 1, 2].map(|i| {
                let mut moved = trial;
                moved.at[i] += STEP;
                self.draw(moved)
            });
            let (mut normal, mut right) = ([[0.0f64; 3]; 3], [0.0f64; 3]);
            for i in (0..drawing.len()).filter(|&i| self.counts[i]) {
                let slope = [0, 1, 2].map(|k| f64::from(slopes[k][i] - drawing[i]) / STEP);
                let left = f64::from(self.region[i] - drawing[i]);
                for row in 0..3 {
                    right[row] += slope[row] * left;
                    for column in 0..3 {
                        normal[row][column] += slope[row] * slope[column];
                    }
                }
            }
            let Some(change) = solve(normal, right) else {
                break;
            };
            for (value, change) in trial.at.iter_mut().zip(change) {
                *value += change.clamp(-2.0, 2.0);
            }
            let widest = self.width().max(self.region.len() / self.width()) as f64;
            trial.at[2] = trial.at[2].clamp(2.0, 2.0 * widest);
        }
        best
    }

    /// The share w for which drawing + w · (other − drawing) is nearest to the region.
    fn blend(&mut self, drawing: &[f32], other: Candidate) -> f64 {
        let other = self.draw(other);
        let (mut along, mut length) = (0.0, 0.0);
        for i in (0..drawing.len()).filter(|&i| self.counts[i]) {
            let way = other[i] - drawing[i];
            along += f64::from((self.region[i] - drawing[i]) * way);
            length += f64::from(way * way);
        }
        along / length.max(1.0)
    }

    fn unexplained(&self, drawing: &[f32]) -> f64 {
        let (mut left, mut energy) = (0.0, 0.0);
        for (i, &share) in drawing.iter().enumerate() {
            if self.counts[i] {
                let off = self.region[i] - share;
                left += f64::from(off * off);
                energy += f64::from(share * share);
            }
        }
        if energy > 0.0 {
            left / energy
        } else {
            f64::INFINITY
        }
    }
}

/// Solves a 3 × 3 system by Cramer's rule; none if it is singular.
fn solve(m: [[f64; 3]; 3], right: [f64; 3]) -> Option<[f64; 3]> {
    let determinant = |m: [[f64; 3]; 3]| {
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
            - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
            + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    };
    let whole = determinant(m);
    if whole.abs() < 1e-9 {
        return None;
    }
    Some([0, 1, 2].map(|k| {
        let mut replaced = m;
        for row in 0..3 {
            replaced[row][k] = right[row];
        }
        determinant(replaced) / whole
    }))
}
