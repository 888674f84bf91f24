//! What every op is held to, without being asked: one function over an op's spec and a case.
//!
//! Used by `tests/ops.rs` on [`autograd::ops::ALL`], and by `tests/planted_bugs.rs` on ops with a mistake in them, each of
//! which one of these checks must catch.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use autograd::spec::{Array, Case, Fill, Gradient, Input, OpSpec};
use autograd::{DType, Device, Error, Tensor};
use kernels::simd::Level;

use autograd::harness::budget::{self, Precision};
use autograd::harness::run::{Leaves, Outcome, Plan, run, run_tensors};
use autograd::harness::values::{self, Layout, Random, case_values, tensor, values};

/// What a case can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The spec itself: reference and op disagree on the outputs there are, or a declared gradient makes no sense.
    Spec,
    /// The op refused operands that its own spec gives.
    Runs,
    /// A panic, which is never an answer.
    Panic,
    /// f64 output against the naive reference.
    Forward,
    /// An element of an output or a gradient that no kernel wrote.
    Unwritten,
    /// A write outside of a buffer.
    Bounds,
    /// f32 outputs and gradients within the error budget around those of f64.
    Budget,
    /// The same bits in two runs.
    Repeat,
    /// The same bits whatever the number of threads.
    Threads,
    /// The same bits at every SIMD level.
    Simd,
    /// Gradients against finite differences.
    Gradient,
    /// An operand that got no gradient, or one of a wrong shape; a gradient of an op that says that it has none.
    Missing,
    /// A second use of an operand adds to the first one's gradient.
    Accumulate,
    /// Some outputs unused, some operands constant: the remaining gradients are the same.
    Partial,
    /// One variable as two operands gets the sum of their gradients.
    Shared,
    /// A parameter gets the gradient that a leaf gets.
    Parameter,
    /// Views with strides and offsets give what contiguous operands give.
    Views,
    /// Wrong shapes, dtypes and indices are refused with an error that carries operands.
    Refusal,
}

/// A check that a case failed, and how.
pub struct Failure {
    pub check: Check,
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.check, self.message)
    }
}

/// How near the tolerances a case came.
#[derive(Clone, Copy, Default)]
pub struct Worst {
    /// f64 error of outputs, as a fraction of the largest value.
    pub f64_error: f64,
    /// f64 error of gradients against finite differences, as a fraction of the tolerance.
    pub differences: f64,
    /// f32 error as a fraction of its budget.
    pub f32_budget: f64,
}

/// Thread pools that runs are compared over; making them takes longer than most cases.
pub struct Pools(Vec<rayon::ThreadPool>);

impl Pools {
    pub fn new(threads: &[usize]) -> Pools {
        let pool = |&n| rayon::ThreadPoolBuilder::new().num_threads(n).build();
        Pools(
            threads
                .iter()
                .map(|n| pool(n).expect("a few threads can be had"))
                .collect(),
        )
    }
}

/// Relative step of finite differences. Five points leave an error of h⁴·f⁽⁵⁾/30 and a rounding error of ε/h, both
/// near 1e-12 here.
const STEP: f64 = 2e-4;
/// Difference allowed between a gradient and finite differences, of the sum of the absolute terms that make the
/// projected gradient: 10⁴ times the estimate above, and 10⁻⁵ of a gradient that is wrong by 1 %.
const DIFFERENCES: f64 = 1e-7;
/// Difference allowed between two f64 gradients that are made of the same terms in another order.
const REORDERED: f64 = 1e-12;

/// All checks on a small case.
pub fn check(op: &dyn OpSpec, case: &Case, pools: &Pools) -> (Vec<Failure>, Worst) {
    guarded(|| {
        let mut checker = Checker::new(op, case, 2)?;
        checker.forward()?;
        if op.gradient() == Gradient::Checked {
            checker.gradients()?;
        } else {
            checker.no_gradient()?;
        }
        checker.budget()?;
        let levels = [Level::Baseline, Level::Avx2];
        checker.same_bits(pools, &levels)?;
        checker.views()?;
        checker.refusals();
        Ok(checker)
    })
}

