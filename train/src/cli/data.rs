//! `unclip data …`: data sets.

use std::path::PathBuf;

use crate::Result;
use crate::data::shapes::shards::{MakeShapes, make_shapes};
use crate::progress::Progress;

/// Make and look at data sets.
#[derive(clap::Subcommand)]
pub enum Command {
    MakeShapes(Shapes),
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

impl Command {
    pub fn run(self) -> Result<()> {
        match self {
            Command::MakeShapes(shapes) => {
                let options = MakeShapes {
                    seed: shapes.seed,
                    size: shapes.size,
                    per_shard: shapes.per_shard,
                    ..MakeShapes::new(&shapes.out, shapes.count)
                };
                let mut progress = Progress::new("shapes", shapes.count as u64, 0);
                let shards = make_shapes(&options, |done| progress.count(done as u64))?;
                drop(progress);
                println!(
                    "{} pictures in {} shards under {}",
                    shapes.count,
                    shards.len(),
                    shapes.out.display()
                );
                Ok(())
            }
        }
    }
}
