//! Resizing of images.

pub use tensor::ops::resize::Filter;

use tensor::ops::resize;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// PyTorch's `interpolate(size=(out_h, out_w), align_corners=False)` with this filter.
///
/// # Shapes
/// x [n, h, w, c] → [n, out_h, out_w, c]
pub fn resize(t: &Tape, x: &Var, out_h: usize, out_w: usize, filter: Filter) -> Result<Var> {
    let y = resize::forward(&x.tensor, out_h, out_w, filter)?;
    t.record("resize", &[x], y, || ResizeBackward {
        x: x.tensor.outline(),
        filter,
        to: x.id,
    })
}

/// Saves the form of x only: resizing is linear.
struct ResizeBackward {
    x: Tensor,
    filter: Filter,
    to: Option<VarId>,
}

impl Backward for ResizeBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.to, &self.x, |dx, accum| {
            resize::backward(dx, accum, &dy, self.filter)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "resize"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        let sizes = [
            ([1, 1, 1, 1], [1, 1]),
            ([2, 1, 5, 3], [4, 1]),
            ([2, 7, 9, 3], [7, 31]),
            ([1, 13, 64, 17], [5, 16]),
            ([3, 33, 16, 3], [64, 65]),
        ];
        let filters = [Filter::Bilinear, Filter::BicubicAntialias];
        let cases = filters
            .into_iter()
            .flat_map(|filter| sizes.into_iter().map(move |(x, out)| case(x, out, filter)));
        cases.collect()
    }

    fn benches(&self) -> Vec<Case> {
        vec![
            case([8, 64, 64, 3], [256, 256], Filter::BicubicAntialias),
            case([8, 64, 64, 3], [16, 16], Filter::BicubicAntialias),
            case([8, 16, 16, 3], [64, 64], Filter::Bilinear),
        ]
    }
}

fn case(shape: [usize; 4], out: [usize; 2], filter: Filter) -> Case {
    let [n, h, w, c] = shape;
    let [out_h, out_w] = out;
    // Two taps, or four times the shrinkage, along each dimension.
    let taps = |inputs: usize, outputs: usize| match filter {
        Filter::Bilinear => 2.0,
        Filter::BicubicAntialias => 4.0 * (inputs as f64 / outputs as f64).max(1.0),
    };
    let columns = taps(h, out_h) * (n * out_h * w * c) as f64;
    let rows = taps(w, out_w) * (n * out_h * out_w * c) as f64;
    Case {
        name: format!("{filter:?},x={shape:?},out={out:?}"),
        inputs: vec![Input::normal("x", &shape)],
        run: Box::new(move |t, x| Ok(vec![resize(t, &x[0], out_h, out_w, filter)?])),
        reference: Box::new(move |x: &[Array]| {
            let columns = Array::from_fn(&[out_h, h], |i| weight(filter, h, out_h, i[0], i[1]));
            let rows = Array::from_fn(&[out_w, w], |i| weight(filter, w, out_w, i[0], i[1]));
            let tall = Array::from_fn(&[n, out_h, w, c], |i| {
                let terms =
                    (0..h).map(|y| columns.at(&[i[1], y]) * x[0].at(&[i[0], y, i[2], i[3]]));
                terms.sum()
            });
            vec![Array::from_fn(&[n, out_h, out_w, c], |i| {
                let terms = (0..w).map(|z| rows.at(&[i[2], z]) * tall.at(&[i[0], i[1], z, i[3]]));
                terms.sum()
            })]
        }),
        cost: Cost {
            flops: 2.0 * (rows + columns),
            elements: (n * c * (h * w + out_h * out_w)) as f64,
        },
    }
}

/// The weight of input pixel j in output pixel i: a window around i's centre, over its sum inside the picture.
fn weight(filter: Filter, inputs: usize, outputs: usize, i: usize, j: usize) -> f64 {
    let scale = inputs as f64 / outputs as f64;
    let centre = (i as f64 + 0.5) * scale - 0.5;
    match filter {
        Filter::Bilinear => {
            let last = (inputs - 1) as f64;
            (1.0 - (centre.clamp(0.0, last) - j as f64).abs()).max(0.0)
        }
        Filter::BicubicAntialias => {
            let keys = |j: usize| {
                let x = (j as f64 - centre).abs() / scale.max(1.0);
                match x {
                    0.0..1.0 => 1.5 * x.powi(3) - 2.5 * x.powi(2) + 1.0,
                    1.0..2.0 => -0.5 * x.powi(3) + 2.5 * x.powi(2) - 4.0 * x + 2.0,
                    _ => 0.0,
                }
            };
            keys(j) / (0..inputs).map(keys).sum::<f64>()
        }
    }
}
