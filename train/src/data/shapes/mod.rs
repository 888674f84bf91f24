//! Captioned scenes of coloured shapes, whose captions a program can check in the picture.
//!
//! One or two objects on a plain background; every attribute that a caption names is decided by [`Scene`], every other
//! degree of freedom (exact place and extent) by [`Layout`]. Six pairs of colour and shape never occur in training, so
//! that composition can be measured: see [`HELD_OUT`].

mod caption;
mod layout;
pub mod prompts;
pub mod render;
pub mod shards;

pub use caption::PHRASINGS;
pub use layout::{Layout, Place};
pub use prompts::{Split, prompts};

use super::random::{Draws, Stream};

/// An enum whose variants each have one word, with the word ↔ variant functions that captions and files share.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($variant),+ }

        impl $name {
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// As it stands in captions and metadata.
            pub const fn word(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }

            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|v| v.word() == word)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words!(Background {
    White = "white",
    Black = "black",
    Gray = "gray",
});
words!(Color {
    Red = "red",
    Green = "green",
    Blue = "blue",
    Yellow = "yellow",
    Purple = "purple",
    Orange = "orange",
});
words!(Shape {
    Circle = "circle",
    Square = "square",
    Triangle = "triangle",
    Star = "star",
    Cross = "cross",
    Ring = "ring",
});
words!(Size {
    Small = "small",
    Large = "large",
});
words!(
    /// Where the first object of a scene stands, seen from the second.
    Relation {
        LeftOf = "to the left of",
        RightOf = "to the right of",
        Above = "above",
        Below = "below",
    }
);

impl Background {
    pub const fn rgb(self) -> [u8; 3] {
        match self {
            Background::White => [0xFF, 0xFF, 0xFF],
            Background::Black => [0x00, 0x00, 0x00],
            Background::Gray => [0x80, 0x80, 0x80],
        }
    }
}

impl Color {
    pub const fn rgb(self) -> [u8; 3] {
        match self {
            Color::Red => [0xDC, 0x28, 0x28],
            Color::Green => [0x28, 0xA0, 0x3C],
            Color::Blue => [0x32, 0x50, 0xDC],
            Color::Yellow => [0xF0, 0xD2, 0x28],
            Color::Purple => [0x8C, 0x3C, 0xB4],
            Color::Orange => [0xF5, 0x8C, 0x28],
        }
    }
}

impl Size {
    /// Side of the bounding square, as a share of the picture's side; a drawn extent lies within ± [`Size::TOLERANCE`].
    pub const fn extent(self) -> f64 {
        match self {
            Size::Small => 0.28,
            Size::Large => 0.45,
        }
    }

    pub const TOLERANCE: f64 = 0.05;
}

impl Relation {
    pub const fn is_horizontal(self) -> bool {
        matches!(self, Relation::LeftOf | Relation::RightOf)
    }

    /// Whether the first object has the smaller coordinate.
    pub const fn first_comes_first(self) -> bool {
        matches!(self, Relation::LeftOf | Relation::Above)
    }

    /// The relation that offsets (first − second, y downwards) show: the axis of the larger offset decides.
    pub fn of_offset(dx: f64, dy: f64) -> Relation {
        match (dx.abs() > dy.abs(), dx < 0.0, dy < 0.0) {
            (true, true, _) => Relation::LeftOf,
            (true, false, _) => Relation::RightOf,
            (false, _, true) => Relation::Above,
            (false, _, false) => Relation::Below,
        }
    }
}

/// Pairs that training pictures never show, in scenes of one object or two.
pub const HELD_OUT: [(Color, Shape); 6] = [
    (Color::Red, Shape::Star),
    (Color::Green, Shape::Circle),
    (Color::Blue, Shape::Cross),
    (Color::Yellow, Shape::Ring),
    (Color::Purple, Shape::Square),
    (Color::Orange, Shape::Triangle),
];

/// What a caption says of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    pub size: Size,
    pub color: Color,
    pub shape: Shape,
}

impl Object {
    pub fn is_held_out(&self) -> bool {
        HELD_OUT.contains(&(self.color, self.shape))
    }

