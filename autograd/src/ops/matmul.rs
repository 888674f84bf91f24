//! Matrix products: batched with transposed operands, and the linear layer.

use tensor::ops::matmul;
pub use tensor::ops::matmul::{Activation, Transpose};
use tensor::ops::unary::{self, Unary};
use tensor::{Accum, Result, Tensor};

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// op(a)·op(b), where op exchanges the last two dimensions as `transpose` says.
///
/// # Shapes
/// op(a) [..batch, m, k], op(b) [..batch, k, n] → [..batch, m, n]. Either operand may lack the batch and is then shared.
pub fn matmul(t: &Tape, a: &Var, b: &Var, transpose: Transpose) -> Result<Var> {
    let c = matmul::forward(&a.tensor, &b.tensor, transpose)?;
    t.record("matmul", &[a, b], c, || MatmulBackward {
        transpose,
        a: a.tensor.clone(),
        b: b.tensor.clone(),
        to: [a.id, b.id],
    })
}

/// Saves both operands: each one's gradient is a product with the other.
struct MatmulBackward {
    transpose: Transpose,
    a: Tensor,
    b: Tensor,
    to: [Option<VarId>; 2],
}

impl Backward for MatmulBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dc = upstream.single()?.contiguous()?;
        let MatmulBackward {
            transpose,
            a,
            b,
            to,
        } = *self;
        // With c = A·B: dA = dc·Bᵀ and dB = Aᵀ·dc, each transposed as a whole where the operand is.
        grads.sink(to[0], &a, |da, accum| {
            if transpose.a {
                let transpose = Transpose {
                    a: transpose.b,
                    b: true,
                };
                matmul::product(da, accum, &b, &dc, transpose)
            } else {
                let transpose = Transpose {
                    a: false,
                    b: !transpose.b,
                };
                matmul::product(da, accum, &dc, &b, transpose)
            }
        })?;
        grads.sink(to[1], &b, |db, accum| {
            if transpose.b {
                let transpose = Transpose {
                    a: true,
                    b: transpose.a,
                };
                matmul::product(db, accum, &dc, &a, transpose)
            } else {
                let transpose = Transpose {
                    a: !transpose.a,
                    b: false,
                };
                matmul::product(db, accum, &a, &dc, transpose)
            }
        })
    }
}

/// act(x·Wᵀ + b) + residual.
///
/// # Shapes
/// x [.., in], weight [out, in], bias [out], residual [.., out] → [.., out].
pub fn linear(
    t: &Tape,
    x: &Var,
    weight: &Var,
    bias: Option<&Var>,
    activation: Activation,
    residual: Option<&Var>,
) -> Result<Var> {
    let mut operands = vec![x, weight];
    operands.extend(bias);
    let active = function(activation).filter(|_| t.needs_gradient(&operands));
    operands.extend(residual);
    let matmul::Linear { y, pre } = matmul::linear(
        &x.tensor,
        &weight.tensor,
        bias.map(|v| &v.tensor),
        activation,
        residual.map(|v| &v.tensor),
        active.is_some(),
    )?;
    t.record("linear", &operands, y, || LinearBackward {
        activation: active.zip(pre),
        x: x.tensor.clone(),
        weight: weight.tensor.clone(),
        bias: bias.map(|v| (v.id, v.tensor.clone())),
        to_x: x.id,
        to_weight: weight.id,
        to_residual: residual.and_then(|v| v.id),
    })
}

fn function(activation: Activation) -> Option<Unary> {
    match activation {
        Activation::None => None,
        Activation::Gelu => Some(Unary::Gelu),
        Activation::QuickGelu => Some(Unary::QuickGelu),
        Activation::Silu => Some(Unary::Silu),
    }
}

/// Saves x and the weight, each for the other's gradient, and what an activation was applied to.
struct LinearBackward {
    activation: Option<(Unary, Tensor)>,
    x: Tensor,
    weight: Tensor,
    bias: Option<(Option<VarId>, Tensor)>,
    to_x: Option<VarId>,
    to_weight: Option<VarId>,
    to_residual: Option<VarId>,
}

