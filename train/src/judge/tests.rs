//! What the judge accepts and what it does not, in at least a thousand pictures of each kind.

use std::f64::consts::TAU;
use std::sync::LazyLock;

use rayon::prelude::*;

use super::*;
use crate::data::random::{Draws, Stream};
use crate::data::shapes::render::Canvas;
use crate::data::shapes::{Layout, Picture, Split, prompts};

const SIZE: usize = 64;

fn draws(index: u64) -> Draws {
    Draws::new(2024, Stream::Prompt, index)
}

/// Picture `index` of a mixture of seen and held-out scenes of one and two objects.
fn picture(index: u64) -> Picture {
    static SCENES: LazyLock<[Vec<Scene>; 4]> = LazyLock::new(|| {
        [
            (Split::Seen, 1),
            (Split::HeldOut, 1),
            (Split::Seen, 2),
            (Split::HeldOut, 2),
        ]
        .map(|(split, objects)| prompts(split, objects, 1000, 4))
    });
    let scenes = &SCENES[index as usize % 4];
    Picture::of(scenes[index as usize / 4 % scenes.len()], 77, index)
}

/// Share of `count` altered pictures whose every attribute is read rightly.
fn share_right(
    count: u64,
    size: usize,
    alter: impl Fn(Vec<u8>, &mut Draws) -> Vec<u8> + Sync,
) -> f64 {
    let right = (0..count).into_par_iter().filter(|&i| {
        let picture = picture(i);
        let pixels = alter(picture.render(size), &mut draws(i));
        grade(&read(&pixels, size), &picture.scene).all
    });
    right.count() as f64 / count as f64
}

/// Share of 1200 pictures that the judge takes for a scene.
fn share_accepted(make: impl Fn(u64, &mut Draws) -> Vec<u8> + Sync) -> f64 {
    let accepted = (0..1200u64)
        .into_par_iter()
        .filter(|&i| read(&make(i, &mut draws(i)), SIZE).is_ok());
    accepted.count() as f64 / 1200.0
}

/// Adds Gaussian noise: twelve uniform numbers have variance one.
fn noisy(mut pixels: Vec<u8>, sigma: f64, draws: &mut Draws) -> Vec<u8> {
    for value in &mut pixels {
        let normal = (0..12).map(|_| draws.between(0.0, 1.0)).sum::<f64>() - 6.0;
        *value = (f64::from(*value) + sigma * normal)
            .round()
            .clamp(0.0, 255.0) as u8;
    }
    pixels
}

/// Gaussian blur of `sigma` pixels, the border repeated.
fn blurred(pixels: &[u8], size: usize, sigma: f64) -> Vec<u8> {
    let reach = (3.0 * sigma).ceil() as isize;
    let weight = |i: isize| (-0.5 * (i as f64 / sigma).powi(2)).exp();
    let total: f64 = (-reach..=reach).map(weight).sum();
    let weights: Vec<(isize, f64)> = (-reach..=reach).map(|i| (i, weight(i) / total)).collect();
    let last = size as isize - 1;
    let pass = |input: &[f64], (dx, dy): (isize, isize)| -> Vec<f64> {
        (0..size * size * 3)
            .map(|i| {
                let (c, x, y) = (i % 3, (i / 3 % size) as isize, (i / 3 / size) as isize);
                let at = |k: isize| {
                    let (x, y) = ((x + k * dx).clamp(0, last), (y + k * dy).clamp(0, last));
                    input[(y as usize * size + x as usize) * 3 + c]
                };
                weights.iter().map(|&(k, weight)| weight * at(k)).sum()
            })
            .collect()
    };
    let input: Vec<f64> = pixels.iter().map(|&p| f64::from(p)).collect();
    let output = pass(&pass(&input, (1, 0)), (0, 1));
    output.iter().map(|v| v.round() as u8).collect()
}

