//! Batches in an order that is a function of seed and position.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use models::tokenizer::Tokenizer;

use super::dataset::{BadSample, BadSamples, Dataset};
use super::decode::Decoder;
use super::random::{Permutation, Stream};
use super::{Error, Result};

/// How batches are made.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderOptions {
    pub batch_size: usize,
    pub seed: u64,
    /// Samples already consumed: where a resumed run goes on.
    pub position: u64,
    /// Threads that read and decode; a set that is kept in memory needs none.
    pub workers: usize,
    /// Batches that each worker keeps ready.
    pub prefetch: usize,
}

impl LoaderOptions {
    pub fn new(batch_size: usize, seed: u64) -> Self {
        LoaderOptions {
            batch_size,
            seed,
            position: 0,
            workers: 2,
            prefetch: 2,
        }
    }
}

/// Pictures with their captions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// RGB `[n, size, size, 3]`.
    pub images: Vec<u8>,
    /// `[n, context]`; empty without a tokenizer.
    pub token_ids: Vec<u32>,
    pub captions: Vec<String>,
    pub keys: Vec<String>,
    /// Numbers of the samples in the data set.
    pub indices: Vec<u64>,
}

impl Batch {
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }
}

/// What a batch was made of, and what could not be used.
type Assembled = Result<(Batch, Vec<(u64, String)>)>;

/// What workers share.
struct Recipe {
    dataset: Arc<Dataset>,
    tokenizer: Option<Arc<Tokenizer>>,
    batch_size: usize,
    seed: u64,
}

impl Recipe {
    /// So many unusable samples in a row are no accident.
    const ATTEMPTS: u64 = 100;

    /// The sample for a position: that of the epoch's shuffle, or, in place of an unusable one, another.
    fn index(&self, position: u64, attempt: u64) -> u64 {
        let len = self.dataset.len();
        let (epoch, within) = (position / len, position % len);
        let (stream, at) = match attempt {
            0 => (Stream::Order, within),
            _ => (Stream::Replacement, (within + attempt) % len),
        };
        Permutation::new(self.seed, stream, epoch, len).at(at)
    }

    /// The batch that starts at `position`.
    fn assemble(&self, position: u64, decoder: &mut Decoder) -> Assembled {
        let mut batch = Batch::default();
        let mut bad = Vec::new();
        for slot in 0..self.batch_size as u64 {
            let mut attempt = 0;
            loop {
                let index = self.index(position + slot, attempt);
                match self.push(&mut batch, index, decoder)? {
                    Ok(()) => break,
                    Err(reason) => bad.push((index, reason)),
                }
                attempt += 1;
                if attempt == Self::ATTEMPTS {
                    return Err(Error::TooManyBad {
                        bad: attempt,
                        of: attempt,
                        limit: self.dataset.options().max_bad_share,
                        example: bad
                            .last()
                            .map(|(i, reason)| format!("{}: {reason}", self.dataset.name(*i)))
                            .unwrap_or_default(),
                    });
                }
            }
        }
        Ok((batch, bad))
    }

    /// Appends a sample, or says why it cannot be used.
    fn push(
        &self,
        batch: &mut Batch,
        index: u64,
        decoder: &mut Decoder,
    ) -> Result<std::result::Result<(), String>> {
        let start = batch.images.len();
        batch.images.resize(start + self.dataset.picture_bytes(), 0);
        let fetched = self
            .dataset
            .fetch(index, decoder, &mut batch.images[start..])?;
        let taken = fetched.and_then(|caption| {
            if let Some(tokenizer) = &self.tokenizer {
                let ids = tokenizer.encode_truncated(&caption);
                batch.token_ids.extend(ids.map_err(|e| e.to_string())?);
            }
            batch.captions.push(caption);
            batch.keys.push(self.dataset.key(index).to_string());
            batch.indices.push(index);
            Ok(())
        });
        if taken.is_err() {
            batch.images.truncate(start);
        }
        Ok(taken)
    }
}

