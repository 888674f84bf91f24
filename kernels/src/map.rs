//! Files as memory: the only mapping, for weights.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file's bytes, of which only those that are read take up memory.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Maps a whole file.
///
/// Weight files are replaced by renaming and never written in place, here and by the libraries that share them. Files
/// that others may cut short while they are read are not for this: the shards of a data set are read instead.
///
/// # Errors
/// If the file cannot be opened or mapped.
pub fn map_file(path: &Path) -> io::Result<MappedFile> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    // SAFETY: the mapping is private and read-only; that nobody changes the file under it is the contract above.
    let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file)? };
    Ok(MappedFile(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_is_its_bytes() {
        let path = std::env::temp_dir().join(format!("unclip-map-{}", std::process::id()));
        for bytes in [&b"weights"[..], &[]] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(&*map_file(&path).unwrap(), bytes);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(map_file(&path).is_err());
        assert!(map_file(&std::env::temp_dir()).is_err());
    }
}
