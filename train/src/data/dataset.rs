//! A set of captioned pictures that can be read in any order.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rayon::prelude::*;

use super::decode::Decoder;
use super::random::{Permutation, Stream};
use super::source::{self, Blob, Entry};
use super::{Error, Result, tar};

/// How pictures are read.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetOptions {
    /// Side of the squares that come out, in pixels.
    pub size: usize,
    /// Image files of more pixels are bad samples.
    pub max_image_pixels: u64,
    /// The largest share of bad samples that is skipped; beyond it the run stops.
    pub max_bad_share: f64,
    /// A set whose decoded pictures fit in this many bytes is decoded once and kept.
    pub resident_bytes: u64,
}

impl DatasetOptions {
    pub fn new(size: usize) -> Self {
        DatasetOptions {
            size,
            max_image_pixels: 64 << 20,
            max_bad_share: 0.05,
            resident_bytes: 256 << 20,
        }
    }
}

/// A sample that cannot be used, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct BadSample {
    /// Shard and key, or file.
    pub name: String,
    pub reason: String,
}

impl fmt::Display for BadSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// All bad samples counted, the first thousand named.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BadSamples {
    pub count: u64,
    pub named: Vec<BadSample>,
}

impl BadSamples {
    const NAMED: usize = 1000;

    pub fn add(&mut self, sample: BadSample) {
        self.count += 1;
        if self.named.len() < Self::NAMED {
            self.named.push(sample);
        }
    }

    /// An error once more than `limit` of the samples are bad.
    pub(super) fn check(&self, of: u64, limit: f64) -> Result<()> {
        if self.count as f64 <= limit * of as f64 {
            return Ok(());
        }
        Err(Error::TooManyBad {
            bad: self.count,
            of,
            limit,
            example: self
                .named
                .last()
                .map(BadSample::to_string)
                .unwrap_or_default(),
        })
    }
}

/// What reading a sample gave: its caption (the pixels are where the caller wanted them), or why it cannot be used.
pub type Fetched = std::result::Result<String, String>;

/// Captioned pictures, indexed in place.
#[derive(Debug)]
pub struct Dataset {
    options: DatasetOptions,
    index: source::Index,
    resident: Option<Resident>,
}

/// Every picture, decoded.
#[derive(Debug)]
struct Resident {
    /// `[n, size, size, 3]`
    pixels: Vec<u8>,
    fetched: Vec<Fetched>,
}

impl Dataset {
    /// Opens tar shards (`data/{00000..00009}.tar`, or a folder of them), a folder of images with `.txt` captions beside
    /// them, or a `.csv`, `.tsv` or `.jsonl` table of path and caption; `::` joins several.
    ///
    /// # Errors
    /// If something named does not exist, a shard is truncated or damaged, nothing usable is found, or more samples are
    /// bad than [`DatasetOptions::max_bad_share`] allows.
    pub fn open(source: &str, options: DatasetOptions) -> Result<Dataset> {
        let index = source::index(source)?;
        let total = index.entries.len() as u64 + index.bad.count;
        index.bad.check(total, options.max_bad_share)?;
        if index.entries.is_empty() {
            return Err(Error::Invalid(format!(
                "\"{source}\" holds no captioned pictures"
            )));
        }
        let mut dataset = Dataset {
            options,
            index,
            resident: None,
        };
        let bytes = (dataset.len() as u128) * dataset.picture_bytes() as u128;
        if bytes <= u128::from(dataset.options.resident_bytes) {
            dataset.decode_all(total)?;
        }
        Ok(dataset)
    }