/// An endless sequence of shuffled batches.
///
/// Which samples a batch holds depends on data set, seed and position alone: not on the number of workers, not on
/// whether the set is kept in memory, and not on where the loader was started. An epoch visits every sample once; where
/// one cannot be used, another takes its place.
pub struct Loader {
    recipe: Arc<Recipe>,
    position: u64,
    /// Batch `i` from the start comes from worker `i mod workers`.
    workers: Vec<(Receiver<Assembled>, JoinHandle<()>)>,
    turn: usize,
    decoder: Decoder,
    ledger: Ledger,
}

impl Loader {
    /// # Errors
    /// If `batch_size` is 0.
    pub fn new(
        dataset: Arc<Dataset>,
        tokenizer: Option<Arc<Tokenizer>>,
        options: &LoaderOptions,
    ) -> Result<Loader> {
        if options.batch_size == 0 {
            return Err(Error::Invalid("batch_size must be at least 1".into()));
        }
        let decoder = dataset.decoder();
        let ledger = Ledger::new(dataset.len());
        let workers = if dataset.is_resident() {
            0
        } else {
            options.workers
        };
        let recipe = Arc::new(Recipe {
            dataset,
            tokenizer,
            batch_size: options.batch_size,
            seed: options.seed,
        });
        let workers = (0..workers)
            .map(|worker| {
                let recipe = Arc::clone(&recipe);
                let (sender, receiver) = sync_channel(options.prefetch);
                let stride = (workers * recipe.batch_size) as u64;
                let mut position = options.position + (worker * recipe.batch_size) as u64;
                let handle = thread::spawn(move || {
                    let mut decoder = recipe.dataset.decoder();
                    loop {
                        let assembled = recipe.assemble(position, &mut decoder);
                        let failed = assembled.is_err();
                        // The receiver is gone when the loader is.
                        if sender.send(assembled).is_err() || failed {
                            return;
                        }
                        position += stride;
                    }
                });
                (receiver, handle)
            })
            .collect();
        Ok(Loader {
            recipe,
            position: options.position,
            workers,
            turn: 0,
            decoder,
            ledger,
        })
    }

    /// The next batch; waits for it if it is not ready.
    ///
    /// # Errors
    /// If a shard cannot be read any more, or too many samples are bad. The loader is then of no further use.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let (batch, bad) = match self.workers.get(self.turn) {
            None => self.recipe.assemble(self.position, &mut self.decoder)?,
            Some((receiver, _)) => receiver.recv().unwrap_or_else(|_| {
                Err(Error::Invalid("a thread that reads data has ended".into()))
            })?,
        };
        self.turn = (self.turn + 1) % self.workers.len().max(1);
        self.position += batch.len() as u64;
        let dataset = &self.recipe.dataset;
        // What is kept in memory was counted when the set was opened.
        if !dataset.is_resident() {
            self.ledger.record(dataset, &batch, bad)?;
        }
        Ok(batch)
    }

    /// Samples consumed since the beginning of training: all that a checkpoint needs to know of this loader.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Epochs consumed, with the part of the current one.
    pub fn epoch(&self) -> f64 {
        self.position as f64 / self.recipe.dataset.len() as f64
    }

    /// Distinct samples that this loader found unusable.
    pub fn bad(&self) -> &BadSamples {
        &self.ledger.bad
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        for (receiver, handle) in self.workers.drain(..) {
            drop(receiver);
            // A worker that failed has already been reported, or nobody asked for its batch.
            let _ = handle.join();
        }
    }
}

/// Which samples were tried, and which of them were bad, each counted once.
struct Ledger {
    tried: Vec<u64>,
    distinct: u64,
    bad: BadSamples,
}

impl Ledger {
    /// The share of bad samples is judged as if at least this many had been tried, so that a run does not stop over
    /// an unlucky start.
    const LEAST: u64 = 1000;

    fn new(len: u64) -> Self {
        Ledger {
            tried: vec![0; len.div_ceil(64) as usize],
            distinct: 0,
            bad: BadSamples::default(),
        }
    }

    /// Whether `index` is new.
    fn mark(&mut self, index: u64) -> bool {
        let (word, bit) = (&mut self.tried[(index / 64) as usize], 1 << (index % 64));
        let new = *word & bit == 0;
        *word |= bit;
        self.distinct += u64::from(new);
        new
    }

