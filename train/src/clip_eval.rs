//! How well a CLIP knows which texts and pictures belong together: retrieval, and zero-shot classification.

use std::collections::BTreeMap;
use std::path::Path;

use autograd::Tensor;
use models::Folder;
use models::clip::{FEATURE_EXTRACTOR, ImageProcessorConfig};
use serde::Serialize;

use crate::data::Dataset;
use crate::data::decode;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::stages::frozen::FrozenClip;
use crate::{Error, Result, files};

/// The ranks that recall is told at.
pub const RANKS: [usize; 3] = [1, 5, 10];
/// Pictures or texts that are embedded together.
const BATCH: usize = 32;

/// Vectors of unit length, one row after the other.
pub struct Embeddings {
    values: Vec<f32>,
    width: usize,
}

impl Embeddings {
    /// # Shapes
    /// x [n, d]
    fn extend(&mut self, x: &Tensor) -> Result<()> {
        for row in x.to_host()?.as_slice::<f32>()?.chunks(self.width) {
            let norm = row
                .iter()
                .map(|v| f64::from(*v).powi(2))
                .sum::<f64>()
                .sqrt();
            let unit = row.iter().map(|v| (f64::from(*v) / norm) as f32);
            self.values.extend(unit);
        }
        Ok(())
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks(self.width)
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
}

/// Pictures and their captions, as a CLIP sees them.
pub struct Pairs {
    pub captions: Vec<String>,
    pub images: Embeddings,
    /// Of the captions.
    pub texts: Embeddings,
}

/// A CLIP, and how pictures are made ready for it.
pub struct Judge {
    clip: FrozenClip,
    processor: ImageProcessorConfig,
}

impl Judge {
    /// That of a model directory or a finished run.
    pub fn of_model(dir: &Folder, clip: FrozenClip) -> Result<Judge> {
        let extractor = dir.join(FEATURE_EXTRACTOR);
        let processor = match ImageProcessorConfig::is_in(&extractor) {
            true => ImageProcessorConfig::load(&extractor)?,
            false => ImageProcessorConfig::of_size(clip.image_size()),
        };
        Ok(Judge { clip, processor })
    }

    /// Embeds the first `limit` pairs of a data set.
    pub fn pairs(&self, dataset: &Dataset, limit: u64, interrupt: &Interrupt) -> Result<Pairs> {
        let count = dataset.len().min(limit);
        let mut progress = Progress::new("embed", count, 0);
        let mut captions = Vec::new();
        let mut images = self.empty();
        let mut pending = Vec::new();
        for index in 0..count {
            interrupt.check()?;
            let max_pixels = dataset.options().max_image_pixels;
            let read = dataset.sample(index)?.and_then(|(caption, bytes)| {
                let (width, height, rgb) = decode::rgb(&bytes, max_pixels)?;
                let pixels = self
                    .processor
                    .pixels([height as usize, width as usize], &rgb);
                Ok((caption, pixels.map_err(|error| error.to_string())?))
            });
            match read {
                Ok((caption, pixels)) => {
                    captions.push(caption);
                    pending.push(pixels);
                }
                Err(reason) => progress.line(&format!("{}: {reason}", dataset.name(index))),
            }
            if pending.len() == BATCH || index + 1 == count {
                self.embed_pictures(&mut pending, &mut images)?;
                progress.count(index + 1);
            }
        }
        let texts = self.texts(&captions)?;
        Ok(Pairs {
            captions,
            images,
            texts,
        })
    }

    fn empty(&self) -> Embeddings {
        Embeddings {
            values: Vec::new(),
            width: self.clip.width(),
        }
    }

    fn embed_pictures(&self, pending: &mut Vec<Tensor>, to: &mut Embeddings) -> Result<()> {
        if !pending.is_empty() {
            let pixels: Vec<&Tensor> = pending.iter().collect();
            let pixels = tensor::ops::concat::forward(&pixels, 0)?; // [n, h, w, 3]
            to.extend(&self.clip.pictures(&pixels)?)?;
            pending.clear();
        }
        Ok(())
    }

