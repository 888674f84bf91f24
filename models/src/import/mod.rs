//! Weights under the names of those who trained them first: OpenAI's and OpenCLIP's CLIP, and Karlo's own checkpoints.
//!
//! A module here says of each of our parameters which of their tensors it lies in; reading, and naming everything that
//! does not fit, is the same for all.

mod clip;
mod karlo;

pub use clip::clip;
pub use karlo::{karlo_decoder, karlo_prior, karlo_upsampler};

use crate::weights::file::{Part, Source};

/// The first of `table` whose left side begins `name`, replaced by its right side.
fn renamed(name: &str, table: &[(&str, &str)]) -> String {
    let matching = table
        .iter()
        .find_map(|(ours, theirs)| Some((name.strip_prefix(ours)?, theirs)));
    match matching {
        Some((rest, theirs)) => format!("{theirs}{rest}"),
        None => name.to_owned(),
    }
}

/// The third of a projection to queries, keys and values, or the half of one to keys and values.
fn fused(name: String, index: usize, of: usize, run: usize) -> Source {
    Source {
        part: Part::Rows { index, of, run },
        ..Source::whole(name)
    }
}
