//! The shapes as shards on disk, in the layout that img2dataset writes.

use std::fs;
use std::path::PathBuf;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use rayon::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Picture;
use crate::{Error, Result, files};

/// Sample keys hold five digits of shard and four of index.
pub const MAX_PER_SHARD: usize = 10_000;
const MAX_SHARDS: usize = 100_000;

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub struct MakeShapes {
    pub out: PathBuf,
    pub seed: u64,
    /// Number of the first picture; pictures `first..first + count` are written.
    pub first: u64,
    pub count: usize,
    /// Side of the pictures in pixels.
    pub size: usize,
    pub per_shard: usize,
}

impl MakeShapes {
    /// 64² pixels, four shards.
    pub fn new(out: impl Into<PathBuf>, count: usize) -> Self {
        MakeShapes {
            out: out.into(),
            seed: 0,
            first: 0,
            count,
            size: 64,
            per_shard: count.div_ceil(4).clamp(1, MAX_PER_SHARD),
        }
    }

    pub fn shards(&self) -> usize {
        self.count.div_ceil(self.per_shard.max(1))
    }
}

/// Writes `00000.tar`, `00000_stats.json`, … into `options.out` and returns the shards' paths.
///
/// The same options give the same bytes. A shard appears under its name only when it is whole, and one that is already
/// there is kept, so that an interrupted call is repeated to go on. `progress` is told how many pictures are done.
///
/// # Errors
/// If the options make no sense, the folder cannot be written, or it holds shards of something else.
pub fn make_shapes(options: &MakeShapes, mut progress: impl FnMut(usize)) -> Result<Vec<PathBuf>> {
    check(options)?;
    files::create_dir(&options.out)?;
    let mut shards = Vec::new();
    for shard in 0..options.shards() {
        let path = options.out.join(format!("{shard:05}.tar"));
        let done = (shard * options.per_shard)..options.count.min((shard + 1) * options.per_shard);
        let stats = stats(options, done.len(), options.first + done.start as u64);
        let stats_path = options.out.join(format!("{shard:05}_stats.json"));
        if path.exists() {
            let found = fs::read(&stats_path).ok();
            if found.as_deref() != Some(stats.as_bytes()) {
                return Err(Error::failure(format!(
                    "{} exists and was made with other options; remove it or choose another folder",
                    path.display()
                )));
            }
        } else {
            // The shard comes last: where it is, its description is too.
            let bytes = shard_bytes(options, shard, done.clone());
            let bytes = bytes.map_err(Error::io("make", &path))?;
            files::replace(&stats_path, stats.as_bytes())?;
            files::replace(&path, &bytes)?;
        }
        progress(done.end);
        shards.push(path);
    }
    Ok(shards)
}

fn check(options: &MakeShapes) -> Result<()> {
    let complaint = if options.count == 0 {
        "count must be at least 1".to_string()
    } else if options.per_shard == 0 || options.per_shard > MAX_PER_SHARD {
        format!("per_shard must be 1 to {MAX_PER_SHARD}")
    } else if options.shards() > MAX_SHARDS {
        format!(
            "{} pictures do not fit {MAX_SHARDS} shards of {}; raise per_shard",
            options.count, options.per_shard
        )
    } else if !(8..=1024).contains(&options.size) {
        format!("size must be 8 to 1024 pixels, not {}", options.size)
    } else {
        return Ok(());
    };
    Err(Error::usage(format!("make-shapes: {complaint}")))
}

/// img2dataset's statistics without its times, and how to make the shard again.
fn stats(options: &MakeShapes, count: usize, first: u64) -> String {
    let stats = json!({
        "count": count,
        "successes": count,
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "status_dict": { "success": count },
        "made_by": { "data": "shapes", "version": 1, "seed": options.seed, "first": first, "size": options.size },
    });
    format!("{stats:#}\n")
}

/// The bytes of one shard.
fn shard_bytes(
    options: &MakeShapes,
    shard: usize,
    range: std::ops::Range<usize>,
) -> std::io::Result<Vec<u8>> {
    let samples: Vec<[(String, Vec<u8>); 3]> = range
        .clone()
        .into_par_iter()
        .map(|i| sample(options, i, format!("{shard:05}{:04}", i - range.start)))
        .collect::<std::io::Result<_>>()?;
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in samples.iter().flatten() {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &bytes[..])?;
    }
    tar.into_inner()
}

