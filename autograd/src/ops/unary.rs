//! Elementwise functions of one operand.

use tensor::ops::unary::{self, Unary};
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// x·σ(x), any shape.
pub fn silu(t: &Tape, x: &Var) -> Result<Var> {
    apply(t, Unary::Silu, x)
}

/// x·Φ(x), any shape.
pub fn gelu(t: &Tape, x: &Var) -> Result<Var> {
    apply(t, Unary::Gelu, x)
}

/// x·σ(1.702·x), any shape.
pub fn quick_gelu(t: &Tape, x: &Var) -> Result<Var> {
    apply(t, Unary::QuickGelu, x)
}

/// eˣ, any shape.
pub fn exp(t: &Tape, x: &Var) -> Result<Var> {
    apply(t, Unary::Exp, x)
}

/// ln σ(x), any shape.
pub fn log_sigmoid(t: &Tape, x: &Var) -> Result<Var> {
    apply(t, Unary::LogSigmoid, x)
}

/// `f(x)`, any shape.
pub fn apply(t: &Tape, f: Unary, x: &Var) -> Result<Var> {
    let y = unary::forward(f, &x.tensor)?;
    t.record(f.name(), &[x], y, || UnaryBackward {
        f,
        x: x.tensor.clone(),
        to: x.id,
    })
}

/// Saves x: each derivative is a function of it.
struct UnaryBackward {
    f: Unary,
    x: Tensor,
    to: Option<VarId>,
}

impl Backward for UnaryBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.to, &self.x, |dx, accum| {
            unary::backward(self.f, dx, accum, &dy, &self.x)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "unary"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        let shapes: [&[usize]; 3] = [&[1], &[3, 1, 7], &[5, 1031]];
        Unary::ALL
            .into_iter()
            .flat_map(|f| shapes.into_iter().map(move |shape| case(f, shape)))
            .collect()
    }

    fn benches(&self) -> Vec<Case> {
        vec![
            case(Unary::Silu, &[8, 32, 32, 128]),
            case(Unary::Gelu, &[4096, 1024]),
        ]
    }
}

fn case(f: Unary, shape: &[usize]) -> Case {
    let elements = shape.iter().product::<usize>() as f64;
    Case {
        name: format!("{},shape={shape:?}", f.name()),
        inputs: vec![Input::normal("x", shape)],
        run: Box::new(move |t, x| Ok(vec![apply(t, f, &x[0])?])),
        reference: Box::new(move |x: &[Array]| vec![x[0].map(|x| reference(f, x))]),
        cost: Cost {
            flops: 4.0 * elements,
            elements: 2.0 * elements,
        },
    }
}

pub(super) fn reference(f: Unary, x: f64) -> f64 {
    match f {
        Unary::Silu => x / (1.0 + (-x).exp()),
        Unary::Gelu => 0.5 * x * (1.0 + kernels::math::erf_f64(x / 2f64.sqrt())),
        Unary::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Unary::Exp => x.exp(),
        Unary::Tanh => x.tanh(),
        Unary::Square => x * x,
        Unary::LogSigmoid => -(1.0 + (-x).exp()).ln(),
    }
}
