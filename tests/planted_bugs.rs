//! The harness's own test: an op with one mistake at a time, each of which the check that is named must catch, and the
//! same op without a mistake, in which no check may find one.

mod harness;

use std::sync::atomic::{AtomicUsize, Ordering};

use autograd::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use autograd::{Accum, Backward, DType, Error, Grads, Result, Tape, Tensor, Upstream, Var, VarId};
use harness::{Check, Pools, check, check_large};

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    ForwardOffByOneElement,
    ForwardLeavesAnElementUnwritten,
    WritesPastItsBuffer,
    RoundsToHalfPrecision,
    AddsInAnotherOrderEachTime,
    DependsOnThreads,
    DependsOnSimdLevel,
    RecordsNothing,
    LosesAGradient,
    GradientOffByOnePercent,
    GradientWrongInOneElement,
    GradientLeavesAnElementUnwritten,
    GradientOfAnotherShape,
    OverwritesWhereItShouldAdd,
    NeedsBothGradients,
    ForgetsThatOperandsMayBeOne,
    TreatsParametersDifferently,
    RefusesViews,
    PanicsOnOtherShapes,
    AcceptsAnyIndex,
    ErrorWithoutOperands,
    AlwaysPanics,
    RefusesItsOwnCase,
    RecordsThoughItHasNoGradient,
    ReferenceOfAnotherShape,
}

const BUGS: &[(Bug, Check)] = &[
    (Bug::ForwardOffByOneElement, Check::Forward),
    (Bug::ForwardLeavesAnElementUnwritten, Check::Unwritten),
    (Bug::WritesPastItsBuffer, Check::Bounds),
    (Bug::RoundsToHalfPrecision, Check::Budget),
    (Bug::AddsInAnotherOrderEachTime, Check::Repeat),
    (Bug::DependsOnThreads, Check::Threads),
    (Bug::DependsOnSimdLevel, Check::Simd),
    (Bug::RecordsNothing, Check::Missing),
    (Bug::LosesAGradient, Check::Missing),
    (Bug::GradientOffByOnePercent, Check::Gradient),
    (Bug::GradientWrongInOneElement, Check::Gradient),
    (Bug::GradientLeavesAnElementUnwritten, Check::Unwritten),
    (Bug::GradientOfAnotherShape, Check::Missing),
    (Bug::OverwritesWhereItShouldAdd, Check::Accumulate),
    (Bug::NeedsBothGradients, Check::Partial),
    (Bug::ForgetsThatOperandsMayBeOne, Check::Shared),
    (Bug::TreatsParametersDifferently, Check::Parameter),
    (Bug::RefusesViews, Check::Views),
    (Bug::PanicsOnOtherShapes, Check::Refusal),
    (Bug::AcceptsAnyIndex, Check::Refusal),
    (Bug::ErrorWithoutOperands, Check::Refusal),
    (Bug::AlwaysPanics, Check::Panic),
    (Bug::RefusesItsOwnCase, Check::Runs),
    (Bug::RecordsThoughItHasNoGradient, Check::Missing),
    (Bug::ReferenceOfAnotherShape, Check::Spec),
];

const ROWS: usize = 5;
const COLUMNS: usize = 7;
const INDICES: usize = 4;

