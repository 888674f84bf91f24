//! From what the user names to a list of samples: shards, folders, tables; nothing is decoded here.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use super::dataset::{BadSample, BadSamples};
use super::tar;
use super::{Error, Result};

/// A caption longer than this is a file that is not a caption.
const MAX_CAPTION: u64 = 64 * 1024;
/// An image file longer than this is not read.
const MAX_IMAGE: u64 = 256 * 1024 * 1024;
/// A brace expression that gives more names than this is a mistake.
const MAX_EXPANSION: usize = 1_000_000;

const IMAGE_SUFFIXES: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// Column names that tables use, in order of preference.
const PATH_COLUMNS: [&str; 5] = ["path", "filepath", "file_name", "image", "file"];
const CAPTION_COLUMNS: [&str; 3] = ["caption", "text", "title"];

/// Where bytes are.
#[derive(Clone, Debug, PartialEq)]
pub enum Blob {
    /// In a shard.
    Range {
        shard: u32,
        offset: u64,
        len: u32,
    },
    File(Box<Path>),
    Text(Box<str>),
}

/// A picture and its caption, not yet read.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: Box<str>,
    pub image: Blob,
    pub caption: Blob,
}

#[derive(Debug, Default)]
pub struct Index {
    pub shards: Vec<PathBuf>,
    pub entries: Vec<Entry>,
    pub bad: BadSamples,
}

/// Lists what `source` names; see [`super::Dataset::open`] for the forms.
pub fn index(source: &str) -> Result<Index> {
    let mut index = Index::default();
    let mut tars = Vec::new();
    for part in source.split("::") {
        for path in expand_braces(part)?.into_iter().map(PathBuf::from) {
            let kind = fs::metadata(&path).map_err(Error::io("open", &path))?;
            if kind.is_dir() {
                let inside = tars_in(&path)?;
                if inside.is_empty() {
                    folder(&path, &mut index)?;
                }
                tars.extend(inside);
                continue;
            }
            match suffix(&path).as_str() {
                "tar" => tars.push(path),
                "csv" | "tsv" => csv(&path, &mut index)?,
                "jsonl" | "ndjson" => jsonl(&path, &mut index)?,
                _ => {
                    return Err(Error::Invalid(format!(
                        "{} is not data; name tar shards, a folder, or a csv, tsv or jsonl file",
                        path.display()
                    )));
                }
            }
        }
    }
    let first = index.shards.len();
    let grouped: Vec<_> = tars
        .par_iter()
        .enumerate()
        .map(|(i, path)| {
            let members = tar::members(path)?;
            Ok(group(&path_name(path), (first + i) as u32, members))
        })
        .collect::<Result<_>>()?;
    index.shards.extend(tars);
    for (entries, bad) in grouped {
        index.entries.extend(entries);
        bad.into_iter().for_each(|sample| index.bad.add(sample));
    }
    Ok(index)
}

fn path_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

fn suffix(path: &Path) -> String {
    let suffix = path.extension().unwrap_or_default();
    suffix.to_string_lossy().to_lowercase()
}

/// `a{00..02}b{x,y}` → `a00bx`, `a00by`, `a01bx`, …: ranges keep the width of their first number, as in a shell.
pub fn expand_braces(pattern: &str) -> Result<Vec<String>> {
    let Some((head, (body, tail))) = pattern
        .split_once('{')
        .and_then(|(head, rest)| Some((head, rest.split_once('}')?)))
    else {
        return Ok(vec![pattern.to_string()]);
    };
    let too_many = || {
        Error::Invalid(format!(
            "\"{pattern}\" names more than {MAX_EXPANSION} files"
        ))
    };
    let middles: Vec<String> = match body.split_once("..") {
        Some((from, to)) => {
            let number = |text: &str| text.parse::<u64>().ok();
            let (Some(low), Some(high)) = (number(from), number(to)) else {
                return Err(Error::Invalid(format!(
                    "{{{body}}} in \"{pattern}\" is not a range of numbers such as {{00000..00009}}"
                )));
            };
            if low > high {
                return Err(Error::Invalid(format!(
                    "{{{body}}} in \"{pattern}\" runs backwards"
                )));
            }
            if high - low >= MAX_EXPANSION as u64 {
                return Err(too_many());
            }
            (low..=high)
                .map(|n| format!("{n:0width$}", width = from.len()))
                .collect()
        }
        None => body.split(',').map(String::from).collect(),
    };
    let tails = expand_braces(tail)?;
    if middles.len().saturating_mul(tails.len()) > MAX_EXPANSION {
        return Err(too_many());
    }
    let join = |m: &String| tails.iter().map(move |t| format!("{head}{m}{t}")).collect();
    Ok(middles
        .iter()
        .flat_map(|m| -> Vec<String> { join(m) })
        .collect())
}