fn sample(options: &MakeShapes, i: usize, key: String) -> std::io::Result<[(String, Vec<u8>); 3]> {
    let picture = Picture::sample(options.seed, options.first + i as u64);
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Up)
        .write_image(
            &picture.render(options.size),
            options.size as u32,
            options.size as u32,
            ExtendedColorType::Rgb8,
        )
        .map_err(std::io::Error::other)?;
    let caption = picture.caption();
    let sha256: String = Sha256::digest(&png)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let json = json!({
        "key": key,
        "caption": caption,
        "status": "success",
        "width": options.size,
        "height": options.size,
        "original_width": options.size,
        "original_height": options.size,
        "sha256": sha256,
        "background": picture.scene.background.word(),
        "objects": objects(&picture),
        "relation": picture.scene.second.map(|(relation, _)| relation.word()),
    });
    Ok([
        (format!("{key}.png"), png),
        (format!("{key}.txt"), caption.into_bytes()),
        (format!("{key}.json"), json.to_string().into_bytes()),
    ])
}

fn objects(picture: &Picture) -> Vec<Value> {
    let places = picture.layout.places();
    picture
        .scene
        .objects()
        .zip(places)
        .map(|(object, place)| {
            json!({
                "size": object.size.word(),
                "color": object.color.word(),
                "shape": object.shape.word(),
                "x": place.x,
                "y": place.y,
                "extent": place.extent,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn shards_are_deterministic_and_resumed() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = |out: &Path| MakeShapes {
            per_shard: 20,
            ..MakeShapes::new(out, 50)
        };
        let mut done = Vec::new();
        let shards = make_shapes(&options(a.path()), |n| done.push(n)).unwrap();
        assert_eq!(done, [20, 40, 50]);
        make_shapes(&options(b.path()), |_| {}).unwrap();
        let bytes = |dir: &Path, name: &str| fs::read(dir.join(name)).unwrap();
        for name in ["00000.tar", "00002.tar", "00001_stats.json"] {
            assert_eq!(bytes(a.path(), name), bytes(b.path(), name), "{name}");
        }
        // A shard lost is written again, the others stay; nothing temporary remains.
        fs::remove_file(&shards[1]).unwrap();
        make_shapes(&options(a.path()), |_| {}).unwrap();
        assert_eq!(bytes(a.path(), "00001.tar"), bytes(b.path(), "00001.tar"));
        assert_eq!(fs::read_dir(a.path()).unwrap().count(), 6);
        // Other options do not overwrite.
        let other = MakeShapes {
            seed: 1,
            ..options(a.path())
        };
        let error = make_shapes(&other, |_| {}).unwrap_err().to_string();
        assert!(error.contains("00000.tar exists"), "{error}");
    }

    #[test]
    fn a_sample_describes_its_picture() {
        let options = MakeShapes::new("unused", 1);
        let [(png_name, png), (_, txt), (_, json)] =
            sample(&options, 0, "000030007".into()).unwrap();
        assert_eq!(png_name, "000030007.png");
        let json: Value = serde_json::from_slice(&json).unwrap();
        let picture = Picture::sample(0, 0);
        assert_eq!(json["caption"], picture.caption());
        assert_eq!(txt, picture.caption().into_bytes());
        assert_eq!(
            json["objects"][0]["shape"],
            picture.scene.first.shape.word()
        );
        let decoded = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!(decoded.into_raw(), picture.render(64));
    }

    #[test]
    fn senseless_options_and_unwritable_folders_are_one_sentence() {
        let error = make_shapes(&MakeShapes::new("unused", 0), |_| {}).unwrap_err();
        assert!(error.to_string().contains("count must be at least 1"));
        let file = tempfile::NamedTempFile::new().unwrap();
        let inside = file.path().join("folder");
        let error = make_shapes(&MakeShapes::new(&inside, 5), |_| {}).unwrap_err();
        assert!(error.to_string().starts_with("cannot create"), "{error}");
    }
}
