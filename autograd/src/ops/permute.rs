//! Dimensions in another order.

use tensor::Result;

use crate::spec::{Array, Case, Cost, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// Dimension `i` of the result is dimension `order[i]` of x. The result is laid out in its own order.
pub fn permute(t: &Tape, x: &Var, order: &[usize]) -> Result<Var> {
    let y = x.tensor.permute(order)?.contiguous()?;
    t.record("permute", &[x], y, || PermuteBackward {
        order: order.to_vec(),
        to: x.id,
    })
}

/// Saves no tensor: the gradient is the upstream one with its dimensions back in place.
struct PermuteBackward {
    order: Vec<usize>,
    to: Option<VarId>,
}

impl Backward for PermuteBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let mut inverse = vec![0; self.order.len()];
        for (i, &d) in self.order.iter().enumerate() {
            inverse[d] = i;
        }
        // In order at once: whoever takes the gradient may read it several times or add to it.
        let dx = upstream.single()?.permute(&inverse)?.contiguous()?;
        grads.give(self.to, dx)
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "permute"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(&[5], &[0]),
            case(&[3, 7], &[1, 0]),
            case(&[2, 3, 4], &[2, 0, 1]),
            case(&[2, 1, 5, 3], &[0, 3, 2, 1]),
            // Patches of an image.
            case(&[2, 3, 2, 4, 2, 3], &[0, 1, 3, 2, 4, 5]),
            case(&[133, 150], &[1, 0]),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![
            case(&[64, 8, 4, 8, 4, 3], &[0, 1, 3, 2, 4, 5]),
            case(&[64, 64, 64], &[0, 2, 1]),
        ]
    }
}

fn case(shape: &[usize], order: &[usize]) -> Case {
    let result: Vec<usize> = order.iter().map(|&d| shape[d]).collect();
    let order = order.to_vec();
    let elements = shape.iter().product::<usize>() as f64;
    Case {
        name: format!("x={shape:?},order={order:?}"),
        inputs: vec![Input::normal("x", shape)],
        run: {
            let order = order.clone();
            Box::new(move |t, x| Ok(vec![permute(t, &x[0], &order)?]))
        },
        reference: Box::new(move |x: &[Array]| {
            vec![Array::from_fn(&result, |index| {
                let mut source = vec![0; index.len()];
                for (&d, &i) in order.iter().zip(index) {
                    source[d] = i;
                }
                x[0].at(&source)
            })]
        }),
        cost: Cost {
            flops: 0.0,
            elements: 2.0 * elements,
        },
    }
}