    fn record(&mut self, dataset: &Dataset, batch: &Batch, bad: Vec<(u64, String)>) -> Result<()> {
        for &index in &batch.indices {
            self.mark(index);
        }
        for (index, reason) in bad {
            if self.mark(index) {
                let name = dataset.name(index);
                tracing::warn!("skipped {name}: {reason}");
                self.bad.add(BadSample { name, reason });
            }
        }
        let of = self.distinct.max(dataset.len().min(Self::LEAST));
        self.bad.check(of, dataset.options().max_bad_share)
    }
}

/// Every usable sample once, in the data set's order, for validation; the last batch may be shorter.
pub struct Sequential {
    recipe: Recipe,
    next: u64,
    decoder: Decoder,
    bad: BadSamples,
}

impl Sequential {
    pub fn new(
        dataset: Arc<Dataset>,
        tokenizer: Option<Arc<Tokenizer>>,
        batch_size: usize,
    ) -> Self {
        Sequential {
            decoder: dataset.decoder(),
            recipe: Recipe {
                dataset,
                tokenizer,
                batch_size: batch_size.max(1),
                seed: 0,
            },
            next: 0,
            bad: BadSamples::default(),
        }
    }

    /// Samples left out so far.
    pub fn bad(&self) -> &BadSamples {
        &self.bad
    }
}

impl Iterator for Sequential {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        let mut batch = Batch::default();
        while batch.len() < self.recipe.batch_size && self.next < self.recipe.dataset.len() {
            match self.recipe.push(&mut batch, self.next, &mut self.decoder) {
                Err(error) => return Some(Err(error)),
                Ok(Ok(())) => {}
                Ok(Err(reason)) => self.bad.add(BadSample {
                    name: self.recipe.dataset.name(self.next),
                    reason,
                }),
            }
            self.next += 1;
        }
        (!batch.is_empty()).then_some(Ok(batch))
    }
}

#[cfg(test)]
mod tests {
    use super::super::DatasetOptions;
    use super::super::bpe::train_tokenizer;
    use super::super::decode::tests::png;
    use super::super::shapes::shards::{MakeShapes, make_shapes};
    use super::*;
    use std::collections::HashSet;
    use std::fs;
    use std::path::Path;

    fn shapes(dir: &Path, count: usize, resident_bytes: u64) -> Arc<Dataset> {
        let mut options = MakeShapes::new(dir, count);
        options.size = 16;
        make_shapes(&options, |_| {}).unwrap();
        open(dir, resident_bytes, 0.05)
    }

    fn open(dir: &Path, resident_bytes: u64, max_bad_share: f64) -> Arc<Dataset> {
        let mut options = DatasetOptions::new(16);
        options.resident_bytes = resident_bytes;
        options.max_bad_share = max_bad_share;
        Arc::new(Dataset::open(&dir.display().to_string(), options).unwrap())
    }

    fn batches(dataset: &Arc<Dataset>, position: u64, workers: usize, count: usize) -> Vec<Batch> {
        let options = LoaderOptions {
            position,
            workers,
            ..LoaderOptions::new(7, 5)
        };
        let mut loader = Loader::new(Arc::clone(dataset), None, &options).unwrap();
        (0..count).map(|_| loader.next_batch().unwrap()).collect()
    }

