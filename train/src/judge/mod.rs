//! Does a picture show what its caption says? A program's answer, for the pictures of [`crate::data::shapes`].
//!
//! [`read`] finds the background, the objects and their attributes in the pixels, draws what it found, and rejects the
//! picture if the drawing does not explain it; [`grade`] compares the outcome with the scene that was asked for. Nothing
//! in training, selection or sampling may call this module: it is for evaluation alone.
//!
//! How a picture is read:
//! 1. The background is the median colour along the border.
//! 2. A pixel belongs to an object if it lies more than 0.6 of the way from the background to the nearest object colour;
//!    connected pixels of sufficient area are an object, whose colour is the median of its inner pixels.
//! 3. For each shape, centre and extent are fitted by least squares to the share of object colour in each pixel. Picture
//!    and drawing are smoothed alike, so that noise averages out, and the drawing may be up to 1.2 pixels (σ) softer, so
//!    that a soft picture is read as the sharp one that it means.
//! 4. The best shape must leave less than [`MAX_UNEXPLAINED`] of its own energy unexplained, must not lie on the way to
//!    another shape by more than [`MAX_BLEND`], must have an extent within [`SIZE_TOLERANCE`] of small or large, and must
//!    lie inside the picture.
//! 5. The pixels that the whole drawing does not explain, anywhere in the picture, must be fewer than an eighth of the
//!    smallest object's.

mod fit;
mod segment;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::data::shapes::{Background, Color, Object, Place, Relation, Scene, Shape, Size};
use fit::Fit;
use segment::{Segmentation, least_object_area};

/// Largest Σ(picture − drawing)² / Σ drawing², both as shares of object colour, of an object that is explained.
///
/// Measured in the tests' pictures: below 0.01 when clean, blurred by σ ≤ 1.2 pixels or noisy by σ = 8, 0.024 with edges
/// jagged at random (98 of 100); above 0.045 for blobs, 0.11 for halves of shapes.
pub const MAX_UNEXPLAINED: f64 = 0.04;

/// Largest share of the way from the best shape to any other, of an object that is a shape.
///
/// A small blend of circle and square differs from a soft square in so few pixels that the sum of squares cannot tell
/// them apart from jagged edges; the projection on the one direction that matters can. Measured: below 0.17 for all
/// pictures that show a shape, above 0.24 for blends, but for a few of star and cross from 0.14 on.
pub const MAX_BLEND: f64 = 0.2;

/// How far an extent may be from that of its size, as a share of it.
pub const SIZE_TOLERANCE: f64 = 0.12;

/// How far an object may seem to reach beyond the picture's edge, as a share of the side: the error of the fit.
const OVERHANG: f64 = 0.015;

/// A pixel farther than this from the drawing (Euclidean distance in RGB, both smoothed to σ = 1.2 pixels) is unexplained.
const STRANGE: f32 = 40.0;

/// Unexplained pixels allowed, as a share of the smallest object's area.
const MAX_STRANGE: f64 = 0.125;

/// What a picture shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub background: Background,
    /// Every object with its place, largest area first.
    pub objects: Vec<(Object, Place)>,
}

/// Why a picture is not a scene.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    pub reason: Reason,
    /// What could be read all the same.
    pub partial: Partial,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// The border has none of the three colours.
    Background,
    /// Not one or two objects.
    Count(usize),
    /// An object has none of the six colours.
    Color,
    /// No shape explains an object: the best leaves this share unexplained.
    Shape(f64),
    /// An object lies this far on the way from the best shape to another.
    Blend(f64),
    /// An extent, in shares of the side, that is neither small nor large.
    Size(f64),
    /// An object reaches beyond the edge.
    Cut,
    /// The drawing of what was read leaves this share of the picture's pixels unexplained.
    Rest(f64),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Background => f.write_str("the background is not white, black or gray"),
            Reason::Count(n) => write!(f, "it shows {n} objects, not one or two"),
            Reason::Color => f.write_str("an object has none of the six colours"),
            Reason::Shape(left) => write!(
                f,
                "no shape explains an object: the best leaves {:.1} %",
                left * 100.0
            ),
            Reason::Blend(share) => write!(
                f,
                "an object is a blend of two shapes, {:.0} % of the second",
                share * 100.0
            ),
            Reason::Size(extent) => {
                write!(f, "an extent of {extent:.2} is neither small nor large")
            }
            Reason::Cut => f.write_str("an object reaches beyond the edge"),
            Reason::Rest(share) => {
                write!(f, "{:.1} % of the pixels are unexplained", share * 100.0)
            }
        }
    }
}

