//! Captions with the CLIP embeddings of their pictures: what both priors are trained on, and how what they draw is judged.

use std::sync::Arc;

use autograd::{Device, StepState, Tensor};
use models::embeddings::cosine;

use super::frozen::{FrozenClip, ImageEmbeddings, Texts};
use super::{kept, source};
use crate::data::{self, Dataset, Loader};
use crate::interrupt::Interrupt;
use crate::{Result, config};

pub struct Pairs {
    pub clip: FrozenClip,
    dataset: Arc<Dataset>,
    loader: Loader,
    config: config::Prior,
    /// Made by [`Pairs::prepare`].
    known: Option<ImageEmbeddings>,
}

/// Embeddings [n, d] on the host, and token ids of their captions.
pub struct Batch {
    pub ids: Vec<u32>,
    pub embeddings: Tensor,
}

impl Pairs {
    pub fn open(config: &config::Prior, position: u64, device: Device) -> Result<Pairs> {
        config::check_share("text_drop", config.text_drop)?;
        let clip = FrozenClip::open(&config.clip, device)?;
        let dataset = source::open(&config.common)?;
        Ok(Pairs {
            loader: source::loader(&config.common, &dataset, Some(clip.tokenizer()), position)?,
            clip,
            dataset,
            config: config.clone(),
            known: None,
        })
    }

    /// Embeds all pictures, where that fits in memory.
    pub fn prepare(&mut self, interrupt: &Interrupt) -> Result<()> {
        self.known = Some(ImageEmbeddings::new(&self.clip, &self.dataset, interrupt)?);
        Ok(())
    }

    pub fn next(&mut self) -> Result<Batch> {
        let batch = self.loader.next_batch()?;
        self.embedded(batch)
    }

    /// The first pictures of the stage's stream, as many as there are at most.
    pub fn first(&self, samples: usize) -> Result<Batch> {
        let samples = self.dataset.len().min(samples as u64) as usize;
        let tokenizer = Some(self.clip.tokenizer());
        self.embedded(source::preview(
            &self.config.common,
            &self.dataset,
            tokenizer,
            samples,
        )?)
    }

    fn embedded(&self, batch: data::Batch) -> Result<Batch> {
        let embeddings = match &self.known {
            Some(known) => known.of(&self.clip, &batch)?,
            None => self.clip.images(&batch.images, self.dataset.size())?,
        };
        Ok(Batch {
            ids: batch.token_ids,
            embeddings,
        })
    }

    /// What n captions condition on, some of them dropped.
    pub fn texts(&self, ids: &[u32], n: usize, at: StepState) -> Result<Texts> {
        let mut ids = ids.to_vec();
        let keep = kept(at, "prior.text_drop", n, self.config.text_drop);
        source::drop_texts(&mut ids, &keep, self.clip.empty());
        self.clip.texts(&ids)
    }
}

/// How image embeddings that were drawn for captions compare with those of the captions' pictures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Cosine of the drawn with the picture's own, the mean over captions.
    pub own: f64,
    /// With that of the next caption's picture.
    pub other: f64,
    /// With the text's.
    pub text: f64,
    /// Of the picture's with the text's.
    pub picture_and_text: f64,
    pub samples: usize,
}

impl Judged {
    /// # Shapes
    /// drawn, pictures, texts [n, d]
    pub fn new(drawn: &Tensor, pictures: &Tensor, texts: &Tensor) -> Result<Judged> {
        let (n, d) = (drawn.dims()[0], drawn.dims()[1]);
        let [drawn, pictures, texts] = [
            drawn.to_f64_vec()?,
            pictures.to_f64_vec()?,
            texts.to_f64_vec()?,
        ];
        let mean = |a: &[f64], b: &[f64], shift: usize| {
            let row = |x: &'_ [f64], i: usize| x[i % n * d..][..d].to_vec();
            let cosines = (0..n).map(|i| cosine(&row(a, i), &row(b, i + shift)));
            cosines.sum::<f64>() / n as f64
        };
        Ok(Judged {
            own: mean(&drawn, &pictures, 0),
            other: mean(&drawn, &pictures, 1),
            text: mean(&drawn, &texts, 0),
            picture_and_text: mean(&pictures, &texts, 0),
            samples: n,
        })
    }
}

impl std::fmt::Display for Judged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} embeddings drawn: cosine {:.3} with their picture's ({:.3} with another's), {:.3} with their text's (the \
             picture's has {:.3})",
            self.samples, self.own, self.other, self.text, self.picture_and_text
        )
    }
}
