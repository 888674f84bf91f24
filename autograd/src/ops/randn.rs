//! Standard normal noise.

use tensor::ops::random;
use tensor::{DType, Result, Shape, Tensor};

use crate::spec::{Array, Case, Cost, Gradient, OpSpec, STEP};
use crate::{Draw, Tape, Var};

/// Standard normals, a function of the step's counters, the module, the sample (dimension 0) and the place in it.
///
/// # Shapes
/// → shape; no gradient
pub fn randn(t: &Tape, shape: impl Into<Shape>, dtype: DType) -> Result<Var> {
    let mut y = Tensor::uninit(shape, dtype, t.device());
    random::fill_normal_at(&mut y, &t.draw(), &t.counters(), 1.0)?;
    Ok(t.constant(y))
}

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "randn"
    }

    fn gradient(&self) -> Gradient {
        Gradient::None("noise is data")
    }

    fn cases(&self) -> Vec<Case> {
        vec![
            case(&[1]),
            case(&[5, 7]),
            case(&[3, 1, 131]),
            case(&[2, 9001]),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        vec![case(&[32, 64, 64, 3])]
    }
}

fn case(shape: &[usize]) -> Case {
    let shape = shape.to_vec();
    Case {
        name: format!("shape={shape:?}"),
        inputs: vec![],
        cost: Cost {
            flops: 0.0,
            elements: shape.iter().product::<usize>() as f64,
        },
        run: Box::new({
            let shape = shape.clone();
            move |t, _| Ok(vec![randn(t, &shape, DType::F32)?])
        }),
        reference: Box::new(move |_: &[Array]| {
            let draw = Draw {
                step: STEP.step,
                first_sample: STEP.first_sample,
                ..Draw::named(STEP.seed, "", 0)
            };
            let mut y = Array::zeros(&shape);
            let per_sample = y.data.len() / shape[0];
            for (i, y) in y.data.iter_mut().enumerate() {
                let (sample, element) = (i / per_sample, i % per_sample);
                let words = draw.words(sample as u32, (element / 4) as u32);
                // The polynomials of a pair are tested against the exact formula where they are written.
                let pair = element % 4 / 2 * 2;
                let normals = kernels::random::normal_pair(words[pair], words[pair + 1]);
                *y = normals[element % 2] as f64;
            }
            vec![y]
        }),
    }
}
