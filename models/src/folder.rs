//! A directory of model files, on disk or built into the program: where they are read from, with a bound on what is read.

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use kernels::map::{MappedFile, map_file};

/// Where model files are read from.
#[derive(Clone, Debug)]
pub enum Folder {
    Disk(PathBuf),
    Embedded(Embedded),
}

/// Files that are part of the program.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// What messages call the folder.
    name: &'static str,
    /// Path below the root, with slashes, and contents.
    files: &'static [(&'static str, &'static [u8])],
    /// The folder below the root: empty, or ending in a slash.
    prefix: String,
}

impl Folder {
    /// `files`: paths below the folder, with slashes, and their contents.
    pub const fn embedded(
        name: &'static str,
        files: &'static [(&'static str, &'static [u8])],
    ) -> Folder {
        Folder::Embedded(Embedded {
            name,
            files,
            prefix: String::new(),
        })
    }

    /// The folder `name` in this one.
    pub fn join(&self, name: &str) -> Folder {
        match self {
            Folder::Disk(dir) => Folder::Disk(dir.join(name)),
            Folder::Embedded(own) => Folder::Embedded(Embedded {
                prefix: format!("{}{name}/", own.prefix),
                ..own.clone()
            }),
        }
    }

    /// What messages call the file `name` in this folder.
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            Folder::Disk(dir) => dir.join(name),
            Folder::Embedded(own) => Path::new(own.name).join(&own.prefix).join(name),
        }
    }

    /// Whether the file `name` is there.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Folder::Disk(dir) => dir.join(name).exists(),
            Folder::Embedded(own) => own.find(name).is_some(),
        }
    }

    /// The contents of the file `name`.
    ///
    /// # Errors
    /// If it is missing, unreadable, or longer than `longest` bytes.
    pub fn read(&self, name: &str, longest: u64) -> io::Result<Vec<u8>> {
        let size = match self {
            Folder::Disk(dir) => std::fs::metadata(dir.join(name))?.len(),
            Folder::Embedded(own) => own.get(name)?.len() as u64,
        };
        if size > longest {
            return Err(io::Error::other(format!(
                "{size} bytes are too many, {longest} is the limit"
            )));
        }
        match self {
            Folder::Disk(dir) => std::fs::read(dir.join(name)),
            Folder::Embedded(own) => Ok(own.get(name)?.to_vec()),
        }
    }

    /// The file `name` as memory, of which only what is looked at is read.
    pub(crate) fn map(&self, name: &str) -> io::Result<Contents> {
        Ok(match self {
            Folder::Disk(dir) => Contents::Mapped(map_file(&dir.join(name))?),
            Folder::Embedded(own) => Contents::Embedded(own.get(name)?),
        })
    }
}

/// A file as memory.
#[derive(Debug)]
pub(crate) enum Contents {
    Mapped(MappedFile),
    Embedded(&'static [u8]),
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Contents::Mapped(file) => file,
            Contents::Embedded(bytes) => bytes,
        }
    }
}

impl Embedded {
    fn get(&self, name: &str) -> io::Result<&'static [u8]> {
        Ok(self.find(name).ok_or(io::ErrorKind::NotFound)?)
    }

    fn find(&self, name: &str) -> Option<&'static [u8]> {
        let path = |path: &str| path.strip_prefix(&*self.prefix) == Some(name);
        let found = self.files.iter().find(|(file, _)| path(file));
        found.map(|(_, contents)| *contents)
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for Folder {
    fn from(dir: &P) -> Folder {
        Folder::Disk(dir.as_ref().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_answer_alike() {
        static FILES: &[(&str, &[u8])] = &[("a.json", b"1"), ("deep/b.json", b"22")];
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        for (path, contents) in FILES {
            std::fs::write(dir.path().join(path), contents).unwrap();
        }
        for folder in [Folder::embedded("built in", FILES), (&dir).into()] {
            assert_eq!(folder.read("a.json", 10).unwrap(), b"1");
            let deep = folder.join("deep");
            assert_eq!(deep.read("b.json", 2).unwrap(), b"22");
            assert_eq!(&*deep.map("b.json").unwrap(), b"22");
            assert!(deep.has("b.json") && !deep.has("a.json") && !folder.has("b.json"));
            let missing = deep.read("a.json", 10).unwrap_err();
            assert_eq!(missing.kind(), io::ErrorKind::NotFound);
            assert!(deep.path("b.json").ends_with("deep/b.json"));
            assert!(deep.read("b.json", 1).is_err() && deep.map("a.json").is_err());
        }
    }
}
