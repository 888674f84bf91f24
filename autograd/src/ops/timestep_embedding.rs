//! Sinusoidal embeddings of diffusion time.

use tensor::Result;
use tensor::ops::timestep_embedding;

use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Tape, Var};

/// diffusers' `get_timestep_embedding` with period 10000: `[sin(t·ω), cos(t·ω)]` with
/// ωⱼ = 10000^(−j / (dim/2 − freq_shift)), cosines first if `flip_sin_to_cos`; an odd `dim` ends in a zero.
///
/// # Shapes
/// steps [n] → [n, dim]; no gradient
pub fn timestep_embedding(
    t: &Tape,
    steps: &Var,
    dim: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
) -> Result<Var> {
    let y = timestep_embedding::forward(&steps.tensor, dim, flip_sin_to_cos, freq_shift)?;
    Ok(t.constant(y))
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "timestep_embedding"
    }

    fn gradient(&self) -> Gradient {
        Gradient::None("time steps are data")
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(1, 2, false, 0.0),
            case(3, 7, true, 0.0),
            case(5, 64, false, 1.0),
            case(5, 66, true, 1.0),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(64, 320, true, 0.0)]
    }
}

fn case(n: usize, dim: usize, flip: bool, shift: f64) -> Case {
    let steps = Fill::Constant {
        low: 0.0,
        high: 1000.0,
    };
    Case {
        name: format!("n={n},dim={dim},flip={flip},shift={shift}"),
        inputs: vec![Input::new("steps", &[n], steps)],
        run: Box::new(move |t, x| Ok(vec![timestep_embedding(t, &x[0], dim, flip, shift)?])),
        reference: Box::new(move |x: &[Array]| {
            let half = dim / 2;
            vec![Array::from_fn(&[n, dim], |i| {
                if i[1] == 2 * half {
                    return 0.0;
                }
                let exponent = (i[1] % half) as f64 / (half as f64 - shift);
                let angle = x[0].at(&[i[0]]) / 10_000f64.powf(exponent);
                if (i[1] < half) == flip {
                    angle.cos()
                } else {
                    angle.sin()
                }
            })]
        }),
        cost: Cost {
            flops: 2.0 * (n * dim) as f64,
            elements: (n * dim) as f64,
        },
    }
}
