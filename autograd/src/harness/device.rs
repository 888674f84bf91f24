//! A GPU against the CPU in f64: outputs and gradients of an op, on the numbers that the GPU's storage holds.

use std::fmt;

use tensor::gpu::{Launched, Simulation, recorded, set_simulation};

use super::budget::{self, Precision};
use super::run::{Leaves, Outcome, Plan, run};
use super::values::{Layout, Random, case_values};
use crate::spec::{Array, Case, Gradient, OpSpec};
use crate::{DType, Device, Result, Tensor};

/// The GPU that tests run on: the one that `UNCLIP_DEVICE` names, such as `cuda:0`, or the simulated one.
///
/// # Panics
/// If there is no such GPU, with the reason.
pub fn gpu() -> Device {
    let Ok(name) = std::env::var("UNCLIP_DEVICE") else {
        return Device::SIM;
    };
    let device: Result<Device, String> = name.parse();
    let opened = device.and_then(|device| match device {
        Device::Cpu => Err("tests of GPU kernels need a GPU, or \"sim\"".to_string()),
        device => device.open().map(|()| device),
    });
    opened.unwrap_or_else(|why| panic!("UNCLIP_DEVICE={name}: {why}"))
}

/// What a case did on a device.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// The part of the error budget that the furthest result uses.
    Passed(f64),
    /// The device has no kernel for this.
    Lacking(String),
    Failed(Vec<String>),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Passed(used) => write!(f, "passed, {used:.2} of the error budget used"),
            Verdict::Lacking(why) => write!(f, "NOT RUN, {why}"),
            Verdict::Failed(reasons) => write!(f, "FAILED\n    {}", reasons.join("\n    ")),
        }
    }
}

/// Runs a case forward and backward with operands stored as `float`: two calls, so that gradients are added up too.
///
/// The first of `simulations` is held to the CPU in f64, every other one to the bits of the first. With `views`, so is a run
/// on strided operands.
pub fn check(
    op: &dyn OpSpec,
    case: &Case,
    device: Device,
    float: DType,
    simulations: &[Simulation],
    views: bool,
) -> Verdict {
    let check = Checker::new(op, case, device, float);
    let outcome = check.and_then(|checker| checker.check(simulations, views));
    match outcome {
        Ok(verdict) => verdict,
        Err(error) if error.is_unsupported() => Verdict::Lacking(error.reason().to_string()),
        Err(error) => Verdict::Failed(vec![error.to_string()]),
    }
}

/// What a case launches on a device: its forward pass, and its backward pass too if `backward`.
///
/// # Errors
/// If the case does not run there.
pub fn launches(
    op: &dyn OpSpec,
    case: &Case,
    device: Device,
    float: DType,
    backward: bool,
) -> Result<Vec<Launched>> {
    let mut checker = Checker::new(op, case, device, float)?;
    checker.flow.truncate(1);
    let leaves = if backward { Leaves::All } else { Leaves::None };
    let plan = Plan {
        device,
        float,
        ..checker.exact(leaves)
    };
    let (outcome, launches) = recorded(|| checker.run(&checker.values, plan));
    outcome.map(|_| launches)
}

struct Checker<'a> {
    case: &'a Case,
    device: Device,
    float: DType,
    values: Vec<Array>,
    /// What flows into the outputs of each call.
    flow: Vec<Vec<Option<Array>>>,
    random: Random,
}

impl<'a> Checker<'a> {
    fn new(op: &dyn OpSpec, case: &'a Case, device: Device, float: DType) -> Result<Checker<'a>> {
        let rounded = |array: &Array| -> Result<Array> {
            let stored = Tensor::from_f64(&array.data, &array.shape, float, Device::Cpu);
            Ok(Array {
                data: stored.to_f64_vec()?,
                shape: array.shape.clone(),
            })
        };
        let inputs = case.inputs.iter().zip(case_values(case, 0));
        let values = inputs.map(|(input, values)| match input.fill.is_float() {
            true => rounded(&values),
            false => Ok(values),
        });
        let mut checker = Checker {
            case,
            device,
            float,
            values: values.collect::<Result<_>>()?,
            flow: vec![vec![]],
            random: Random::new(&case.name),
        };
        // Forward once, to know the outputs' shapes.
        let outputs = checker
            .run(&checker.values, checker.exact(Leaves::None))?
            .outputs;
        let mut random = Random::new("upstream");
        let calls = match op.gradient() {
            Gradient::Checked => 2,
            Gradient::None(_) => 1,
        };
        let shapes: Vec<_> = outputs[0].iter().map(Tensor::shape).collect();
        let mut flow = |shape: &crate::Shape| rounded(&random.normals(shape.dims())).map(Some);
        checker.flow = (0..calls)
            .map(|_| shapes.iter().map(&mut flow).collect())
            .collect::<Result<_>>()?;
        Ok(checker)
    }

    /// The run that others are held to.
    fn exact(&self, leaves: Leaves) -> Plan<'_> {
        Plan {
            device: Device::Cpu,
            float: DType::F64,
            layout: Layout::Contiguous,
            leaves,
            shared: None,
            upstream: &self.flow,
        }
    }

