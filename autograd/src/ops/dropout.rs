//! Random zeros whose mask is drawn again in the backward pass instead of being stored.

use tensor::ops::dropout;
use tensor::ops::random::Counters;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec, STEP};
use crate::{Backward, Draw, Grads, Tape, Upstream, Var, VarId};

/// `x / (1 − p)` with probability 1 − p, else 0; x itself in [`Mode::Evaluate`](crate::Mode::Evaluate).
///
/// Whether an element stays depends on the step's counters, the module, its sample and its place in the sample.
///
/// # Shapes
/// x [n, ..] → [n, ..]
pub fn dropout(t: &Tape, x: &Var, p: f64) -> Result<Var> {
    if !t.is_training() {
        return Ok(x.clone());
    }
    let (draw, counters) = (t.draw(), t.counters());
    let y = dropout::forward(&x.tensor, &draw, &counters, p)?;
    t.record("dropout", &[x], y, || DropoutBackward {
        x: x.tensor.outline(),
        draw,
        counters,
        p,
        to: x.id,
    })
}

/// Saves the counters that the mask is a function of, and the form of x.
struct DropoutBackward {
    x: Tensor,
    draw: Draw,
    counters: Counters,
    p: f64,
    to: Option<VarId>,
}

impl Backward for DropoutBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.to, &self.x, |dx, accum| {
            dropout::backward(dx, accum, &dy, &self.draw, &self.counters, self.p)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(&[1], 0.5),
            case(&[5, 7], 0.0),
            case(&[3, 1, 131], 0.1),
            case(&[2, 9001], 0.75),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(&[8, 32, 32, 128], 0.1)]
    }
}

fn case(shape: &[usize], p: f64) -> Case {
    let elements = shape.iter().product::<usize>() as f64;
    Case {
        name: format!("x={shape:?},p={p}"),
        inputs: vec![Input::normal("x", shape)],
        run: Box::new(move |t, x| Ok(vec![dropout(t, &x[0], p)?])),
        reference: Box::new(move |x: &[Array]| {
            let draw = Draw {
                step: STEP.step,
                first_sample: STEP.first_sample,
                ..Draw::named(STEP.seed, "", 0)
            };
            let mut y = x[0].clone();
            let per_sample = y.data.len() / y.shape[0];
            for (i, y) in y.data.iter_mut().enumerate() {
                let (sample, element) = (i / per_sample, i % per_sample);
                let word = draw.words(sample as u32, (element / 4) as u32)[element % 4];
                *y = if (word as f64) < p * 2f64.powi(32) {
                    0.0
                } else {
                    *y / (1.0 - p)
                };
            }
            vec![y]
        }),
        cost: Cost {
            flops: elements,
            elements: 2.0 * elements,
        },
    }
}
