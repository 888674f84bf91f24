//! The tape and its variables.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use tensor::ops::random::Counters;
use tensor::{DType, Device, Error, Operand, Result, Tensor};

use crate::{Grads, ParamGrads, ParamId, Params, Upstream};

/// Where a variable's gradient goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VarId {
    Param(ParamId),
    Node(u32),
}

/// A tensor on a tape. One without an id is a constant: nothing is computed for its gradient.
#[derive(Clone, Debug)]
pub struct Var {
    pub(crate) tensor: Tensor,
    pub(crate) id: Option<VarId>,
}

impl Var {
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    pub fn id(&self) -> Option<VarId> {
        self.id
    }

    pub fn dims(&self) -> &[usize] {
        self.tensor.dims()
    }

    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    pub fn device(&self) -> Device {
        self.tensor.device()
    }

    /// The same values, cut off from the tape.
    pub fn detach(&self) -> Var {
        Var {
            tensor: self.tensor.clone(),
            id: None,
        }
    }
}

/// The backward pass of one recorded op. Holds the least that it needs, and is consumed, so that what it saved is freed
/// at that moment.
pub trait Backward {
    /// Adds the op's contribution to the gradients of its operands.
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()>;
}

/// Whether dropout and the like are active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Train,
    Evaluate,
}

/// The counters that randomness is a function of; all of it fits in a checkpoint.
///
/// Samples are counted globally, so that accumulation over micro-steps and sharding over ranks draw what one large
/// batch would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StepState {
    pub seed: u64,
    pub step: u32,
    /// Global index of the first sample of this batch.
    pub first_sample: u32,
}

/// One use of randomness: the counters of the step, and the module and occurrence that ask.
pub use tensor::ops::random::Draw;

struct Node {
    outputs: Vec<u32>,
    op: &'static str,
    module: Rc<str>,
    backward: Box<dyn Backward>,
}

/// Activations that were asked for by name, as they are computed.
#[derive(Clone)]
struct Taps {
    wanted: Rc<dyn Fn(&str) -> bool>,
    taken: Rc<RefCell<Vec<(String, Tensor)>>>,
}

/// Records a step.
pub struct Tape {
    params: Option<Params>,
    nodes: RefCell<Vec<Node>>,
    next_id: Rc<Cell<u32>>,
    recording: bool,
    mode: Mode,
    step: StepState,
    /// The step's, where the device reads them: made for the first draw, and for all.
    counters: Rc<OnceCell<Counters>>,
    path: RefCell<Rc<str>>,
    /// How often each module drew random numbers: part of the counter, restored by recompute.
    draws: RefCell<HashMap<Rc<str>, u32>>,
    check_finite: bool,
    taps: Option<Taps>,
}

impl Tape {
    /// A tape that records for a backward pass over `params`.
    pub fn training(params: &Params, step: StepState) -> Tape {
        Tape {
            recording: true,
            mode: Mode::Train,
            step,
            ..Tape::inference(Some(params))
        }
    }

    /// A tape that records nothing.
    pub fn inference(params: Option<&Params>) -> Tape {
        Tape {
            params: params.cloned(),
            nodes: RefCell::default(),
            next_id: Rc::default(),
            recording: false,
            mode: Mode::Evaluate,
            step: StepState::default(),
            counters: Rc::default(),
            path: RefCell::new("".into()),
            draws: RefCell::default(),
            check_finite: false,
            taps: None,
        }
    }

    /// Sets whether dropout and the like are active.
    pub fn with_mode(self, mode: Mode) -> Tape {
        Tape { mode, ..self }
    }

    /// Makes every op check that its output is finite, so that the first one that is not is named.
    pub fn with_finite_checks(self) -> Tape {
        Tape {
            check_finite: true,
            ..self
        }
    }

    /// Keeps the activations whose name `wanted` accepts, for [`Tape::taken`].
    pub fn with_taps(self, wanted: impl Fn(&str) -> bool + 'static) -> Tape {
        Tape {
            taps: Some(Taps {
                wanted: Rc::new(wanted),
                taken: Rc::default(),
            }),
            ..self
        }
    }

    /// A tape for recompute: the same parameters, step, module path and id space, nothing recorded yet.
    pub(crate) fn nested(&self, recording: bool, state: RecomputeState) -> Tape {
        Tape {
            params: self.params.clone(),
            nodes: RefCell::default(),
            next_id: self.next_id.clone(),
            recording,
            mode: self.mode,
            step: self.step,
            counters: self.counters.clone(),
            path: RefCell::new(state.path),
            draws: RefCell::new(state.draws),
            check_finite: self.check_finite,
            taps: if recording { None } else { self.taps.clone() },
        }
    }

    /// A tape that can be kept for recompute inside a backward pass: everything of this one but its nodes.
    pub(crate) fn template(&self) -> Tape {
        self.nested(false, self.recompute_state())
    }

