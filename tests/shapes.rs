//! The weights that the program carries: they draw what is asked for, from any directory, with nothing else at hand.

mod command;

use std::fs;
use std::path::Path;

use command::{refused, succeeded, unclip};
use serde_json::Value;
use train::data::shapes::{Background, Color, Object, Scene, Shape, Size};
use train::judge;

#[test]
fn a_prompt_is_drawn_from_an_empty_directory() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = "a large yellow star on a black background";
    succeeded(&unclip(dir.path(), &["generate", "-p", prompt]));
    let picture = image::open(dir.path().join("unclip.png"))
        .unwrap()
        .to_rgb8();
    let asked = Scene {
        background: Background::Black,
        first: Object {
            size: Size::Large,
            color: Color::Yellow,
            shape: Shape::Star,
        },
        second: None,
    };
    let read = judge::read(picture.as_raw(), picture.width() as usize);
    assert!(judge::grade(&read, &asked).all, "{read:?}");

    let nothing = ["generate", "-p", "", "-o", "never.png"];
    refused(&unclip(dir.path(), &nothing), 2);
    assert!(!dir.path().join("never.png").exists());
}

/// The committed table is true of the bytes in the program: fewer prompts, each share within three standard errors.
#[test]
fn pictures_are_as_often_right_as_the_table_says() {
    let dir = tempfile::tempdir().unwrap();
    let question = ["eval", "--prompts", "25", "-o", "eval.json"];
    succeeded(&unclip(dir.path(), &question));
    let rows = |path: &Path| -> Vec<Value> {
        let table: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        table["rows"].as_array().unwrap().clone()
    };
    let now = rows(&dir.path().join("eval.json"));
    let told = rows(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/shapes/eval.json"));
    assert_eq!(now.len(), told.len());
    for (now, told) in now.iter().zip(&told) {
        assert_eq!(now["kind"], told["kind"]);
        for share in ["background", "count", "color", "shape", "size", "all"] {
            let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
            let (p, q) = (number(told, share), number(now, share));
            let (n, m) = (number(told, "pictures"), number(now, "pictures"));
            // Agresti and Coull (1998): a share that was measured to be 1 may yet be a little less.
            let likely = (p * n + 2.0) / (n + 4.0);
            let allowed = 3.0 * (likely * (1.0 - likely) * (1.0 / n + 1.0 / m)).sqrt();
            assert!(
                (p - q).abs() <= allowed,
                "{share} of {}: {q}, the table says {p}",
                now["kind"]
            );
        }
    }
}
