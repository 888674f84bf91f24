//! Mean squared error with a weight for each sample.

use tensor::ops::mse;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// The mean over samples of weight · mean over the sample of (x − target)².
///
/// # Shapes
/// x [n, ..], target [n, ..], weight [n] → scalar
pub fn mse(t: &Tape, x: &Var, target: &Var, weight: Option<&Tensor>) -> Result<Var> {
    let loss = mse::forward(&x.tensor, &target.tensor, weight)?;
    t.record("mse", &[x, target], loss, || MseBackward {
        x: x.tensor.clone(),
        target: target.tensor.clone(),
        weight: weight.cloned(),
        to: [x.id, target.id],
    })
}

/// Saves both operands, whose difference the gradient is.
struct MseBackward {
    x: Tensor,
    target: Tensor,
    weight: Option<Tensor>,
    to: [Option<VarId>; 2],
}

impl Backward for MseBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        let weight = self.weight.as_ref();
        let (x, target) = (&self.x, &self.target);
        for (to, [x, target]) in self.to.into_iter().zip([[x, target], [target, x]]) {
            grads.sink(to, x, |dx, accum| {
                mse::backward(dx, accum, &dy, x, target, weight)
            })?;
        }
        Ok(())
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(&[1], false, 0.0),
            case(&[5], true, 0.0),
            case(&[3, 7, 5], true, 100.0),
            case(&[2, 65, 67, 3], true, 0.0),
            case(&[2, 65, 67, 3], false, 0.0),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(&[32, 64, 64, 3], true, 0.0)]
    }
}

fn case(shape: &[usize], weighted: bool, mean: f64) -> Case {
    let elements = shape.iter().product::<usize>();
    let samples = shape[0];
    let mut inputs = vec![
        Input::new("x", shape, Fill::Normal { mean, std: 1.0 }),
        Input::new("target", shape, Fill::Normal { mean, std: 1.0 }),
    ];
    if weighted {
        let fill = Fill::Constant {
            low: 0.5,
            high: 2.0,
        };
        inputs.push(Input::new("weight", &shape[..1], fill));
    }
    let suffix = if weighted { ",weight" } else { "" };
    Case {
        name: format!("x={shape:?},mean={mean}{suffix}"),
        inputs,
        run: Box::new(|t, x| Ok(vec![mse(t, &x[0], &x[1], x.get(2).map(Var::tensor))?])),
        reference: Box::new(move |x: &[Array]| {
            let weight = |i| x.get(2).map_or(1.0, |w| w.data[i / (elements / samples)]);
            let squares = x[0]
                .data
                .iter()
                .zip(&x[1].data)
                .map(|(x, t)| (x - t) * (x - t));
            let sum: f64 = squares.enumerate().map(|(i, s)| weight(i) * s).sum();
            vec![Array {
                shape: vec![],
                data: vec![sum / elements as f64],
            }]
        }),
        cost: Cost {
            flops: 3.0 * elements as f64,
            elements: 2.0 * elements as f64,
        },
    }
}