/// The checks on a case of the size that models use which need no naive reference: the f32 budget around f64, and equal
/// bits. `reference` adds that, `baseline` the lowest SIMD level, which is a hundred times slower than the others.
pub fn check_large(
    op: &dyn OpSpec,
    case: &Case,
    pools: &Pools,
    reference: bool,
    baseline: bool,
) -> (Vec<Failure>, Worst) {
    guarded(|| {
        let mut checker = Checker::new(op, case, 1)?;
        if reference {
            checker.forward()?;
        }
        checker.budget()?;
        let levels = [Level::Avx2, Level::Baseline];
        checker.same_bits(pools, if baseline { &levels } else { &levels[..1] })?;
        Ok(checker)
    })
}

/// Runs `checks`, which stop at the first failure that the rest depends on, with every output poisoned and every buffer
/// guarded.
fn guarded<'a>(checks: impl FnOnce() -> Result<Checker<'a>, Failure>) -> (Vec<Failure>, Worst) {
    kernels::buffer::set_poison(true);
    kernels::buffer::set_guards(true);
    let overruns = kernels::buffer::overruns();
    let (mut failures, worst) = match catch_unwind(AssertUnwindSafe(checks)) {
        Ok(Ok(checker)) => (checker.failures, checker.worst),
        Ok(Err(failure)) => (vec![failure], Worst::default()),
        Err(payload) => {
            let message = format!("the op panicked: {}", panic_text(&*payload));
            let check = Check::Panic;
            (vec![Failure { check, message }], Worst::default())
        }
    };
    let overruns = kernels::buffer::overruns() - overruns;
    if overruns > 0 {
        failures.push(Failure {
            check: Check::Bounds,
            message: format!("{overruns} buffers were written to outside of their bounds"),
        });
    }
    (failures, worst)
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// Gradients that flow into the outputs: for each call, for each output.
type Flow = Vec<Vec<Option<Array>>>;

struct Checker<'a> {
    case: &'a Case,
    values: Vec<Array>,
    /// Random gradients of the outputs of two calls (one, for large cases).
    flow: Flow,
    failures: Vec<Failure>,
    worst: Worst,
    random: Random,
}

impl<'a> Checker<'a> {
    fn new(op: &dyn OpSpec, case: &'a Case, calls: usize) -> Result<Checker<'a>, Failure> {
        let mut checker = Checker {
            case,
            values: case_values(case, 0),
            flow: vec![vec![]],
            failures: vec![],
            worst: Worst::default(),
            random: Random::new(&case.name),
        };
        // Forward once, to know the outputs' shapes.
        let outcome = checker.run(&checker.plan(DType::F32, Leaves::None))?;
        let differentiable = case.inputs.iter().any(|i| i.fill.differentiable());
        if op.gradient() == Gradient::Checked && !differentiable {
            let message = "the op has a gradient, but no operand of this case asks for one";
            return Err(failure(Check::Spec, message));
        }
        let shapes: Vec<&[usize]> = outcome.outputs[0].iter().map(Tensor::dims).collect();
        let mut random = Random::new("upstream");
        checker.flow = (0..calls)
            .map(|_| shapes.iter().map(|s| Some(random.normals(s))).collect())
            .collect();
        Ok(checker)
    }

    fn plan(&self, float: DType, leaves: Leaves) -> Plan<'_> {
        Plan {
            device: Device::Cpu,
            float,
            layout: Layout::Contiguous,
            leaves,
            shared: None,
            upstream: &self.flow,
        }
    }

    fn run(&self, plan: &Plan) -> Result<Outcome, Failure> {
        self.run_on(&self.values, plan)
    }

    fn run_on(&self, values: &[Array], plan: &Plan) -> Result<Outcome, Failure> {
        run(self.case, values, plan).map_err(|e| failure(Check::Runs, e.to_string()))
    }

    fn fail(&mut self, check: Check, message: impl Into<String>) {
        self.failures.push(failure(check, message));
    }

    /// Positions of differentiable operands.
    fn asked(&self) -> Vec<usize> {
        let inputs = self.case.inputs.iter().enumerate();
        inputs
            .filter(|(_, input)| input.fill.differentiable())
            .map(|(i, _)| i)
            .collect()
    }