/// Attributes that can be read one by one, also where the whole is rejected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Partial {
    pub background: Option<Background>,
    /// Regions of the size of an object.
    pub count: usize,
    /// At most two of them, largest area first.
    pub objects: Vec<PartialObject>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PartialObject {
    /// The nearest object colour, if it is near.
    pub color: Option<Color>,
    /// The shape that explains the object, if one does.
    pub shape: Option<Shape>,
    /// By the fitted extent if a shape explains the object, else by the longer side of the pixels it covers.
    pub size: Option<Size>,
    /// Centre, in shares of the side.
    pub x: f64,
    pub y: f64,
}

impl From<&Reading> for Partial {
    fn from(reading: &Reading) -> Partial {
        let object = |(object, place): &(Object, Place)| PartialObject {
            color: Some(object.color),
            shape: Some(object.shape),
            size: Some(object.size),
            x: place.x,
            y: place.y,
        };
        Partial {
            background: Some(reading.background),
            count: reading.objects.len(),
            objects: reading.objects.iter().map(object).collect(),
        }
    }
}

/// Reads an RGB picture `[size, size, 3]`; made for 64², works from 32² to 128².
///
/// # Errors
/// If the picture is not one that a scene explains; the rejection says why, and what could be read.
///
/// # Panics
/// If `pixels` is not `size · size · 3` long or `size` is 0.
pub fn read(pixels: &[u8], size: usize) -> Result<Reading, Rejection> {
    assert!(
        size > 0 && pixels.len() == size * size * 3,
        "{} bytes are not an RGB picture of {size} × {size}",
        pixels.len()
    );
    let segmentation = Segmentation::of(pixels, size);
    // More than two objects are rejected anyway, and fitting shapes to noise would take long.
    let fits: Vec<Fit> = (0..segmentation.components.len().min(2))
        .map(|i| fit::best(&segmentation, i))
        .collect();
    let objects = fits
        .iter()
        .zip(&segmentation.components)
        .map(|(fit, component)| partial_object(fit, component, size))
        .collect();
    let partial = Partial {
        background: segmentation.background,
        count: segmentation.components.len(),
        objects,
    };
    match explain(&segmentation, &fits, &partial) {
        Ok(reading) => Ok(reading),
        Err(reason) => Err(Rejection { reason, partial }),
    }
}

fn size_of(extent: f64) -> Option<Size> {
    let near = |size: &Size| (extent / size.extent() - 1.0).abs() <= SIZE_TOLERANCE;
    Size::ALL.iter().copied().find(near)
}

fn partial_object(fit: &Fit, component: &segment::Component, size: usize) -> PartialObject {
    let side = size as f64;
    let explained = fit.unexplained <= MAX_UNEXPLAINED && fit.blend <= MAX_BLEND;
    let ((x, y), extent) = if explained {
        ((fit.x, fit.y), fit.extent)
    } else {
        (component.middle(), component.longer_side() as f64)
    };
    PartialObject {
        color: component.color,
        shape: explained.then_some(fit.shape),
        size: size_of(extent / side),
        x: x / side,
        y: y / side,
    }
}

