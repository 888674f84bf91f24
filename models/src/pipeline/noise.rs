//! Where the pipeline's randomness comes from: a seed, or tensors that are given.

use std::collections::BTreeMap;

use autograd::{DType, Device, Draw, Tensor};
use tensor::Check;

use super::{Options, Stage};
use crate::diffusion::SamplerKind;

/// Where the pipeline's standard normals come from.
pub trait Noise {
    /// Draw number `occurrence` of a stage: 0 is what it starts from, i + 1 what its step i adds.
    ///
    /// # Shapes
    /// `shape` is [n, ..], one row a picture of the batch; pictures are [n, h, w, c]
    fn normal(
        &self,
        stage: Stage,
        occurrence: usize,
        shape: &[usize],
        dtype: DType,
    ) -> tensor::Result<Tensor>;
}

/// Noise that is a function of the seed, the picture's index, the stage and the occurrence: a picture does not depend
/// on what else is in its batch.
#[derive(Clone, Copy, Debug)]
pub struct SeededNoise {
    pub seed: u64,
    /// The index of the batch's first picture.
    pub first_image: u32,
    pub device: Device,
}

impl Noise for SeededNoise {
    fn normal(
        &self,
        stage: Stage,
        occurrence: usize,
        shape: &[usize],
        dtype: DType,
    ) -> tensor::Result<Tensor> {
        let draw = Draw {
            first_sample: self.first_image,
            ..Draw::named(self.seed, &stage.name(), occurrence as u32)
        };
        let mut out = Tensor::uninit(shape, dtype, self.device);
        tensor::ops::random::fill_normal(&mut out, &draw, 1.0)?;
        Ok(out)
    }
}

/// Noise of which a part is given, by the names of [`Latent::name`]; the rest is drawn.
#[derive(Clone, Debug)]
pub struct GivenNoise {
    /// The noise of all pictures, [images, ..]; pictures are [images, h, w, c].
    pub known: BTreeMap<String, Tensor>,
    pub otherwise: SeededNoise,
}

impl GivenNoise {
    /// The same noise, but the decoder starts from `x`.
    ///
    /// # Shapes
    /// x [images, h, w, c]
    pub fn decoder_from(mut self, x: Tensor) -> GivenNoise {
        self.known.insert(name(Stage::Decoder, 0), x);
        self
    }
}

impl Noise for GivenNoise {
    fn normal(
        &self,
        stage: Stage,
        occurrence: usize,
        shape: &[usize],
        dtype: DType,
    ) -> tensor::Result<Tensor> {
        let Some(known) = self.known.get(&name(stage, occurrence)) else {
            return self.otherwise.normal(stage, occurrence, shape, dtype);
        };
        let first = self.otherwise.first_image as usize;
        let check = Check::new("given noise", &[("noise", known)]);
        let enough = known.dims().first().is_some_and(|&images| {
            let end = shape.first().and_then(|&n| first.checked_add(n));
            end.is_some_and(|end| end <= images)
        });
        check.require(enough && known.dims()[1..] == shape[1..], || {
            format!("pictures {first} on of {shape:?} are needed")
        })?;
        let rows = known.narrow(0, first, shape[0])?.contiguous()?;
        rows.cast(dtype)?.to_device(self.otherwise.device)
    }
}

/// A noise tensor that making pictures needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latent {
    pub stage: Stage,
    pub occurrence: usize,
    /// [images, d] or [images, h, w, c].
    pub shape: Vec<usize>,
}

impl Latent {
    /// `prior.0.0`, `decoder.3` or `super_res.0`: the stage (of the prior with its candidate), then the occurrence, as in
    /// [`Noise::normal`].
    pub fn name(&self) -> String {
        name(self.stage, self.occurrence)
    }
}

fn name(stage: Stage, occurrence: usize) -> String {
    format!("{}.{occurrence}", stage.name())
}

/// All noise of `images` pictures, in the order in which it is drawn: that of each embedding in so many draws of so many
/// numbers, and that of pictures of these extents.
pub(super) fn latents(
    options: &Options,
    images: usize,
    (draws, numbers): (usize, usize),
    small: [usize; 3],
    large: [usize; 3],
    larger: Option<[usize; 3]>,
) -> Vec<Latent> {
    let mut all = Vec::new();
    let mut stage = |stage: Stage, draws: usize, extent: &[usize]| {
        all.extend((0..draws).map(|occurrence| Latent {
            stage,
            occurrence,
            shape: [&[images], extent].concat(),
        }));
    };
    for candidate in 0..options.prior_candidates.max(1) {
        stage(Stage::Prior { candidate }, draws, &[numbers]);
    }
    let steps = options.decoder_num_inference_steps;
    stage(
        Stage::Decoder,
        drawn(options.decoder_sampler, steps),
        &small,
    );
    let steps = options.super_res_num_inference_steps;
    stage(
        Stage::SuperRes,
        drawn(options.super_res_sampler, steps),
        &large,
    );
    if let Some(larger) = larger {
        let steps = options.super_res_1024_num_inference_steps;
        let draws = drawn(options.super_res_1024_sampler, steps);
        stage(Stage::SuperRes1024, draws, &larger);
    }
    all
}

/// How often `steps` steps of a sampler draw, its start included.
pub(super) fn drawn(sampler: SamplerKind, steps: usize) -> usize {
    if sampler.draws() { steps } else { 1 }
}
