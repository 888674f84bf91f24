//! Scene ↔ caption.

use super::{Background, Color, Object, Relation, Scene, Shape, Size};
use crate::data::{Error, Result};

/// Ways to say the same scene.
pub const PHRASINGS: usize = 3;

impl Scene {
    /// The scene in words; `phrasing` counts modulo [`PHRASINGS`].
    pub fn caption(&self, phrasing: usize) -> String {
        let object = |o: &Object| -> String { format!("a {} {} {}", o.size, o.color, o.shape) };
        let things = |relation: fn(Relation) -> &'static str| match &self.second {
            None => object(&self.first),
            Some((r, second)) => {
                format!(
                    "{} {} {}",
                    object(&self.first),
                    relation(*r),
                    object(second)
                )
            }
        };
        let background = self.background;
        match phrasing % PHRASINGS {
            0 => format!("{} on a {background} background", things(Relation::word)),
            1 => format!("on a {background} background, {}", things(Relation::word)),
            _ => format!("{}, {background} background", things(short)),
        }
    }

    /// Reads any caption that [`Scene::caption`] writes; letter case, punctuation, articles and "grey" do not matter.
    ///
    /// # Errors
    /// If the sentence does not name a background and one or two whole objects in these words.
    pub fn parse(caption: &str) -> Result<Scene> {
        let lower = caption.to_lowercase();
        let words: Vec<&str> = lower
            .split(|c: char| !c.is_alphanumeric())
            .filter(|w| !matches!(*w, "" | "a" | "an" | "the" | "on" | "to" | "of" | "with"))
            .map(|w| if w == "grey" { "gray" } else { w })
            .collect();
        let mut rest = &words[..];
        let mut background = take_background(&mut rest);
        let first = take_object(&mut rest);
        let relation = take_one(&mut rest, |word| {
            Relation::ALL.iter().copied().find(|r| core(*r) == word)
        });
        let second = relation.and_then(|r| Some((r, take_object(&mut rest)?)));
        background = background.or_else(|| take_background(&mut rest));
        match (
            background,
            first,
            relation.is_some() == second.is_some(),
            rest,
        ) {
            (Some(background), Some(first), true, []) => Ok(Scene {
                background,
                first,
                second,
            }),
            _ => Err(Error::Invalid(format!(
                "\"{caption}\" does not describe a scene{}; write for example \"{}\"",
                match rest.first() {
                    Some(word) => format!(" (stuck at \"{word}\")"),
                    None => " (it ends too early)".to_string(),
                },
                "a small blue star to the left of a large green square on a black background"
            ))),
        }
    }
}

/// The relation without its connecting words.
fn core(relation: Relation) -> &'static str {
    match relation {
        Relation::LeftOf => "left",
        Relation::RightOf => "right",
        Relation::Above => "above",
        Relation::Below => "below",
    }
}

fn short(relation: Relation) -> &'static str {
    match relation {
        Relation::LeftOf => "left of",
        Relation::RightOf => "right of",
        Relation::Above | Relation::Below => relation.word(),
    }
}

/// Consumes the next word if `read` knows it.
fn take_one<T>(rest: &mut &[&str], read: impl Fn(&str) -> Option<T>) -> Option<T> {
    let (word, after) = rest.split_first()?;
    let value = read(word)?;
    *rest = after;
    Some(value)
}

fn take_background(rest: &mut &[&str]) -> Option<Background> {
    let [word, "background", after @ ..] = *rest else {
        return None;
    };
    let background = Background::from_word(word)?;
    *rest = after;
    Some(background)
}

fn take_object(rest: &mut &[&str]) -> Option<Object> {
    Some(Object {
        size: take_one(rest, Size::from_word)?,
        color: take_one(rest, Color::from_word)?,
        shape: take_one(rest, Shape::from_word)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::prompts::{Split, prompts};
    use super::*;

    #[test]
    fn captions_read_back() {
        for split in [Split::Seen, Split::HeldOut] {
            for objects in [1, 2] {
                for scene in prompts(split, objects, 2000, 1) {
                    for phrasing in 0..PHRASINGS {
                        let caption = scene.caption(phrasing);
                        assert_eq!(Scene::parse(&caption).unwrap(), scene, "{caption}");
                    }
                }
            }
        }
    }

    #[test]
    fn captions_are_those_of_the_documentation() {
        let scene = Scene::parse("A large red circle, on a WHITE background.").unwrap();
        assert_eq!(scene.caption(0), "a large red circle on a white background");
        let two = "a small blue star to the left of a large green square on a black background";
        assert_eq!(Scene::parse(two).unwrap().caption(0), two);
        assert_eq!(
            Scene::parse(two).unwrap().caption(2),
            "a small blue star left of a large green square, black background"
        );
    }

    #[test]
    fn nonsense_is_refused_with_the_word_that_does_not_fit() {
        for (caption, stuck) in [
            ("", "ends too early"),
            ("a large red circle", "ends too early"),
            ("a large red hexagon on a white background", "hexagon"),
            ("a large red circle above on a white background", "white"),
            ("a large red circle on a white background above", "above"),
            ("a cat", "cat"),
        ] {
            let error = Scene::parse(caption).unwrap_err().to_string();
            assert!(error.contains(stuck), "{caption}: {error}");
        }
    }
}
