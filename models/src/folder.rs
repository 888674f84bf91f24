//! A directory of model files: where they are read from, with a bound on what is read.

use std::io;
use std::path::{Path, PathBuf};

/// Where model files are read from.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder `name` in this one.
    pub fn join(&self, name: &str) -> Folder {
        Folder(self.0.join(name))
    }

    /// Where the file `name` of this folder lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Whether the file `name` is there.
    pub fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    /// The contents of the file `name`.
    ///
    /// # Errors
    /// If it is missing, unreadable, or longer than `longest` bytes.
    pub fn read(&self, name: &str, longest: u64) -> io::Result<Vec<u8>> {
        let path = self.path(name);
        let size = std::fs::metadata(&path)?.len();
        if size > longest {
            return Err(io::Error::other(format!(
                "{size} bytes are too many, {longest} is the limit"
            )));
        }
        std::fs::read(path)
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for Folder {
    fn from(dir: &P) -> Folder {
        Folder(dir.as_ref().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_up_to_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        std::fs::write(dir.path().join("deep/b.json"), b"22").unwrap();
        let deep = Folder::from(&dir).join("deep");
        assert_eq!(deep.read("b.json", 2).unwrap(), b"22");
        assert!(deep.has("b.json") && !deep.has("a.json"));
        let missing = deep.read("a.json", 10).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(deep.read("b.json", 1).is_err());
        assert!(deep.path("b.json").ends_with("deep/b.json"));
    }
}
