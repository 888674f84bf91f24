//! One training step: forward, backward, gradient norm, and the fused update of weights, moments and average.
//!
//! On the CPU the norm is looked at before the update. A GPU is asked for the whole step first, which it is then told to
//! take as one: the first step runs op by op, the second is recorded ([`Graph`]), and those after it are replayed.

use autograd::{Decay, Device, ParamGrads, ParamInfo, ParamLayout, Params, StepState, Tape, Var};
use tensor::Tensor;
use tensor::graph::{Graph, Replay};
use tensor::ops::muon::{self, GradientScale, Matrices, Matrix, Rates};
use tensor::ops::optimizer::{self, AdamW, Arenas, Clipped, Portions, Run, clip_factor};

use crate::config::{Common, Optimizer};
use crate::{Error, Result, sharpness};

/// Everything that a step reads and writes, in arenas of one layout.
pub struct Step {
    pub params: Params,
    /// The averaged weights, which sampling uses.
    pub ema: Tensor,
    /// First moment.
    pub exp_avg: Tensor,
    /// Second moment.
    pub exp_avg_sq: Tensor,
    /// `None` only after an error.
    grads: Option<ParamGrads>,
    /// Of one pass at the weights as they are, where gradients are taken elsewhere; `None` before the first.
    local: Option<ParamGrads>,
    /// What AdamW updates.
    runs: Vec<Run>,
    /// What Muon updates; the first moment is its momentum.
    matrices: Matrices,
    settings: Settings,
    /// `None` on the CPU.
    on_gpu: Option<OnGpu>,
}

/// What a step on a GPU keeps.
struct OnGpu {
    portions: Portions,
    graph: Option<Graph>,
    /// Steps that ran op by op since the start, or since one was not the one that was recorded.
    warm: usize,
    /// Steps that were not the one that was recorded.
    divergences: usize,
}

impl OnGpu {
    /// Steps that run op by op before one is recorded: they fill the pool and compile the kernels.
    const WARM: usize = 1;
    /// Steps that may differ from the recorded one before recording is given up.
    const TRIES: usize = 4;
}

/// A step that a GPU was asked for.
struct Asked {
    /// Of each micro-step, a scalar.
    losses: Vec<Tensor>,
    clipped: Clipped,
}

/// What stays the same from step to step.
#[derive(Clone, Copy, Debug)]
struct Settings {
    seed: u64,
    micro_steps: usize,
    batch: usize,
    adamw: AdamW,
    muon_momentum: f64,
    /// Muon's learning rate for one of AdamW.
    muon_rate: f64,
    max_grad_norm: f64,
    ema_decay: f64,
    /// How far from the weights the gradient is taken; see [`Step::with_sharpness`].
    sam_rho: f64,
}

/// What a step gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// At the weights as they were.
    pub loss: f64,
    /// Of the gradient, before it is clipped.
    pub norm: f64,
}

/// One forward and backward pass of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    pub micro_step: usize,
    /// Whether it is the second pass of its micro-step, at weights moved by [`Step::with_sharpness`]. It draws what the
    /// first drew.
    pub moved: bool,
}

impl Step {
    /// # Errors
    /// If there are more parameters than kernels count.
    pub fn new(params: Params, common: &Common) -> Result<Step> {
        let device = params.device();
        let zeros = || {
            Tensor::zeros(
                [params.layout().arena_len()],
                params.dtype(),
                params.device(),
            )
        };
        let matrices = match common.optimizer {
            Optimizer::Adamw => Vec::new(),
            Optimizer::Muon => matrices(params.layout()),
        };
        let runs = runs(params.layout(), &matrices);
        let matrices = Matrices::new(&matrices, params.dtype(), device);
        let on_gpu = match device {
            Device::Cpu => None,
            device => Some(OnGpu {
                portions: Portions::new(&runs, device)?,
                graph: None,
                warm: 0,
                divergences: 0,
            }),
        };
        Ok(Step {
            ema: params.arena().detach_copy()?,
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
            grads: None,
            local: None,
            runs,
            on_gpu,
            matrices,
            settings: Settings {
                seed: common.seed,
                micro_steps: common.gradient_accumulation_steps,
                batch: common.train_batch_size,
                adamw: AdamW {
                    beta1: common.adam_beta1,
                    beta2: common.adam_beta2,
                    eps: common.adam_epsilon,
                    weight_decay: common.adam_weight_decay,
                },
                muon_momentum: common.muon_momentum,
                muon_rate: common.muon_learning_rate / common.learning_rate,
                max_grad_norm: common.max_grad_norm,
                ema_decay: common.ema_decay,
                sam_rho: 0.0,
            },
            params,
        })
    }

