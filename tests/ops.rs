//! Every op of [`autograd::ops::ALL`], held to its own spec by the harness. There is no op in this file.
//!
//! `UNCLIP_CASE=group_norm/ cargo test --release --test ops` runs the cases whose `op/case` contains the text.
//! `UNCLIP_TESTS=full` adds what takes too long for every day.

mod harness;

use std::cell::Cell;
use std::collections::HashSet;
use std::io::Write;
use std::time::Instant;

use autograd::ops::ALL;
use autograd::spec::{Case, Gradient, OpSpec};

use harness::{Failure, Pools, Worst, check, check_large};

/// Large cases above either are run under `UNCLIP_TESTS=full` only, unless they are the op's cheapest.
const LARGE_FLOPS: f64 = 3e9;
const LARGE_ELEMENTS: f64 = 1.2e7;

/// Cases whose naive f64 reference takes longer than a second or so are compared with it under `UNCLIP_TESTS=full` only.
const REFERENCE_FLOPS: f64 = 2e7;

/// Writes past the test runner, which shows the output of failing tests only.
fn say(line: &str) {
    // Nothing can be done where standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn selected(name: &str) -> bool {
    std::env::var("UNCLIP_CASE").map_or(true, |wanted| name.contains(&wanted))
}

fn full() -> bool {
    std::env::var("UNCLIP_TESTS").is_ok_and(|tests| tests == "full")
}

fn worse(a: Worst, b: Worst) -> Worst {
    Worst {
        f64_error: a.f64_error.max(b.f64_error),
        differences: a.differences.max(b.differences),
        f32_budget: a.f32_budget.max(b.f32_budget),
    }
}

/// Runs `check` on all selected cases, printing a line an op, and fails with how to run each failing case alone.
fn every_case(
    what: &str,
    cases: fn(&dyn OpSpec) -> Vec<Case>,
    check: impl Fn(&dyn OpSpec, &Case) -> (Vec<Failure>, Worst),
) {
    let mut reports = vec![];
    let (mut run, mut left_out) = (0, 0);
    let mut worst = Worst::default();
    for &op in ALL {
        let start = Instant::now();
        let (mut here, mut here_worst) = (0, Worst::default());
        for case in cases(op) {
            let name = format!("{}/{}", op.name(), case.name);
            if !selected(&name) {
                left_out += 1;
                continue;
            }
            here += 1;
            let (failures, near) = check(op, &case);
            here_worst = worse(here_worst, near);
            if !failures.is_empty() {
                let list: String = failures.iter().map(|f| format!("\n    {f}")).collect();
                reports.push(format!(
                    "{name}{list}\n    again: UNCLIP_CASE='{name}' cargo test --release --test ops"
                ));
            }
        }
        if here > 0 {
            say(&format!(
                "{:20} {here:3} {what}, {:5.2} s; worst: f64 {:.0e} of the largest value, differences {:.0e} of tolerance, f32 {:.2} of budget",
                op.name(),
                start.elapsed().as_secs_f64(),
                here_worst.f64_error,
                here_worst.differences,
                here_worst.f32_budget
            ));
        }
        run += here;
        worst = worse(worst, here_worst);
    }
    say(&format!(
        "{what}: {run} run, {left_out} not selected; worst: f64 {:.1e}, differences {:.1e}, f32 {:.2}",
        worst.f64_error, worst.differences, worst.f32_budget
    ));
    assert!(
        reports.is_empty(),
        "{} of {run} {what} failed:\n{}",
        reports.len(),
        reports.join("\n")
    );
}

/// The op's benches that fit into an everyday run, or all of them.
fn large_cases(op: &dyn OpSpec) -> Vec<Case> {
    let mut cases = op.benches();
    if !full() {
        cases.sort_by(|a, b| a.cost.flops.total_cmp(&b.cost.flops));
        let mut cheapest = true;
        cases.retain(|case| {
            let small = case.cost.flops <= LARGE_FLOPS && case.cost.elements <= LARGE_ELEMENTS;
            std::mem::take(&mut cheapest) || small
        });
    }
    cases
}

/// Everything, in one test: poison, guards and SIMD levels are switches of the whole process.
#[test]
fn every_op_keeps_its_spec() {
    let pools = Pools::new(&[1, 2, 3]);
    every_case("cases", |op| op.cases(), |op, case| check(op, case, &pools));
    let (references, baselines) = (Cell::new(0), Cell::new(0));
    every_case("large cases", large_cases, |op, case| {
        let reference = full() || case.cost.flops <= REFERENCE_FLOPS;
        references.set(references.get() + usize::from(!reference));
        baselines.set(baselines.get() + usize::from(!full()));
        check_large(op, case, &pools, reference, full())
    });
    let all: usize = ALL.iter().map(|op| op.benches().len()).sum();
    let chosen: usize = ALL.iter().map(|&op| large_cases(op).len()).sum();
    say(&format!(
        "skipped: {} of {all} large cases, of the others {} naive references and {} runs at the baseline SIMD level (UNCLIP_TESTS=full runs them)",
        all - chosen,
        references.get(),
        baselines.get()
    ));
}

#[test]
fn specs_are_complete() {
    let mut ops = HashSet::new();
    for &op in ALL {
        let name = op.name();
        assert!(ops.insert(name), "two ops are called {name}");
        if let Gradient::None(reason) = op.gradient() {
            assert!(!reason.is_empty(), "{name} has no gradient and no reason");
        }
        let (cases, benches) = (op.cases(), op.benches());
        assert!(!cases.is_empty(), "{name} has no cases");
        assert!(!benches.is_empty(), "{name} has no benches");
        for list in [&cases, &benches] {
            let mut names = HashSet::new();
            for case in list {
                assert!(
                    names.insert(&case.name),
                    "{name}/{} is there twice",
                    case.name
                );
                let cost = case.cost;
                let counted = cost.flops >= 0.0 && cost.elements >= 0.0;
                assert!(counted, "{name}/{} costs {cost:?}", case.name);
            }
        }
        let extents = || cases.iter().flat_map(|c| &c.inputs).flat_map(|i| &i.shape);
        if extents().next().is_some() {
            assert!(extents().any(|&e| e == 1), "{name} has no extent of 1");
            assert!(
                extents().any(|&e| e > 1 && e % 2 == 1),
                "{name} has no odd extent"
            );
        }
    }
}
