//! Times the large cases of every op of [`autograd::ops::ALL`]: forward, and forward with backward. There is no op in this
//! file. On the CPU in f32, unless `UNCLIP_DEVICE=cuda:0` names a GPU and `UNCLIP_DTYPE=bf16` what it computes in; a call on
//! a GPU is over when the GPU has done it.
//!
//! `cargo bench --bench ops -- 'matmul/'` times the cases whose name matches the expression, `--exact` one of them. Inputs take turns, so that no
//! call finds its operands in the cache unless all sets fit; what the last call gave is compared with the f64 result
//! after timing. Each line is
//!
//! ```text
//! op/case pass | median µs [p20 p80] | GFLOP/s | GB/s | % of peak
//! ```
//!
//! where the peak is the smaller of what the processor's measured FMA rate and copy bandwidth allow. With `UNCLIP_BENCH`
//! set to a file, each is also appended to it as a line of JSON; `benches/peers/compare.py` makes the runs under
//! `benches/runs/` of them.

#[path = "../tests/harness/mod.rs"]
#[allow(dead_code)] // the tests use what is left
mod harness;
mod report;

use std::sync::Arc;
use std::time::{Duration, Instant};

use autograd::harness::budget::{self, Precision};
use autograd::harness::values::{Layout, Random, case_values, tensor};
use autograd::spec::{Array, Case, Gradient, STEP};
use autograd::{DType, Device, ParamGrads, Params, Result, Tape, Tensor, Var};
use criterion::Criterion;
use report::Timing;

/// Operands take turns over at least this many bytes: more than the last-level cache of most machines.
const ROTATED: usize = 96 << 20;
const WARM_UP: Duration = Duration::from_millis(300);
/// FLOPs of a backward pass in units of the forward's: two products of the same size for each product.
const BACKWARD: f64 = 2.0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Both,
}

impl Pass {
    fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Both => "forward+backward",
        }
    }

    /// Work relative to the forward pass.
    fn factor(self) -> f64 {
        match self {
            Pass::Forward => 1.0,
            Pass::Both => 1.0 + BACKWARD,
        }
    }
}

/// The machine's measured limits.
struct Peak {
    flops: f64,
    bytes: f64,
}

/// One set of operands, and the gradients that flow into the outputs.
struct Set {
    operands: Vec<Tensor>,
    upstream: Vec<Tensor>,
}

/// One call: outputs, and the gradients of the operands that have one.
fn call(case: &Case, set: &Set, params: &Params, pass: Pass) -> Result<Vec<Tensor>> {
    let t = match pass {
        Pass::Forward => Tape::inference(Some(params)).with_mode(autograd::Mode::Train),
        Pass::Both => Tape::training(params, STEP),
    };
    let operands: Vec<Var> = (case.inputs.iter().zip(&set.operands))
        .map(|(input, x)| match input.fill.differentiable() {
            true => t.leaf(x.clone()),
            false => t.constant(x.clone()),
        })
        .collect();
    let outputs = (case.run)(&t, &operands)?;
    let mut results: Vec<Tensor> = outputs.iter().map(|y| y.tensor().clone()).collect();
    if pass == Pass::Both {
        let seeds = outputs.into_iter().zip(set.upstream.iter().cloned());
        let mut grads = t.backward_from(seeds.collect(), ParamGrads::new(params))?;
        results.extend(operands.iter().filter_map(|x| grads.take(x)));
    }
    Ok(results)
}

/// Where ops are timed, and in what.
#[derive(Clone, Copy)]
struct Place {
    device: Device,
    float: DType,
}

/// What results are held to.
const EXACT: Place = Place {
    device: Device::Cpu,
    float: DType::F64,
};

impl Place {
    fn of_environment() -> Place {
        let float = match std::env::var("UNCLIP_DTYPE").as_deref() {
            Err(_) | Ok("f32") => DType::F32,
            Ok("bf16") => DType::BF16,
            Ok(other) => panic!("UNCLIP_DTYPE={other}: ops are timed in f32 or bf16"),
        };
        let device = report::device();
        assert!(
            float == DType::F32 || device != Device::Cpu,
            "the CPU computes in f32: set UNCLIP_DEVICE=cuda:0 for bf16"
        );
        Place { device, float }
    }