fn sorted_entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut paths = list().map_err(Error::io("list", dir))?;
    paths.sort();
    Ok(paths)
}

fn tars_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = sorted_entries(dir)?;
    paths.retain(|path| suffix(path) == "tar");
    Ok(paths)
}

/// Images at any depth, each with its caption beside it under the same name; links to folders are not followed.
fn folder(root: &Path, index: &mut Index) -> Result<()> {
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        let mut folders = Vec::new();
        for path in sorted_entries(&dir)? {
            if path.is_dir() {
                if !path.is_symlink() {
                    folders.push(path);
                }
                continue;
            }
            if !IMAGE_SUFFIXES.contains(&suffix(&path).as_str()) {
                continue;
            }
            let inside = path.strip_prefix(root).unwrap_or(&path);
            let key = inside.with_extension("").to_string_lossy().into_owned();
            let caption = path.with_extension("txt");
            if caption.is_file() {
                index.entries.push(Entry {
                    key: key.into(),
                    image: Blob::File(path.into()),
                    caption: Blob::File(caption.into()),
                });
            } else {
                index.bad.add(BadSample {
                    name: path.display().to_string(),
                    reason: format!("its caption {} is missing", path_name(&caption)),
                });
            }
        }
        folders.reverse();
        open.extend(folders);
    }
    Ok(())
}

/// WebDataset's rules: adjacent members with the same path up to the first dot of the file name are one sample; what
/// follows the dot, in lower case, says what a member is; names in double underscores are not samples.
fn group(shard_name: &str, shard: u32, members: Vec<tar::Member>) -> (Vec<Entry>, Vec<BadSample>) {
    let mut groups = Groups {
        shard_name,
        shard,
        entries: Vec::new(),
        bad: Vec::new(),
    };
    let mut current = Group::default();
    for member in &members {
        let start = member.name.rfind('/').map_or(0, |slash| slash + 1);
        let base = &member.name[start..];
        if base.starts_with("__") && base.ends_with("__") {
            continue;
        }
        let dot = match base.find('.') {
            Some(dot) if dot > 0 => start + dot,
            _ => continue,
        };
        let key = &member.name[..dot];
        if key != current.key {
            groups.close(std::mem::take(&mut current));
            current.key = key;
        }
        let suffix = member.name[dot + 1..].to_lowercase();
        if current.image.is_none() && IMAGE_SUFFIXES.contains(&suffix.as_str()) {
            current.image = Some(member);
        } else if suffix == "txt" {
            current.caption = Some(member);
        }
        if !current.suffixes.insert(suffix.clone()) {
            current.twice = Some(suffix);
        }
    }
    groups.close(current);
    (groups.entries, groups.bad)
}

#[derive(Default)]
struct Group<'a> {
    key: &'a str,
    image: Option<&'a tar::Member>,
    caption: Option<&'a tar::Member>,
    suffixes: HashSet<String>,
    twice: Option<String>,
}

struct Groups<'a> {
    shard_name: &'a str,
    shard: u32,
    entries: Vec<Entry>,
    bad: Vec<BadSample>,
}

