//! The four networks that are trained, each as the trainer sees it: parameters, batches, a loss, sample pictures.

pub mod autoregressive;
mod bsr;
pub mod clip;
pub mod decoder;
pub mod frozen;
mod pairs;
pub mod prior;
pub mod source;
pub mod upsampler;

use std::path::Path;
use std::sync::Arc;

use autograd::{DType, Device, Draw, ParamLayout, Params, StepState, Tape, Tensor, Var};
use models::Model;
use models::diffusion::{
    self, Prediction, SamplerKind, Schedule, SchedulerConfig, Weighting, denoising_loss,
};
use models::weights::{self, Precision};

use crate::Result;
use crate::interrupt::Interrupt;
use crate::picture::Picture;

/// What networks are trained in.
pub const DTYPE: DType = DType::F32;

/// A loss, and what else the metrics show.
pub struct Loss {
    /// Scalar.
    pub total: Var,
    /// Reads what else there is, when the step is over: before, a GPU may not have computed it.
    pub numbers: Box<dyn FnOnce() -> Result<Numbers>>,
}

/// What the metrics show beside a loss.
#[derive(Debug, Default)]
pub struct Numbers {
    /// By name.
    pub parts: Vec<(&'static str, f64)>,
    /// The time step and squared error of each sample, for the loss by quartile of time.
    pub by_time: Vec<(usize, f64)>,
}

/// What the trainer needs to know of a network.
pub trait Stage {
    /// What one forward pass is made from; kept, so that a step can be run again.
    type Batch;

    fn layout(&self) -> &Arc<ParamLayout>;

    /// Runs once before the first step of this process. `fresh` is false where parameters come from a checkpoint.
    fn prepare(&mut self, params: &mut Params, fresh: bool, interrupt: &Interrupt) -> Result<()>;

    /// The next `train_batch_size` samples.
    fn batch(&mut self) -> Result<Self::Batch>;

    /// The loss of a batch, where the parameters live: a function of them, the batch and the tape's counters. Reads nothing
    /// that it computes.
    fn loss(&self, t: &Tape, batch: &Self::Batch) -> Result<Loss>;

    /// Runs after every update, for constraints on parameters.
    fn constrain(&self, _params: &mut Params) -> Result<()> {
        Ok(())
    }

    /// Writes the components into `dir` as other software opens them.
    fn save(&self, params: &Params, dir: &Path) -> Result<()>;

    /// Reads what [`Stage::save`] wrote.
    fn load(&self, dir: &Path) -> Result<Params>;

    /// Measures what is kept beside the weights of the finished network, which `dir` holds.
    fn conclude(&self, _params: &Params, _dir: &Path, _interrupt: &Interrupt) -> Result<()> {
        Ok(())
    }