/// Half of the pixels, at random, take the value of one of their neighbours.
fn jagged(pixels: &[u8], draws: &mut Draws) -> Vec<u8> {
    let mut out = pixels.to_vec();
    for (i, pixel) in out.chunks_exact_mut(3).enumerate() {
        if draws.below(2) == 0 {
            let mut near = |v: usize| (v + draws.below(3)).saturating_sub(1).min(SIZE - 1);
            let from = (near(i / SIZE) * SIZE + near(i % SIZE)) * 3;
            pixel.copy_from_slice(&pixels[from..][..3]);
        }
    }
    out
}

fn one_object(draws: &mut Draws) -> (Scene, Place) {
    let scene = Scene {
        background: draws.pick(Background::ALL),
        first: Object {
            size: draws.pick(Size::ALL),
            color: draws.pick(Color::ALL),
            shape: draws.pick(Shape::ALL),
        },
        second: None,
    };
    let place = Layout::draw(&scene, draws).places()[0];
    (scene, place)
}

fn paint(scene: &Scene, shape: Shape, place: Place) -> Vec<u8> {
    let mut canvas = Canvas::new(SIZE, scene.background.rgb());
    canvas.draw(shape, place, scene.first.color.rgb());
    canvas.into_pixels()
}

/// Background mixed with the object's colour, by a share for each point (in shares of the side).
fn shaded(scene: &Scene, share: impl Fn(f64, f64) -> f64) -> Vec<u8> {
    let (ground, paint) = (scene.background.rgb(), scene.first.color.rgb());
    (0..SIZE * SIZE)
        .flat_map(|i| {
            // Four by four points for each pixel.
            let at = |v: usize, k: usize| (v as f64 + (k as f64 + 0.5) / 4.0) / SIZE as f64;
            let points = (0..16).map(|k| share(at(i % SIZE, k % 4), at(i / SIZE, k / 4)));
            let mean = points.sum::<f64>() / 16.0;
            [0, 1, 2].map(|c| {
                let (ground, paint) = (f64::from(ground[c]), f64::from(paint[c]));
                (ground + (paint - ground) * mean).round() as u8
            })
        })
        .collect()
}

#[test]
fn clean_pictures_are_read() {
    let right = share_right(2000, SIZE, |pixels, _| pixels);
    assert!(right >= 0.995, "{right}");
    for size in [32, 48, 96, 128] {
        let right = share_right(200, size, |pixels, _| pixels);
        assert!(right >= 0.995, "{size}: {right}");
    }
}

#[test]
fn places_and_extents_are_read_to_a_tenth_of_a_pixel() {
    for i in 0..200 {
        let picture = picture(i);
        let reading = read(&picture.render(SIZE), SIZE).unwrap();
        for (object, place) in picture.scene.objects().zip(picture.layout.places()) {
            let found = reading.objects.iter().find(|(o, p)| {
                let off = [p.x - place.x, p.y - place.y, p.extent - place.extent];
                *o == object && off.iter().all(|d| d.abs() < 0.1 / SIZE as f64)
            });
            assert!(found.is_some(), "{i}: {place:?} {reading:?}");
        }
    }
}

#[test]
fn blurred_pictures_are_read() {
    let right = share_right(1000, SIZE, |pixels, _| blurred(&pixels, SIZE, 1.0));
    assert!(right >= 0.97, "{right}");
    let right = share_right(1000, SIZE, |pixels, draws| {
        blurred(&pixels, SIZE, draws.between(0.3, 1.2))
    });
    assert!(right >= 0.97, "{right}");
}

#[test]
fn noisy_tinted_and_jagged_pictures_are_read() {
    let right = share_right(1000, SIZE, |pixels, draws| noisy(pixels, 8.0, draws));
    assert!(right >= 0.97, "noise: {right}");
    let right = share_right(1000, SIZE, |pixels, draws| {
        let tint = [0, 1, 2].map(|_| draws.between(-12.0, 12.0));
        let tinted = pixels.iter().enumerate();
        tinted
            .map(|(i, &v)| (f64::from(v) + tint[i % 3]).round().clamp(0.0, 255.0) as u8)
            .collect()
    });
    assert!(right >= 0.97, "tint: {right}");
    let right = share_right(1000, SIZE, |pixels, draws| jagged(&pixels, draws));
    assert!(right >= 0.95, "jagged: {right}");
}