impl Groups<'_> {
    fn close(&mut self, group: Group<'_>) {
        if group.suffixes.is_empty() {
            return;
        }
        match self.entry(&group) {
            Ok(entry) => self.entries.push(entry),
            Err(reason) => self.bad.push(BadSample {
                name: format!("{}:{}", self.shard_name, group.key),
                reason,
            }),
        }
    }

    fn entry(&self, group: &Group<'_>) -> std::result::Result<Entry, String> {
        if let Some(suffix) = &group.twice {
            return Err(format!("two members of this sample are named .{suffix}"));
        }
        let image = group.image.ok_or("its image is missing")?;
        let caption = group.caption.ok_or("its caption (.txt) is missing")?;
        let blob = |member: &tar::Member, limit: u64| {
            if member.len == 0 {
                return Err(format!("{} is empty", member.name));
            }
            if member.len > limit {
                return Err(format!("{} has {} bytes", member.name, member.len));
            }
            Ok(Blob::Range {
                shard: self.shard,
                offset: member.offset,
                // Limits are far below 2³².
                len: member.len as u32,
            })
        };
        Ok(Entry {
            key: group.key.into(),
            image: blob(image, MAX_IMAGE)?,
            caption: blob(caption, MAX_CAPTION)?,
        })
    }
}

/// A row of a table: the image's path, relative to the table, and its caption.
fn row(table: &Path, line: usize, image: Option<&str>, caption: Option<&str>, index: &mut Index) {
    let filled = |text: Option<&str>| {
        text.map(str::trim)
            .filter(|t| !t.is_empty())
            .map(String::from)
    };
    match (filled(image), filled(caption)) {
        (Some(image), Some(caption)) => {
            let dir = table.parent().unwrap_or(Path::new(""));
            index.entries.push(Entry {
                key: image.as_str().into(),
                image: Blob::File(dir.join(&image).into()),
                caption: Blob::Text(caption.into()),
            });
        }
        (image, _) => index.bad.add(BadSample {
            name: format!("{}:{line}", path_name(table)),
            reason: match image {
                None => "its path is missing".into(),
                Some(_) => "its caption is missing".into(),
            },
        }),
    }
}

fn jsonl(path: &Path, index: &mut Index) -> Result<()> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let Ok(value) = serde_json::from_str::<Value>(line) else {
            index.bad.add(BadSample {
                name: format!("{}:{}", path_name(path), i + 1),
                reason: "the line is not JSON".into(),
            });
            continue;
        };
        let field = |names: &[&str]| names.iter().find_map(|name| value[*name].as_str());
        let (image, caption) = (field(&PATH_COLUMNS), field(&CAPTION_COLUMNS));
        row(path, i + 1, image, caption, index);
    }
    Ok(())
}

fn csv(path: &Path, index: &mut Index) -> Result<()> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    let tabs = text.lines().next().unwrap_or_default().contains('\t');
    let mut rows = csv_rows(&text, if tabs { '\t' } else { ',' }).into_iter();
    let (_, header) = rows.next().unwrap_or_default();
    let column = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| {
                header
                    .iter()
                    .position(|h| h.trim().eq_ignore_ascii_case(name))
            })
            .ok_or_else(|| Error::Malformed {
                path: path.to_path_buf(),
                detail: format!("its first line names no column {}", names.join(" or ")),
            })
    };
    let (image, caption) = (column(&PATH_COLUMNS)?, column(&CAPTION_COLUMNS)?);
    for (line, fields) in rows {
        let field = |i: usize| fields.get(i).map(String::as_str);
        row(path, line, field(image), field(caption), index);
    }
    Ok(())
}