impl Backward for LinearBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?.contiguous()?;
        let dz = match self.activation {
            None => dy.clone(),
            Some((f, pre)) => {
                let mut dz = Tensor::uninit(dy.shape(), dy.dtype(), dy.device());
                unary::backward(f, &mut dz, Accum::Replace, &dy, &pre)?;
                dz
            }
        };
        grads.sink(self.to_weight, &self.weight, |dw, accum| {
            matmul::linear_backward_weight(dw, accum, &dz, &self.x)
        })?;
        if let Some((id, bias)) = &self.bias {
            grads.sink(*id, bias, |db, accum| matmul::column_sums(db, accum, &dz))?;
        }
        grads.sink(self.to_x, &self.x, |dx, accum| {
            matmul::linear_backward_input(dx, accum, &dz, &self.weight)
        })?;
        drop(dz);
        grads.give(self.to_residual, dy)
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        let both = [false, true];
        for (a, b) in both.into_iter().flat_map(|a| both.map(|b| (a, b))) {
            let transpose = Transpose { a, b };
            cases.push(matmul_case(&[], &[], [1, 1, 1], transpose));
            cases.push(matmul_case(&[], &[], [17, 33, 5], transpose));
            cases.push(matmul_case(&[2, 3], &[2, 3], [7, 19, 37], transpose));
            cases.push(matmul_case(&[3], &[], [9, 5, 13], transpose));
            cases.push(matmul_case(&[], &[3], [6, 11, 4], transpose));
        }
        // Longer than one block of any kernel, in each direction.
        cases.push(matmul_case(&[], &[], [131, 67, 531], Transpose::default()));
        use Activation::*;
        cases.push(linear_case(&[5], [3, 7], false, None, false));
        cases.push(linear_case(&[1], [1, 1], true, Gelu, true));
        cases.push(linear_case(&[2, 9], [35, 18], true, None, true));
        for activation in [None, Gelu, QuickGelu, Silu] {
            cases.push(linear_case(&[13], [21, 34], true, activation, false));
        }
        cases.push(linear_case(&[13], [21, 34], true, Silu, true));
        cases.push(linear_case(&[13], [21, 34], false, QuickGelu, true));
        cases.push(linear_case(&[], [6, 10], true, Gelu, true));
        cases
    }

    fn benches(&self) -> Vec<Case> {
        vec![
            matmul_case(&[], &[], [1024; 3], Transpose::default()),
            matmul_case(&[], &[], [2048; 3], Transpose::default()),
            linear_case(&[4096], [64, 256], true, Activation::None, false),
            linear_case(&[8, 77], [512, 2048], true, Activation::QuickGelu, false),
            linear_case(&[8, 77], [2048, 512], true, Activation::None, true),
        ]
    }
}

fn matmul_case(
    a_batch: &[usize],
    b_batch: &[usize],
    [m, n, k]: [usize; 3],
    transpose: Transpose,
) -> Case {
    let stored = |batch: &[usize], rows, columns, exchanged| {
        let last = if exchanged {
            [columns, rows]
        } else {
            [rows, columns]
        };
        [batch, &last].concat()
    };
    let a = stored(a_batch, m, k, transpose.a);
    let b = stored(b_batch, k, n, transpose.b);
    let batch = if a_batch.is_empty() { b_batch } else { a_batch }.to_vec();
    let times = batch.iter().product::<usize>();
    let read = a.iter().product::<usize>() + b.iter().product::<usize>();
    Case {
        name: format!(
            "matmul,a={a_batch:?},b={b_batch:?},m={m},n={n},k={k}{}{}",
            if transpose.a { ",a_transposed" } else { "" },
            if transpose.b { ",b_transposed" } else { "" },
        ),
        inputs: vec![Input::normal("a", &a), Input::normal("b", &b)],
        run: Box::new(move |t, x| Ok(vec![matmul(t, &x[0], &x[1], transpose)?])),
        reference: Box::new(move |x: &[Array]| {
            let element = |x: &Array, batch: &[usize], i, j, exchanged| {
                let shared = x.shape.len() == 2;
                let last = if exchanged { [j, i] } else { [i, j] };
                x.at(&[if shared { &[] } else { batch }, &last].concat())
            };
            vec![Array::from_fn(&[&batch[..], &[m, n]].concat(), |index| {
                let (batch, place) = index.split_at(index.len() - 2);
                let term = |p| {
                    element(&x[0], batch, place[0], p, transpose.a)
                        * element(&x[1], batch, p, place[1], transpose.b)
                };
                (0..k).map(term).sum()
            })]
        }),
        cost: Cost {
            flops: 2.0 * (times * m * n * k) as f64,
            elements: (read + times * m * n) as f64,
        },
    }
}

