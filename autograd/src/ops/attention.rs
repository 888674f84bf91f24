//! Scaled dot-product attention with causal and key masks and added context keys.

pub use tensor::ops::attention::Attention;
use tensor::ops::attention::{self, Operands, Output};
use tensor::{Result, Tensor};

use super::attention_map::attention_map;
use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};
use crate::{Backward, Grads, Tape, Upstream, Var};

/// softmax(scale·q·[context_k; k]ᵀ)·[context_v; v], per image and head; zeros for a query that sees no key.
///
/// The attention map is computed only for a tap that asks for `probs` of the current module.
///
/// # Shapes
/// q [n, queries, heads·head_dim], k and v [n, keys, heads·head_dim], context keys and values
/// [n, context, heads·head_dim], mask bool [n, context + keys] (true: may be attended) → like q;
/// probs [n, heads, queries, context + keys].
pub fn attention(
    t: &Tape,
    q: &Var,
    k: &Var,
    v: &Var,
    context: Option<(&Var, &Var)>,
    mask: Option<&Tensor>,
    options: Attention,
) -> Result<Var> {
    let operands = Operands {
        q: &q.tensor,
        k: &k.tensor,
        v: &v.tensor,
        context: context.map(|(k, v)| (&k.tensor, &v.tensor)),
        mask,
    };
    if t.wants("probs") {
        t.tap("probs", &attention_map(t, operands, options)?);
    }
    let output = attention::forward(operands, options)?;
    let mut recorded = vec![q, k, v];
    recorded.extend(context.into_iter().flat_map(|(k, v)| [k, v]));
    let out = output.out.clone();
    t.record("attention", &recorded, out, || AttentionBackward {
        options,
        q: q.clone(),
        k: k.clone(),
        v: v.clone(),
        context: context.map(|(k, v)| (k.clone(), v.clone())),
        mask: mask.cloned(),
        output,
    })
}

/// Saves the operands, the output and each query's log sum: the map is made again from them, tile by tile.
struct AttentionBackward {
    options: Attention,
    q: Var,
    k: Var,
    v: Var,
    context: Option<(Var, Var)>,
    mask: Option<Tensor>,
    output: Output,
}

impl Backward for AttentionBackward {
    fn backward(self: Box<Self>, upstream: Upstream, grads: &mut Grads) -> Result<()> {
        let dout = upstream.single()?;
        let AttentionBackward {
            options,
            q,
            k,
            v,
            context,
            mask,
            output,
        } = *self;
        // Where there is no context its place is taken by a constant, which has no gradient.
        let none = (None, &q.tensor);
        let (context_k, context_v) = context.as_ref().map_or((none, none), |(k, v)| {
            ((k.id, &k.tensor), (v.id, &v.tensor))
        });
        let targets = [
            (q.id, &q.tensor),
            (k.id, &k.tensor),
            (v.id, &v.tensor),
            context_k,
            context_v,
        ];
        grads.sink_many(targets, |gradients| {
            let operands = Operands {
                q: &q.tensor,
                k: &k.tensor,
                v: &v.tensor,
                context: context.as_ref().map(|(k, v)| (&k.tensor, &v.tensor)),
                mask: mask.as_ref(),
            };
            attention::backward(gradients, &dout, &output, operands, options)
        })
    }
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn gradient(&self) -> Gradient {
        Gradient::Checked
    }

    fn cases(&self) -> Vec<Case> {
        let plain = Shapes {
            n: 2,
            queries: 5,
            keys: 7,
            context: 0,
            heads: 3,
            head_dim: 6,
        };
        let square = Shapes { keys: 5, ..plain };
        let one = Shapes {
            n: 1,
            queries: 1,
            keys: 1,
            context: 0,
            heads: 1,
            head_dim: 1,
        };
        // Longer than one tile of any kernel.
        let long = Shapes {
            n: 1,
            queries: 75,
            keys: 75,
            context: 0,
            heads: 2,
            head_dim: 17,
        };
        let mut cases = vec![
            case(one, false, false),
            case(plain, false, false),
            case(long, false, false),
            case(long, true, true),
            case(
                Shapes {
                    context: 70,
                    queries: 3,
                    keys: 3,
                    ..long
                },
                false,
                true,
            ),
        ];
        // Head dims that GPU kernels have tiles of.
        let wide = Shapes {
            n: 2,
            queries: 9,
            keys: 9,
            context: 0,
            heads: 2,
            head_dim: 32,
        };
        cases.extend([
            case(wide, false, false),
            case(wide, true, true),
            case(Shapes { context: 5, ..wide }, false, true),
            case(Shapes { queries: 1, ..wide }, false, false),
        ]);
        let longer = Shapes {
            n: 1,
            queries: 67,
            keys: 67,
            heads: 1,
            head_dim: 48,
            ..wide
        };
        cases.extend([
            case(longer, true, false),
            case(
                Shapes {
                    context: 101,
                    ..longer
                },
                false,
                true,
            ),
        ]);
        for context in [0, 4] {
            for causal in [false, true] {
                for mask in [false, true] {
                    cases.push(case(Shapes { context, ..square }, causal, mask));
                }
            }
        }
        cases
    }

    fn benches(&self) -> Vec<Case> {
        let shapes = |n, tokens, context, heads, head_dim| Shapes {
            n,
            queries: tokens,
            keys: tokens,
            context,
            heads,
            head_dim,
        };
        vec![
            case(shapes(8, 256, 0, 4, 64), false, false),
            case(shapes(64, 64, 0, 2, 32), false, false),
            case(shapes(64, 64, 20, 2, 32), false, true),
            case(shapes(64, 32, 0, 4, 32), true, true),
        ]
    }
}

