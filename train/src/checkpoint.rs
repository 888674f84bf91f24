//! Checkpoints that survive a kill at any moment.
//!
//! A checkpoint is a directory `step-00001200/` with the component directories as other software opens them, their
//! averaged weights under `ema/`, the optimiser's moments in `optimizer.safetensors`, and `state.json`: step, seed and
//! position in the data, which is all that randomness is a function of. It is filled under another name, every file is
//! forced to disk, `manifest.json` with their sizes and SHA-256 is written last, then the directory takes its name.
//! Only then are older ones removed. What carries the name and agrees with its manifest is complete.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result, files};

const MANIFEST: &str = "manifest.json";
const PREFIX: &str = "step-";
const UNFINISHED: &str = ".unfinished-";

/// What a checkpoint holds, as its last file says.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    step: u64,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    sha256: String,
}

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    keep: usize,
}

/// A checkpoint whose every file agrees with its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub step: u64,
    pub dir: PathBuf,
}

impl Checkpoint {
    /// The checkpoint in `dir`, checked against its manifest.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let name = dir.file_name().and_then(|n| n.to_str());
        let step = name.and_then(|n| n.strip_prefix(PREFIX)?.parse().ok());
        let reason = match step {
            Some(step) => match verify(dir, step) {
                Ok(()) => {
                    let dir = dir.to_path_buf();
                    return Ok(Checkpoint { step, dir });
                }
                Err(reason) => reason,
            },
            None => format!("its name is not {PREFIX} and a number"),
        };
        Err(Error::usage(format!(
            "{} is no complete checkpoint ({reason}); give one of a run's checkpoints/, or --resume latest",
            dir.display()
        )))
    }
}

impl Store {
    /// The checkpoints under `dir`, of which `keep` are kept.
    pub fn new(dir: impl Into<PathBuf>, keep: usize) -> Store {
        Store {
            dir: dir.into(),
            keep: keep.max(1),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a checkpoint: `fill` puts the files into the directory that it is given.
    ///
    /// # Errors
    /// If anything cannot be written; earlier checkpoints are then as they were.
    pub fn save(&self, step: u64, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Checkpoint> {
        files::create_dir(&self.dir)?;
        let unfinished = self.dir.join(format!("{UNFINISHED}{step:08}"));
        remove(&unfinished)?;
        let written = files::create_dir(&unfinished)
            .and_then(|()| fill(&unfinished))
            .and_then(|()| seal(&unfinished, step));
        if let Err(error) = written {
            // Gives a full disk its room back. That this fails too changes nothing for the reader of `error`.
            let _ = fs::remove_dir_all(&unfinished);
            return Err(error);
        }
        let dir = self.dir.join(format!("{PREFIX}{step:08}"));
        // Only a run that went back to an earlier step meets a directory of this name.
        remove(&dir)?;
        fs::rename(&unfinished, &dir).map_err(Error::io("rename", &unfinished))?;
        files::sync_dir(&self.dir)?;
        self.remove_old(step)?;
        Ok(Checkpoint { step, dir })
    }

    /// The newest complete checkpoint; one sentence through `warn` for each newer one that is not.
    pub fn latest(&self, mut warn: impl FnMut(String)) -> Result<Option<Checkpoint>> {
        for (step, dir) in self.named()?.into_iter().rev() {
            match verify(&dir, step) {
                Ok(()) => return Ok(Some(Checkpoint { step, dir })),
                Err(reason) => warn(format!(
                    "{} is damaged ({reason}); going back to the one before it",
                    dir.display()
                )),
            }
        }
        Ok(None)
    }

    /// Directories that carry a checkpoint's name, oldest first.
    fn named(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
            Err(e) => return Err(Error::io("list", &self.dir)(e)),
        };
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &self.dir))?;
            let name = entry.file_name();
            let step = name.to_str().and_then(|n| n.strip_prefix(PREFIX));
            if let Some(step) = step.and_then(|s| s.parse().ok()) {
                found.push((step, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Removes all but the newest `keep` up to `step`, everything after `step` (a run that went back wrote over it),
    /// and what a kill left unfinished.
    fn remove_old(&self, step: u64) -> Result<()> {
        let mut all = self.named()?;
        for (_, dir) in all.extract_if(.., |(s, _)| *s > step) {
            remove(&dir)?;
        }
        let surplus = all.len().saturating_sub(self.keep);
        for (_, dir) in &all[..surplus] {
            remove(dir)?;
        }
        for entry in fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))? {
            let entry = entry.map_err(Error::io("list", &self.dir))?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Removes a checkpoint if it is there. It loses its manifest first, so that a kill leaves nothing that looks complete.
fn remove(dir: &Path) -> Result<()> {
    match fs::remove_file(dir.join(MANIFEST)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir)(e)),
        _ => files::remove_dir(dir),
    }
}

/// Forces everything in `dir` to disk, then writes its manifest.
fn seal(dir: &Path, step: u64) -> Result<()> {
    files::sync_tree(dir)?;
    let mut manifest = Manifest {
        step,
        files: BTreeMap::new(),
    };
    for relative in files::walk(dir)? {
        let path = dir.join(&relative);
        let entry = File::open(&path)
            .and_then(digest)
            .map_err(Error::io("read", &path))?;
        manifest.files.insert(unix_name(&relative), entry);
    }
    let text = serde_json::to_string_pretty(&manifest)
        .map_err(|e| Error::failure(format!("cannot write the manifest: {e}")))?;
    files::replace(&dir.join(MANIFEST), text.as_bytes())
}

/// Says why a checkpoint is not complete.
fn verify(dir: &Path, step: u64) -> Result<(), String> {
    let text = fs::read(dir.join(MANIFEST)).map_err(|e| format!("{MANIFEST}: {e}"))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|e| format!("{MANIFEST}: {e}"))?;
    if manifest.step != step {
        return Err(format!("{MANIFEST} is of step {}", manifest.step));
    }
    for (name, expected) in &manifest.files {
        let found = File::open(dir.join(name))
            .and_then(digest)
            .map_err(|e| format!("{name}: {e}"))?;
        if found != *expected {
            return Err(format!("{name} is not what was written"));
        }
    }
    Ok(())
}

fn digest(mut file: File) -> std::io::Result<Entry> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        hash.update(&chunk[..read]);
    }
    Ok(Entry {
        bytes,
        sha256: hex(&hash.finalize()),
    })
}