    pub(crate) fn recompute_state(&self) -> RecomputeState {
        RecomputeState {
            path: self.path.borrow().clone(),
            draws: self.draws.borrow().clone(),
        }
    }

    pub(crate) fn adopt_draws(&self, inner: &Tape) {
        self.draws.replace(inner.draws.borrow().clone());
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    pub fn is_training(&self) -> bool {
        self.mode == Mode::Train
    }

    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// Whether an op on `operands` is recorded: what only its backward pass reads is not made otherwise.
    pub fn needs_gradient(&self, operands: &[&Var]) -> bool {
        self.recording && operands.iter().any(|o| o.id.is_some())
    }

    /// Where the parameters live, and what a tape without any makes lives too.
    pub fn device(&self) -> Device {
        self.params.as_ref().map(Params::device).unwrap_or_default()
    }

    /// What the parameters are stored as.
    ///
    /// # Errors
    /// If the tape was made without parameters.
    pub fn dtype(&self) -> Result<DType> {
        let params = self
            .params
            .as_ref()
            .ok_or_else(|| self.no_params("dtype"))?;
        Ok(params.dtype())
    }

    fn no_params(&self, op: &'static str) -> Error {
        self.locate(Error::new(
            op,
            "this tape was made without parameters",
            vec![],
        ))
    }

    pub fn step(&self) -> StepState {
        self.step
    }

    /// A value without a gradient.
    pub fn constant(&self, tensor: Tensor) -> Var {
        Var { tensor, id: None }
    }

    /// A value whose gradient [`Grads::take`] gives after the backward pass.
    pub fn leaf(&self, tensor: Tensor) -> Var {
        let id = self.recording.then(|| VarId::Node(self.fresh_id()));
        Var { tensor, id }
    }

    /// A parameter of the model this tape was made for.
    ///
    /// # Errors
    /// If the tape was made without parameters.
    pub fn param(&self, id: ParamId) -> Result<Var> {
        let params = self
            .params
            .as_ref()
            .ok_or_else(|| self.no_params("param"))?;
        let trained = self.recording && params.layout().info(id).decay != crate::Decay::Frozen;
        Ok(Var {
            tensor: params.get(id)?,
            id: trained.then_some(VarId::Param(id)),
        })
    }

    fn fresh_id(&self) -> u32 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// Records an op with one output. `backward` is called only where an operand needs a gradient.
    pub fn record<B: Backward + 'static>(
        &self,
        op: &'static str,
        operands: &[&Var],
        output: Tensor,
        backward: impl FnOnce() -> B,
    ) -> Result<Var> {
        let mut outputs = self.record_many(op, operands, vec![output], backward)?;
        outputs
            .pop()
            .ok_or_else(|| Error::new(op, "recorded no output", vec![]))
    }