    fn decode_all(&mut self, total: u64) -> Result<()> {
        let mut pixels = vec![0; self.index.entries.len() * self.picture_bytes()];
        let fetched = pixels
            .par_chunks_mut(self.picture_bytes())
            .enumerate()
            .map_init(
                || self.decoder(),
                |decoder, (i, picture)| self.fetch(i as u64, decoder, picture),
            )
            .collect::<Result<Vec<Fetched>>>()?;
        for (i, outcome) in fetched.iter().enumerate() {
            if let Err(reason) = outcome {
                let name = self.name(i as u64);
                let reason = reason.clone();
                self.index.bad.add(BadSample { name, reason });
            }
        }
        self.index.bad.check(total, self.options.max_bad_share)?;
        self.resident = Some(Resident { pixels, fetched });
        Ok(())
    }

    /// Samples that have an image and a caption; some may still turn out not to be readable.
    pub fn len(&self) -> u64 {
        self.index.entries.len() as u64
    }

    /// Never true: an empty set does not open.
    pub fn is_empty(&self) -> bool {
        self.index.entries.is_empty()
    }

    pub fn size(&self) -> usize {
        self.options.size
    }

    pub fn options(&self) -> &DatasetOptions {
        &self.options
    }

    /// Whether every picture is in memory.
    pub fn is_resident(&self) -> bool {
        self.resident.is_some()
    }

    /// Samples found bad when the set was opened.
    pub fn bad(&self) -> &BadSamples {
        &self.index.bad
    }

    /// Bytes of one picture: size · size · 3.
    pub fn picture_bytes(&self) -> usize {
        self.options.size * self.options.size * 3
    }

    pub fn decoder(&self) -> Decoder {
        Decoder::new(self.options.size, self.options.max_image_pixels)
    }

    pub fn key(&self, index: u64) -> &str {
        &self.index.entries[index as usize].key
    }

    /// Where a sample comes from, for messages.
    pub fn name(&self, index: u64) -> String {
        let Entry { key, image, .. } = &self.index.entries[index as usize];
        match image {
            Blob::Range { shard, .. } => {
                let shard = &self.index.shards[*shard as usize];
                let shard = shard.file_name().unwrap_or_default().to_string_lossy();
                format!("{shard}:{key}")
            }
            Blob::File(path) => path.display().to_string(),
            Blob::Text(_) => key.to_string(),
        }
    }

    /// Writes picture `index` to `pixels` `[size, size, 3]` and returns its caption.
    ///
    /// # Errors
    /// If a shard cannot be read any more; what is wrong with one sample alone is the inner result.
    pub fn fetch(&self, index: u64, decoder: &mut Decoder, pixels: &mut [u8]) -> Result<Fetched> {
        let at = index as usize;
        if let Some(resident) = &self.resident {
            let bytes = self.picture_bytes();
            pixels.copy_from_slice(&resident.pixels[at * bytes..][..bytes]);
            return Ok(resident.fetched[at].clone());
        }
        let caption = match self.caption(index)? {
            Ok(caption) => caption,
            Err(reason) => return Ok(Err(reason)),
        };
        let image = match self.read(&self.index.entries[at].image)? {
            Ok(bytes) => bytes,
            Err(reason) => return Ok(Err(reason)),
        };
        Ok(decoder.square(&image).map(|square| {
            pixels.copy_from_slice(&square);
            caption
        }))
    }

    fn caption(&self, index: u64) -> Result<Fetched> {
        let bytes = self.read(&self.index.entries[index as usize].caption)?;
        Ok(bytes.and_then(|bytes| match String::from_utf8(bytes) {
            Ok(text) if text.trim().is_empty() => Err("its caption is empty".into()),
            Ok(text) => Ok(text.trim().to_string()),
            Err(_) => Err("its caption is not UTF-8 text".into()),
        }))
    }

    /// The caption of a sample and its picture's file.
    ///
    /// # Errors
    /// As [`Dataset::fetch`].
    pub fn sample(&self, index: u64) -> Result<std::result::Result<(String, Vec<u8>), String>> {
        let image = self.read(&self.index.entries[index as usize].image)?;
        let caption = self.caption(index)?;
        Ok(image.and_then(|image| Ok((caption?, image))))
    }

