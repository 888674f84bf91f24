//! The probabilities of an attention, which [`attention`](super::attention) itself never holds.

use tensor::Result;
use tensor::ops::attention::{self, Attention, Operands};

use super::attention::Shapes;
use crate::spec::{Array, Case, Cost, Gradient, OpSpec};
use crate::{Tape, Var};

/// softmax(scale·q·[context_k; k]ᵀ), per image and head; zeros for a query that sees no key.
///
/// # Shapes
/// As for [`attention`](super::attention::attention) → [n, heads, queries, context + keys]; no gradient
pub fn attention_map(t: &Tape, operands: Operands, options: Attention) -> Result<Var> {
    Ok(t.constant(attention::probabilities(operands, options)?))
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "attention_map"
    }

    fn gradient(&self) -> Gradient {
        Gradient::None("the map is looked at; what is trained goes through attention")
    }

    fn cases(&self) -> Vec<Case> {
        let one = Shapes {
            n: 1,
            queries: 1,
            keys: 1,
            context: 0,
            heads: 1,
            head_dim: 1,
        };
        let few = Shapes {
            n: 2,
            queries: 5,
            keys: 5,
            context: 4,
            heads: 3,
            head_dim: 6,
        };
        let many = Shapes {
            n: 1,
            queries: 75,
            keys: 75,
            context: 31,
            heads: 2,
            head_dim: 32,
        };
        vec![
            case(one, false, false),
            case(few, true, true),
            case(Shapes { context: 0, ..few }, false, true),
            case(many, false, false),
            case(many, true, true),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        let text = Shapes {
            n: 8,
            queries: 256,
            keys: 256,
            context: 77,
            heads: 4,
            head_dim: 64,
        };
        vec![case(text, false, false)]
    }
}

fn case(shapes: Shapes, causal: bool, mask: bool) -> Case {
    let Shapes {
        n,
        queries,
        keys,
        context,
        heads,
        head_dim,
    } = shapes;
    let (total, width) = (context + keys, heads * head_dim);
    Case {
        name: shapes.name(causal, mask),
        inputs: shapes.inputs(mask),
        run: Box::new(move |t, x| {
            let operands = Operands {
                q: x[0].tensor(),
                k: x[1].tensor(),
                v: x[2].tensor(),
                context: (context > 0).then(|| (x[3].tensor(), x[4].tensor())),
                mask: mask.then(|| x[x.len() - 1].tensor()),
            };
            Ok(vec![attention_map(t, operands, shapes.options(causal))?])
        }),
        reference: Box::new(move |x: &[Array]| {
            vec![reference(x, shapes, causal, mask.then(|| &x[x.len() - 1]))]
        }),
        cost: Cost {
            flops: 2.0 * (n * queries * total * width) as f64,
            elements: (n * (width * (queries + total) + heads * queries * total)) as f64,
        },
    }
}

/// The map of q and k, and of the context's k if there is one, at their places among the operands of an attention.
pub(super) fn reference(x: &[Array], shapes: Shapes, causal: bool, mask: Option<&Array>) -> Array {
    let Shapes {
        n,
        queries,
        keys,
        context,
        heads,
        head_dim,
    } = shapes;
    let mut map = Array::zeros(&[n, heads, queries, context + keys]);
    for (row, probabilities) in map.data.chunks_exact_mut(context + keys).enumerate() {
        let (image, head, query) = (row / queries / heads, row / queries % heads, row % queries);
        for (key, probability) in probabilities.iter_mut().enumerate() {
            let allowed = mask.is_none_or(|m| m.at(&[image, key]) != 0.0);
            let past = !causal || key < context || key - context <= query;
            let products = (head * head_dim..(head + 1) * head_dim)
                .map(|f| x[0].at(&[image, query, f]) * shapes.joint(x, [1, 3], image, key, f));
            let score = products.sum::<f64>() / (head_dim as f64).sqrt();
            *probability = if allowed && past { score.exp() } else { 0.0 };
        }
        let sum: f64 = probabilities.iter().sum();
        probabilities.iter_mut().for_each(|p| *p /= sum);
    }
    map
}