    /// Takes each micro-step's gradient not at the weights but `rho` further along it, by a second pass
    /// ([`sharpness::ascended`]); 0 is the gradient at the weights. Moving each micro-step by its own gradient is what Ramesh
    /// et al. (2022, appendix C) do with their replicas.
    pub fn with_sharpness(mut self, rho: f64) -> Step {
        self.settings.sam_rho = rho;
        self
    }

    /// The averaged weights as parameters. They share storage: drop them before the next step.
    pub fn averaged(&self) -> Result<Params> {
        Ok(Params::from_arena(
            self.params.layout().clone(),
            self.ema.clone(),
        )?)
    }

    /// Takes step number `step` (from 0). `loss` is called for each pass with its tape, and may be called again with the
    /// same to find where a number stopped being finite.
    ///
    /// # Errors
    /// If the loss or the gradient is not finite: names the first op and module that made it so. Weights are then as
    /// they were before the step. On a GPU `loss` cannot read what it computes: keep tensors, and read them afterwards.
    pub fn take(
        &mut self,
        step: u64,
        learning_rate: f64,
        mut loss: impl FnMut(&Tape, Pass) -> Result<Var>,
    ) -> Result<Outcome> {
        let outcome = match self.on_gpu {
            None => {
                let losses = self.differentiate(step, &mut loss)?;
                let mean = mean(&losses)?;
                let norm = optimizer::gradient_norm(self.gradient()?)?;
                if mean.is_finite() && norm.is_finite() {
                    self.update(step, learning_rate, norm)?;
                }
                Outcome { loss: mean, norm }
            }
            Some(_) => {
                let Asked { losses, clipped } = self.asked(step, learning_rate, &mut loss)?;
                Outcome {
                    loss: mean(&losses)?,
                    norm: clipped.norm()?,
                }
            }
        };
        match outcome.loss.is_finite() && outcome.norm.is_finite() {
            true => Ok(outcome),
            false => Err(self.blame(step, outcome.loss, &mut loss)),
        }
    }

    /// Steps on a GPU, simulated or not, that were not the one that was recorded. Zero where each asks for the same.
    pub fn divergences(&self) -> usize {
        self.on_gpu.as_ref().map_or(0, |gpu| {
            gpu.divergences + gpu.graph.as_ref().map_or(0, Graph::divergences)
        })
    }

    /// Asks a GPU for a step: op by op, or recorded, or as it was recorded.
    fn asked(
        &mut self,
        step: u64,
        learning_rate: f64,
        loss: &mut impl FnMut(&Tape, Pass) -> Result<Var>,
    ) -> Result<Asked> {
        let device = self.params.device();
        let (warm, divergences, graph) = match &mut self.on_gpu {
            Some(gpu) => (gpu.warm, gpu.divergences, gpu.graph.take()),
            None => (0, OnGpu::TRIES, None),
        };
        let (graph, asked, diverged) = match graph {
            Some(mut graph) => match graph.replay(|| self.ask(step, learning_rate, loss))? {
                Replay::Done(asked) => (Some(graph), asked, false),
                Replay::Diverged(_) => {
                    // What the step left half done on the host is made again.
                    self.grads = None;
                    (None, self.ask(step, learning_rate, loss)?, true)
                }
            },
            None if warm >= OnGpu::WARM && divergences < OnGpu::TRIES => {
                let (graph, asked) = Graph::record(device, || self.ask(step, learning_rate, loss))?;
                (graph, asked, false)
            }
            None => (None, self.ask(step, learning_rate, loss)?, false),
        };
        if let Some(gpu) = &mut self.on_gpu {
            gpu.divergences += usize::from(diverged);
            gpu.warm = if diverged { 0 } else { gpu.warm + 1 };
            gpu.graph = graph;
        }
        Ok(asked)
    }