    /// At most `limit` captions, spread over the whole set: what a tokenizer is trained on.
    ///
    /// # Errors
    /// As [`Dataset::fetch`].
    pub fn captions(&self, limit: u64) -> Result<Vec<String>> {
        let spread = Permutation::new(0, Stream::Order, 0, self.len());
        let mut captions = Vec::new();
        for position in 0..self.len().min(limit) {
            captions.extend(self.caption(spread.at(position))?);
        }
        Ok(captions)
    }

    fn read(&self, blob: &Blob) -> Result<std::result::Result<Vec<u8>, String>> {
        match blob {
            Blob::Text(text) => Ok(Ok(text.as_bytes().to_vec())),
            Blob::File(path) => Ok(read_file(path)),
            Blob::Range { shard, offset, len } => {
                let path = &self.index.shards[*shard as usize];
                let read = File::open(path).and_then(|f| tar::read_at(&f, *offset, *len as usize));
                match read {
                    Ok(bytes) => Ok(Ok(bytes)),
                    Err(reason) if reason.kind() == io::ErrorKind::UnexpectedEof => {
                        Err(Error::Truncated {
                            shard: path.clone(),
                            detail: "it became shorter while it was in use".into(),
                        })
                    }
                    Err(reason) => Err(Error::io("read", path)(reason)),
                }
            }
        }
    }
}