    /// The numbers that the storage holds.
    fn rounded(self, array: &Array) -> Result<Array> {
        let stored = Tensor::from_f64(&array.data, &array.shape, self.float, Device::Cpu);
        Ok(Array {
            data: stored.to_f64_vec()?,
            shape: array.shape.clone(),
        })
    }
}

fn params(place: Place) -> Params {
    Params::zeros(Arc::default(), place.float, place.device)
}

fn set(case: &Case, values: &[Array], upstream: &[Array], place: Place) -> Set {
    let Place { device, float } = place;
    let contiguous = |(input, x): (&autograd::spec::Input, &Array)| {
        tensor(input.fill, x, float, Layout::Contiguous, device)
    };
    let gradient = |dy: &Array| {
        // Losses and statistics are f32 beside bf16.
        Tensor::from_f64(&dy.data, &dy.shape, float, device)
    };
    Set {
        operands: case.inputs.iter().zip(values).map(contiguous).collect(),
        upstream: upstream.iter().map(gradient).collect(),
    }
}

/// What a case is timed on.
struct Prepared {
    values: Vec<Array>,
    upstream: Vec<Array>,
    sets: Vec<Set>,
    params: Params,
    begun: Instant,
}

fn prepare(case: &Case, place: Place) -> Result<Prepared> {
    let stored = |(input, values): (&autograd::spec::Input, Array)| match input.fill.is_float() {
        true => place.rounded(&values),
        false => Ok(values),
    };
    let values: Vec<Array> = (case.inputs.iter().zip(case_values(case, 0)))
        .map(stored)
        .collect::<Result<_>>()?;
    let params = params(place);
    let bare = set(case, &values, &[], place);
    let outputs = call(case, &bare, &params, Pass::Forward)?;
    let mut random = Random::new("upstream");
    let upstream: Vec<Array> = outputs
        .iter()
        .map(|y| place.rounded(&random.normals(y.dims())))
        .collect::<Result<_>>()?;
    let mut first = set(case, &values, &upstream, place);
    for (dy, y) in first.upstream.iter_mut().zip(&outputs) {
        *dy = dy.cast(y.dtype())?;
    }
    let held = |x: &Tensor| x.len() * x.dtype().size();
    let bytes: usize = first.operands.iter().chain(&first.upstream).map(held).sum();
    let copies = (ROTATED / bytes.max(1)).clamp(1, 64);
    let copied = |tensors: &[Tensor]| -> Result<Vec<Tensor>> {
        tensors.iter().map(Tensor::detach_copy).collect()
    };
    let copy = |_| -> Result<Set> {
        Ok(Set {
            operands: copied(&first.operands)?,
            upstream: copied(&first.upstream)?,
        })
    };
    Ok(Prepared {
        sets: (0..copies).map(copy).collect::<Result<_>>()?,
        values,
        upstream,
        params,
        begun: Instant::now(),
    })
}

