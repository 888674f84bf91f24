//! Every op of [`autograd::ops::ALL`] on the simulated GPU, or on the one that `UNCLIP_DEVICE=cuda:0` names, held to the CPU in
//! f64. There is no op in this file.
//!
//! `UNCLIP_CASE=group_norm/ cargo test --release -p unclip-autograd --test simulated` runs the cases whose `op/case` contains the text.
//! Every day runs one order of warps with late completion; `UNCLIP_TESTS=full` runs three, early and late, and views. The last
//! full run is kept under `benches/runs`.

use std::io::Write;
use std::time::Instant;

use autograd::DType;
use autograd::harness::device::{Verdict, check, gpu};
use autograd::ops::ALL;
use kernels::sim::Completion;
use tensor::gpu::Simulation;

/// Cases known to be above their budget, and why. One that is not any more fails the test until it is taken off.
const ABOVE_BUDGET: [(&str, &str); 0] = [];

/// Writes past the test runner, which shows the output of failing tests only.
fn say(line: &str) {
    // Nothing can be done where standard error is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn every_op_on_the_simulated_gpu_is_within_its_budget() {
    let device = gpu();
    let wanted = std::env::var("UNCLIP_CASE").unwrap_or_default();
    let full = std::env::var("UNCLIP_TESTS").is_ok_and(|tests| tests == "full");
    let every_day = [Simulation {
        seed: 0,
        completion: Completion::Late,
    }];
    let all = (0..3).flat_map(|seed| {
        [Completion::Late, Completion::Early].map(|completion| Simulation { seed, completion })
    });
    let all: Vec<Simulation> = all.collect();
    let simulations = if full { &all[..] } else { &every_day };
    let (mut reports, mut passed, mut lacking, mut left_out) = (vec![], 0, 0, 0);
    let mut worst = [0.0f64; 2];
    for &op in ALL {
        let start = Instant::now();
        let (mut here, mut lacks, mut near) = (0, vec![], [0.0f64; 2]);
        for case in op.cases() {
            let name = format!("{}/{}", op.name(), case.name);
            if !name.contains(&wanted) {
                left_out += 1;
                continue;
            }
            for (near, float) in near.iter_mut().zip([DType::F32, DType::BF16]) {
                let name = format!("{name} {float}");
                let above = ABOVE_BUDGET.iter().find(|(case, _)| *case == name);
                match check(op, &case, device, float, simulations, full) {
                    Verdict::Passed(_) if above.is_some() => reports.push(format!(
                        "{name} is within its budget: take it off the list of those that are not"
                    )),
                    Verdict::Failed(_) if let Some((_, why)) = above => {
                        lacks.push(format!("{name} ABOVE ITS BUDGET: {why}"));
                    }
                    Verdict::Passed(used) => {
                        here += 1;
                        *near = near.max(used);
                    }
                    Verdict::Lacking(why) => lacks.push(format!("{name}: {why}")),
                    failed => reports.push(format!(
                        "{name}: {failed}\n    again: UNCLIP_CASE='{name}' cargo test --release -p unclip-autograd --test simulated"
                    )),
                }
            }
        }
        say(&format!(
            "{:20} {here:3} passed, {} lack a kernel, {:5.2} s; of the budget: f32 {:.2}, bf16 {:.2}",
            op.name(),
            lacks.len(),
            start.elapsed().as_secs_f64(),
            near[0],
            near[1],
        ));
        lacks
            .iter()
            .for_each(|case| say(&format!("    NOT RUN: {case}")));
        passed += here;
        lacking += lacks.len();
        worst = [worst[0].max(near[0]), worst[1].max(near[1])];
    }
    say(&format!(
        "on {device}: {passed} passed, {} failed, {lacking} NOT RUN for lack of a kernel, {left_out} cases not selected; of the budget: f32 {:.2}, bf16 {:.2}",
        reports.len(),
        worst[0],
        worst[1]
    ));
    let skipped = all.len() - simulations.len();
    say(&format!(
        "skipped: of every case {skipped} of {} orders of warps and completion{} (UNCLIP_TESTS=full runs them)",
        all.len(),
        if full { "" } else { ", and strided views" }
    ));
    assert!(
        reports.is_empty(),
        "{} cases failed on {device}:\n{}",
        reports.len(),
        reports.join("\n")
    );
}