/// The sizes of a case.
#[derive(Clone, Copy)]
pub(super) struct Shapes {
    pub n: usize,
    pub queries: usize,
    pub keys: usize,
    pub context: usize,
    pub heads: usize,
    pub head_dim: usize,
}

impl Shapes {
    pub fn name(self, causal: bool, mask: bool) -> String {
        let Shapes {
            n,
            queries,
            keys,
            context,
            heads,
            head_dim,
        } = self;
        format!(
            "n={n},queries={queries},keys={keys},context={context},heads={heads},head_dim={head_dim}{}{}",
            if causal { ",causal" } else { "" },
            if mask { ",mask" } else { "" },
        )
    }

    pub fn options(self, causal: bool) -> Attention {
        Attention {
            heads: self.heads,
            causal,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
        }
    }

    /// q, k, v, the context's k and v if there is one, and the mask.
    pub fn inputs(self, mask: bool) -> Vec<Input> {
        let width = self.heads * self.head_dim;
        let tokens = |name, tokens| Input::normal(name, &[self.n, tokens, width]);
        let mut inputs = vec![
            tokens("q", self.queries),
            tokens("k", self.keys),
            tokens("v", self.keys),
        ];
        if self.context > 0 {
            inputs.push(tokens("context_k", self.context));
            inputs.push(tokens("context_v", self.context));
        }
        if mask {
            let fill = Fill::Mask { probability: 0.6 };
            inputs.push(Input::new(
                "mask",
                &[self.n, self.context + self.keys],
                fill,
            ));
        }
        inputs
    }

    /// An element of a joint key or value, `own` and context being at these places among the inputs.
    pub fn joint(
        self,
        x: &[Array],
        [own, added]: [usize; 2],
        image: usize,
        key: usize,
        feature: usize,
    ) -> f64 {
        match key.checked_sub(self.context) {
            None => x[added].at(&[image, key, feature]),
            Some(key) => x[own].at(&[image, key, feature]),
        }
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
    let width = heads * head_dim;
    Case {
        name: shapes.name(causal, mask),
        inputs: shapes.inputs(mask),
        run: Box::new(move |t, x| {
            let context = (context > 0).then(|| (&x[3], &x[4]));
            let mask = mask.then(|| x[x.len() - 1].tensor());
            let options = shapes.options(causal);
            Ok(vec![attention(
                t, &x[0], &x[1], &x[2], context, mask, options,
            )?])
        }),
        reference: Box::new(move |x: &[Array]| {
            let mask = mask.then(|| &x[x.len() - 1]);
            vec![reference(x, shapes, causal, mask)]
        }),
        cost: Cost {
            flops: 4.0 * (n * queries * (context + keys) * width) as f64,
            elements: (2 * n * width * (queries + keys + context)) as f64,
        },
    }
}

fn reference(x: &[Array], shapes: Shapes, causal: bool, mask: Option<&Array>) -> Array {
    let map = super::attention_map::reference(x, shapes, causal, mask);
    let Shapes {
        n,
        queries,
        heads,
        head_dim,
        ..
    } = shapes;
    Array::from_fn(&[n, queries, heads * head_dim], |i| {
        let (image, query, f) = (i[0], i[1], i[2]);
        let weighted = (0..shapes.context + shapes.keys).map(|key| {
            map.at(&[image, f / head_dim, query, key]) * shapes.joint(x, [2, 4], image, key, f)
        });
        weighted.sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::Device;

    fn tokens(t: &Tape, n: usize) -> Var {
        let data: Vec<f64> = (0..n * 8).map(|i| (i as f64 * 0.7).sin()).collect();
        t.constant(Tensor::from_slice(&data, [1, n, 8], Device::Cpu))
    }

    #[test]
    fn the_map_is_offered_to_a_tap_that_wants_it() {
        let t = Tape::inference(None).with_taps(|name| name == "block.attn.probs");
        let options = Attention {
            heads: 2,
            causal: true,
            scale: 0.5,
        };
        let x = tokens(&t, 3);
        let context = tokens(&t, 2);
        let run = || {
            let context = Some((&context, &context));
            t.scope("attn", || attention(&t, &x, &x, &x, context, None, options))
        };
        t.scope("block", run).unwrap();
        t.scope("other", run).unwrap();
        let taken = t.taken();
        let [(name, map)] = &taken[..] else {
            panic!("one map was asked for, {} taken", taken.len())
        };
        assert_eq!(name, "block.attn.probs");
        assert_eq!(map.dims(), [1, 2, 3, 5]);
        for (row, p) in map.to_f64_vec().unwrap().chunks_exact(5).enumerate() {
            assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            let seen = 2 + row % 3 + 1;
            assert!(p[..seen].iter().all(|&p| p > 0.0) && p[seen..].iter().all(|&p| p == 0.0));
        }
    }

    #[test]
    fn a_query_without_keys_gives_zeros_and_no_gradient() {
        let params = crate::Params::zeros(Default::default(), tensor::DType::F64, Device::Cpu);
        let t = Tape::training(&params, Default::default());
        let x = t.leaf(tokens(&t, 3).tensor);
        let mask = Tensor::from_bools(&[false; 3], [1, 3], Device::Cpu);
        let options = Attention {
            heads: 2,
            causal: false,
            scale: 0.5,
        };
        let y = attention(&t, &x, &x, &x, None, Some(&mask), options).unwrap();
        assert!(y.tensor.to_f64_vec().unwrap().iter().all(|&y| y == 0.0));
        let seed = Tensor::full([1, 3, 8], 1.0, tensor::DType::F64, Device::Cpu);
        let mut grads = t
            .backward_from(vec![(y, seed)], crate::ParamGrads::new(&params))
            .unwrap();
        let dx = grads.take(&x).unwrap();
        assert!(dx.to_f64_vec().unwrap().iter().all(|&dx| dx == 0.0));
    }
}
