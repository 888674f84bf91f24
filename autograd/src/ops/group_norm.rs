//! Group normalisation (Wu & He, arXiv 1803.08494) with the scale-shift (Dhariwal & Nichol, arXiv 2105.05233) and SiLU
//! that follow it in a U-Net.

pub use tensor::ops::group_norm::GroupNorm;
use tensor::ops::group_norm::{self, Output, Saved};
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var};

/// act((x̂·γ + β)·(1 + scale) + shift), x̂ normalised over the pixels and channels of one group of one image.
///
/// # Shapes
/// x [n, .., c], gamma [c], beta [c], scale_shift [n, 2·c] (scales, then shifts) → like x.
pub fn group_norm(
    t: &Tape,
    x: &Var,
    gamma: &Var,
    beta: &Var,
    scale_shift: Option<&Var>,
    options: GroupNorm,
) -> Result<Var> {
    let Output { y, mean, rstd } = group_norm::forward(
        &x.tensor,
        &gamma.tensor,
        &beta.tensor,
        scale_shift.map(|v| &v.tensor),
        options,
    )?;
    let mut operands = vec![x, gamma, beta];
    operands.extend(scale_shift);
    t.record("group_norm", &operands, y, || GroupNormBackward {
        options,
        x: x.clone(),
        gamma: gamma.clone(),
        beta: beta.clone(),
        scale_shift: scale_shift.cloned(),
        mean,
        rstd,
    })
}

/// Saves the operands and the statistics of each group; x̂ and what SiLU was applied to are made again from them.
struct GroupNormBackward {
    options: GroupNorm,
    x: Var,
    gamma: Var,
    beta: Var,
    scale_shift: Option<Var>,
    mean: Tensor,
    rstd: Tensor,
}

impl Backward for GroupNormBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        let GroupNormBackward {
            options,
            x,
            gamma,
            beta,
            scale_shift,
            mean,
            rstd,
        } = *self;
        // Where there is no scale-shift its place is taken by a constant, which has no gradient.
        let (to, like) = scale_shift
            .as_ref()
            .map_or((None, &x.tensor), |v| (v.id, &v.tensor));
        let targets = [
            (x.id, &x.tensor),
            (gamma.id, &gamma.tensor),
            (beta.id, &beta.tensor),
            (to, like),
        ];
        grads.sink_many(targets, |gradients| {
            let saved = Saved {
                x: &x.tensor,
                mean: &mean,
                rstd: &rstd,
                gamma: &gamma.tensor,
                beta: &beta.tensor,
                scale_shift: scale_shift.as_ref().map(|v| &v.tensor),
            };
            group_norm::backward(gradients, &dy, saved, options)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = vec![
            case(&[1, 3, 1], 1, false, false, 0.0),
            case(&[2, 1, 1, 6], 2, true, true, 0.0),
            case(&[1, 7, 10], 10, true, false, 0.0),
        ];
        for (silu, scale_shift) in [(false, false), (false, true), (true, false), (true, true)] {
            cases.push(case(&[2, 5, 3, 12], 4, silu, scale_shift, 0.0));
            cases.push(case(&[3, 9, 51], 3, silu, scale_shift, 100.0));
        }
        cases
    }

    fn benches(&self) -> Vec<Case> {
        vec![
            case(&[8, 32, 32, 128], 32, true, false, 0.0),
            case(&[64, 16, 16, 64], 32, true, true, 0.0),
            case(&[64, 8, 8, 128], 32, true, true, 0.0),
            // Groups that fit on no multiprocessor.
            case(&[1, 128, 128, 96], 32, true, true, 0.0),
        ]
    }
}

const EPS: f64 = 1e-5;

fn case(shape: &[usize], groups: usize, silu: bool, scale_shift: bool, mean: f64) -> Case {
    let (n, c) = (shape[0], shape[shape.len() - 1]);
    let elements = shape.iter().product::<usize>();
    let options = GroupNorm {
        groups,
        eps: EPS,
        silu,
    };
    let mut inputs = vec![
        Input::new("x", shape, Fill::Normal { mean, std: 1.0 }),
        Input::new(
            "gamma",
            &[c],
            Fill::Normal {
                mean: 1.0,
                std: 0.5,
            },
        ),
        Input::normal("beta", &[c]),
    ];
    inputs.extend(scale_shift.then(|| {
        Input::new(
            "scale_shift",
            &[n, 2 * c],
            Fill::Normal {
                mean: 0.0,
                std: 0.5,
            },
        )
    }));
    Case {
        name: format!(
            "x={shape:?},groups={groups}{}{}{}",
            if silu { ",silu" } else { "" },
            if scale_shift { ",scale_shift" } else { "" },
            if mean != 0.0 { ",large_mean" } else { "" },
        ),
        inputs,
        run: Box::new(move |t, x| Ok(vec![group_norm(t, &x[0], &x[1], &x[2], x.get(3), options)?])),
        reference: Box::new(move |x: &[Array]| vec![reference(x, groups, silu)]),
        cost: Cost {
            flops: (if silu { 12.0 } else { 8.0 }) * elements as f64,
            elements: 2.0 * elements as f64,
        },
    }
}

fn reference(x: &[Array], groups: usize, silu: bool) -> Array {
    let (gamma, beta, scale_shift) = (&x[1], &x[2], x.get(3));
    let x = &x[0];
    let (n, c) = (x.shape[0], gamma.shape[0]);
    let (pixels, width) = (x.data.len() / n / c, c / groups);
    let mut y = x.clone();
    for image in 0..n {
        for group in 0..groups {
            let places: Vec<(usize, usize)> = (0..pixels)
                .flat_map(|p| {
                    (group * width..(group + 1) * width)
                        .map(move |j| ((image * pixels + p) * c + j, j))
                })
                .collect();
            let count = places.len() as f64;
            let mean = places.iter().map(|&(at, _)| x.data[at]).sum::<f64>() / count;
            let squares = places.iter().map(|&(at, _)| (x.data[at] - mean).powi(2));
            let variance = squares.sum::<f64>() / count;
            for (at, j) in places {
                let mut z =
                    (x.data[at] - mean) / (variance + EPS).sqrt() * gamma.data[j] + beta.data[j];
                if let Some(s) = scale_shift {
                    z = z * (1.0 + s.at(&[image, j])) + s.at(&[image, c + j]);
                }
                y.data[at] = if silu { z / (1.0 + (-z).exp()) } else { z };
            }
        }
    }
    y
}
