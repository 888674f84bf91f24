//! Look-up of rows in a table.

use tensor::ops::embedding;
use tensor::{Result, Tensor};

use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var, VarId};

/// The rows of `table` that `ids` name. The gradient of a row is summed in order of position, so that its bits never
/// depend on threads.
///
/// # Shapes
/// table [v, c], ids i32 [..] → [.., c]
pub fn embedding(t: &Tape, table: &Var, ids: &Var) -> Result<Var> {
    let y = embedding::forward(&table.tensor, &ids.tensor)?;
    t.record("embedding", &[table], y, || EmbeddingBackward {
        table: table.tensor.outline(),
        ids: ids.tensor.clone(),
        to: table.id,
    })
}

/// Saves the ids and the form of the table.
struct EmbeddingBackward {
    table: Tensor,
    ids: Tensor,
    to: Option<VarId>,
}

impl Backward for EmbeddingBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dy = upstream.single()?;
        grads.sink(self.to, &self.table, |dtable, accum| {
            embedding::backward(dtable, accum, &dy, &self.ids)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(1, 1, &[1]),
            case(5, 7, &[3, 11]),
            case(3, 33, &[129]),
            case(1031, 17, &[2, 3]),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(49408, 512, &[16, 77]), case(512, 256, &[64, 32])]
    }
}

fn case(v: usize, c: usize, ids: &[usize]) -> Case {
    let shape: Vec<usize> = ids.iter().copied().chain([c]).collect();
    Case {
        name: format!("v={v},c={c},ids={ids:?}"),
        inputs: vec![
            Input::normal("table", &[v, c]),
            Input::new("ids", ids, Fill::Index { below: v }),
        ],
        run: Box::new(|t, x| Ok(vec![embedding(t, &x[0], &x[1])?])),
        cost: Cost {
            flops: 0.0,
            elements: 2.0 * shape.iter().product::<usize>() as f64,
        },
        reference: Box::new(move |x: &[Array]| {
            vec![Array::from_fn(&shape, |i| {
                let (column, position) = i.split_last().unwrap_or((&0, &[]));
                x[0].at(&[x[1].at(position) as usize, *column])
            })]
        }),
    }
}
