//! Where the objects of a scene stand, and how large exactly they are.

use super::{Scene, Size};
use crate::data::random::Draws;

/// Free space between any object's bounding square and the picture's edge, as a share of the side.
const MARGIN: f64 = 0.01;
/// Free space between the bounding squares of two objects, along the axis of their relation.
const GAP: f64 = 0.03;
/// How far a centre strays from the picture's centre: both ways for one object, across the relation's axis for two.
const STRAY: f64 = 0.1;

/// An object's bounding square in shares of the picture's side; y grows downwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Centre.
    pub x: f64,
    pub y: f64,
    /// Side of the bounding square.
    pub extent: f64,
}

/// One place per object of the scene, in the scene's order.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout(Vec<Place>);

impl Layout {
    pub fn places(&self) -> &[Place] {
        &self.0
    }

    /// Draws places such that every object lies inside the picture.
    ///
    /// Two objects: their bounding squares are at least 0.03 apart along the axis of the relation, where their centres
    /// therefore differ by at least 0.29; across it centres differ by at most 0.2. So the larger offset always lies on
    /// the relation's axis, and no picture shows two relations at once.
    pub fn draw(scene: &Scene, draws: &mut Draws) -> Layout {
        let mut extent = |size: Size| {
            size.extent() * draws.between(1.0 - Size::TOLERANCE, 1.0 + Size::TOLERANCE)
        };
        let first = extent(scene.first.size);
        let second = scene.second.map(|(r, object)| (r, extent(object.size)));
        let mut stray = || draws.between(0.5 - STRAY, 0.5 + STRAY);
        let across = [stray(), stray()];
        let Some((relation, second)) = second else {
            return Layout(vec![Place {
                x: across[0],
                y: across[1],
                extent: first,
            }]);
        };
        // What is left over along the axis is dealt out before, between and after the two.
        let spare = 1.0 - 2.0 * MARGIN - GAP - first - second;
        let (a, b) = (draws.between(0.0, 1.0), draws.between(0.0, 1.0));
        let (before, until) = (spare * a.min(b), spare * a.max(b));
        let near = |extent: f64| MARGIN + before + extent / 2.0;
        let far = |extent: f64, other: f64| MARGIN + other + GAP + until + extent / 2.0;
        let along = if relation.first_comes_first() {
            [near(first), far(second, first)]
        } else {
            [far(first, second), near(second)]
        };
        let place = |i: usize, extent: f64| {
            let (x, y) = if relation.is_horizontal() {
                (along[i], across[i])
            } else {
                (across[i], along[i])
            };
            Place { x, y, extent }
        };
        Layout(vec![place(0, first), place(1, second)])
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Picture, Relation};

    #[test]
    fn objects_lie_inside_apart_and_in_their_relation() {
        for index in 0..20_000 {
            let picture = Picture::sample(11, index);
            let places = picture.layout.places();
            for (object, place) in picture.scene.objects().zip(places) {
                let off = (place.extent / object.size.extent() - 1.0).abs();
                assert!(off <= 0.05);
                for centre in [place.x, place.y] {
                    let half = place.extent / 2.0;
                    assert!(centre - half >= 0.0099 && centre + half <= 0.9901);
                }
            }
            if let (Some((relation, _)), [a, b]) = (picture.scene.second, places) {
                let (dx, dy) = (a.x - b.x, a.y - b.y);
                assert_eq!(Relation::of_offset(dx, dy), relation);
                let apart = dx.abs().max(dy.abs()) - (a.extent + b.extent) / 2.0;
                assert!(apart >= 0.0299);
                assert!(dx.abs().max(dy.abs()) >= 1.4 * dx.abs().min(dy.abs()));
            }
        }
    }
}