/// One hash over the names and contents of every file under `dir`.
pub fn tree_hash(dir: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for relative in files::walk(dir)? {
        let path = dir.join(&relative);
        let file = File::open(&path).map_err(Error::io("read", &path))?;
        let entry = digest(file).map_err(Error::io("read", &path))?;
        hash.update(format!("{} {}\n", entry.sha256, unix_name(&relative)));
    }
    Ok(hex(&hash.finalize()))
}

fn unix_name(relative: &Path) -> String {
    let parts: Vec<_> = relative.iter().map(|p| p.to_string_lossy()).collect();
    parts.join("/")
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(store: &Store, step: u64) -> Checkpoint {
        store
            .save(step, |dir| {
                files::create_dir(&dir.join("prior"))?;
                files::replace(&dir.join("prior/weights"), &vec![step as u8; 3000])?;
                files::replace(&dir.join("state.json"), b"{}")
            })
            .unwrap()
    }

    fn latest(store: &Store) -> (Option<u64>, Vec<String>) {
        let mut warnings = Vec::new();
        let found = store.latest(|w| warnings.push(w)).unwrap();
        (found.map(|c| c.step), warnings)
    }

    #[test]
    fn the_newest_complete_one_is_taken_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("checkpoints"), 2);
        assert_eq!(latest(&store), (None, vec![]));
        for step in [10, 20, 30] {
            filled(&store, step);
        }
        assert_eq!(latest(&store), (Some(30), vec![]));
        let steps: Vec<u64> = store.named().unwrap().iter().map(|c| c.0).collect();
        assert_eq!(steps, [20, 30]);
    }

    #[test]
    fn any_damage_falls_back_to_the_one_before_with_a_warning() {
        type Damage = fn(&Path);
        let damages: [Damage; 6] = [
            |dir| fs::write(dir.join("prior/weights"), [30; 2999]).unwrap(),
            |dir| {
                let mut bytes = fs::read(dir.join("prior/weights")).unwrap();
                bytes[1234] ^= 1;
                fs::write(dir.join("prior/weights"), bytes).unwrap()
            },
            |dir| fs::remove_file(dir.join("state.json")).unwrap(),
            |dir| fs::remove_file(dir.join(MANIFEST)).unwrap(),
            |dir| fs::write(dir.join(MANIFEST), "{\"step\": 30, \"fil").unwrap(),
            |dir| {
                let older = dir.with_file_name("step-00000020").join(MANIFEST);
                fs::copy(older, dir.join(MANIFEST)).map(drop).unwrap()
            },
        ];
        for damage in damages {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::new(dir.path(), 2);
            filled(&store, 20);
            damage(&filled(&store, 30).dir);
            let (step, warnings) = latest(&store);
            assert_eq!(step, Some(20));
            assert_eq!(warnings.len(), 1);
            assert!(
                warnings[0].contains("step-00000030 is damaged"),
                "{warnings:?}"
            );
            // Going on from there replaces the damaged one.
            filled(&store, 25);
            assert_eq!(latest(&store), (Some(25), vec![]));
        }
    }

    #[test]
    fn a_failed_write_leaves_the_earlier_ones_and_no_debris() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), 1);
        filled(&store, 1);
        let error = store
            .save(2, |dir| {
                files::replace(&dir.join("half"), b"written")?;
                let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
                Err(Error::io("write", &dir.join("rest"))(full))
            })
            .unwrap_err();
        assert!(error.to_string().contains("make room"), "{error}");
        assert_eq!(latest(&store), (Some(1), vec![]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_kill_left_is_ignored_and_later_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), 2);
        filled(&store, 1);
        let debris = dir.path().join(format!("{UNFINISHED}00000002"));
        fs::create_dir(&debris).unwrap();
        fs::write(debris.join("weights"), "half").unwrap();
        assert_eq!(latest(&store), (Some(1), vec![]));
        filled(&store, 3);
        assert!(!debris.exists());
    }

    #[test]
    fn tree_hashes_differ_in_content_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let hash_of = |name: &str, text: &str| {
            let dir = dir.path().join(format!("{name}-{text}"));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join(name), text).unwrap();
            tree_hash(&dir).unwrap()
        };
        let (a, b, c) = (hash_of("a", "x"), hash_of("a", "y"), hash_of("b", "x"));
        assert!(a != b && a != c && b != c);
    }
}
