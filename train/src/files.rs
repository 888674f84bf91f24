//! Files that are either whole or not there: written beside their place, forced to disk, then renamed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Creates a directory and its parents.
pub fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io("create", dir))
}

/// Replaces `path` with `bytes` in one step that a crash cannot tear.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = beside(path);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write()
        .inspect_err(|_| {
            // The half-written file is of no use to anybody; the error that counts is the first.
            let _ = fs::remove_file(&temporary);
        })
        .map_err(Error::io("write", path))?;
    fs::rename(&temporary, path).map_err(Error::io("write", path))?;
    sync_dir(parent(path))
}

/// Forces a directory's entries to disk.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(Error::io("flush", dir))
}

/// Forces every file and directory under `dir`, itself included, to disk: what is inside before what holds it.
pub fn sync_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        match path.is_dir() {
            true => sync_tree(&path)?,
            false => File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(Error::io("flush", &path))?,
        }
    }
    sync_dir(dir)
}

/// Every regular file under `dir`, relative to it, sorted.
pub fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let here = dir.join(&relative);
        for entry in fs::read_dir(&here).map_err(Error::io("list", &here))? {
            let entry = entry.map_err(Error::io("list", &here))?;
            let relative = relative.join(entry.file_name());
            let kind = entry.file_type().map_err(Error::io("list", &here))?;
            if kind.is_dir() {
                pending.push(relative);
            } else {
                found.push(relative);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Replaces a small directory by what `fill` writes: forced to disk under another name, then renamed.
///
/// A crash between the two renames leaves neither name; whoever makes the directory makes it again then.
pub fn replace_dir(dir: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = beside(dir);
    remove_dir(&temporary)?;
    create_dir(&temporary)?;
    fill(&temporary)?;
    sync_tree(&temporary)?;
    remove_dir(dir)?;
    fs::rename(&temporary, dir).map_err(Error::io("rename", &temporary))?;
    sync_dir(parent(dir))
}

/// Removes a directory with all that it holds, if it is there.
pub fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// The directory that holds `path`; `.` for a bare name.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".partial");
    path.with_file_name(name)
}
