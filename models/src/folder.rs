//! A directory of model files: on disk, or built into the program.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

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
    pub fn read(&self, name: &str, longest: u64) -> io::Result<Cow<'static, [u8]>> {
        let bytes = match self {
            Folder::Disk(dir) => {
                let path = dir.join(name);
                let size = std::fs::metadata(&path)?.len();
                if size > longest {
                    return Err(io::Error::other(format!(
                        "{size} bytes are too many, {longest} is the limit"
                    )));
                }
                Cow::Owned(std::fs::read(path)?)
            }
            Folder::Embedded(own) => Cow::Borrowed(own.find(name).ok_or(io::ErrorKind::NotFound)?),
        };
        Ok(bytes)
    }
}

impl Embedded {
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
            assert_eq!(&*folder.read("a.json", 10).unwrap(), b"1");
            let deep = folder.join("deep");
            assert_eq!(&*deep.read("b.json", 2).unwrap(), b"22");
            assert!(deep.has("b.json") && !deep.has("a.json") && !folder.has("b.json"));
            let missing = deep.read("a.json", 10).unwrap_err();
            assert_eq!(missing.kind(), io::ErrorKind::NotFound);
            assert!(deep.path("b.json").ends_with("deep/b.json"));
        }
        assert!(Folder::from(&dir).join("deep").read("b.json", 1).is_err());
    }
}