    /// The requests of a step on a GPU.
    fn ask(
        &mut self,
        step: u64,
        learning_rate: f64,
        loss: &mut impl FnMut(&Tape, Pass) -> Result<Var>,
    ) -> Result<Asked> {
        let losses = self.differentiate(step, loss)?;
        let Settings {
            adamw,
            max_grad_norm,
            ..
        } = self.settings;
        let scalars = adamw.at(step + 1, learning_rate, 1.0, self.ema_decay(step));
        let (Some(grads), Some(gpu)) = (&mut self.grads, &self.on_gpu) else {
            return Err(Error::failure("a step made no gradients"));
        };
        let arenas = Arenas {
            parameters: self.params.arena_mut(),
            gradient: grads.finish()?,
            m: &mut self.exp_avg,
            v: &mut self.exp_avg_sq,
            ema: Some(&mut self.ema),
        };
        let clipped = optimizer::clip_and_update(arenas, &scalars, max_grad_norm, &gpu.portions)?;
        self.update_matrices(step, learning_rate, GradientScale::Found(&clipped))?;
        Ok(Asked { losses, clipped })
    }

    /// Muon's part of an update.
    fn update_matrices(
        &mut self,
        step: u64,
        learning_rate: f64,
        scale: GradientScale,
    ) -> Result<()> {
        if self.matrices.all().is_empty() {
            return Ok(());
        }
        let rates = Rates {
            learning_rate: self.settings.muon_rate * learning_rate,
            weight_decay: self.settings.adamw.weight_decay,
            ema_decay: self.ema_decay(step),
        };
        let Some(grads) = &mut self.grads else {
            return Err(Error::failure("a step made no gradients"));
        };
        let gradient = grads.finish()?;
        let (momentum, matrices) = (self.settings.muon_momentum, &self.matrices);
        muon::direct(gradient, &mut self.exp_avg, momentum, scale, matrices)?;
        let parameters = self.params.arena_mut();
        muon::descend(parameters, gradient, &mut self.ema, rates, scale, matrices)?;
        Ok(())
    }

    /// The gradients of all micro-steps; returns their losses.
    fn differentiate(
        &mut self,
        step: u64,
        loss: &mut impl FnMut(&Tape, Pass) -> Result<Var>,
    ) -> Result<Vec<Tensor>> {
        (0..self.settings.micro_steps)
            .map(|micro| self.accumulate(step, micro, false, loss))
            .collect()
    }

    fn gradient(&mut self) -> Result<&Tensor> {
        match &mut self.grads {
            Some(grads) => Ok(grads.finish()?),
            None => Err(Error::failure("a step made no gradients")),
        }
    }

    /// An average over the steps so far, until there are enough of them.
    fn ema_decay(&self, step: u64) -> f64 {
        let so_far = (1.0 + step as f64) / (10.0 + step as f64);
        self.settings.ema_decay.min(so_far)
    }

    /// Adds one micro-step's gradients, and returns its loss at the weights.
    fn accumulate(
        &mut self,
        step: u64,
        micro_step: usize,
        check_finite: bool,
        loss: &mut impl FnMut(&Tape, Pass) -> Result<Var>,
    ) -> Result<Tensor> {
        let Settings {
            seed,
            micro_steps,
            batch,
            sam_rho,
            ..
        } = self.settings;
        let first = step * (micro_steps * batch) as u64 + (micro_step * batch) as u64;
        let counters = StepState {
            seed,
            // `Common::check` keeps both below 2^32.
            step: step as u32,
            first_sample: first as u32,
        };
        // A pass adds its share of the gradient, and returns its loss.
        let mut pass = |params: &Params, moved, share: f64, grads: ParamGrads| {
            let mut t = Tape::training(params, counters);
            if check_finite {
                t = t.with_finite_checks();
            }
            let total = loss(&t, Pass { micro_step, moved })?;
            let value = total.tensor().clone();
            let seed = Tensor::full(value.shape(), share, value.dtype(), value.device());
            let grads = t.backward_from(vec![(total, seed)], grads)?.into_params();
            Ok::<_, Error>((value, grads))
        };
        let fresh =
            |grads: Option<ParamGrads>| grads.unwrap_or_else(|| ParamGrads::new(&self.params));
        let mut grads = fresh(self.grads.take());
        if micro_step == 0 {
            grads.clear();
        }
        let share = 1.0 / micro_steps as f64;
        if sam_rho == 0.0 {
            let (value, grads) = pass(&self.params, false, share, grads)?;
            self.grads = Some(grads);
            return Ok(value);
        }
        let mut local = fresh(self.local.take());
        local.clear();
        let (value, mut local) = pass(&self.params, false, 1.0, local)?;
        let moved = sharpness::ascended(&self.params, local.finish()?, sam_rho)?;
        self.local = Some(local);
        let (_, grads) = pass(&moved, true, share, grads)?;
        self.grads = Some(grads);
        Ok(value)
    }