    /// Records an op with several outputs.
    pub fn record_many<B: Backward + 'static>(
        &self,
        op: &'static str,
        operands: &[&Var],
        outputs: Vec<Tensor>,
        backward: impl FnOnce() -> B,
    ) -> Result<Vec<Var>> {
        if self.check_finite {
            self.require_finite(op, operands, &outputs)?;
        }
        if !self.needs_gradient(operands) {
            return Ok(outputs
                .into_iter()
                .map(|tensor| Var { tensor, id: None })
                .collect());
        }
        let ids: Vec<u32> = outputs.iter().map(|_| self.fresh_id()).collect();
        let vars = outputs.into_iter().zip(&ids).map(|(tensor, &id)| Var {
            tensor,
            id: Some(VarId::Node(id)),
        });
        let vars = vars.collect();
        let module = self.path.borrow().clone();
        self.nodes.borrow_mut().push(Node {
            outputs: ids,
            op,
            module,
            backward: Box::new(backward()),
        });
        Ok(vars)
    }

    fn require_finite(
        &self,
        op: &'static str,
        operands: &[&Var],
        outputs: &[Tensor],
    ) -> Result<()> {
        let mut all = true;
        for output in outputs {
            all &= !output.dtype().is_float() || is_finite(output)?;
        }
        if all {
            return Ok(());
        }
        let operands = operands
            .iter()
            .map(|o| Operand::new("operand", &o.tensor))
            .collect();
        Err(self.locate(Error::new(
            op,
            "the first op whose output is not finite",
            operands,
        )))
    }

    /// Runs `body` with `name` appended to the module path: in errors, in recorded nodes and in random counters.
    pub fn scope<R>(&self, name: &str, body: impl FnOnce() -> Result<R>) -> Result<R> {
        let outer = self.path.borrow().clone();
        if !name.is_empty() {
            let inner = if outer.is_empty() {
                name.to_owned()
            } else {
                format!("{outer}.{name}")
            };
            self.path.replace(inner.into());
        }
        let outcome = body().map_err(|e| self.locate(e));
        self.path.replace(outer);
        outcome
    }

    /// Runs a module whose output is one variable: a [`Tape::scope`] whose result can be asked for by its path.
    pub fn module(&self, name: &str, body: impl FnOnce() -> Result<Var>) -> Result<Var> {
        self.scope(name, || {
            let output = body()?;
            self.tap("", &output);
            Ok(output)
        })
    }

    /// Offers an activation under the module path plus `name`.
    pub fn tap(&self, name: &str, activation: &Var) {
        if let Some(Taps { wanted, taken }) = &self.taps {
            let full = self.within(name);
            if wanted(&full) {
                taken.borrow_mut().push((full, activation.tensor.clone()));
            }
        }
    }

    /// Whether anybody asked for the activation `name` of the current module ("": its output): some are only made when
    /// they are wanted.
    pub fn wants(&self, name: &str) -> bool {
        let wanted = |taps: &Taps| (taps.wanted)(&self.within(name));
        self.taps.as_ref().is_some_and(wanted)
    }

    /// The module path with `name` behind it.
    fn within(&self, name: &str) -> String {
        let path = self.path.borrow();
        match (path.is_empty(), name.is_empty()) {
            (true, _) => name.to_owned(),
            (_, true) => path.to_string(),
            _ => format!("{path}.{name}"),
        }
    }

    /// The activations taken so far, in the order of computation.
    pub fn taken(&self) -> Vec<(String, Tensor)> {
        self.taps
            .as_ref()
            .map(|taps| taps.taken.take())
            .unwrap_or_default()
    }

    fn locate(&self, error: Error) -> Error {
        error.in_module(&self.path.borrow())
    }

    /// The next random draw of the current module.
    pub fn draw(&self) -> Draw {
        let path = self.path.borrow().clone();
        let mut draws = self.draws.borrow_mut();
        let count = draws.entry(path.clone()).or_insert(0);
        let occurrence = *count;
        *count += 1;
        let StepState {
            seed,
            step,
            first_sample,
        } = self.step;
        Draw {
            step,
            first_sample,
            ..Draw::named(seed, &path, occurrence)
        }
    }

    /// What all draws of this step have in common, where the device reads it.
    pub fn counters(&self) -> Counters {
        let StepState {
            seed,
            step,
            first_sample,
        } = self.step;
        let of_step = || {
            let draw = Draw {
                step,
                first_sample,
                ..Draw::named(seed, "", 0)
            };
            Counters::of(&draw, self.device())
        };
        self.counters.get_or_init(of_step).clone()
    }

    /// Consumes the tape: gradients of `loss` (a scalar) into `params`, and into the leaves' slots of the result.
    ///
    /// # Errors
    /// If the loss is not one element, or depends on nothing that has a gradient.
    pub fn backward(self, loss: &Var, params: ParamGrads) -> Result<Grads> {
        let check = tensor::Check::new("backward", &[("loss", &loss.tensor)]);
        check.require(loss.tensor.len() == 1, || {
            "the loss must be one element".into()
        })?;
        check.require(loss.id.is_some(), || {
            "the loss depends on no parameter and no leaf".into()
        })?;
        let one = Tensor::full(loss.tensor.shape(), 1.0, loss.dtype(), loss.device());
        self.backward_from(vec![(loss.clone(), one)], params)
    }

    /// [`Tape::backward`] from any outputs, each with the gradient that flows into it.
    pub fn backward_from(self, seeds: Vec<(Var, Tensor)>, params: ParamGrads) -> Result<Grads> {
        let mut grads = Grads::new(params);
        for (output, gradient) in seeds {
            grads.give(output.id, gradient)?;
        }
        self.consume(&mut grads)?;
        Ok(grads)
    }

    /// Consumes the nodes in reverse into `grads`. Reverse order of recording is reverse topological order.
    pub(crate) fn consume(self, grads: &mut Grads) -> Result<()> {
        let mut nodes = self.nodes.into_inner();
        while let Some(Node {
            outputs,
            op,
            module,
            backward,
        }) = nodes.pop()
        {
            let upstream: Vec<Option<Tensor>> =
                outputs.iter().map(|&id| grads.slot(id).take()).collect();
            if upstream.iter().all(Option::is_none) {
                continue; // nothing used the outputs
            }
            if self.check_finite {
                for gradient in upstream.iter().flatten() {
                    if !is_finite(gradient)? {
                        let reason = "the first gradient that is not finite flows into this op";
                        return Err(Error::new(op, reason, vec![]).in_module(&module));
                    }
                }
            }
            backward
                .backward(Upstream(upstream), grads)
                .map_err(|e| e.in_module(&module))?;
        }
        Ok(())
    }
}

fn is_finite(x: &Tensor) -> Result<bool> {
    Ok(x.to_f64_vec()?.iter().all(|v| v.is_finite()))
}

/// What a recompute restores before it runs a block again.
#[derive(Clone)]
pub(crate) struct RecomputeState {
    path: Rc<str>,
    draws: HashMap<Rc<str>, u32>,
}