/// RFC 4180: fields in double quotes may hold separators, line ends and doubled quotes. Empty lines are left out; each
/// row comes with the number of its first line.
fn csv_rows(text: &str, separator: char) -> Vec<(usize, Vec<String>)> {
    let mut rows = Vec::new();
    let (mut fields, mut field) = (Vec::new(), String::new());
    let (mut line, mut row_line, mut quoted) = (1, 1, false);
    let mut chars = text.chars().peekable();
    loop {
        let next = chars.next();
        line += usize::from(next == Some('\n'));
        match next {
            Some('"') if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            Some('"') if quoted => quoted = false,
            Some(c) if quoted => field.push(c),
            Some('"') if field.is_empty() => quoted = true,
            Some(c) if c == separator => fields.push(std::mem::take(&mut field)),
            Some('\r') if chars.peek() == Some(&'\n') => {}
            Some('\n') | None => {
                fields.push(std::mem::take(&mut field));
                let row = std::mem::take(&mut fields);
                if row.iter().any(|f| !f.is_empty()) {
                    rows.push((row_line, row));
                }
                row_line = line;
                if next.is_none() {
                    return rows;
                }
            }
            Some(c) => field.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn braces_expand_like_a_shell() {
        let expand = |p: &str| expand_braces(p).unwrap();
        assert_eq!(expand("a.tar"), ["a.tar"]);
        assert_eq!(
            expand("d/{00008..00010}.tar"),
            ["d/00008.tar", "d/00009.tar", "d/00010.tar"]
        );
        assert_eq!(expand("{a,b}{1..2}"), ["a1", "a2", "b1", "b2"]);
        assert_eq!(expand("{open"), ["{open"]);
        for (pattern, says) in [
            ("{a..b}", "not a range"),
            ("{3..1}", "backwards"),
            ("{0..99999999999}", "more than"),
            ("{0..9999}{0..9999}", "more than"),
        ] {
            let error = expand_braces(pattern).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    fn member(name: &str, len: u64) -> tar::Member {
        tar::Member {
            name: name.into(),
            offset: 512,
            len,
        }
    }

    #[test]
    fn members_group_by_webdataset_s_rules() {
        let names = [
            "__meta__",
            "d.ir/a.PNG",
            "d.ir/a.txt",
            "d.ir/a.seg.png",
            "b.jpg",
            "c.txt",
            "d.webp",
            "d.TXT",
            "e.png",
            "e.png",
            "e.txt",
            "README",
            ".hidden.png",
        ];
        let (entries, bad) = group("s.tar", 3, names.map(|n| member(n, 7)).to_vec());
        let keys: Vec<&str> = entries.iter().map(|e| &*e.key).collect();
        assert_eq!(keys, ["d.ir/a", "d"]);
        let bad: Vec<String> = bad.iter().map(BadSample::to_string).collect();
        assert_eq!(
            bad,
            [
                "s.tar:b: its caption (.txt) is missing",
                "s.tar:c: its image is missing",
                "s.tar:e: two members of this sample are named .png",
            ]
        );
        let (entries, bad) = group("s.tar", 0, vec![member("a.png", 7), member("a.txt", 0)]);
        assert!(entries.is_empty() && bad[0].reason.contains("a.txt is empty"));
    }

    #[test]
    fn csv_fields_may_hold_anything() {
        let text = "path,caption\r\na.png,\"red, \"\"round\"\"\nring\"\n\nb.png,plain";
        let rows = csv_rows(text, ',');
        let want = [
            (1, vec!["path", "caption"]),
            (2, vec!["a.png", "red, \"round\"\nring"]),
            (5, vec!["b.png", "plain"]),
        ];
        for ((line, fields), (want_line, want)) in rows.iter().zip(&want) {
            assert_eq!((line, fields.len()), (want_line, 2));
            assert_eq!(fields, want);
        }
    }

    proptest! {
        #[test]
        fn tables_and_patterns_never_panic(text in "[{},.0-9a\"\n\t\r\\[\\]:é]{0,60}") {
            csv_rows(&text, ',');
            let _ = expand_braces(&text);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("t.jsonl");
            fs::write(&path, &text).unwrap();
            prop_assert!(index(&path.display().to_string()).is_ok());
        }
    }
}