    fn update(&mut self, step: u64, learning_rate: f64, norm: f64) -> Result<()> {
        let Settings {
            adamw,
            max_grad_norm,
            ..
        } = self.settings;
        let factor = clip_factor(norm, max_grad_norm);
        self.update_matrices(step, learning_rate, GradientScale::Of(factor))?;
        let scalars = adamw.at(step + 1, learning_rate, factor, self.ema_decay(step));
        let arenas = Arenas {
            parameters: self.params.arena_mut(),
            gradient: match &mut self.grads {
                Some(grads) => grads.finish()?,
                None => return Err(Error::failure("a step made no gradients")),
            },
            m: &mut self.exp_avg,
            v: &mut self.exp_avg_sq,
            ema: Some(&mut self.ema),
        };
        Ok(optimizer::update(arenas, &scalars, &self.runs)?)
    }

    /// Runs a step again with every op checked, to name the first whose output is not finite.
    fn blame(
        &mut self,
        step: u64,
        loss_value: f64,
        loss: &mut impl FnMut(&Tape, Pass) -> Result<Var>,
    ) -> Error {
        self.grads = None;
        let found = (0..self.settings.micro_steps)
            .find_map(|micro| self.accumulate(step, micro, true, loss).err());
        let advice =
            "the last checkpoint is kept: lower learning_rate or max_grad_norm and resume from it";
        match found {
            Some(error) => Error::failure(format!(
                "the loss is not finite at step {step} ({loss_value}); {advice}\n{error}"
            )),
            None => Error::failure(format!(
                "the gradient is not finite at step {step} although every op's output is (its norm overflows); {advice}"
            )),
        }
    }
}

