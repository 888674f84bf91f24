//! Finds the members of a tar file without reading what they hold.
//!
//! Ustar with the two extensions that are met in practice: PAX headers and GNU long names. Wherever two readers could
//! disagree about where a member ends, the file is refused instead: such disagreement is how one archive is made to show
//! different members to different programs. Formats: POSIX.1-2017 `pax`, GNU tar manual, "Basic Tar Format".

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Error, Result};

const BLOCK: u64 = 512;
/// No honest name or extended header is longer.
const MAX_EXTENSION: u64 = 64 * 1024;

/// A regular file inside a tar file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    /// Position of the first byte in the tar file.
    pub offset: u64,
    pub len: u64,
}

/// Reads `len` bytes at `offset`, with an error of kind `UnexpectedEof` if the file has become shorter.
pub fn read_at(file: &File, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The regular files of a tar file, in its order.
///
/// # Errors
/// If the file cannot be read, is cut off (also between members: an archive ends with a block of zeros), or its headers
/// are damaged or contradict each other.
pub fn members(path: &Path) -> Result<Vec<Member>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let end = file.metadata().map_err(Error::io("read", path))?.len();
    let truncated = |detail: String| Error::Truncated {
        shard: path.to_path_buf(),
        detail,
    };
    let malformed = |at: u64, detail: String| Error::Malformed {
        path: path.to_path_buf(),
        detail: format!("not a readable tar file: {detail} (header at byte {at})"),
    };
    let mut members = Vec::new();
    let mut extension = Extension::default();
    let mut at = 0;
    loop {
        if end - at < BLOCK {
            return Err(truncated(format!(
                "it stops after {end} bytes without the end mark of an archive"
            )));
        }
        let mut block = [0u8; BLOCK as usize];
        file.read_exact_at(&mut block, at)
            .map_err(Error::io("read", path))?;
        if block.iter().all(|&b| b == 0) {
            return Ok(members);
        }
        let header = Header::parse(&block).map_err(|detail| malformed(at, detail))?;
        let start = at + BLOCK;
        let label = extension.name.as_deref().unwrap_or(&header.name);
        if header.len > end - start {
            return Err(truncated(format!(
                "{label} takes {} bytes from byte {start} on, but the file has {end}",
                header.len
            )));
        }
        let body = |limit: u64| {
            if header.len > limit {
                let detail = format!("a header extension of {} bytes", header.len);
                return Err(malformed(at, detail));
            }
            read_at(&file, start, header.len as usize).map_err(Error::io("read", path))
        };
        match header.kind {
            b'0' | b'\0' | b'7' => {
                let Extension { name, len } = std::mem::take(&mut extension);
                if len.is_some_and(|len| len != header.len) {
                    return Err(malformed(
                        at,
                        format!("two headers give different sizes for {}", header.name),
                    ));
                }
                members.push(Member {
                    name: name.unwrap_or(header.name),
                    offset: start,
                    len: header.len,
                });
            }
            b'x' => extension
                .read_pax(&body(MAX_EXTENSION)?)
                .map_err(|detail| malformed(at, detail))?,
            b'L' => {
                let name = body(MAX_EXTENSION)?;
                extension.name = Some(text(&name));
            }
            // Defaults for all members: sizes and names have no business there, the rest does not concern us.
            b'g' => {
                let mut global = Extension::default();
                let read = global.read_pax(&body(MAX_EXTENSION)?);
                read.map_err(|detail| malformed(at, detail))?;
                if global != Extension::default() {
                    return Err(malformed(at, "a global header sets names or sizes".into()));
                }
            }
            b'K' => drop(body(MAX_EXTENSION)?),
            // Links, folders, devices: not samples, and without contents.
            b'1'..=b'6' => {
                if header.len != 0 {
                    return Err(malformed(
                        at,
                        format!("{label} is no file yet has contents"),
                    ));
                }
                extension = Extension::default();
            }
            kind => {
                return Err(malformed(
                    at,
                    format!("{label} is of unknown type {:?}", char::from(kind)),
                ));
            }
        }
        // Bounded by `end` plus one block, so this cannot overflow.
        at = start + header.len.div_ceil(BLOCK) * BLOCK;
        if at > end {
            return Err(truncated(format!(
                "the last block, at byte {start}, is not whole"
            )));
        }
    }
}