    fn name(&self, operand: usize) -> &'static str {
        self.case.inputs[operand].name
    }

    /// f64 against the naive reference.
    fn forward(&mut self) -> Result<(), Failure> {
        let outcome = self.run(&self.plan(DType::F64, Leaves::None))?;
        let reference = (self.case.reference)(&self.values);
        let outputs = &outcome.outputs[0];
        if outputs.len() != reference.len() {
            let message = format!(
                "{} outputs, the reference has {}",
                outputs.len(),
                reference.len()
            );
            return Err(failure(Check::Spec, message));
        }
        for (i, (output, reference)) in outputs.iter().zip(&reference).enumerate() {
            if output.dims() != reference.shape {
                let message = format!(
                    "output {i} is {}, the reference {:?}",
                    output.shape(),
                    reference.shape
                );
                return Err(failure(Check::Spec, message));
            }
            if !reference.data.iter().all(|v| v.is_finite()) {
                return Err(failure(Check::Spec, "the reference is not finite"));
            }
            if unwritten(output) > 0 {
                let message = format!("output {i}: {} elements", unwritten(output));
                self.fail(Check::Unwritten, message);
                continue;
            }
            let y = output.to_f64_vec().unwrap();
            let error = budget::relative(&y, &reference.data);
            self.worst.f64_error = self.worst.f64_error.max(error);
            if exceeds(error, budget::F64) {
                let (at, y, want) = furthest(&y, &reference.data);
                let message = format!(
                    "output {i}: element {at} is {y}, the reference {want}; {error:.1e} of the largest value, allowed {:.0e}",
                    budget::F64
                );
                self.fail(Check::Forward, message);
            }
        }
        Ok(())
    }

    /// An op without a gradient records none.
    fn no_gradient(&mut self) -> Result<(), Failure> {
        let outcome = self.run(&self.plan(DType::F64, Leaves::All))?;
        if outcome.recorded {
            self.fail(
                Check::Missing,
                "the op says that it has no gradient, but records one",
            );
        }
        Ok(())
    }

    /// f64 gradients: there, complete, equal to finite differences, and added up over all uses of an operand.
    fn gradients(&mut self) -> Result<(), Failure> {
        let all = self.run(&self.plan(DType::F64, Leaves::All))?;
        let mut gradients = vec![vec![]; self.values.len()];
        for i in self.asked() {
            let Some(gradient) = &all.gradients[i] else {
                let message = format!("{} got no gradient", self.name(i));
                return Err(failure(Check::Missing, message));
            };
            if gradient.dims() != self.values[i].shape || gradient.dtype() != DType::F64 {
                let message = format!("the gradient of {} is {gradient:?}", self.name(i));
                return Err(failure(Check::Missing, message));
            }
            if unwritten(gradient) > 0 {
                let (name, n) = (self.name(i), unwritten(gradient));
                self.fail(
                    Check::Unwritten,
                    format!("gradient of {name}: {n} elements"),
                );
            }
            gradients[i] = gradient.to_f64_vec().unwrap();
        }
        self.finite_differences(&gradients)?;

        // Gradients are linear in what flows in: each output of each call alone must add up to all together.
        let mut sums: Vec<Vec<f64>> = gradients.iter().map(|g| vec![0.0; g.len()]).collect();
        for call in 0..self.flow.len() {
            for output in 0..self.flow[call].len() {
                let mut flow: Flow = vec![vec![None; self.flow[call].len()]; self.flow.len()];
                flow[call][output] = self.flow[call][output].clone();
                let plan = Plan {
                    upstream: &flow,
                    ..self.plan(DType::F64, Leaves::All)
                };
                let alone = self.run(&plan)?;
                for i in self.asked() {
                    // An operand may well not depend on every output.
                    if let Some(gradient) = &alone.gradients[i] {
                        add(&mut sums[i], &gradient.to_f64_vec().unwrap());
                    }
                }
            }
        }
        for i in self.asked() {
            self.reordered(Check::Accumulate, i, &gradients[i], &sums[i], || {
                "used twice, the gradient is not the sum over both uses".into()
            });
        }

        // One use of each operand alone, and as a parameter.
        let single = self.flow[..1].to_vec();
        let plan = |leaves| Plan {
            upstream: &single,
            ..self.plan(DType::F64, leaves)
        };
        let once = self.run(&plan(Leaves::All))?;
        let parameters = self.run(&plan(Leaves::Parameters))?;
        let alone: Vec<_> = self
            .asked()
            .into_iter()
            .map(|i| Ok((i, self.run(&plan(Leaves::One(i)))?)))
            .collect::<Result<_, Failure>>()?;
        let once: Vec<Vec<f64>> = once.gradients.iter().map(as_f64).collect();
        for (i, alone) in alone {
            let alone = as_f64(&alone.gradients[i]);
            self.reordered(Check::Partial, i, &alone, &once[i], || {
                "differs when the other operands are constants".into()
            });
            let parameter = as_f64(&parameters.gradients[i]);
            self.reordered(Check::Parameter, i, &parameter, &once[i], || {
                "differs when the operand is a parameter".into()
            });
        }
        self.shared_operands(&single)
    }

    /// One variable as two operands, for every pair that can be one.
    fn shared_operands(&mut self, single: &Flow) -> Result<(), Failure> {
        let asked = self.asked();
        for (n, &first) in asked.iter().enumerate() {
            for &second in &asked[n + 1..] {
                if self.values[first].shape != self.values[second].shape {
                    continue;
                }
                let mut values = self.values.clone();
                values[second] = values[first].clone();
                let plan = Plan {
                    upstream: single,
                    ..self.plan(DType::F64, Leaves::All)
                };
                let apart = self.run_on(&values, &plan)?;
                let plan = Plan {
                    shared: Some((first, second)),
                    ..plan
                };
                let shared = as_f64(&self.run_on(&values, &plan)?.gradients[first]);
                let mut sum = as_f64(&apart.gradients[first]);
                add(&mut sum, &as_f64(&apart.gradients[second]));
                let other = self.name(second);
                self.reordered(Check::Shared, first, &shared, &sum, || {
                    format!("as {other} too, it does not get the sum of both gradients")
                });
            }
        }
        Ok(())
    }

    /// Holds two f64 gradients of an operand, made of the same terms, to each other.
    fn reordered(
        &mut self,
        check: Check,
        operand: usize,
        got: &[f64],
        want: &[f64],
        reason: impl FnOnce() -> String,
    ) {
        if got.len() != want.len() || exceeds(budget::relative(got, want), REORDERED) {
            let detail = if got.len() == want.len() {
                let (at, got, want) = furthest(got, want);
                format!("element {at} is {got}, expected {want}")
            } else {
                format!("{} elements, expected {}", got.len(), want.len())
            };
            let message = format!("gradient of {}: {}: {detail}", self.name(operand), reason());
            self.fail(check, message);
        }
    }

    /// Central differences of a random-weighted sum of all outputs, along random directions and single elements.
    fn finite_differences(&mut self, gradients: &[Vec<f64>]) -> Result<(), Failure> {
        for i in self.asked() {
            let n = self.values[i].data.len();
            let mut directions: Vec<Vec<f64>> =
                (0..2).map(|_| self.random.normals(&[n]).data).collect();
            let singles = [0, n - 1, self.random.below(n), self.random.below(n)];
            directions.extend(singles.into_iter().map(|at| {
                let mut unit = vec![0.0; n];
                unit[at] = 1.0;
                unit
            }));
            for (which, direction) in directions.iter().enumerate() {
                let (slope, rounding) = self.slope(i, direction)?;
                let terms = gradients[i].iter().zip(direction).map(|(g, v)| g * v);
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| {
                    (sum + term, size + f64::abs(term))
                });
                let off = (slope - sum).abs();
                let used = if off == 0.0 {
                    0.0
                } else {
                    off / (DIFFERENCES * size + rounding)
                };
                self.worst.differences = self.worst.differences.max(used);
                if exceeds(used, 1.0) {
                    let along = match which {
                        0 | 1 => "a random direction".into(),
                        _ => format!("element {}", singles[which - 2]),
                    };
                    let name = self.name(i);
                    let message = format!(
                        "of {name} along {along} is {sum}, finite differences give {slope}"
                    );
                    self.fail(Check::Gradient, message);
                }
            }
        }
        Ok(())
    }

    /// The derivative along `direction` by five points, and a bound of its rounding error.
    fn slope(&self, operand: usize, direction: &[f64]) -> Result<(f64, f64), Failure> {
        let mut values = self.values.clone();
        let scale = match self.case.inputs[operand].fill {
            Fill::Normal { std, .. } => std,
            _ => 1.0,
        };
        let h = STEP * scale;
        let mut slope = 0.0;
        let mut size = 0.0f64;
        for (step, weight) in [(-2.0, 1.0), (-1.0, -8.0), (1.0, 8.0), (2.0, -1.0)] {
            let moved = self.values[operand].data.iter().zip(direction);
            for (value, (x, v)) in values[operand].data.iter_mut().zip(moved) {
                *value = x + step * h * v;
            }
            let outcome = self.run_on(&values, &self.plan(DType::F64, Leaves::None))?;
            for (outputs, flow) in outcome.outputs.iter().zip(&self.flow) {
                for (output, dy) in outputs.iter().zip(flow.iter().flatten()) {
                    let y = output.to_f64_vec().unwrap();
                    let terms = y.iter().zip(&dy.data).map(|(y, dy)| y * dy);
                    let (sum, sizes) = terms.fold((0.0, 0.0), |(sum, size), term| {
                        (sum + term, size + f64::abs(term))
                    });
                    slope += weight * sum;
                    size = size.max(sizes);
                }
            }
        }
        // Each sum is good to some ε of its terms, and so are the arguments of the function.
        let rounding = 32.0 * f64::EPSILON * size / h;
        Ok((slope / (12.0 * h), rounding))
    }

    /// f32 outputs and gradients within their budget around f64.
    fn budget(&mut self) -> Result<(), Failure> {
        let exact = self.run(&self.plan(DType::F64, Leaves::All))?;
        let single = self.run(&self.plan(DType::F32, Leaves::All))?;
        // Few elements need more draws, before one of them moves the terms that cancel in opposite directions.
        let elements: usize = self.values.iter().map(|v| v.data.len()).sum();
        let naive: Vec<Outcome> = (0..if elements < 1000 { 12 } else { 2 })
            .map(|_| {
                let values =
                    budget::moved(Precision::F32, self.case, &self.values, &mut self.random);
                let mut flow = self.flow.clone();
                for dy in flow.iter_mut().flatten().flatten() {
                    *dy = budget::moved_array(Precision::F32, dy, &mut self.random);
                }
                let plan = Plan {
                    upstream: &flow,
                    ..self.plan(DType::F64, Leaves::All)
                };
                self.run_on(&values, &plan)
            })
            .collect::<Result<_, _>>()?;

        let flowing = self.flow.iter().flatten().flatten();
        let flowing = flowing.fold(0.0, |m, dy| budget::largest(&dy.data).max(m));
        let mut results = vec![];
        for i in 0..exact.outputs[0].len() {
            let pick = |o: &Outcome| Some(o.outputs[0][i].clone());
            results.push((
                format!("output {i}"),
                0.0,
                pick(&exact),
                pick(&single),
                naive.iter().map(pick).collect::<Vec<_>>(),
            ));
        }
        for i in self.asked() {
            let pick = |o: &Outcome| o.gradients[i].clone();
            results.push((
                format!("gradient of {}", self.name(i)),
                flowing,
                pick(&exact),
                pick(&single),
                naive.iter().map(pick).collect(),
            ));
        }
        for (name, from, exact, single, naive) in results {
            let (Some(exact), Some(single)) = (exact, single) else {
                continue; // an op without gradients; one that lost them failed before
            };
            if single.dtype() != DType::F32 {
                self.fail(Check::Budget, format!("{name} is {single:?}"));
                continue;
            }
            if unwritten(&single) > 0 {
                let message = format!("{name}: {} elements, in f32", unwritten(&single));
                self.fail(Check::Unwritten, message);
                continue;
            }
            let (exact, single) = (exact.to_f64_vec().unwrap(), single.to_f64_vec().unwrap());
            let naive: Vec<Vec<f64>> = naive.iter().map(as_f64).collect();
            let naive: Vec<&[f64]> = naive.iter().map(Vec::as_slice).collect();
            let used = budget::used(Precision::F32, &single, &exact, &naive, from);
            self.worst.f32_budget = self.worst.f32_budget.max(used);
            if exceeds(used, 1.0) {
                let (at, y, want) = furthest(&single, &exact);
                let message = format!(
                    "{name} in f32 is {used:.2} of its budget off; element {at} is {y}, in f64 {want}"
                );
                self.fail(Check::Budget, message);
            }
        }
        Ok(())
    }

    /// f32 outputs and gradients have the same bits in a second run, at other thread counts, and at other SIMD levels.
    fn same_bits(&mut self, pools: &Pools, levels: &[Level]) -> Result<(), Failure> {
        let plan = self.plan(DType::F32, Leaves::All);
        let first = self.run(&plan)?;
        let mut others = vec![(Check::Repeat, "a second run".to_owned(), self.run(&plan)?)];
        for pool in &pools.0 {
            let threads = format!("{} threads", pool.current_num_threads());
            // The tensors cross threads; what is between them does not.
            let outcome = pool.install(|| self.run(&plan))?;
            others.push((Check::Threads, threads, outcome));
        }
        let usual = kernels::simd::level();
        for &level in levels.iter().filter(|&&level| level < usual) {
            kernels::simd::set_level(level);
            let outcome = self.run(&plan);
            kernels::simd::set_level(usual);
            others.push((Check::Simd, format!("level {level:?}"), outcome?));
        }
        for (check, what, other) in others {
            let outputs = first
                .outputs
                .iter()
                .flatten()
                .zip(other.outputs.iter().flatten());
            let mut different = vec![];
            for (i, (a, b)) in outputs.enumerate() {
                if !a.bit_equal(b) {
                    different.push(format!("output {i}"));
                }
            }
            for (i, (a, b)) in first.gradients.iter().zip(&other.gradients).enumerate() {
                let same = match (a, b) {
                    (Some(a), Some(b)) => a.bit_equal(b),
                    (None, None) => true,
                    _ => false,
                };
                if !same {
                    different.push(format!("gradient of {}", self.name(i)));
                }
            }
            if !different.is_empty() {
                let message = format!("{what}: other bits in {}", different.join(", "));
                self.fail(check, message);
            }
        }
        Ok(())
    }

    /// Strided operands and strided gradients give the bits that contiguous ones give.
    fn views(&mut self) -> Result<(), Failure> {
        let plan = self.plan(DType::F32, Leaves::All);
        let contiguous = self.run(&plan)?;
        let strided = self.run(&Plan {
            layout: Layout::Strided,
            ..plan
        });
        let strided = match strided {
            Ok(strided) => strided,
            Err(Failure { message, .. }) => {
                self.fail(Check::Views, message);
                return Ok(());
            }
        };
        let outputs = contiguous
            .outputs
            .iter()
            .flatten()
            .zip(strided.outputs.iter().flatten());
        if outputs.clone().any(|(a, b)| !a.bit_equal(b)) {
            self.fail(Check::Views, "strided operands give another output");
        }
        for i in self.asked() {
            let same = match (&contiguous.gradients[i], &strided.gradients[i]) {
                (Some(a), Some(b)) => a.bit_equal(b),
                (a, b) => a.is_none() && b.is_none(),
            };
            if !same {
                let message = format!("strided operands give {} another gradient", self.name(i));
                self.fail(Check::Views, message);
            }
        }
        Ok(())
    }

    /// Operands that may not fit: the op runs or refuses, and never panics. An index out of range is always refused.
    fn refusals(&mut self) {
        for i in 0..self.case.inputs.len() {
            let input = self.case.inputs[i].clone();
            let mut attempts: Vec<(String, Tensor, bool)> = vec![];
            for shape in unfit_shapes(&input.shape) {
                let unfit = Input {
                    shape: shape.clone(),
                    ..input.clone()
                };
                let values = values(&unfit, &mut Random::new("unfit"));
                let x = tensor(
                    input.fill,
                    &values,
                    DType::F32,
                    Layout::Contiguous,
                    Device::Cpu,
                );
                attempts.push((format!("of shape {shape:?}"), x, false));
            }
            let fitting = |dtype| {
                let data = &self.values[i].data;
                Tensor::from_f64(data, &self.values[i].shape, dtype, Device::Cpu)
            };
            for dtype in [DType::F64, DType::BF16, DType::I64, DType::Bool] {
                if dtype != values::dtype(input.fill, DType::F32) {
                    attempts.push((format!("of dtype {dtype}"), fitting(dtype), false));
                }
            }
            if let Fill::Index { below } = input.fill {
                for bad in [below as f64, -1.0] {
                    let mut data = self.values[i].data.clone();
                    let Some(last) = data.last_mut() else {
                        continue;
                    };
                    *last = bad;
                    let shape = &self.values[i].shape;
                    let x = Tensor::from_f64(&data, shape, DType::I32, Device::Cpu);
                    attempts.push((format!("with index {bad}"), x, true));
                }
            }
            for (what, operand, must_refuse) in attempts {
                let what = format!("{} {what}", self.name(i));
                self.refusal(i, operand, &what, must_refuse);
            }
        }
    }

    fn refusal(&mut self, operand: usize, unfit: Tensor, what: &str, must_refuse: bool) {
        let mut tensors: Vec<Tensor> = (self.case.inputs.iter().zip(&self.values))
            .map(|(input, values)| {
                tensor(
                    input.fill,
                    values,
                    DType::F32,
                    Layout::Contiguous,
                    Device::Cpu,
                )
            })
            .collect();
        tensors[operand] = unfit;
        let upstream: Flow = vec![vec![]];
        let plan = Plan {
            upstream: &upstream,
            ..self.plan(DType::F32, Leaves::All)
        };
        let attempt = catch_unwind(AssertUnwindSafe(|| run_tensors(self.case, &tensors, &plan)));
        match attempt {
            Err(payload) => {
                let message = format!("{what}: panicked: {}", panic_text(&*payload));
                self.fail(Check::Refusal, message);
            }
            Ok(Ok(_)) if must_refuse => self.fail(Check::Refusal, format!("{what} is accepted")),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                if let Some(lacking) = lacks(&error) {
                    let message = format!("{what}: the error has no {lacking}: {error}");
                    self.fail(Check::Refusal, message);
                }
            }
        }
    }
}