/// The mean of scalars.
fn mean(losses: &[Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for loss in losses {
        sum += loss.item()? / losses.len() as f64;
    }
    Ok(sum)
}

/// The matrices that Muon updates: those between hidden layers. Those that read or write something of few channels, such
/// as pixels, and tables of embeddings are AdamW's, as Jordan et al. advise. A convolution's filters are its rows.
fn matrices(layout: &ParamLayout) -> Vec<Matrix> {
    const HIDDEN: usize = 32;
    let matrix = |info: &ParamInfo| {
        let rows = *info.shape.first()?;
        let columns = info.shape.elements() / rows.max(1);
        let hidden = info.shape.len() > 1 && rows.min(columns) >= HIDDEN;
        (hidden && info.decay == Decay::Yes).then_some(Matrix {
            start: info.offset,
            rows,
            columns,
        })
    };
    layout.iter().filter_map(|(_, info)| matrix(info)).collect()
}

/// Neighbours in the arena that AdamW treats alike, as one run. The padding between them has no gradient.
fn runs(layout: &ParamLayout, others: &[Matrix]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut adjacent = false;
    for (_, info) in layout.iter() {
        let at = |matrix: &Matrix| matrix.start.cmp(&info.offset);
        if others.binary_search_by(at).is_ok() {
            adjacent = false;
            continue;
        }
        let decay = info.decay;
        let (start, end) = (info.offset, info.offset + info.shape.elements());
        match runs.last_mut() {
            Some(last) if adjacent && last.decay == decay => last.end = end,
            _ => runs.push(Run { start, end, decay }),
        }
        adjacent = true;
    }
    runs
}

/// Values read from a file as an arena of `device`, if there are as many as it needs.
pub fn arena(values: &[f32], len: usize, device: Device) -> Option<Tensor> {
    (values.len() == len).then(|| Tensor::from_slice(values, [len], device))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use autograd::ops::mse;
    use autograd::{DType, Init, ParamId, ParamsBuilder};

    use super::*;
    use crate::config::{Config, StageKind};

    const RHO: f64 = 0.3;

    fn common(micro_steps: usize) -> Common {
        let keys = [
            "optimizer=adamw".to_owned(),
            format!("gradient_accumulation_steps={micro_steps}"),
        ];
        let config = Config::defaults(StageKind::Clip, &keys).unwrap();
        config.common().clone()
    }

    /// Two vectors of two and three elements, in f64.
    fn network() -> (Params, [ParamId; 2]) {
        let mut layout = ParamLayout::default();
        let mut p = ParamsBuilder::new(&mut layout);
        let init = Init::Normal { std: 1.0 };
        let ids = [2, 3].map(|n| p.declare(&format!("p{n}"), [n], init, Decay::Yes));
        let params = Params::init(Arc::new(layout), 4, DType::F64, Device::Cpu).unwrap();
        (params, ids)
    }

    /// Two micro-steps of ‖w − target‖²/n summed over two vectors: the gradient 2·(w − target)/n is known, so that of each
    /// micro-step at w + ρ·g/‖g‖ is too.
    #[test]
    fn gradients_are_those_at_the_weights_moved_along_each_micro_steps_own() {
        let (params, ids) = network();
        let target = |micro: usize, i: usize, k: usize| (3 * micro + 2 * i + k) as f64 * 0.25 - 0.6;
        let targets = |micro: usize| {
            [2, 3].map(|n| {
                let values: Vec<f64> = (0..n).map(|k| target(micro, n, k)).collect();
                Tensor::from_f64(&values, [n], DType::F64, Device::Cpu)
            })
        };
        let weights = ids.map(|id| params.get(id).unwrap().to_f64_vec().unwrap());
        let gradient = |w: &[Vec<f64>; 2], micro: usize| -> [Vec<f64>; 2] {
            w.clone().map(|w| {
                let n = w.len();
                let slope = |(k, w): (usize, &f64)| 2.0 * (w - target(micro, n, k)) / n as f64;
                w.iter().enumerate().map(slope).collect()
            })
        };
        let mut want = [vec![0.0; 2], vec![0.0; 3]];
        for micro in 0..2 {
            let g = gradient(&weights, micro);
            let norm = g.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
            let mut moved = weights.clone();
            for (w, g) in moved.iter_mut().flatten().zip(g.iter().flatten()) {
                *w += RHO * g / norm;
            }
            for (want, g) in want
                .iter_mut()
                .flatten()
                .zip(gradient(&moved, micro).iter().flatten())
            {
                *want += g / 2.0;
            }
        }
        let mut asked = Vec::new();
        let mut step = Step::new(params, &common(2)).unwrap().with_sharpness(RHO);
        let before = step.params.arena().detach_copy().unwrap();
        step.differentiate(0, &mut |t: &Tape, pass: Pass| {
            asked.push((pass.micro_step, pass.moved));
            let [a, b] = targets(pass.micro_step).map(|x| t.constant(x));
            let a = mse::mse(t, &t.param(ids[0])?, &a, None)?;
            let b = mse::mse(t, &t.param(ids[1])?, &b, None)?;
            Ok(autograd::ops::binary::add(t, &a, &b)?)
        })
        .unwrap();
        assert_eq!(asked, [(0, false), (0, true), (1, false), (1, true)]);
        assert!(step.params.arena().bit_equal(&before));
        let grads = step.grads.unwrap();
        for (id, want) in ids.into_iter().zip(want) {
            let got = grads.get(id).unwrap().to_f64_vec().unwrap();
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() < 1e-15, "{got} {want}");
            }
        }
    }
}