    /// Embeds texts; what is too long is cut.
    fn texts(&self, texts: &[impl AsRef<str>]) -> Result<Embeddings> {
        let mut embeddings = self.empty();
        for batch in texts.chunks(BATCH) {
            let mut ids = Vec::new();
            for text in batch {
                let encoded = self.clip.tokenizer().encode_truncated(text.as_ref());
                ids.extend(encoded.map_err(|error| Error::failure(error.to_string()))?);
            }
            embeddings.extend(&self.clip.texts(&ids)?.embeds)?;
        }
        Ok(embeddings)
    }

    /// The share of pictures whose class has the nearest prompts.
    pub fn zero_shot(&self, pairs: &Pairs, classes: &Classes) -> Result<ZeroShot> {
        // A class is the mean of its prompts' unit vectors (Radford et al., 2021, section 3.1.4).
        let mut means = self.empty();
        for prompts in classes.0.values() {
            let each = self.texts(prompts)?;
            let mut mean = vec![0f32; means.width];
            for row in each.rows() {
                mean.iter_mut().zip(row).for_each(|(m, v)| *m += v);
            }
            let mean = Tensor::from_slice(&mean, [1, means.width], autograd::Device::Cpu);
            means.extend(&mean)?;
        }
        let mut result = ZeroShot {
            classes: classes.0.len(),
            pictures: 0,
            without_class: 0,
            right: 0,
            accuracy: 0.0,
        };
        for (caption, image) in pairs.captions.iter().zip(pairs.images.rows()) {
            let Some(own) = classes.of(caption) else {
                result.without_class += 1;
                continue;
            };
            let cosines: Vec<f64> = means.rows().map(|class| cosine(class, image)).collect();
            let others = cosines.iter().enumerate().filter(|(i, _)| *i != own);
            result.pictures += 1;
            // What ties is not told apart, and so not right.
            result.right += usize::from(others.into_iter().all(|(_, c)| *c < cosines[own]));
        }
        if result.pictures == 0 {
            return Err(Error::usage(
                "no caption is, or names, exactly one of the classes: nothing can be classified",
            ));
        }
        result.accuracy = result.right as f64 / result.pictures as f64;
        Ok(result)
    }
}

/// Classes, and the prompts that describe each.
#[derive(Clone, Debug, PartialEq)]
pub struct Classes(BTreeMap<String, Vec<String>>);

impl Classes {
    /// Reads a JSON file: {"class": ["prompt", …], …}.
    pub fn read(path: &Path) -> Result<Classes> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let classes: BTreeMap<String, Vec<String>> =
            serde_json::from_str(&text).map_err(|error| {
                Error::usage(format!(
                    "{} must hold {{\"class\": [\"prompt\", …], …}}: {error}",
                    path.display()
                ))
            })?;
        let empty =
            |(name, prompts): (&String, &Vec<String>)| name.trim().is_empty() || prompts.is_empty();
        if classes.len() < 2 || classes.iter().any(empty) {
            return Err(Error::usage(format!(
                "{} must name two classes or more, and a prompt or more for each",
                path.display()
            )));
        }
        Ok(Classes(classes))
    }

    /// The class that a caption is, or else the only one whose words stand in it.
    fn of(&self, caption: &str) -> Option<usize> {
        let words = |text: &str| {
            let split = text.split(|c: char| !c.is_alphanumeric());
            let words = split.filter(|word| !word.is_empty());
            format!(" {} ", words.collect::<Vec<_>>().join(" ")).to_lowercase()
        };
        let caption = words(caption);
        let names: Vec<String> = self.0.keys().map(|name| words(name)).collect();
        if let Some(whole) = names.iter().position(|name| *name == caption) {
            return Some(whole);
        }
        let mut named = (0..names.len()).filter(|&i| caption.contains(&names[i]));
        match (named.next(), named.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        }
    }
}

/// How often what belongs to a query is among the nearest; in the order of [`RANKS`].
pub type Recall = [f64; RANKS.len()];