#[test]
fn noise_is_rejected() {
    let accepted = share_accepted(|_, draws| {
        (0..SIZE * SIZE * 3)
            .map(|_| draws.below(256) as u8)
            .collect()
    });
    assert!(accepted <= 0.01, "uniform: {accepted}");
    // Background and object colour at random, in squares of one to eight pixels.
    let accepted = share_accepted(|i, draws| {
        let (scene, _) = one_object(draws);
        let step = 1 << (i % 4);
        let cells = SIZE / step;
        let ink: Vec<bool> = (0..cells * cells).map(|_| draws.below(4) == 0).collect();
        let color = |i: usize| match ink[i / SIZE / step * cells + i % SIZE / step] {
            true => scene.first.color.rgb(),
            false => scene.background.rgb(),
        };
        (0..SIZE * SIZE).flat_map(color).collect()
    });
    assert!(accepted <= 0.01, "two colours: {accepted}");
}

#[test]
fn blobs_are_rejected() {
    let accepted = share_accepted(|_, draws| {
        let (scene, place) = one_object(draws);
        let sigma = place.extent * draws.between(0.3, 0.6);
        shaded(&scene, |x, y| {
            let squared = (x - place.x).powi(2) + (y - place.y).powi(2);
            (-0.5 * squared / (sigma * sigma)).exp()
        })
    });
    assert!(accepted <= 0.01, "soft: {accepted}");
    // Outlines r(θ) with two to five lobes.
    let accepted = share_accepted(|_, draws| {
        let (scene, place) = one_object(draws);
        let waves: Vec<[f64; 3]> = (2..6)
            .map(|k| {
                [
                    f64::from(k),
                    draws.between(0.05, 0.2),
                    draws.between(0.0, TAU),
                ]
            })
            .collect();
        shaded(&scene, |x, y| {
            let (dx, dy) = (x - place.x, y - place.y);
            let angle = dy.atan2(dx);
            let lobes = waves
                .iter()
                .map(|[k, height, phase]| height * (k * angle + phase).cos());
            let radius = 0.42 * place.extent * (1.0 + lobes.sum::<f64>());
            f64::from(u8::from(dx.hypot(dy) < radius))
        })
    });
    assert!(accepted <= 0.01, "lobed: {accepted}");
    let accepted = share_accepted(|i, draws| {
        let (scene, place) = one_object(draws);
        let stretch = draws.between(1.3, 1.6).sqrt();
        shaded(&scene, |x, y| {
            let (dx, dy) = (x - place.x, y - place.y);
            let (dx, dy) = if i % 2 == 0 { (dx, dy) } else { (dy, dx) };
            let radius = (dx * stretch).hypot(dy / stretch);
            f64::from(u8::from(radius < place.extent / 2.0))
        })
    });
    assert!(accepted <= 0.01, "ellipses: {accepted}");
}

#[test]
fn blends_of_two_shapes_are_rejected() {
    let accepted = share_accepted(|i, draws| {
        let (scene, place) = one_object(draws);
        let first = Shape::ALL[i as usize % 6];
        let second = Shape::ALL[(i as usize + 1 + i as usize / 6 % 5) % 6];
        let weight = draws.between(0.4, 0.6);
        let (a, b) = (paint(&scene, first, place), paint(&scene, second, place));
        let mix = |(a, b): (&u8, &u8)| f64::from(*a) * weight + f64::from(*b) * (1.0 - weight);
        a.iter().zip(&b).map(mix).map(|v| v.round() as u8).collect()
    });
    assert!(accepted <= 0.01, "{accepted}");
}

/// A shape of which the left, right, upper or lower half is missing.
fn half(i: u64, draws: &mut Draws) -> (Scene, Vec<u8>) {
    let (mut scene, place) = one_object(draws);
    scene.first.shape = Shape::ALL[i as usize % 6];
    let mut pixels = paint(&scene, scene.first.shape, place);
    let side = SIZE as f64;
    for (at, pixel) in pixels.chunks_exact_mut(3).enumerate() {
        let x = (at % SIZE) as f64 + 0.5 - place.x * side;
        let y = (at / SIZE) as f64 + 0.5 - place.y * side;
        if [x < 0.0, x > 0.0, y < 0.0, y > 0.0][i as usize / 6 % 4] {
            pixel.copy_from_slice(&scene.background.rgb());
        }
    }
    (scene, pixels)
}

