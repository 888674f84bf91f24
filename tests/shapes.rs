//! The weights that the program carries: they draw what is asked for, from any directory, with nothing else at hand.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn unclip(dir: &Path, arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_unclip"))
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

#[test]
fn a_prompt_is_drawn_from_an_empty_directory() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = "a large yellow star on a black background";
    unclip(dir.path(), &["generate", "-p", prompt]);
    let picture = image::open(dir.path().join("unclip.png"))
        .unwrap()
        .to_rgb8();
    let near = |pixel: &image::Rgb<u8>, colour: [u8; 3]| {
        let differences = pixel.0.iter().zip(colour).map(|(a, b)| a.abs_diff(b));
        differences.max() <= Some(40)
    };
    let share = |colour| {
        let like = picture.pixels().filter(|pixel| near(pixel, colour));
        like.count() as f64 / f64::from(picture.width() * picture.height())
    };
    // A star whose points lie on a circle of 0.45 of the side across covers about 0.06 to 0.1 of the picture.
    let (yellow, black) = (share([240, 210, 40]), share([0, 0, 0]));
    assert!(yellow > 0.03 && yellow < 0.15, "{yellow} is yellow");
    assert!(black > 0.8, "{black} is black");
}

/// The committed table is true of the bytes in the program: fewer prompts, each share within three standard errors.
#[test]
fn pictures_are_as_often_right_as_the_table_says() {
    let dir = tempfile::tempdir().unwrap();
    unclip(dir.path(), &["eval", "--prompts", "25", "-o", "eval.json"]);
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