/// What extended headers say of the member that follows.
#[derive(Debug, Default, PartialEq)]
struct Extension {
    name: Option<String>,
    len: Option<u64>,
}

impl Extension {
    /// Records "LENGTH KEY=VALUE\n", where LENGTH counts the whole record.
    fn read_pax(&mut self, mut records: &[u8]) -> std::result::Result<(), String> {
        while !records.is_empty() {
            let broken = || "a broken extended header".to_string();
            let space = records.iter().take(20).position(|&b| b == b' ');
            let space = space.ok_or_else(broken)?;
            let len = decimal(&records[..space]).ok_or_else(broken)? as usize;
            if len <= space + 1 || len > records.len() || records[len - 1] != b'\n' {
                return Err(broken());
            }
            let record = &records[space + 1..len - 1];
            records = &records[len..];
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(broken)?;
            let value = &record[equals + 1..];
            match &record[..equals] {
                b"path" => self.name = Some(text(value)),
                b"size" => self.len = Some(decimal(value).ok_or_else(broken)?),
                key if key.starts_with(b"GNU.sparse") => {
                    return Err("a sparse file, whose contents have holes".into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

struct Header {
    name: String,
    len: u64,
    kind: u8,
}

impl Header {
    fn parse(block: &[u8; BLOCK as usize]) -> std::result::Result<Header, String> {
        // The checksum field itself counts as blanks.
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(i, &b)| u64::from(if (148..156).contains(&i) { b' ' } else { b }))
            .sum();
        if number(&block[148..156]) != Some(sum) {
            return Err("its checksum is wrong".into());
        }
        let len = number(&block[124..136]).ok_or("its size is not a number")?;
        let mut name = text(&block[..100]);
        // Only POSIX headers carry a prefix; GNU's "ustar  " keeps other things there.
        if &block[257..263] == b"ustar\0" && block[345] != 0 {
            name = format!("{}/{name}", text(&block[345..500]));
        }
        Ok(Header {
            name,
            len,
            kind: block[156],
        })
    }
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    // `parse` would also take a sign.
    text.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
    text.parse().ok()
}

/// A header's number: octal digits between blanks and NULs, or big-endian binary behind a set top bit (GNU).
fn number(field: &[u8]) -> Option<u64> {
    if field[0] == 0x80 {
        let (high, low) = field[1..].split_at(field.len() - 9);
        let low: [u8; 8] = low.try_into().ok()?;
        return high
            .iter()
            .all(|&b| b == 0)
            .then(|| u64::from_be_bytes(low));
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches([' ', '\0']);
    digits.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
    u64::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(name: &str, len: u64, kind: u8) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(len);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn member(name: &str, kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = header(name, body.len() as u64, kind);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn index(parts: &[Vec<u8>]) -> Result<Vec<Member>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), parts.concat()).unwrap();
        members(file.path())
    }

    fn end() -> Vec<u8> {
        vec![0; 1024]
    }

    #[test]
    fn finds_members_where_they_are() {
        let long = format!("{}/x.png", "d".repeat(140));
        let parts = [
            member("folder", b'5', b""),
            member("a.png", b'0', &[1; 600]),
            member("ignored", b'x', format!("156 path={long}\n").as_bytes()),
            member("short", b'0', b"pax"),
            member("././@LongLink", b'L', b"very/long.txt\0"),
            member("short", b'\0', b""),
            end(),
        ];
        let found = index(&parts).unwrap();
        let named: Vec<_> = found.iter().map(|m| (&*m.name, m.offset, m.len)).collect();
        assert_eq!(
            named,
            [
                ("a.png", 1024, 600),
                (&*long, 3584, 3),
                ("very/long.txt", 5632, 0)
            ]
        );
    }

    #[test]
    fn large_binary_sizes_are_read() {
        let mut field = [0u8; 12];
        field[0] = 0x80;
        field[11] = 9;
        assert_eq!(number(&field), Some(9));
        field[1] = 1;
        assert_eq!(number(&field), None);
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   12 \0"), Some(10));
        assert_eq!(number(b"-0000012"), None);
    }

    #[test]
    fn cut_files_are_named_truncated() {
        let whole = [member("a.png", b'0', &[1; 600]), end()].concat();
        for cut in [0, 100, 512, 900, 1112, 1535, 1536, 1700] {
            let error = index(&[whole[..cut].to_vec()]).unwrap_err().to_string();
            assert!(error.contains("is truncated"), "{cut}: {error}");
        }
        assert_eq!(index(&[whole]).unwrap().len(), 1);
    }

    /// Archives that make readers disagree, or ask for memory that the file does not hold.
    #[test]
    fn hostile_files_are_refused() {
        let mut damaged = member("a.png", b'0', b"x");
        damaged[3] ^= 1;
        let mut negative = header("a.png", 0, b'0');
        negative[124..136].copy_from_slice(&[0xFF; 12]);
        let mut sum = tar::Header::from_byte_slice(&negative).clone();
        sum.set_cksum();
        let negative = sum.as_bytes().to_vec();
        let hidden = member("evil.png", b'0', b"hidden");
        for (parts, says) in [
            (vec![damaged], "checksum"),
            (vec![negative], "size is not a number"),
            // The size of the extended header and that of the ustar header differ: one of them hides a member.
            (
                vec![
                    member("x", b'x', b"13 size=1024\n"),
                    member("a.png", b'0', b""),
                    hidden.clone(),
                ],
                "different sizes",
            ),
            (
                vec![
                    member("x", b'x', b"10 size=0\n"),
                    member("a.png", b'0', &hidden),
                ],
                "different sizes",
            ),
            (vec![member("g", b'g', b"10 size=5\n")], "global header"),
            (vec![member("x", b'x', b"99 size=5\n")], "broken"),
            (
                vec![member("x", b'x', b"18446744073709551616 a=b\n")],
                "broken",
            ),
            (vec![member("x", b'x', b"0 =\n")], "broken"),
            (
                vec![member("x", b'x', b"22 GNU.sparse.major=1\n")],
                "sparse",
            ),
            (
                vec![member("x", b'x', &[b'1'; 70_000])],
                "extension of 70000",
            ),
            (
                vec![member("l", b'L', &[b'1'; 70_000])],
                "extension of 70000",
            ),
            (
                vec![member("d", b'5', b"contents")],
                "no file yet has contents",
            ),
            (vec![member("s", b'S', b"")], "unknown type 'S'"),
            (vec![header("huge", (1 << 33) - 1, b'0')], "truncated"),
        ] {
            let mut parts = parts;
            parts.push(end());
            let error = index(&parts).unwrap_err().to_string();
            assert!(error.contains(says), "{says}: {error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Any damage gives members inside the file, or an error; never a panic.
        #[test]
        fn damaged_files_never_panic(
            edits in prop::collection::vec((0usize..5000, any::<u8>(), any::<bool>()), 0..12),
            cut in 0usize..5000,
        ) {
            let mut bytes = [
                member("a.png", b'0', &[1; 600]),
                member("p", b'x', b"13 size=0003\n"),
                member("a.txt", b'0', b"abc"),
                member("l", b'L', b"name\0"),
                member("b", b'0', b""),
                end(),
            ].concat();
            let headers = [0, 1536, 2560, 3584, 4608];
            for (at, value, repair) in edits {
                let at = at % bytes.len();
                bytes[at] = value;
                // Half of the damage gets a valid checksum, so that it is looked at.
                if repair {
                    let start = headers[at % headers.len()].min(bytes.len() - 512);
                    let mut header = tar::Header::from_byte_slice(&bytes[start..start + 512]).clone();
                    header.set_cksum();
                    bytes[start..start + 512].copy_from_slice(header.as_bytes());
                }
            }
            bytes.truncate(cut.max(1));
            let len = bytes.len() as u64;
            if let Ok(found) = index(&[bytes]) {
                for m in found {
                    prop_assert!(m.offset + m.len <= len);
                }
            }
        }
    }
}