    /// Pictures that show what the network can do by now, if it makes any.
    fn samples(&self, params: &Params, interrupt: &Interrupt) -> Result<Option<Picture>>;
}

/// The draw called `name` at the counters of a step.
fn draw(at: StepState, name: &str) -> Draw {
    Draw {
        step: at.step,
        first_sample: at.first_sample,
        ..Draw::named(at.seed, name, 0)
    }
}

/// One uniform number in [0, 1) per sample: a function of the counters alone.
fn uniform(at: StepState, name: &str, n: usize) -> Vec<f64> {
    let draw = draw(at, name);
    (0..n as u32)
        .map(|sample| f64::from(draw.words(sample, 0)[0]) / 4_294_967_296.0)
        .collect()
}

/// Which samples keep what is dropped with probability `share`.
fn kept(at: StepState, name: &str, n: usize, share: f64) -> Vec<bool> {
    uniform(at, name, n).iter().map(|&u| u >= share).collect()
}

/// The mean squared difference of each sample.
///
/// # Shapes
/// output and target [n, ..]; where output has twice the channels, the first half is compared
fn squared_errors(output: &Tensor, target: &Tensor) -> Result<Vec<f64>> {
    let (n, width) = (target.dims()[0], target.shape().last_dim());
    let (y, x) = (output.to_f64_vec()?, target.to_f64_vec()?);
    let (per_y, per_x) = (y.len() / n.max(1), x.len() / n.max(1));
    let stride = width * per_y / per_x.max(1);
    let samples = y.chunks(per_y.max(1)).zip(x.chunks(per_x.max(1)));
    let error = |(y, x): (&[f64], &[f64])| {
        let rows = y.chunks(stride).zip(x.chunks(width));
        let sum: f64 = rows
            .flat_map(|(y, x)| y.iter().zip(x))
            .map(|(y, x)| (y - x).powi(2))
            .sum();
        sum / per_x as f64
    };
    Ok(samples.map(error).collect())
}

/// A batch's tensor where the parameters live.
fn given(t: &Tape, x: &Tensor) -> Result<Var> {
    Ok(t.constant(x.to_device(t.device())?))
}

/// The loss of a network without a variance, every step weighed alike.
///
/// # Shapes
/// output, x0 and noise [n, ..], n steps
fn denoising(
    t: &Tape,
    schedule: &Schedule,
    prediction: Prediction,
    output: &Var,
    x0: &Var,
    noise: &Var,
    at: Vec<usize>,
) -> Result<Loss> {
    let target = diffusion::target(t, schedule, prediction, x0, noise, &at)?;
    let uniform = Weighting::Uniform;
    let total = denoising_loss(t, schedule, prediction, uniform, output, x0, noise, &at)?;
    let (output, target) = (output.tensor().clone(), target.tensor().clone());
    let numbers = move || {
        let errors = squared_errors(&output, &target)?;
        Ok(Numbers {
            parts: Vec::new(),
            by_time: at.into_iter().zip(errors).collect(),
        })
    };
    Ok(Loss {
        total,
        numbers: Box::new(numbers),
    })
}

/// One component's parameters out of an arena that holds several, each under its prefix.
fn part<M: Model>(joint: &Params, prefix: &str, model: &M) -> Result<Params> {
    let (_, layout) = models::declare::<M>(model.config())?;
    let mut own = Params::zeros(layout.clone(), joint.dtype(), joint.device());
    for (id, info) in layout.iter() {
        if let Some(source) = joint.layout().find(&format!("{prefix}.{}", info.name)) {
            own.set(id, &joint.get(source)?)?;
        }
    }
    Ok(own)
}

/// Puts a component's parameters back into the arena that holds several.
fn put_part(joint: &mut Params, prefix: &str, own: &Params) -> Result<()> {
    for (id, info) in own.layout().iter() {
        if let Some(target) = joint.layout().find(&format!("{prefix}.{}", info.name)) {
            joint.set(target, &own.get(id)?)?;
        }
    }
    Ok(())
}

/// Writes a component into `dir` as its library opens it.
fn save_component<M: Model>(dir: &Path, model: &M, params: &Params) -> Result<()> {
    Ok(weights::save(dir, model, params, Precision::Full)?)
}

/// Reads the weights of a component whose layout is known.
fn load_component<M: Model>(dir: &Path, layout: Arc<ParamLayout>) -> Result<Params> {
    Ok(weights::load_params(
        &dir.into(),
        M::CLASS.library.weights_file(),
        M::CLASS.name,
        layout,
        DTYPE,
        Device::Cpu,
    )?)
}

/// Walks down from noise for a sample picture; always the same noise, so that pictures of different steps compare.
fn denoise(
    scheduler: &SchedulerConfig,
    steps: usize,
    shape: &[usize],
    interrupt: &Interrupt,
    predict: impl Fn(usize, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let normal = |occurrence: u32| -> autograd::Result<Tensor> {
        let mut out = Tensor::uninit(shape, DTYPE, Device::Cpu);
        tensor::ops::random::fill_normal(&mut out, &Draw::named(0, "preview", occurrence), 1.0)?;
        Ok(out)
    };
    let mut sampler = SamplerKind::Ddim { eta: 0.0 }.sampler(scheduler, steps)?;
    let mut x = normal(0)?;
    let mut clean = x.clone();
    for (i, at) in sampler.timesteps().to_vec().into_iter().enumerate() {
        interrupt.check()?;
        let output = predict(at, &x)?;
        let denoised = sampler.step(i, &output, &x, &mut || normal(i as u32 + 1))?;
        (x, clean) = (denoised.sample, denoised.x0);
    }
    Ok(clean)
}