/// y = 3·a²·b + index, rows of `COLUMNS` elements with one index each.
fn planted(t: &Tape, bug: Bug, a: &Var, b: &Var, index: &Var) -> Result<Var> {
    assert!(bug != Bug::AlwaysPanics, "a planted panic");
    let operands = [
        ("a", a.tensor()),
        ("b", b.tensor()),
        ("index", index.tensor()),
    ];
    let check = tensor::Check::new("planted", &operands);
    if bug == Bug::PanicsOnOtherShapes {
        assert_eq!(a.dims(), [ROWS, COLUMNS]);
    }
    let float = a.dtype();
    check.require(matches!(float, DType::F32 | DType::F64), || {
        "a must be f32 or f64".into()
    })?;
    check.require(b.dtype() == float && index.dtype() == DType::I32, || {
        "operands must be of one dtype, indices i32".into()
    })?;
    let fits = a.dims() == [ROWS, COLUMNS] && b.dims() == a.dims() && index.dims() == [ROWS];
    if !fits && bug == Bug::ErrorWithoutOperands {
        return Err(Error::new("planted", "does not fit", vec![]));
    }
    check.require(fits, || "does not fit".into())?;
    check.require(bug != Bug::RefusesItsOwnCase, || "does not run".into())?;
    check.require(
        bug != Bug::RefusesViews || a.tensor().is_contiguous(),
        || "not contiguous".into(),
    )?;
    let ids = index.tensor().to_f64_vec().unwrap();
    let valid = ids.iter().all(|&i| (0.0..INDICES as f64).contains(&i));
    check.require(valid || bug == Bug::AcceptsAnyIndex, || {
        "an index is out of range".into()
    })?;

    let (x, z) = (
        a.tensor().to_f64_vec().unwrap(),
        b.tensor().to_f64_vec().unwrap(),
    );
    let mut y: Vec<f64> = (0..x.len())
        .map(|i| 3.0 * x[i] * x[i] * z[i] + ids[i / COLUMNS])
        .collect();
    match bug {
        Bug::ForwardOffByOneElement => y.rotate_left(1),
        Bug::WritesPastItsBuffer => kernels::Buffer::uninit(40).overrun(),
        Bug::RoundsToHalfPrecision if float == DType::F32 => {
            let half = Tensor::from_f64(&y, [y.len()], DType::BF16, a.device());
            y = half.to_f64_vec().unwrap();
        }
        Bug::AddsInAnotherOrderEachTime => {
            static CALLS: AtomicUsize = AtomicUsize::new(0);
            y[3] *= 1.0 + (CALLS.fetch_add(1, Ordering::Relaxed) % 3) as f64 * 2e-7;
        }
        Bug::DependsOnThreads => y[3] *= 1.0 + rayon::current_num_threads() as f64 * 2e-7,
        Bug::DependsOnSimdLevel => y[3] *= 1.0 + kernels::simd::level() as u8 as f64 * 2e-7,
        _ => {}
    }
    let skipped = (bug == Bug::ForwardLeavesAnElementUnwritten).then_some(11);
    let mut output = Tensor::uninit(a.tensor().shape(), float, a.device());
    write(&mut output, Accum::Replace, &y, skipped)?;
    if bug == Bug::RecordsNothing {
        return Ok(t.constant(output));
    }
    t.record("planted", &[a, b], output, || PlantedBackward {
        bug,
        a: a.clone(),
        b: b.clone(),
    })
}

/// `dst (+)= values`, all elements but `skipped`.
fn write(dst: &mut Tensor, accum: Accum, values: &[f64], skipped: Option<usize>) -> Result<()> {
    let chosen = values
        .iter()
        .enumerate()
        .filter(|(i, _)| Some(*i) != skipped);
    if dst.dtype() == DType::F64 {
        let dst = dst.as_mut_slice::<f64>()?;
        chosen.for_each(|(i, &value)| accum.put(&mut dst[i], value));
    } else {
        let dst = dst.as_mut_slice::<f32>()?;
        chosen.for_each(|(i, &value)| accum.put(&mut dst[i], value as f32));
    }
    Ok(())
}

/// Saves both operands: each derivative is a function of both.
struct PlantedBackward {
    bug: Bug,
    a: Var,
    b: Var,
}