/// A file of its own is one sample: that it cannot be read concerns nothing else.
fn read_file(path: &Path) -> std::result::Result<Vec<u8>, String> {
    const LIMIT: u64 = 256 << 20;
    let mut bytes = Vec::new();
    let file = File::open(path).and_then(|f| f.take(LIMIT + 1).read_to_end(&mut bytes));
    match file {
        Ok(read) if read as u64 > LIMIT => Err("it has more than 256 MiB".into()),
        Ok(_) => Ok(bytes),
        Err(reason) => Err(format!("it cannot be read: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::decode::tests::png;
    use super::super::shapes::Picture;
    use super::super::shapes::shards::{MakeShapes, make_shapes};
    use super::*;
    use std::fs;

    fn open(source: &Path, change: impl FnOnce(&mut DatasetOptions)) -> Result<Dataset> {
        let mut options = DatasetOptions::new(8);
        change(&mut options);
        Dataset::open(&source.display().to_string(), options)
    }

    fn fetch(dataset: &Dataset, index: u64) -> (Fetched, Vec<u8>) {
        let mut pixels = vec![0; dataset.picture_bytes()];
        let fetched = dataset.fetch(index, &mut dataset.decoder(), &mut pixels);
        (fetched.unwrap(), pixels)
    }

    #[test]
    fn shards_are_read_in_place_and_give_the_pictures_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = MakeShapes::new(dir.path(), 20);
        options.per_shard = 8;
        options.size = 24;
        make_shapes(&options, |_| {}).unwrap();
        let pattern = dir.path().join("{00000..00002}.tar");
        for resident_bytes in [0, 1 << 20] {
            let dataset = open(&pattern, |o| {
                o.size = 24;
                o.resident_bytes = resident_bytes;
            });
            let dataset = dataset.unwrap();
            assert_eq!((dataset.len(), dataset.bad().count), (20, 0));
            assert_eq!(dataset.is_resident(), resident_bytes > 0);
            for i in 0..20 {
                let picture = Picture::sample(0, i);
                let (caption, pixels) = fetch(&dataset, i);
                assert_eq!(caption.unwrap(), picture.caption());
                assert_eq!(pixels, picture.render(24));
            }
            assert_eq!(dataset.name(9), "00001.tar:000010001");
            assert_eq!(dataset.captions(7).unwrap().len(), 7);
        }
        assert_eq!(open(dir.path(), |_| {}).unwrap().len(), 20);
    }

    #[test]
    fn folders_and_tables_open() {
        let dir = tempfile::tempdir().unwrap();
        let red = png(8, 8, &[220, 40, 40].repeat(64));
        fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b", "a", "sub/c"] {
            fs::write(dir.path().join(format!("{name}.png")), &red).unwrap();
            fs::write(dir.path().join(format!("{name}.txt")), format!("{name}!\n")).unwrap();
        }
        let dataset = open(dir.path(), |_| {}).unwrap();
        let keys: Vec<&str> = (0..3).map(|i| dataset.key(i)).collect();
        assert_eq!(keys, ["a", "b", "sub/c"]);
        assert_eq!(fetch(&dataset, 2).0.unwrap(), "sub/c!");

        let csv = dir.path().join("list.csv");
        fs::write(&csv, "caption,path\n\"one, red\",a.png\nno,missing.png\n").unwrap();
        let jsonl = dir.path().join("list.jsonl");
        fs::write(
            &jsonl,
            "{\"path\":\"b.png\",\"caption\":\"two\"}\n[[[\n{\"path\":3}\n",
        )
        .unwrap();
        let both = format!("{}::{}", csv.display(), jsonl.display());
        let mut options = DatasetOptions::new(8);
        options.max_bad_share = 0.7;
        let dataset = Dataset::open(&both, options).unwrap();
        assert_eq!(fetch(&dataset, 0).0.unwrap(), "one, red");
        assert!(fetch(&dataset, 1).0.unwrap_err().contains("cannot be read"));
        assert_eq!(fetch(&dataset, 2).0.unwrap(), "two");
        let bad: Vec<String> = dataset.bad().named.iter().map(|b| b.to_string()).collect();
        assert_eq!(bad[0], "list.jsonl:2: the line is not JSON");
        assert_eq!(bad[1], "list.jsonl:3: its path is missing");
        assert!(bad[2].contains("missing.png: it cannot be read"), "{bad:?}");
    }

    #[test]
    fn bad_samples_are_counted_and_too_many_stop_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let red = png(8, 8, &[220, 40, 40].repeat(64));
        for i in 0..10 {
            let bytes = if i == 3 { &red[..40] } else { &red[..] };
            fs::write(dir.path().join(format!("{i}.png")), bytes).unwrap();
            if i != 7 {
                fs::write(dir.path().join(format!("{i}.txt")), "red").unwrap();
            }
        }
        let dataset = open(dir.path(), |o| o.max_bad_share = 0.2).unwrap();
        assert_eq!((dataset.len(), dataset.bad().count), (9, 2));
        let error = open(dir.path(), |o| o.max_bad_share = 0.15).unwrap_err();
        let says = error.to_string();
        assert!(says.starts_with("2 of 10 samples are unusable"), "{says}");
        assert!(says.contains("3.png") && says.contains("15.0 %"), "{says}");
        let error = open(dir.path(), |o| o.max_bad_share = 0.05).unwrap_err();
        assert!(error.to_string().contains("7.txt is missing"), "{error}");
    }

    #[test]
    fn missing_truncated_and_foreign_files_are_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        make_shapes(&MakeShapes::new(dir.path(), 4), |_| {}).unwrap();
        let shard = dir.path().join("00001.tar");
        // Shorter after it was indexed.
        let dataset = open(&shard, |o| o.resident_bytes = 0).unwrap();
        let bytes = fs::read(&shard).unwrap();
        fs::write(&shard, &bytes[..600]).unwrap();
        let mut pixels = vec![0; dataset.picture_bytes()];
        let error = dataset.fetch(0, &mut dataset.decoder(), &mut pixels);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("00001.tar is truncated: it became"),
            "{error}"
        );
        // Shorter from the start.
        let error = open(dir.path(), |_| {}).unwrap_err().to_string();
        assert!(error.contains("00001.tar is truncated"), "{error}");
        for (name, says) in [
            ("none.tar", "cannot open"),
            ("00000_stats.json", "is not data"),
        ] {
            let error = open(&dir.path().join(name), |_| {}).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        let empty = tempfile::tempdir().unwrap();
        let error = open(empty.path(), |_| {}).unwrap_err().to_string();
        assert!(error.contains("holds no captioned pictures"), "{error}");
    }
}