    /// The 60 objects that training may show (`held_out` false) or the 12 that it may not.
    pub fn all(held_out: bool) -> impl Iterator<Item = Object> + Clone {
        Size::ALL.iter().flat_map(move |&size| {
            Color::ALL.iter().flat_map(move |&color| {
                Shape::ALL
                    .iter()
                    .map(move |&shape| Object { size, color, shape })
                    .filter(move |object| object.is_held_out() == held_out)
            })
        })
    }
}

/// What a caption says of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scene {
    pub background: Background,
    pub first: Object,
    /// `first` stands in this relation to a second object.
    pub second: Option<(Relation, Object)>,
}

impl Scene {
    pub fn objects(&self) -> impl Iterator<Item = Object> + use<> {
        [Some(self.first), self.second.map(|(_, object)| object)]
            .into_iter()
            .flatten()
    }

    pub fn is_held_out(&self) -> bool {
        self.objects().any(|object| object.is_held_out())
    }

    /// The training scene number `index`: one object or two with equal odds, attributes uniform over what is not held
    /// out. Two objects of one scene differ in colour or shape, so that a caption can tell them apart.
    pub fn sample(seed: u64, index: u64) -> Scene {
        let mut draws = Draws::new(seed, Stream::Scene, index);
        let mut object = |not: Option<Object>| {
            let differs = |o: &Object| not.is_none_or(|n| (n.color, n.shape) != (o.color, o.shape));
            let count = Object::all(false).filter(differs).count();
            let chosen = draws.below(count);
            Object::all(false)
                .filter(differs)
                .nth(chosen)
                .unwrap_or_else(|| unreachable!("index {chosen} of {count} objects"))
        };
        let first = object(None);
        let second = object(Some(first));
        let background = draws.pick(Background::ALL);
        let relation = draws.pick(Relation::ALL);
        Scene {
            background,
            first,
            second: (draws.below(2) == 1).then_some((relation, second)),
        }
    }
}

/// A scene with everything that its caption leaves open: enough to draw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub scene: Scene,
    pub layout: Layout,
    /// Which of the [`PHRASINGS`] its caption uses.
    pub phrasing: usize,
}

impl Picture {
    /// Training picture `index` of the data set `seed`: a pure function.
    pub fn sample(seed: u64, index: u64) -> Picture {
        Picture::of(Scene::sample(seed, index), seed, index)
    }

    /// `scene` laid out and phrased as number `index` of the data set `seed`.
    pub fn of(scene: Scene, seed: u64, index: u64) -> Picture {
        let mut draws = Draws::new(seed, Stream::Place, index);
        let phrasing = draws.below(PHRASINGS);
        Picture {
            scene,
            layout: Layout::draw(&scene, &mut draws),
            phrasing,
        }
    }

    pub fn caption(&self) -> String {
        self.scene.caption(self.phrasing)
    }

    /// RGB pixels, `[size, size, 3]`.
    pub fn render(&self, size: usize) -> Vec<u8> {
        let mut canvas = render::Canvas::new(size, self.scene.background.rgb());
        for (object, place) in self.scene.objects().zip(self.layout.places()) {
            canvas.draw(object.shape, *place, object.color.rgb());
        }
        canvas.into_pixels()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_are_a_pure_function_and_never_held_out() {
        let (mut two, mut words) = (0, std::collections::HashMap::new());
        for index in 0..20_000 {
            let picture = Picture::sample(3, index);
            assert_eq!(picture, Picture::sample(3, index));
            assert!(!picture.scene.is_held_out(), "{}", picture.caption());
            two += usize::from(picture.scene.second.is_some());
            for object in picture.scene.objects() {
                *words.entry(object).or_insert(0u32) += 1;
            }
        }
        // 20,000 coin flips: 10,000 ± 71; five deviations.
        assert!(two.abs_diff(10_000) < 355, "{two} scenes of two objects");
        // 60 objects share 30,000 places: 500 ± 22 each.
        assert_eq!(words.len(), 60);
        assert!(words.values().all(|&n| n.abs_diff(500) < 115), "{words:?}");
        assert_ne!(Scene::sample(3, 1), Scene::sample(4, 1));
    }

    #[test]
    fn no_object_has_the_color_of_a_background() {
        for background in Background::ALL {
            for color in Color::ALL {
                let distance: u32 = (0..3)
                    .map(|i| u32::from(background.rgb()[i].abs_diff(color.rgb()[i])).pow(2))
                    .sum();
                assert!(distance > 80 * 80, "{color} on {background}");
            }
        }
    }
}