    #[test]
    fn order_is_a_function_of_seed_and_position() {
        let dir = tempfile::tempdir().unwrap();
        let streamed = shapes(dir.path(), 50, 0);
        let want = batches(&streamed, 0, 0, 20);
        for workers in [1, 2, 5] {
            assert_eq!(
                batches(&streamed, 0, workers, 20),
                want,
                "{workers} workers"
            );
        }
        assert_eq!(batches(&shapes(dir.path(), 50, 1 << 20), 0, 2, 20), want);
        // Resumed anywhere, also across the end of an epoch.
        assert_eq!(batches(&streamed, 7 * 6, 2, 14), want[6..]);
        // An epoch is a permutation, and two epochs differ.
        let order: Vec<u64> = want.iter().flat_map(|b| b.indices.clone()).collect();
        for epoch in [&order[..50], &order[50..100]] {
            assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), 50);
        }
        assert_ne!(order[..50], order[50..100]);
    }

    #[test]
    fn batches_carry_tokens_keys_and_captions() {
        let dir = tempfile::tempdir().unwrap();
        let dataset = shapes(dir.path(), 30, 0);
        let captions = dataset.captions(1000).unwrap();
        let tokenizer = train_tokenizer(captions.iter().map(String::as_str), 700, 24).unwrap();
        let tokenizer = Arc::new(tokenizer);
        let options = LoaderOptions::new(4, 1);
        let mut loader =
            Loader::new(Arc::clone(&dataset), Some(Arc::clone(&tokenizer)), &options).unwrap();
        let batch = loader.next_batch().unwrap();
        assert_eq!(loader.position(), 4);
        assert_eq!(batch.images.len(), 4 * 16 * 16 * 3);
        assert_eq!(batch.token_ids.len(), 4 * 24);
        for (i, ids) in batch.token_ids.chunks_exact(24).enumerate() {
            assert_eq!(ids, tokenizer.encode(&batch.captions[i]).unwrap());
            assert_eq!(batch.keys[i], dataset.key(batch.indices[i]));
        }
    }

    /// A folder of `count` pictures of which every tenth is damaged.
    fn damaged(dir: &Path, count: usize) {
        let red = png(16, 16, &[220, 40, 40].repeat(256));
        for i in 0..count {
            let bytes = if i % 10 == 9 { &red[..50] } else { &red[..] };
            fs::write(dir.join(format!("{i:03}.png")), bytes).unwrap();
            fs::write(dir.join(format!("{i:03}.txt")), "red").unwrap();
        }
    }

    #[test]
    fn bad_samples_are_replaced_alike_everywhere_and_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        damaged(dir.path(), 60);
        let dataset = open(dir.path(), 0, 0.2);
        let want = batches(&dataset, 0, 0, 30);
        assert!(want.iter().all(|b| b.len() == 7));
        assert!(want.iter().flat_map(|b| &b.indices).all(|i| i % 10 != 9));
        for workers in [1, 3] {
            assert_eq!(batches(&dataset, 0, workers, 30), want);
        }
        assert_eq!(batches(&open(dir.path(), 1 << 20, 0.2), 0, 1, 30), want);
        let mut loader = Loader::new(dataset, None, &LoaderOptions::new(7, 5)).unwrap();
        (0..30).for_each(|_| drop(loader.next_batch().unwrap()));
        assert_eq!(loader.bad().count, 6);
        assert!(loader.bad().named[0].name.ends_with("9.png"));
    }

    #[test]
    fn a_run_stops_when_too_many_samples_are_bad() {
        let dir = tempfile::tempdir().unwrap();
        damaged(dir.path(), 60);
        let dataset = open(dir.path(), 0, 0.08);
        let mut loader = Loader::new(dataset, None, &LoaderOptions::new(7, 5)).unwrap();
        let error = (0..30).find_map(|_| loader.next_batch().err()).unwrap();
        let says = error.to_string();
        assert!(says.starts_with("5 of 60 samples are unusable"), "{says}");
        // Nothing but bad samples ends at once, whatever is allowed.
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.png"), "no image").unwrap();
        fs::write(dir.path().join("a.txt"), "red").unwrap();
        let dataset = open(dir.path(), 0, 1.0);
        let mut loader = Loader::new(dataset, None, &LoaderOptions::new(1, 0)).unwrap();
        let says = loader.next_batch().unwrap_err().to_string();
        assert!(says.contains("a.png: it is not a PNG"), "{says}");
    }

    #[test]
    fn validation_visits_every_good_sample_once_in_order() {
        let dir = tempfile::tempdir().unwrap();
        damaged(dir.path(), 25);
        let dataset = open(dir.path(), 0, 0.2);
        let mut pass = Sequential::new(dataset, None, 10);
        let batches: Vec<Batch> = pass.by_ref().map(Result::unwrap).collect();
        let sizes: Vec<usize> = batches.iter().map(Batch::len).collect();
        assert_eq!(sizes, [10, 10, 3]);
        let order: Vec<u64> = batches.iter().flat_map(|b| b.indices.clone()).collect();
        assert!(order.is_sorted() && !order.contains(&9));
        assert_eq!(pass.bad().count, 2);
    }
}