/// The reading, if everything in the picture is part of it.
fn explain(
    segmentation: &Segmentation,
    fits: &[Fit],
    partial: &Partial,
) -> Result<Reading, Reason> {
    let background = partial.background.ok_or(Reason::Background)?;
    if !(1..=2).contains(&partial.count) {
        return Err(Reason::Count(partial.count));
    }
    let side = segmentation.size as f64;
    let mut objects = Vec::new();
    for (fit, object) in fits.iter().zip(&partial.objects) {
        let color = object.color.ok_or(Reason::Color)?;
        let shape = object.shape.ok_or(if fit.unexplained > MAX_UNEXPLAINED {
            Reason::Shape(fit.unexplained)
        } else {
            Reason::Blend(fit.blend)
        })?;
        let place = Place {
            x: object.x,
            y: object.y,
            extent: fit.extent / side,
        };
        let size = object.size.ok_or(Reason::Size(place.extent))?;
        let reach = (place.x - 0.5).abs().max((place.y - 0.5).abs()) + place.extent / 2.0;
        if reach > 0.5 + OVERHANG {
            return Err(Reason::Cut);
        }
        objects.push((Object { size, color, shape }, place));
    }
    let strange = strange_pixels(segmentation, fits) as f64 / (side * side);
    if strange > MAX_STRANGE * least_object_area() {
        return Err(Reason::Rest(strange));
    }
    Ok(Reading {
        background,
        objects,
    })
}

/// Pixels that differ from the drawing of everything that was read.
fn strange_pixels(segmentation: &Segmentation, fits: &[Fit]) -> usize {
    let size = segmentation.size;
    let mut drawing = vec![segmentation.ground; size * size];
    for (fit, component) in fits.iter().zip(&segmentation.components) {
        for (at, share) in fit.shares(size) {
            for (value, paint) in drawing[at].iter_mut().zip(component.paint) {
                *value += (paint - *value) * share;
            }
        }
    }
    let mut distance = vec![0.0; size * size];
    for (channel, smoothed) in segmentation.smoothed.iter().enumerate() {
        let off = smoothed.iter().zip(&drawing);
        let mut off: Vec<f32> = off.map(|(value, color)| value - color[channel]).collect();
        segment::smooth(&mut off, size);
        segment::smooth(&mut off, size);
        for (sum, off) in distance.iter_mut().zip(off) {
            *sum += off * off;
        }
    }
    distance.iter().filter(|&&d| d > STRANGE * STRANGE).count()
}

/// Which attributes of a picture are those of a scene.
///
/// Found objects are matched to the scene's so that most attributes agree; where the picture shows more objects, the
/// largest are taken, where it shows fewer, what is missing is wrong. `background`, `color`, `size` and `relation` are
/// judged on what [`Partial`] holds, also if the picture was rejected; `shape` asks that a shape explains the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grade {
    pub background: bool,
    /// The picture shows as many objects as the scene.
    pub count: bool,
    /// Every object of the scene, each for its attribute.
    pub color: bool,
    pub shape: bool,
    pub size: bool,
    /// The centres show the relation that was asked for; true for one object.
    pub relation: bool,
    /// Everything is right and the picture was not rejected.
    pub all: bool,
}

/// Compares what was read with what was asked for.
pub fn grade(outcome: &Result<Reading, Rejection>, scene: &Scene) -> Grade {
    let partial = match outcome {
        Ok(reading) => Partial::from(reading),
        Err(rejection) => rejection.partial.clone(),
    };
    let wanted: Vec<Object> = scene.objects().collect();
    let found = |i: usize| partial.objects.get(i);
    let matched = |order: [usize; 2]| {
        let every = |right: fn(&PartialObject, &Object) -> bool| {
            wanted
                .iter()
                .zip(order)
                .all(|(want, i)| found(i).is_some_and(|object| right(object, want)))
        };
        let mut grade = Grade {
            background: partial.background == Some(scene.background),
            count: partial.count == wanted.len(),
            color: every(|object, want| object.color == Some(want.color)),
            shape: every(|object, want| object.shape == Some(want.shape)),
            size: every(|object, want| object.size == Some(want.size)),
            relation: match (scene.second, found(order[0]), found(order[1])) {
                (None, ..) => true,
                (Some((relation, _)), Some(a), Some(b)) => {
                    Relation::of_offset(a.x - b.x, a.y - b.y) == relation
                }
                _ => false,
            },
            all: outcome.is_ok(),
        };
        let right = [
            grade.background,
            grade.count,
            grade.color,
            grade.shape,
            grade.size,
            grade.relation,
        ];
        grade.all &= right.iter().all(|&r| r);
        (right.iter().filter(|&&r| r).count(), grade)
    };
    let (first, swapped) = (matched([0, 1]), matched([1, 0]));
    if scene.second.is_some() && swapped.0 > first.0 {
        swapped.1
    } else {
        first.1
    }
}