impl Backward for PlantedBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let PlantedBackward { bug, a, b } = *self;
        let dy = upstream.single()?.to_f64_vec().unwrap();
        let (x, z) = (
            a.tensor().to_f64_vec().unwrap(),
            b.tensor().to_f64_vec().unwrap(),
        );
        let mut da: Vec<f64> = (0..x.len()).map(|i| 6.0 * x[i] * z[i] * dy[i]).collect();
        let mut db: Vec<f64> = (0..x.len()).map(|i| 3.0 * x[i] * x[i] * dy[i]).collect();
        let scale =
            |gradient: &mut [f64], factor: f64| gradient.iter_mut().for_each(|g| *g *= factor);
        match bug {
            Bug::GradientOffByOnePercent => scale(&mut da, 1.01),
            Bug::GradientWrongInOneElement => da[17] = -da[17],
            Bug::NeedsBothGradients if a.id().is_none() => scale(&mut db, 2.0),
            Bug::TreatsParametersDifferently if matches!(a.id(), Some(VarId::Param(_))) => {
                scale(&mut da, 2.0)
            }
            _ => {}
        }
        let skipped = (bug == Bug::GradientLeavesAnElementUnwritten).then_some(11);
        let like = match bug {
            Bug::GradientOfAnotherShape => a.tensor().reshape([COLUMNS, ROWS])?,
            _ => a.tensor().clone(),
        };
        if bug != Bug::LosesAGradient {
            grads.sink(a.id(), &like, |dst, accum| {
                let accum = match bug {
                    Bug::OverwritesWhereItShouldAdd => Accum::Replace,
                    _ => accum,
                };
                write(dst, accum, &da, skipped)
            })?;
        }
        if bug == Bug::ForgetsThatOperandsMayBeOne && a.id() == b.id() {
            return Ok(());
        }
        grads.sink(b.id(), b.tensor(), |dst, accum| {
            write(dst, accum, &db, None)
        })
    }
}

struct Planted(Bug);

impl OpSpec for Planted {
    fn name(&self) -> &'static str {
        "planted"
    }

    fn gradient(&self) -> Gradient {
        match self.0 {
            Bug::RecordsThoughItHasNoGradient => Gradient::None("a mistake"),
            _ => Gradient::Checked,
        }
    }

    fn cases(&self) -> Vec<Case> {
        let bug = self.0;
        vec![Case {
            name: format!("{bug:?}"),
            inputs: vec![
                Input::normal("a", &[ROWS, COLUMNS]),
                Input::normal("b", &[ROWS, COLUMNS]),
                Input::new("index", &[ROWS], Fill::Index { below: INDICES }),
            ],
            run: Box::new(move |t, x| Ok(vec![planted(t, bug, &x[0], &x[1], &x[2])?])),
            reference: Box::new(move |x: &[Array]| {
                let (a, b, index) = (&x[0], &x[1], &x[2]);
                if bug == Bug::ReferenceOfAnotherShape {
                    return vec![Array::zeros(&[COLUMNS, ROWS])];
                }
                vec![Array::from_fn(&[ROWS, COLUMNS], |at| {
                    3.0 * a.at(at) * a.at(at) * b.at(at) + index.data[at[0]]
                })]
            }),
            cost: Cost {
                flops: 4.0 * (ROWS * COLUMNS) as f64,
                elements: 3.0 * (ROWS * COLUMNS) as f64,
            },
        }]
    }

    fn benches(&self) -> Vec<Case> {
        self.cases()
    }
}

fn failures(bug: Bug, pools: &Pools) -> Vec<harness::Failure> {
    let op = Planted(bug);
    let cases = op.cases();
    check(&op, &cases[0], pools).0
}

/// One test, because guards, poison and SIMD levels are switches of the whole process.
#[test]
fn every_planted_bug_is_caught_by_its_check_and_a_sound_op_by_none() {
    let pools = Pools::new(&[1, 2, 3]);
    let op = Planted(Bug::None);
    let (mut sound, _) = check_large(&op, &op.benches()[0], &pools, true, true);
    sound.extend(failures(Bug::None, &pools));
    let sound: Vec<String> = sound.iter().map(|f| f.to_string()).collect();
    assert!(sound.is_empty(), "false alarms: {sound:#?}");
    for &(bug, expected) in BUGS {
        let alone = kernels::simd::supported() == kernels::simd::Level::Baseline;
        if bug == Bug::DependsOnSimdLevel && alone {
            eprintln!("skipped: {bug:?}, this CPU has one SIMD level only");
            continue;
        }
        let found = failures(bug, &pools);
        assert!(
            found.iter().any(|f| f.check == expected),
            "{bug:?} should fail {expected:?}, it failed {:?}",
            found.iter().map(|f| f.to_string()).collect::<Vec<_>>()
        );
    }
}