    fn run(&self, values: &[Array], plan: Plan) -> Result<Outcome> {
        run(self.case, values, &plan)
    }

    fn check(mut self, simulations: &[Simulation], views: bool) -> Result<Verdict> {
        let on_device = |layout| Plan {
            device: self.device,
            float: self.float,
            layout,
            ..self.exact(Leaves::All)
        };
        let mut got: Option<Outcome> = None;
        let mut failures = vec![];
        for &simulation in simulations {
            set_simulation(simulation);
            let again = self.run(&self.values, on_device(Layout::Contiguous))?;
            match &got {
                None => got = Some(again),
                Some(first) if !same_bits(first, &again) => {
                    failures.push(format!("{simulation:?} gives other bits"));
                }
                Some(_) => {}
            }
        }
        let Some(got) = got else {
            return Ok(Verdict::Failed(vec!["no run was asked for".to_string()]));
        };
        if views {
            let strided = self.run(&self.values, on_device(Layout::Strided))?;
            if !same_bits(&got, &strided) {
                failures.push("strided operands give other bits".to_string());
            }
        }
        let used = self.budget(&got, &mut failures)?;
        Ok(match failures.is_empty() {
            true => Verdict::Passed(used),
            false => Verdict::Failed(failures),
        })
    }

    /// The largest part of a budget that is used.
    fn budget(&mut self, got: &Outcome, failures: &mut Vec<String>) -> Result<f64> {
        let exact = self.run(&self.values, self.exact(Leaves::All))?;
        let precision = Precision::of(self.float);
        // Few elements need more draws, before one of them moves the terms that cancel in opposite directions.
        let elements: usize = self.values.iter().map(|v| v.data.len()).sum();
        let mut naive = vec![];
        for _ in 0..if elements < 1000 { 12 } else { 2 } {
            let values = budget::moved(precision, self.case, &self.values, &mut self.random);
            let mut flow = self.flow.clone();
            for dy in flow.iter_mut().flatten().flatten() {
                *dy = budget::moved_array(precision, dy, &mut self.random);
            }
            let upstream = &flow;
            let plan = Plan {
                upstream,
                ..self.exact(Leaves::All)
            };
            naive.push(self.run(&values, plan)?);
        }
        let flowing = self.flow.iter().flatten().flatten();
        let flowing = flowing.fold(0.0, |m, dy| budget::largest(&dy.data).max(m));
        let mut worst = 0.0;
        for (name, pick, from) in self.results(&exact, flowing) {
            let (Some(exact), Some(got)) = (pick(&exact), pick(got)) else {
                failures.push(format!("{name} is missing"));
                continue;
            };
            let naive: Vec<Vec<f64>> = naive
                .iter()
                .filter_map(|naive| Some(pick(naive)?.to_f64_vec()))
                .collect::<Result<_>>()?;
            let naive: Vec<&[f64]> = naive.iter().map(Vec::as_slice).collect();
            // Statistics and losses are f32 whatever the operands; they are still made of rounded operands.
            let (exact, got) = (exact.to_f64_vec()?, got.to_f64_vec()?);
            let used = match exact.len() == got.len() {
                true => budget::used(precision, &got, &exact, &naive, from),
                false => f64::INFINITY,
            };
            worst = f64::max(worst, used);
            if used.is_nan() || used > 1.0 {
                failures.push(format!("{name} is {used:.2} of its budget off"));
            }
        }
        Ok(worst)
    }

    /// Every output and every gradient: its name, how to find it, and the largest value that it is made from.
    fn results(&self, exact: &Outcome, flowing: f64) -> Vec<(String, Pick, f64)> {
        let outputs = (0..exact.outputs[0].len()).map(|i| {
            let pick: Pick = Box::new(move |o: &Outcome| o.outputs[0].get(i).cloned());
            (format!("output {i}"), pick, 0.0)
        });
        let gradients = (0..self.case.inputs.len()).filter(|&i| exact.gradients[i].is_some());
        let gradients = gradients.map(|i| {
            let pick: Pick = Box::new(move |o: &Outcome| o.gradients.get(i).cloned().flatten());
            let name = self.case.inputs[i].name;
            (format!("the gradient of {name}"), pick, flowing)
        });
        outputs.chain(gradients).collect()
    }
}

/// Takes one result out of a run.
type Pick = Box<dyn Fn(&Outcome) -> Option<Tensor>>;

fn same_bits(a: &Outcome, b: &Outcome) -> bool {
    let outputs = a.outputs.iter().flatten().zip(b.outputs.iter().flatten());
    let mut gradients = a.gradients.iter().zip(&b.gradients);
    outputs.into_iter().all(|(a, b)| a.bit_equal(b))
        && gradients.all(|(a, b)| match (a, b) {
            (Some(a), Some(b)) => a.bit_equal(b),
            (a, b) => a.is_none() && b.is_none(),
        })
}
