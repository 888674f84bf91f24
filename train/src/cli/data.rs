//! `unclip data …`: data sets.

use std::path::PathBuf;

use crate::Result;
use crate::data::shapes::shards::{MakeShapes, make_shapes};
use crate::data::{BadSample, Dataset, DatasetOptions};
use crate::progress::Progress;

/// Make and look at data sets.
#[derive(clap::Subcommand)]
pub enum Command {
    MakeShapes(Shapes),
    Inspect(Inspect),
}

/// Write captioned pictures of coloured shapes as WebDataset shards.
#[derive(clap::Args)]
pub struct Shapes {
    /// The folder that gets 00000.tar, 00001.tar, …
    #[arg(short, long)]
    out: PathBuf,
    /// Pictures in all.
    #[arg(short, long, default_value_t = 20_000)]
    count: usize,
    /// Side of the pictures in pixels.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Every picture is a function of it and its number.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pictures in one shard.
    #[arg(long, default_value_t = 5_000)]
    per_shard: usize,
}

/// Read every sample of a data set, and say what it holds and what cannot be used.
#[derive(clap::Args)]
pub struct Inspect {
    /// Shards such as 'data/{00000..00003}.tar', a folder, or a CSV or JSONL list; :: joins several.
    data: String,
    /// Captions to show.
    #[arg(long, default_value_t = 5)]
    captions: u64,
    /// Stop when more than this share of the samples cannot be used.
    #[arg(long, default_value_t = 0.05)]
    max_bad_share: f64,
}

impl Command {
    pub fn run(self) -> Result<()> {
        match self {
            Command::MakeShapes(shapes) => shapes.run(),
            Command::Inspect(inspect) => inspect.run(),
        }
    }
}

impl Shapes {
    fn run(self) -> Result<()> {
        let options = MakeShapes {
            seed: self.seed,
            size: self.size,
            per_shard: self.per_shard,
            ..MakeShapes::new(&self.out, self.count)
        };
        let mut progress = Progress::new("shapes", self.count as u64, 0);
        let shards = make_shapes(&options, |done| progress.count(done as u64))?;
        drop(progress);
        println!(
            "{} pictures in {} shards under {}",
            self.count,
            shards.len(),
            self.out.display()
        );
        Ok(())
    }
}

/// Side that pictures are decoded at for a look: decoding is what finds the bad ones.
const SIDE: usize = 64;
/// Bad samples that are named.
const NAMED: usize = 20;

impl Inspect {
    fn run(self) -> Result<()> {
        let options = DatasetOptions {
            max_bad_share: self.max_bad_share,
            resident_bytes: 0,
            ..DatasetOptions::new(SIDE)
        };
        let dataset = Dataset::open(&self.data, options)?;
        let mut bad = dataset.bad().clone();
        let mut decoder = dataset.decoder();
        let mut pixels = vec![0; dataset.picture_bytes()];
        let mut progress = Progress::new("inspect", dataset.len(), 0);
        for index in 0..dataset.len() {
            if let Err(reason) = dataset.fetch(index, &mut decoder, &mut pixels)? {
                let name = dataset.name(index);
                bad.add(BadSample { name, reason });
            }
            progress.count(index + 1);
        }
        drop(progress);
        println!(
            "{} samples with picture and caption, {} that cannot be used",
            dataset.len(),
            bad.count
        );
        for sample in bad.named.iter().take(NAMED) {
            println!("  {sample}");
        }
        for caption in dataset.captions(self.captions)? {
            println!("  \"{caption}\"");
        }
        Ok(())
    }
}
