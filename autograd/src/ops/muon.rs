//! Muon's step for matrices in arenas: momentum, orthogonalisation, descent and the moving average. What a training step
//! does after the tape: there is no function on `Var`s.

use tensor::ops::muon::{GradientScale, Matrices, Matrix, Rates, descend, direct};

use super::optimizer::arena;
use crate::spec::{Array, Case, Cost, Fill, Gradient, Input, OpSpec};

pub struct Spec;

impl OpSpec for Spec {
    fn name(&self) -> &'static str {
        "muon"
    }

    fn gradient(&self) -> Gradient {
        Gradient::None("it consumes gradients")
    }

    fn cases(&self) -> Vec<Case> {
        // Tall and wide; alone and in groups; beginning at chunks or not; with elements that are in no matrix.
        vec![
            case("none", 1, &[]),
            case("wide", 67, &[(3, 5, 12)]),
            case("tall", 200, &[(8, 24, 8)]),
            several(),
        ]
    }

    fn benches(&self) -> Vec<Case> {
        // No larger ones, though models have them: every product of the iteration rounds anew, which an error budget made of
        // a few roundings of operands does not describe. Two matrices of 256 x 2304 use 9.5 budgets in f32, 64 of 4 x 256 3.3.
        vec![several()]
    }
}

fn several() -> Case {
    case(
        "several",
        480,
        &[(1, 5, 12), (61, 9, 4), (101, 5, 12), (164, 40, 7)],
    )
}

const MOMENTUM: f64 = 0.9;
const GRADIENT_SCALE: f64 = 0.5;
const RATES: Rates = Rates {
    learning_rate: 0.05,
    weight_decay: 0.1,
    ema_decay: 0.75,
};

/// Matrices by start, rows and columns, in arenas of `len` elements.
fn case(name: &str, len: usize, matrices: &[(usize, usize, usize)]) -> Case {
    let float = Fill::Constant {
        low: -1.0,
        high: 1.0,
    };
    let matrix = |&(start, rows, columns)| Matrix {
        start,
        rows,
        columns,
    };
    let matrices: Vec<Matrix> = matrices.iter().map(matrix).collect();
    let again = matrices.clone();
    let flops = |matrix: &Matrix| {
        let side = matrix.rows.min(matrix.columns);
        // Two Gram-sized products a step and two more of the matrix's own size, at least.
        4.0 * (side * matrix.range().len() + 5 * 4 * side.pow(3)) as f64
    };
    Case {
        name: format!("{name},len={len}"),
        cost: Cost {
            flops: matrices.iter().map(flops).sum(),
            elements: (9 * len) as f64,
        },
        inputs: ["gradient", "m", "parameters", "ema"]
            .map(|name| Input::new(name, &[len], float))
            .into(),
        run: Box::new(move |t, x| {
            let mut gradient = x[0].tensor().detach_copy()?;
            let [mut m, mut parameters, mut ema] = [arena(&x[1])?, arena(&x[2])?, arena(&x[3])?];
            let matrices = Matrices::new(&matrices, parameters.dtype(), parameters.device());
            let scale = GradientScale::Of(GRADIENT_SCALE);
            direct(&mut gradient, &mut m, MOMENTUM, scale, &matrices)?;
            descend(
                &mut parameters,
                &gradient,
                &mut ema,
                RATES,
                scale,
                &matrices,
            )?;
            let outputs = [gradient, m, parameters, ema];
            Ok(outputs.map(|output| t.constant(output)).into())
        }),
        reference: Box::new(move |x: &[Array]| reference(x, &again)),
    }
}

fn reference(x: &[Array], matrices: &[Matrix]) -> Vec<Array> {
    let mut out = x.to_vec();
    for matrix in matrices {
        let mut direction = vec![];
        for i in matrix.range() {
            let g = GRADIENT_SCALE * x[0].data[i];
            let m = MOMENTUM * x[1].data[i] + (1.0 - MOMENTUM) * g;
            out[1].data[i] = m;
            direction.push((1.0 - MOMENTUM) * g + MOMENTUM * m);
        }
        let direction = orthogonal(direction, matrix.columns);
        let size = 0.2 * (matrix.rows.max(matrix.columns) as f64).sqrt();
        for (i, direction) in matrix.range().zip(direction) {
            let direction = size * direction;
            let decayed = RATES.weight_decay * x[2].data[i];
            let p = x[2].data[i] - RATES.learning_rate * (decayed + direction);
            out[0].data[i] = direction;
            out[2].data[i] = p;
            out[3].data[i] = RATES.ema_decay * x[3].data[i] + (1.0 - RATES.ema_decay) * p;
        }
    }
    out
}

/// Five steps of x ← 3.4445·x − 4.7750·(x·xᵀ)·x + 2.0315·(x·xᵀ)²·x from x / ‖x‖.
fn orthogonal(mut x: Vec<f64>, columns: usize) -> Vec<f64> {
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    x.iter_mut().for_each(|x| *x /= norm);
    for _ in 0..5 {
        // (x·xᵀ)·y, row by row.
        let through = |y: &[f64]| -> Vec<f64> {
            let mut product = vec![0.0; y.len()];
            for (row, out) in x.chunks(columns).zip(product.chunks_mut(columns)) {
                for (other, y) in x.chunks(columns).zip(y.chunks(columns)) {
                    let weight: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                    out.iter_mut()
                        .zip(y)
                        .for_each(|(out, y)| *out += weight * y);
                }
            }
            product
        };
        let third = through(&x);
        let fifth = through(&third);
        let terms = x.iter().zip(third).zip(fifth);
        x = terms
            .map(|((x, third), fifth)| 3.4445 * x - 4.7750 * third + 2.0315 * fifth)
            .collect();
    }
    x
}
