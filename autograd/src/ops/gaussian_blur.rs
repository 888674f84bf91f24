//! Gaussian blur.

use tensor::ops::gaussian_blur;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// torchvision's `gaussian_blur(x, [size, size], [sigma, sigma])`: the border is mirrored without repeating the edge.
///
/// # Shapes
/// x [n, h, w, c] → [n, h, w, c]
pub fn gaussian_blur(t: &Tape, x: &Var, size: usize, sigma: f64) -> Result<Var> {
    let y = gaussian_blur::forward(&x.tensor, size, sigma)?;
    t.record("gaussian_blur", &[x], y, || GaussianBlurBackward {
        x: x.tensor.outline(),
        size,
        sigma,
        to: x.id,
    })
}

/// Saves the form of x only: blurring is linear.
struct GaussianBlurBackward {
    x: Tensor,
    size: usize,
    sigma: f64,
    to: Option<VarId>,
}

impl Backward for GaussianBlurBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.to, &self.x, |dx, accum| {
            gaussian_blur::backward(dx, accum, &dy, self.size, self.sigma)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "gaussian_blur"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case([1, 1, 1, 1], 1, 0.6),
            case([2, 2, 9, 3], 3, 0.6),
            case([1, 17, 5, 19], 9, 2.0),
            case([3, 33, 31, 3], 5, 1.1),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case([32, 64, 64, 3], 3, 0.6)]
    }
}

fn case(shape: [usize; 4], size: usize, sigma: f64) -> Case {
    let elements = shape.iter().product::<usize>() as f64;
    Case {
        name: format!("x={shape:?},size={size},sigma={sigma}"),
        inputs: vec![Input::normal("x", &shape)],
        run: Box::new(move |t, x| Ok(vec![gaussian_blur(t, &x[0], size, sigma)?])),
        reference: Box::new(move |x: &[Array]| {
            let half = (size / 2) as isize;
            let density = |d: isize| (-0.5 * (d as f64 / sigma).powi(2)).exp();
            let total: f64 = (-half..=half).map(density).sum();
            let mirror = |at: isize, extent: usize| {
                let last = extent as isize - 1;
                let at = if at < 0 { -at } else { at };
                (if at > last { 2 * last - at } else { at }) as usize
            };
            vec![Array::from_fn(&shape, |i| {
                let mut sum = 0.0;
                for dy in -half..=half {
                    for dx in -half..=half {
                        let y = mirror(i[1] as isize + dy, shape[1]);
                        let z = mirror(i[2] as isize + dx, shape[2]);
                        sum += density(dy) * density(dx) * x[0].at(&[i[0], y, z, i[3]]);
                    }
                }
                sum / (total * total)
            })]
        }),
        cost: Cost {
            flops: 4.0 * size as f64 * elements,
            elements: 2.0 * elements,
        },
    }
}
