//! Two-dimensional convolution of NHWC images.

pub use tensor::ops::conv2d::Conv;
use tensor::ops::{conv2d, matmul};
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// conv(x, weight) + bias + residual, cross-correlation as PyTorch's `conv2d`.
///
/// # Shapes
/// x [n, h, w, in], weight [out, kernel_h, kernel_w, in], bias [out], residual like the result
/// → [n, (h + 2·padding − kernel_h) / stride + 1, (w + 2·padding − kernel_w) / stride + 1, out].
pub fn conv2d(
    t: &Tape,
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    residual: Option<&Var>,
    conv: Conv,
) -> Result<Var> {
    let y = conv2d::forward(
        &x.tensor,
        &weight.tensor,
        bias.map(|v| &v.tensor),
        residual.map(|v| &v.tensor),
        conv,
    )?;
    let mut operands = vec![x, weight];
    operands.extend(bias);
    operands.extend(residual);
    t.record("conv2d", &operands, y, || Conv2dBackward {
        conv,
        x: x.tensor.clone(),
        weight: weight.tensor.clone(),
        bias: bias.map(|v| (v.id, v.tensor.clone())),
        to_x: x.id,
        to_weight: weight.id,
        to_residual: residual.and_then(|v| v.id),
    })
}

/// Saves x and the weight, each for the other's gradient.
struct Conv2dBackward {
    conv: Conv,
    x: Tensor,
    weight: Tensor,
    bias: Option<(Option<VarId>, Tensor)>,
    to_x: Option<VarId>,
    to_weight: Option<VarId>,
    to_residual: Option<VarId>,
}

impl Backward for Conv2dBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?.contiguous()?;
        grads.sink(self.to_weight, &self.weight, |dw, accum| {
            conv2d::backward_weight(dw, accum, &dy, &self.x, self.conv)
        })?;
        if let Some((id, bias)) = &self.bias {
            grads.sink(*id, bias, |db, accum| matmul::column_sums(db, accum, &dy))?;
        }
        grads.sink(self.to_x, &self.x, |dx, accum| {
            conv2d::backward_input(dx, accum, &dy, &self.weight, self.conv)
        })?;
        grads.give(self.to_residual, dy)
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        let same = Conv {
            stride: 1,
            padding: 1,
        };
        let pointwise = Conv {
            stride: 1,
            padding: 0,
        };
        vec![
            case([1, 1, 1, 1], [1, 1, 1], pointwise, false, false),
            case([1, 1, 1, 3], [2, 3, 3], same, true, false),
            case([2, 5, 7, 3], [4, 3, 3], same, false, false),
            case([2, 5, 7, 3], [4, 3, 3], same, true, true),
            case([1, 6, 5, 17], [33, 3, 3], same, true, false),
            case([2, 4, 3, 19], [5, 1, 1], pointwise, true, true),
            case([2, 4, 3, 19], [5, 1, 1], pointwise, false, false),
            case([1, 5, 6, 3], [4, 3, 3], pointwise, true, false),
            // Downsampling, of even and odd extents, and patches.
            case(
                [2, 6, 5, 3],
                [4, 3, 3],
                Conv {
                    stride: 2,
                    padding: 1,
                },
                true,
                true,
            ),
            case(
                [1, 8, 8, 3],
                [6, 4, 4],
                Conv {
                    stride: 4,
                    padding: 0,
                },
                false,
                false,
            ),
            case(
                [1, 7, 4, 2],
                [3, 2, 1],
                Conv {
                    stride: 3,
                    padding: 2,
                },
                true,
                false,
            ),
            case(
                [1, 5, 4, 2],
                [3, 1, 5],
                Conv {
                    stride: 1,
                    padding: 2,
                },
                true,
                false,
            ),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        let same = Conv {
            stride: 1,
            padding: 1,
        };
        let pointwise = Conv {
            stride: 1,
            padding: 0,
        };
        vec![
            case([8, 32, 32, 128], [128, 3, 3], same, true, false),
            case([64, 16, 16, 64], [64, 3, 3], same, true, true),
            case([64, 8, 8, 128], [128, 3, 3], same, true, true),
            case([64, 16, 16, 3], [64, 3, 3], same, true, false),
            case([64, 16, 16, 128], [64, 1, 1], pointwise, true, false),
        ]
    }
}

fn case(
    x_shape: [usize; 4],
    [c_out, kernel_h, kernel_w]: [usize; 3],
    conv: Conv,
    bias: bool,
    residual: bool,
) -> Case {
    let [n, h, w, c_in] = x_shape;
    let Conv { stride, padding } = conv;
    let out_h = (h + 2 * padding - kernel_h) / stride + 1;
    let out_w = (w + 2 * padding - kernel_w) / stride + 1;
    let y_shape = [n, out_h, out_w, c_out];
    let weight = [c_out, kernel_h, kernel_w, c_in];
    let mut inputs = vec![
        Input::normal("x", &x_shape),
        Input::normal("weight", &weight),
    ];
    inputs.extend(bias.then(|| Input::normal("bias", &[c_out])));
    inputs.extend(residual.then(|| Input::normal("residual", &y_shape)));
    let outputs = y_shape.iter().product::<usize>();
    let filter = kernel_h * kernel_w * c_in;
    Case {
        name: format!(
            "x={x_shape:?},out={c_out},kernel={kernel_h}x{kernel_w},stride={stride},padding={padding}{}{}",
            if bias { ",bias" } else { "" },
            if residual { ",residual" } else { "" },
        ),
        inputs,
        run: Box::new(move |t, x| {
            let residual = residual.then(|| &x[x.len() - 1]);
            let bias = bias.then(|| &x[2]);
            Ok(vec![conv2d(t, &x[0], &x[1], bias, residual, conv)?])
        }),
        reference: Box::new(move |x: &[Array]| {
            vec![Array::from_fn(&y_shape, |y| {
                let &[image, i, j, o] = y else {
                    return f64::NAN;
                };
                let mut sum = 0.0;
                for u in 0..kernel_h {
                    for v in 0..kernel_w {
                        // Coordinates in the padded image, zero outside of these ranges.
                        let (row, column) = (i * stride + u, j * stride + v);
                        let rows = padding..padding + h;
                        let columns = padding..padding + w;
                        if rows.contains(&row) && columns.contains(&column) {
                            for c in 0..c_in {
                                sum += x[0].at(&[image, row - padding, column - padding, c])
                                    * x[1].at(&[o, u, v, c]);
                            }
                        }
                    }
                }
                if bias {
                    sum += x[2].at(&[o]);
                }
                if residual {
                    sum += x[x.len() - 1].at(y);
                }
                sum
            })]
        }),
        cost: Cost {
            flops: 2.0 * (outputs * filter) as f64,
            elements: (x_shape.iter().product::<usize>()
                + c_out * filter
                + outputs * (1 + residual as usize)) as f64,
        },
    }
}