fn linear_case(
    rows: &[usize],
    [columns, out]: [usize; 2],
    bias: bool,
    activation: Activation,
    residual: bool,
) -> Case {
    let x = [rows, &[columns]].concat();
    let y = [rows, &[out]].concat();
    let mut inputs = vec![
        Input::normal("x", &x),
        Input::normal("weight", &[out, columns]),
    ];
    inputs.extend(bias.then(|| Input::normal("bias", &[out])));
    inputs.extend(residual.then(|| Input::normal("residual", &y)));
    let row_count = rows.iter().product::<usize>();
    let tensors = row_count * (columns + out * (1 + residual as usize)) + out * columns;
    Case {
        name: format!(
            "linear,x={x:?},out={out},{activation:?}{}{}",
            if bias { ",bias" } else { "" },
            if residual { ",residual" } else { "" },
        ),
        inputs,
        run: Box::new(move |t, x| {
            let residual = residual.then(|| &x[x.len() - 1]);
            let bias = bias.then(|| &x[2]);
            Ok(vec![linear(t, &x[0], &x[1], bias, activation, residual)?])
        }),
        reference: Box::new(move |x: &[Array]| {
            vec![Array::from_fn(&y, |index| {
                let (row, o) = (&index[..index.len() - 1], index[index.len() - 1]);
                let term = |i| x[0].at(&[row, &[i]].concat()) * x[1].at(&[o, i]);
                let mut z: f64 = (0..columns).map(term).sum();
                if bias {
                    z += x[2].at(&[o]);
                }
                let y = function(activation).map_or(z, |f| super::unary::reference(f, z));
                if residual {
                    y + x[x.len() - 1].at(index)
                } else {
                    y
                }
            })]
        }),
        cost: Cost {
            flops: 2.0 * (row_count * out * columns) as f64,
            elements: tensors as f64,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::{DType, Device};

    #[test]
    fn a_residual_alone_is_handed_its_gradient() {
        let params = crate::Params::zeros(Default::default(), DType::F32, Device::Cpu);
        let t = Tape::training(&params, Default::default());
        let full = |shape: &[usize], value| Tensor::full(shape, value, DType::F32, Device::Cpu);
        let (x, weight) = (
            t.constant(full(&[2, 3], 1.0)),
            t.constant(full(&[4, 3], 1.0)),
        );
        let residual = t.leaf(full(&[2, 4], 5.0));
        let y = linear(&t, &x, &weight, None, Activation::Gelu, Some(&residual)).unwrap();
        let seed = full(&[2, 4], 7.0);
        let address = seed.as_slice::<f32>().unwrap().as_ptr();
        let mut grads = t
            .backward_from(vec![(y, seed)], crate::ParamGrads::new(&params))
            .unwrap();
        let handed = grads.take(&residual).unwrap();
        assert_eq!(handed.as_slice::<f32>().unwrap().as_ptr(), address);
    }

    #[test]
    fn errors_show_all_operands() {
        let t = Tape::inference(None);
        let zeros = |shape: &[usize]| t.constant(Tensor::zeros(shape, DType::F32, Device::Cpu));
        let (x, weight) = (zeros(&[2, 640]), zeros(&[4, 320]));
        let error = t
            .scope("mlp", || {
                linear(&t, &x, &weight, None, Activation::None, None)
            })
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "linear: weight expects 320 input features, x has 640\n    \
             x       [2, 640]  f32  cpu\n    \
             weight  [4, 320]  f32  cpu\n  \
             in  mlp"
        );
    }
}
