//! One run of a case on a tape: once or twice forward, then backward from given gradients of the outputs.

use std::sync::Arc;

use crate::spec::{Array, Case, STEP};
use crate::{
    DType, Decay, Device, Init, ParamGrads, ParamLayout, Params, ParamsBuilder, Result, Shape,
    Tape, Tensor, Var,
};

use super::values::{Layout, tensor};

/// Which differentiable operands are asked for a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    None,
    All,
    /// This one alone.
    One(usize),
    /// All, as parameters in an arena.
    Parameters,
}

/// How to run a case.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    pub device: Device,
    pub float: DType,
    pub layout: Layout,
    pub leaves: Leaves,
    /// The second operand is the same variable as the first.
    pub shared: Option<(usize, usize)>,
    /// For each forward call the gradient that flows into each output, or `None` for an output that nothing used.
    pub upstream: &'a [Vec<Option<Array>>],
}

/// What a run gave.
pub struct Outcome {
    /// The outputs of every forward call.
    pub outputs: Vec<Vec<Tensor>>,
    /// Whether any output can be differentiated.
    pub recorded: bool,
    /// One per operand; `None` where none was asked for or none arrived.
    pub gradients: Vec<Option<Tensor>>,
}

pub fn run(case: &Case, values: &[Array], plan: &Plan) -> Result<Outcome> {
    let tensors: Vec<Tensor> = case
        .inputs
        .iter()
        .zip(values)
        .map(|(input, values)| tensor(input.fill, values, plan.float, plan.layout, plan.device))
        .collect();
    run_tensors(case, &tensors, plan)
}

/// [`run`] on tensors as they are.
pub fn run_tensors(case: &Case, tensors: &[Tensor], plan: &Plan) -> Result<Outcome> {
    let wanted = |i: usize| {
        case.inputs[i].fill.differentiable()
            && match plan.leaves {
                Leaves::None => false,
                Leaves::One(only) => i == only,
                Leaves::All | Leaves::Parameters => true,
            }
    };
    let as_parameters = plan.leaves == Leaves::Parameters;
    let mut layout = ParamLayout::default();
    let mut ids = vec![None; tensors.len()];
    if as_parameters {
        let mut builder = ParamsBuilder::new(&mut layout);
        for (i, tensor) in tensors.iter().enumerate().filter(|(i, _)| wanted(*i)) {
            ids[i] = Some(builder.declare(
                &format!("operand{i}"),
                tensor.shape(),
                Init::Zeros,
                Decay::No,
            ));
        }
    }
    let mut params = Params::zeros(Arc::new(layout), plan.float, plan.device);
    for (id, tensor) in ids.iter().zip(tensors) {
        if let Some(id) = id {
            params.set(*id, tensor)?;
        }
    }

    let tape = Tape::training(&params, STEP);
    let mut vars = Vec::with_capacity(tensors.len());
    for (i, tensor) in tensors.iter().enumerate() {
        vars.push(match ids[i] {
            Some(id) => tape.param(id)?,
            None if wanted(i) => tape.leaf(tensor.clone()),
            None => tape.constant(tensor.clone()),
        });
    }
    if let Some((first, second)) = plan.shared {
        vars[second] = vars[first].clone();
    }

    let calls: Vec<Vec<Var>> = plan
        .upstream
        .iter()
        .map(|_| (case.run)(&tape, &vars))
        .collect::<Result<_>>()?;
    let seeds: Vec<(Var, Tensor)> = calls
        .iter()
        .zip(plan.upstream)
        .flat_map(|(outputs, upstream)| outputs.iter().zip(upstream))
        .filter(|(output, _)| output.id().is_some())
        .filter_map(|(output, dy)| Some((output, dy.as_ref()?)))
        .map(|(output, dy)| {
            let dtype = output.dtype();
            let dy = tensor_of(dy, dtype, plan.layout, plan.device);
            (output.clone(), dy)
        })
        .collect();
    let recorded = calls.iter().flatten().any(|output| output.id().is_some());
    let outputs = calls
        .into_iter()
        .map(|call| call.iter().map(|output| output.tensor().clone()).collect())
        .collect();
    let mut grads = tape.backward_from(seeds, ParamGrads::new(&params))?;
    let mut gradients: Vec<Option<Tensor>> = vars.iter().map(|var| grads.take(var)).collect();
    let arena = grads.into_params();
    for (gradient, id) in gradients.iter_mut().zip(ids) {
        if let Some(id) = id.filter(|&id| arena.touched(id)) {
            *gradient = Some(arena.get(id)?);
        }
    }
    Ok(Outcome {
        outputs,
        recorded,
        gradients,
    })
}

fn tensor_of(array: &Array, float: DType, layout: Layout, device: Device) -> Tensor {
    let fill = crate::spec::Fill::Normal {
        mean: 0.0,
        std: 1.0,
    };
    debug_assert_eq!(Shape::new(&array.shape).elements(), array.data.len());
    tensor(fill, array, float, layout, device)
}