#[test]
fn half_shapes_are_rejected_but_their_colors_are_read() {
    let accepted = share_accepted(|i, draws| half(i, draws).1);
    assert!(accepted <= 0.01, "{accepted}");
    let readable = (0..240).filter(|&i| {
        let (scene, pixels) = half(i, &mut draws(i));
        let grade = grade(&read(&pixels, SIZE), &scene);
        assert!(!grade.all);
        grade.background && grade.color
    });
    assert!(readable.count() >= 230);
}

#[test]
fn shapes_cut_by_the_edge_and_crowds_are_rejected() {
    let scene = Scene::parse("a large red circle on a white background").unwrap();
    let place = |x: f64, y: f64| Place { x, y, extent: 0.28 };
    let cut = read(&paint(&scene, Shape::Circle, place(0.05, 0.5)), SIZE);
    assert!(cut.is_err(), "{cut:?}");
    let mut canvas = Canvas::new(SIZE, [0; 3]);
    for (x, y) in [(0.2, 0.2), (0.8, 0.2), (0.5, 0.8)] {
        canvas.draw(Shape::Star, place(x, y), Color::Green.rgb());
    }
    let crowd = read(&canvas.into_pixels(), SIZE).unwrap_err();
    assert_eq!(crowd.reason, Reason::Count(3));
    let plain = read(&[128; SIZE * SIZE * 3], SIZE).unwrap_err();
    assert_eq!(plain.reason, Reason::Count(0));
    assert_eq!(plain.partial.background, Some(Background::Gray));
    assert_eq!(
        read(&[60; SIZE * SIZE * 3], SIZE).unwrap_err().reason,
        Reason::Background
    );
}

/// The smallest pictures that [`read`] takes, and of any content.
#[test]
fn no_picture_is_too_small_or_too_wild() {
    for size in [1, 2, 3, 5, 9, 17] {
        for i in 0..50 {
            let mut draws = draws(i);
            let levels = [2, 3, 256][i as usize % 3];
            let pixels =
                (0..size * size * 3).map(|_| (draws.below(levels) * 255 / (levels - 1)) as u8);
            let _ = read(&pixels.collect::<Vec<u8>>(), size);
        }
    }
}

#[test]
fn grades_name_exactly_what_is_wrong() {
    let shown = "a small blue star to the left of a large green square on a black background";
    let scene = Scene::parse(shown).unwrap();
    let outcome = read(&Picture::of(scene, 0, 0).render(SIZE), SIZE);
    let right = Grade {
        background: true,
        count: true,
        color: true,
        shape: true,
        size: true,
        relation: true,
        all: true,
    };
    let wrong = |asked: &str| grade(&outcome, &Scene::parse(asked).unwrap());
    assert_eq!(wrong(shown), right);
    let not = |change: fn(&mut Grade)| {
        let mut grade = Grade {
            all: false,
            ..right
        };
        change(&mut grade);
        grade
    };
    for (from, to, want) in [
        ("black", "white", not(|g| g.background = false)),
        ("blue", "red", not(|g| g.color = false)),
        ("square", "ring", not(|g| g.shape = false)),
        ("small", "large", not(|g| g.size = false)),
        ("to the left of", "above", not(|g| g.relation = false)),
    ] {
        assert_eq!(wrong(&shown.replace(from, to)), want, "{to}");
    }
    // The same scene said the other way round.
    assert_eq!(
        wrong("a large green square to the right of a small blue star on a black background"),
        right
    );
    let largest = wrong("a large green square on a black background");
    assert_eq!(largest, not(|g| g.count = false));
    // One object where two were asked for: whatever concerns the missing one is wrong.
    let single = Scene::parse("a small blue star on a black background").unwrap();
    let single = read(&Picture::of(single, 0, 0).render(SIZE), SIZE);
    let missing = Grade {
        background: true,
        ..Grade::default()
    };
    assert_eq!(grade(&single, &scene), missing);
}