/// Shapes near `shape`: each extent larger by one or zero, a dimension more, a dimension fewer.
fn unfit_shapes(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut shapes = vec![];
    for d in 0..shape.len() {
        for extent in [shape[d] + 1, 0] {
            let mut changed = shape.to_vec();
            changed[d] = extent;
            shapes.push(changed);
        }
    }
    if shape.len() < tensor::MAX_RANK {
        shapes.push(std::iter::once(2).chain(shape.iter().copied()).collect());
    }
    if let Some((_, rest)) = shape.split_first() {
        shapes.push(rest.to_vec());
    }
    shapes
}

/// What an error should carry and does not.
fn lacks(error: &Error) -> Option<&'static str> {
    if error.op().is_empty() {
        Some("op")
    } else if error.reason().is_empty() {
        Some("reason")
    } else if error.operands().is_empty() {
        Some("operands")
    } else {
        None
    }
}

fn failure(check: Check, message: impl Into<String>) -> Failure {
    Failure {
        check,
        message: message.into(),
    }
}

/// Whether `value` is above `limit`, or NaN.
fn exceeds(value: f64, limit: f64) -> bool {
    value.is_nan() || value > limit
}

fn as_f64(gradient: &Option<Tensor>) -> Vec<f64> {
    gradient
        .as_ref()
        .map(|x| x.to_f64_vec().unwrap())
        .unwrap_or_default()
}