/// What retrieval found, each way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Retrieval {
    pub pairs: usize,
    pub ranks: [usize; RANKS.len()],
    pub text_to_image: Recall,
    pub image_to_text: Recall,
}

/// What zero-shot classification found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ZeroShot {
    pub classes: usize,
    pub pictures: usize,
    pub without_class: usize,
    pub right: usize,
    pub accuracy: f64,
}

/// The whole report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub retrieval: Retrieval,
    pub zero_shot: Option<ZeroShot>,
}

impl Report {
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::failure(format!("cannot write the report: {error}")))?;
        files::replace(path, format!("{text}\n").as_bytes())
    }
}

/// Recall among all pairs. Pictures that share a caption belong to the same text, and it to each of them.
pub fn retrieval(pairs: &Pairs) -> Retrieval {
    let Pairs {
        captions,
        images,
        texts,
    } = pairs;
    Retrieval {
        pairs: captions.len(),
        ranks: RANKS,
        text_to_image: recall(captions, texts, images),
        image_to_text: recall(captions, images, texts),
    }
}

fn recall(captions: &[String], queries: &Embeddings, found: &Embeddings) -> Recall {
    let mut hits = [0usize; RANKS.len()];
    for (query, own) in queries.rows().zip(captions) {
        let cosines: Vec<f64> = found.rows().map(|row| cosine(query, row)).collect();
        let belonging = cosines.iter().zip(captions).filter(|(_, c)| *c == own);
        let best = belonging.map(|(c, _)| *c).fold(f64::NEG_INFINITY, f64::max);
        // What ties comes before it.
        let others = cosines.iter().zip(captions).filter(|(_, c)| *c != own);
        let rank = others.filter(|(c, _)| **c >= best).count();
        for (hits, at) in hits.iter_mut().zip(RANKS) {
            *hits += usize::from(rank < at);
        }
    }
    hits.map(|hits| hits as f64 / captions.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embeddings(rows: &[[f32; 2]]) -> Embeddings {
        let mut made = Embeddings {
            values: Vec::new(),
            width: 2,
        };
        let shape = [rows.len(), 2];
        let x = Tensor::from_slice(&rows.concat(), shape, autograd::Device::Cpu);
        made.extend(&x).unwrap();
        made
    }

    fn named(captions: &[&str]) -> Vec<String> {
        captions.iter().map(|c| (*c).to_owned()).collect()
    }

    #[test]
    fn recall_counts_what_is_nearer_than_what_belongs() {
        let pairs = Pairs {
            captions: named(&["a", "b", "c"]),
            texts: embeddings(&[[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0]]),
            // The second and third are exchanged.
            images: embeddings(&[[5.0, 0.1], [-1.0, 0.0], [0.0, 1.0]]),
        };
        let found = retrieval(&pairs);
        assert_eq!(found.text_to_image, [1.0 / 3.0, 1.0, 1.0]);
        assert_eq!(found.image_to_text, [1.0 / 3.0, 1.0, 1.0]);
    }

    #[test]
    fn what_shares_a_caption_belongs_together_and_ties_do_not_help() {
        let pairs = Pairs {
            captions: named(&["a", "a", "b"]),
            texts: embeddings(&[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
            images: embeddings(&[[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]),
        };
        let found = retrieval(&pairs);
        // The text b is as near to a picture of a as to its own.
        assert_eq!(found.text_to_image, [2.0 / 3.0, 1.0, 1.0]);
        // The first picture is nearer to b.
        assert_eq!(found.image_to_text, [2.0 / 3.0, 1.0, 1.0]);
    }

    #[test]
    fn a_caption_names_a_class_by_whole_words() {
        let prompts = || vec!["p".to_owned()];
        let names = ["circle", "red ring", "ring"];
        let classes = Classes(names.map(|name| (name.to_owned(), prompts())).into());
        for (caption, class) in [
            ("a Circle, on white", Some(0)),
            ("ring", Some(2)),
            ("red ring", Some(1)),
            ("a red ring", None), // two of them
            ("a string", None),
            ("circles", None),
        ] {
            assert_eq!(classes.of(caption), class, "{caption}");
        }
    }
}
