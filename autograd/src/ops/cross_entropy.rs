//! Softmax cross-entropy, averaged.

use tensor::ops::cross_entropy;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// The mean of `ln Σ exp(logits[i]) − logits[i, target[i]]`.
///
/// # Shapes
/// logits [n, c], target i32 [n] → scalar
pub fn cross_entropy(t: &Tape, logits: &Var, target: &Var) -> Result<Var> {
    let (loss, lse) = cross_entropy::forward(&logits.tensor, &target.tensor)?;
    t.record("cross_entropy", &[logits], loss, || CrossEntropyBackward {
        logits: logits.tensor.clone(),
        lse,
        target: target.tensor.clone(),
        to: logits.id,
    })
}

/// Saves the logits and one number a row, from which every probability is one exponential away.
struct CrossEntropyBackward {
    logits: Tensor,
    lse: Tensor,
    target: Tensor,
    to: Option<VarId>,
}

impl Backward for CrossEntropyBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.to, &self.logits, |dlogits, accum| {
            cross_entropy::backward(dlogits, accum, &dy, &self.logits, &self.lse, &self.target)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(1, 1, 0.0),
            case(3, 7, 0.0),
            case(5, 131, 100.0),
            case(67, 517, 0.0),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(1024, 1024, 0.0)]
    }
}

fn case(n: usize, c: usize, mean: f64) -> Case {
    let elements = (n * c) as f64;
    Case {
        name: format!("n={n},c={c},mean={mean}"),
        inputs: vec![
            Input::new("logits", &[n, c], Fill::Normal { mean, std: 1.0 }),
            Input::new("target", &[n], Fill::Index { below: c }),
        ],
        run: Box::new(|t, x| Ok(vec![cross_entropy(t, &x[0], &x[1])?])),
        reference: Box::new(move |x: &[Array]| {
            let rows = x[0].data.chunks(c).zip(&x[1].data);
            let losses = rows.map(|(row, &target)| {
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                -(row[target as usize].exp() / sum).ln()
            });
            vec![Array {
                shape: vec![],
                data: vec![losses.sum::<f64>() / n as f64],
            }]
        }),
        cost: Cost {
            flops: 4.0 * elements,
            elements,
        },
    }
}