fn add(sum: &mut [f64], terms: &[f64]) {
    for (sum, term) in sum.iter_mut().zip(terms) {
        *sum += term;
    }
}

/// Elements that still hold the poison of a new buffer.
fn unwritten(x: &Tensor) -> usize {
    let count = |poisoned: &dyn Fn(f64) -> bool| {
        x.to_f64_vec()
            .unwrap()
            .into_iter()
            .filter(|&v| poisoned(v))
            .count()
    };
    match x.dtype() {
        // Widening keeps the sign and the payload of a NaN: all ones stay ones as far as they go.
        DType::F32 => count(&|v| v.to_bits() >> 29 == u64::MAX >> 29),
        DType::F64 => count(&|v| v.to_bits() == u64::MAX),
        _ => 0,
    }
}

/// The element that is furthest off: its index, its value and the one that it should have.
fn furthest(got: &[f64], want: &[f64]) -> (usize, f64, f64) {
    let pairs = got.iter().zip(want).enumerate();
    let off = |got: f64, want: f64| {
        let off = (got - want).abs();
        if off.is_nan() { f64::INFINITY } else { off }
    };
    pairs.fold((0, f64::NAN, f64::NAN), |best, (i, (&g, &w))| {
        if i == 0 || off(g, w) > off(best.1, best.2) {
            (i, g, w)
        } else {
            best
        }
    })
}
