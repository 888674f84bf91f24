//! The scenes that an evaluation asks for.

use super::{Background, Object, Relation, Scene};
use crate::data::random::{Permutation, Stream};

/// Whether every pair of colour and shape in a scene was seen in training, or at least one was held out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    Seen,
    HeldOut,
}

/// Every scene of a split that holds `objects` (1 or 2) objects, in a fixed order.
///
/// One object: 180 seen, 36 held out. Two: 41,760 seen, 18,720 held out.
pub fn scenes(split: Split, objects: usize) -> Vec<Scene> {
    let any = || Object::all(false).chain(Object::all(true));
    let mut all = Vec::new();
    for &background in Background::ALL {
        for first in any() {
            match objects {
                1 => all.push(Scene {
                    background,
                    first,
                    second: None,
                }),
                2 => {
                    for &relation in Relation::ALL {
                        all.extend(
                            any()
                                .filter(|o| (o.color, o.shape) != (first.color, first.shape))
                                .map(|second| Scene {
                                    background,
                                    first,
                                    second: Some((relation, second)),
                                }),
                        );
                    }
                }
                _ => {}
            }
        }
    }
    all.retain(|scene| scene.is_held_out() == (split == Split::HeldOut));
    all
}

/// `count` scenes of a split in an order that `seed` shuffles; every scene occurs once before any occurs twice.
pub fn prompts(split: Split, objects: usize, count: usize, seed: u64) -> Vec<Scene> {
    let all = scenes(split, objects);
    if all.is_empty() {
        return Vec::new();
    }
    let len = all.len() as u64;
    (0..count as u64)
        .map(|i| {
            let round = Permutation::new(seed, Stream::Prompt, i / len, len);
            all[round.at(i % len) as usize]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn counts_are_as_documented_and_splits_are_disjoint() {
        let mut union = HashSet::new();
        for (split, objects, count) in [
            (Split::Seen, 1, 180),
            (Split::HeldOut, 1, 36),
            (Split::Seen, 2, 41_760),
            (Split::HeldOut, 2, 18_720),
        ] {
            let all = scenes(split, objects);
            assert_eq!(all.len(), count, "{split:?} {objects}");
            assert!(all.iter().all(|s| s.objects().count() == objects));
            union.extend(all);
        }
        assert_eq!(union.len(), 180 + 36 + 41_760 + 18_720);
    }

    #[test]
    fn prompts_repeat_only_after_a_full_round() {
        let asked = prompts(Split::HeldOut, 1, 100, 9);
        assert_eq!(asked, prompts(Split::HeldOut, 1, 100, 9));
        assert_ne!(asked, prompts(Split::HeldOut, 1, 100, 8));
        let round: HashSet<_> = asked[..36].iter().collect();
        assert_eq!(round.len(), 36);
    }
}
