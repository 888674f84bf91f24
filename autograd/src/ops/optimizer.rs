//! The gradient's norm, and the fused step of clipping, AdamW and the moving average: what a training step does to its
//! arenas after the tape. There is no function on `Var`s.

use tensor::ops::optimizer::{AdamW, Arenas, Decay, Run, clip_factor, gradient_norm, update};
use tensor::{DType, Result, Tensor};

use crate::Var;
use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "optimizer"
    }

    fn gradient(&self) -> Gradient {
        Gradient::None("it consumes gradients")
    }

    fn cases(&self) -> Vec<Case> {
        [(1, true), (5, false), (999, true), (40_003, false)]
            .map(|(n, ema)| case(n, ema))
            .into()
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(1 << 20, true)]
    }
}

/// Memory of its own for an arena that the step writes: f32 beside gradients in bf16.
pub(super) fn arena(x: &Var) -> Result<Tensor> {
    match x.dtype() {
        DType::BF16 => x.tensor().cast(DType::F32),
        _ => x.tensor().detach_copy(),
    }
}

const ADAMW: AdamW = AdamW {
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-6,
    weight_decay: 0.1,
};
/// Of the third step.
const STEP: u64 = 3;
const LEARNING_RATE: f64 = 0.01;
const EMA_DECAY: f64 = 0.9;
const MAX_NORM: f64 = 1.0;

/// Runs of every kind, beginning and ending anywhere; some elements are in none.
fn runs(n: usize) -> Vec<Run> {
    let run = |start, end, decay| Run { start, end, decay };
    vec![
        run(0, n.div_ceil(3), Decay::Yes),
        run(n.div_ceil(3), n / 2, Decay::Frozen),
        run(n / 2 + 1, n, Decay::No),
    ]
    .into_iter()
    .filter(|run| run.start < run.end)
    .collect()
}

fn case(n: usize, ema: bool) -> Case {
    let float = |name, low, high| Input::new(name, &[n], Fill::Constant { low, high });
    let mut inputs = vec![
        float("parameters", -1.0, 1.0),
        float("gradient", -1.0, 1.0),
        float("m", -0.1, 0.1),
        float("v", 0.0, 0.1),
    ];
    if ema {
        inputs.push(float("ema", -1.0, 1.0));
    }
    Case {
        name: format!("n={n}{}", if ema { ",ema" } else { "" }),
        inputs,
        run: Box::new(move |t, x| {
            let gradient = x[1].tensor();
            let norm = gradient_norm(gradient)?;
            let [mut parameters, mut m, mut v] = [arena(&x[0])?, arena(&x[2])?, arena(&x[3])?];
            let mut average = x.get(4).map(arena).transpose()?;
            let arenas = Arenas {
                parameters: &mut parameters,
                gradient,
                m: &mut m,
                v: &mut v,
                ema: average.as_mut(),
            };
            let factor = clip_factor(norm, MAX_NORM);
            let scalars = ADAMW.at(STEP, LEARNING_RATE, factor, EMA_DECAY);
            update(arenas, &scalars, &runs(n))?;
            let norm = Tensor::from_f64(&[norm], [1], parameters.dtype(), parameters.device());
            let outputs = [norm, parameters, m, v].into_iter().chain(average);
            Ok(outputs.map(|output| t.constant(output)).collect())
        }),
        reference: Box::new(move |x: &[Array]| reference(x, &runs(n))),
        cost: Cost {
            flops: 20.0 * n as f64,
            elements: (if ema { 10 } else { 8 } * n) as f64,
        },
    }
}

fn reference(x: &[Array], runs: &[Run]) -> Vec<Array> {
    let norm = x[1].data.iter().map(|g| g * g).sum::<f64>().sqrt();
    let factor = (MAX_NORM / (norm + 1e-6)).min(1.0);
    let mut out: Vec<Array> = [0, 2, 3, 4]
        .into_iter()
        .filter_map(|i| x.get(i).cloned())
        .collect();
    for run in runs.iter().filter(|run| run.decay != Decay::Frozen) {
        for i in run.start..run.end {
            let g = factor * x[1].data[i];
            let m = 0.9 * x[2].data[i] + 0.1 * g;
            let v = 0.99 * x[3].data[i] + 0.01 * g * g;
            let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(3)), v / (1.0 - 0.99f64.powi(3)));
            let decay = if run.decay == Decay::Yes { 0.1 } else { 0.0 };
            let p = x[0].data[i] * (1.0 - LEARNING_RATE * decay)
                - LEARNING_RATE * m_hat / (v_hat.sqrt() + 1e-6);
            for (array, value) in out.iter_mut().zip([p, m, v]) {
                array.data[i] = value;
            }
            if let Some(average) = out.get_mut(3) {
                average.data[i] = EMA_DECAY * average.data[i] + (1.0 - EMA_DECAY) * p;
            }
        }
    }
    out.insert(
        0,
        Array {
            shape: vec![1],
            data: vec![norm],
        },
    );
    out
}