/// Times one pass of a case and reports it; does nothing where the command line did not select it.
///
/// # Errors
/// If the op refuses its own case.
fn measure(
    criterion: &mut Criterion,
    name: &str,
    case: &Case,
    pass: Pass,
    place: Place,
    peak: Option<&Peak>,
) -> Result<()> {
    let full = format!("{name} {}", pass.name());
    let mut prepared: Option<Result<Prepared>> = None;
    let mut samples: Vec<f64> = vec![];
    let mut outcome = Ok(vec![]);
    let mut turn = 0;
    criterion.bench_function(&full, |b| {
        let Ok(prepared) = prepared.get_or_insert_with(|| prepare(case, place)) else {
            b.iter_custom(|_| Duration::from_nanos(1));
            return;
        };
        b.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            for _ in 0..iterations {
                turn = (turn + 1) % prepared.sets.len();
                let start = Instant::now();
                let results = call(case, &prepared.sets[turn], &prepared.params, pass);
                let done = place.device.synchronize();
                let elapsed = start.elapsed();
                total += elapsed;
                // Criterion warms up through this closure too: that much is left out.
                if prepared.begun.elapsed() > WARM_UP {
                    samples.push(elapsed.as_secs_f64());
                }
                outcome = results;
                if let Err(why) = done {
                    outcome = Err(tensor::Error::new("bench", why, vec![]));
                }
            }
            total
        });
    });
    let Prepared {
        values, upstream, ..
    } = match prepared {
        Some(prepared) => prepared?,
        None => return Ok(()),
    };
    let last = outcome?;

    let precision = Precision::of(place.float);
    let exact = set(case, &values, &upstream, EXACT);
    let exact = call(case, &exact, &params(EXACT), pass)?;
    let mut random = Random::new(name);
    let moved = budget::moved(precision, case, &values, &mut random);
    let moved_upstream: Vec<Array> = upstream
        .iter()
        .map(|dy| budget::moved_array(precision, dy, &mut random))
        .collect();
    let naive = set(case, &moved, &moved_upstream, EXACT);
    let naive = call(case, &naive, &params(EXACT), pass)?;
    let flowing = upstream
        .iter()
        .fold(0.0, |m, dy| budget::largest(&dy.data).max(m));
    let mut used = 0.0f64;
    for ((y, exact), naive) in last.iter().zip(&exact).zip(&naive) {
        let (y, exact, naive) = (
            y.to_f64_vec().unwrap(),
            exact.to_f64_vec().unwrap(),
            naive.to_f64_vec().unwrap(),
        );
        used = used.max(budget::used(precision, &y, &exact, &[&naive], flowing));
    }

    let timing = Timing::of(samples);
    let flops = case.cost.flops * pass.factor();
    let bytes = case.cost.elements * pass.factor() * place.float.size() as f64;
    let share = peak.map(|peak| {
        let limit = (flops / peak.flops).max(bytes / peak.bytes);
        format!(" | {:.0} % of peak", 100.0 * limit / timing.median)
    });
    println!(
        "{full} | {:.1} µs [{:.1} {:.1}] | {:.1} GFLOP/s | {:.1} GB/s{}",
        timing.median * 1e6,
        timing.p20 * 1e6,
        timing.p80 * 1e6,
        flops / timing.median / 1e9,
        bytes / timing.median / 1e9,
        share.unwrap_or_default(),
    );
    let mut line = serde_json::json!({
        "name": full, "flops": flops, "bytes": bytes, "error_of_budget": used,
    });
    if let Some(peak) = peak {
        line["peak_flops"] = peak.flops.into();
        line["peak_bytes"] = peak.bytes.into();
    }
    report::record(timing.json(place.float, line));
    assert!(
        used <= 1.0,
        "{full}: the result is {used:.2} of its error budget off"
    );
    Ok(())
}

fn main() {
    kernels::parallel::adopt_current_thread();
    // Criterion's own options, such as a filter, apply.
    let mut criterion = Criterion::default()
        .without_plots()
        .warm_up_time(WARM_UP)
        .measurement_time(Duration::from_secs(2))
        .sample_size(10)
        .configure_from_args();
    let place = Place::of_environment();
    let peak = (place.device == Device::Cpu).then(|| Peak {
        flops: kernels::peak::fused_multiply_adds(10),
        bytes: kernels::peak::copy_bandwidth(10, ROTATED),
    });
    match &peak {
        Some(peak) => println!(
            "peak: {:.1} GFLOP/s f32, {:.1} GB/s copy, {} threads, {:?}",
            peak.flops / 1e9,
            peak.bytes / 1e9,
            rayon::current_num_threads(),
            kernels::simd::level()
        ),
        None => println!("on {} in {}", place.device, place.float),
    }
    let mut refused = 0;
    for op in autograd::ops::ALL {
        for case in op.benches() {
            let name = format!("{}/{}", op.name(), case.name);
            let passes: &[Pass] = match op.gradient() {
                Gradient::Checked => &[Pass::Forward, Pass::Both],
                Gradient::None(_) => &[Pass::Forward],
            };
            for &pass in passes {
                if let Err(error) =
                    measure(&mut criterion, &name, &case, pass, place, peak.as_ref())
                {
                    eprintln!("{name}: {error}");
                    refused += 1;
                }
            }
        }
    }
    criterion.final_summary();
    if refused > 0 {
        std::process::exit(1);
    }
}
