//! Muon: momentum whose direction, for each matrix, is made orthogonal, so that every singular direction of the gradient
//! counts alike (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024).

pub use kernels::ops::optimizer::muon::{Matrix, Rates};

use kernels::ops::optimizer::muon::{self, ptx};

use crate::check::dispatch_float;
use crate::gpu::{Arg, Gpu};
use crate::ops::binary::{self, Binary};
use crate::ops::matmul::{self, Transpose};
use crate::ops::optimizer::{Clipped, bytes, gradient_dtype};
use crate::ops::{affine, l2_normalize};
use crate::{Accum, Check, DType, Device, Result, Tensor};

/// Steps of the iteration, and its polynomial a·x + b·x³ + c·x⁵: Jordan et al. chose it for its slope at zero, so that after
/// five steps singular values from 0.01 on lie between about 0.7 and 1.2, which is near enough to 1.
const ITERATIONS: usize = 5;
const POLYNOMIAL: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Matrices in arenas, and what Muon needs for them on the arenas' device: the same for every step.
#[derive(Debug)]
pub struct Matrices {
    all: Vec<Matrix>,
    groups: Vec<Group>,
}

/// The matrices that are orthogonalised together: of one shape.
#[derive(Debug)]
struct Group {
    /// In the order of the arenas.
    matrices: Vec<Matrix>,
    /// Where they begin, as kernels read it; nothing on the CPU.
    starts: Option<Tensor>,
    /// [1, s, s], s being their smaller side: the polynomial's first coefficient times the unit matrix.
    unit: Tensor,
}

impl Group {
    fn starts(&self) -> Arg<'_> {
        Arg::optional(self.starts.as_ref())
    }
}

impl Matrices {
    /// For arenas of `dtype`; `matrices` ascend.
    pub fn new(matrices: &[Matrix], dtype: DType, device: Device) -> Matrices {
        let groups = groups(matrices).into_iter().map(|matrices| {
            let side = matrices[0].rows.min(matrices[0].columns);
            let on_gpu = device.arch().is_some();
            Group {
                starts: on_gpu.then(|| bytes(&ptx::starts(&matrices), device)),
                unit: unit(side, dtype, device),
                matrices,
            }
        });
        Matrices {
            groups: groups.collect(),
            all: matrices.to_vec(),
        }
    }

    /// All of them, ascending.
    pub fn all(&self) -> &[Matrix] {
        &self.all
    }
}

/// In the order of the arenas.
fn groups(matrices: &[Matrix]) -> Vec<Vec<Matrix>> {
    let mut groups: Vec<Vec<Matrix>> = Vec::new();
    for &matrix in matrices {
        let alike = |group: &&mut Vec<Matrix>| {
            (group[0].rows, group[0].columns) == (matrix.rows, matrix.columns)
        };
        match groups.iter_mut().find(alike) {
            Some(group) => group.push(matrix),
            None => groups.push(vec![matrix]),
        }
    }
    groups
}

/// The polynomial's first coefficient times the unit matrix, [1, side, side].
fn unit(side: usize, dtype: DType, device: Device) -> Tensor {
    let element = |i| {
        if i % (side + 1) == 0 {
            POLYNOMIAL[0]
        } else {
            0.0
        }
    };
    let elements: Vec<f64> = (0..side * side).map(element).collect();
    Tensor::from_f64(&elements, [1, side, side], dtype, device)
}

/// The nearest orthogonal matrices, about: U·Vᵀ for x = U·Σ·Vᵀ, by a Newton–Schulz iteration.
///
/// Every iterate is a polynomial of the first Gram matrix times x, so the iteration stays among the Gram matrices, whose side
/// is the smaller one of x: of a convolution's filters that is a ninth of the larger.
///
/// # Shapes
/// x [n, r, c], unit as in a [`Group`] → [n, r, c]
fn orthogonalize(x: &Tensor, unit: &Tensor) -> Result<Tensor> {
    let check = Check::new("orthogonalize", &[("x", x)]);
    check.same_float()?;
    check.rank("x", x, 3)?;
    let [n, r, c] = [x.dims()[0], x.dims()[1], x.dims()[2]];
    // No singular value is above the norm of all elements.
    let x = l2_normalize::forward(&x.reshape([n, r * c])?, 1e-7)?.reshape([n, r, c])?;
    let wide = r <= c;
    let [_, third, fifth] = POLYNOMIAL;
    // All of these are symmetric, and they commute.
    let times = |a: &Tensor, b: &Tensor| matmul::forward(a, b, Transpose::default()); // [n, s, s]
    // first·1 + third·gram + fifth·gram²
    let polynomial = |gram: &Tensor| {
        let mut p = affine::forward(&times(gram, gram)?, fifth, 0.0)?;
        affine::accumulate(&mut p, Accum::Add, gram, third, 0.0)?;
        binary::forward(Binary::Add, &p, unit)
    };
    // A step takes x to p·x, and its Gram matrix to p·gram·p.
    let mut gram = matmul::forward(&x, &x, Transpose { a: !wide, b: wide })?; // [n, s, s]
    let mut p = polynomial(&gram)?;
    let mut product = p.clone();
    for _ in 1..ITERATIONS {
        gram = times(&times(&p, &gram)?, &p)?;
        p = polynomial(&gram)?;
        product = times(&p, &product)?;
    }
    if wide {
        times(&product, &x)
    } else {
        times(&x, &product)
    }
}

/// What multiplies every gradient before it is used.
#[derive(Clone, Copy, Debug)]
pub enum GradientScale<'a> {
    Of(f64),
    /// What a GPU found out about the gradient, which nobody has read: where its norm is not finite, nothing changes.
    Found(&'a Clipped),
}

impl GradientScale<'_> {
    /// As kernels read it.
    fn on_gpu(self, device: Device) -> Clipped {
        match self {
            GradientScale::Of(scale) => Clipped::by(scale, device),
            GradientScale::Found(clipped) => clipped.clone(),
        }
    }
}

/// Turns gradients into directions, in place: momentum, then orthogonalisation, then a scale that gives a direction's
/// elements the size that AdamW's have, so that one decay serves both (Liu et al., arXiv 2502.16982, section 2.2).
///
/// # Errors
/// If the arenas differ in length or dtype, one of them is shared, or a matrix is not inside.
pub fn direct(
    gradient: &mut Tensor,
    m: &mut Tensor,
    momentum: f64,
    gradient_scale: GradientScale,
    matrices: &Matrices,
) -> Result<()> {
    let check = Check::new("muon", &[("gradient", gradient), ("m", m)]);
    let dtype = gradient_dtype(&check, gradient, &[("m", m)])?;
    let device = gradient.device();
    check.shape("m", m, &[gradient.len()])?;
    inside(&check, &matrices.all, gradient.len())?;
    if let Some(gpu) = check.gpu() {
        let clip = gradient_scale.on_gpu(device);
        return direct_on_gpu(&gpu, gradient, m, momentum, &clip, matrices);
    }
    let scale = match gradient_scale {
        GradientScale::Of(scale) => scale,
        GradientScale::Found(clipped) => clipped.scale()?,
    };
    dispatch_float!(dtype, T => muon::momentum::<T>(
        gradient.as_mut_slice()?, m.as_mut_slice()?, momentum, scale, &matrices.all
    ));
    for Group { matrices, unit, .. } in &matrices.groups {
        let Matrix { rows, columns, .. } = matrices[0];
        let len = rows * columns;
        let mut x = Tensor::uninit([matrices.len(), rows, columns], dtype, device);
        dispatch_float!(dtype, T => {
            let all = gradient.as_slice::<T>()?;
            for (x, matrix) in x.as_mut_slice::<T>()?.chunks_mut(len).zip(matrices) {
                x.copy_from_slice(&all[matrix.range()]);
            }
        });
        let x = affine::forward(&orthogonalize(&x, unit)?, size(&matrices[0]), 0.0)?;
        dispatch_float!(dtype, T => {
            let all = gradient.as_mut_slice::<T>()?;
            for (x, matrix) in x.as_slice::<T>()?.chunks(len).zip(matrices) {
                all[matrix.range()].copy_from_slice(x);
            }
        });
    }
    Ok(())
}

/// What gives the elements of a direction the size that AdamW's have.
fn size(matrix: &Matrix) -> f64 {
    0.2 * (matrix.rows.max(matrix.columns) as f64).sqrt()
}

/// [`direct`], the gradient in any storage, directions in f32 until they take its place.
fn direct_on_gpu(
    gpu: &Gpu,
    gradient: &mut Tensor,
    m: &mut Tensor,
    momentum: f64,
    clip: &Clipped,
    matrices: &Matrices,
) -> Result<()> {
    let (storage, device) = (gpu.storage(gradient.dtype()), gradient.device());
    for group in &matrices.groups {
        let Matrix { rows, columns, .. } = group.matrices[0];
        let mut x = Tensor::uninit([group.matrices.len(), rows, columns], DType::F32, device);
        let call = gpu.plan(ptx::config(ptx::Momentum, storage, &group.matrices))?;
        let written = [Arg::Update(m), Arg::Write(&mut x)].into_iter();
        let read = [Arg::Read(gradient), group.starts(), clip.operand()];
        let betas = [momentum, 1.0 - momentum].map(|beta| Arg::F32(beta as f32));
        gpu.call(&call, written.chain(read).chain(betas))?;

        let x = orthogonalize(&x, &group.unit)?;
        let call = gpu.plan(ptx::config(ptx::Place, storage, &group.matrices))?;
        let operands = [
            Arg::Update(gradient),
            Arg::Read(&x),
            group.starts(),
            Arg::F32(size(&group.matrices[0]) as f32),
        ];
        gpu.call(&call, operands)?;
    }
    Ok(())
}

/// `p ← p − learning_rate·(weight_decay·p + direction)`, then one step of the moving average, for every matrix. Nothing where
/// a GPU found a gradient whose norm is not finite.
///
/// # Errors
/// If the arenas differ in length or dtype, one of them is shared, or a matrix is not inside.
pub fn descend(
    parameters: &mut Tensor,
    direction: &Tensor,
    ema: &mut Tensor,
    rates: Rates,
    gradient_scale: GradientScale,
    matrices: &Matrices,
) -> Result<()> {
    let operands = [
        ("parameters", &*parameters),
        ("direction", direction),
        ("ema", &*ema),
    ];
    let check = Check::new("muon", &operands);
    let others = [operands[0], operands[2]];
    let dtype = gradient_dtype(&check, direction, &others)?;
    for (name, tensor) in operands {
        check.shape(name, tensor, &[direction.len()])?;
    }
    inside(&check, &matrices.all, direction.len())?;
    if let Some(gpu) = check.gpu() {
        let clip = gradient_scale.on_gpu(direction.device());
        return descend_on_gpu(&gpu, [parameters, ema], direction, rates, &clip, matrices);
    }
    dispatch_float!(dtype, T => muon::descend::<T>(
        parameters.as_mut_slice()?, direction.as_slice()?, ema.as_mut_slice()?, rates, &matrices.all
    ));
    Ok(())
}

/// [`descend`] of the parameters and their average, the direction in any storage.
fn descend_on_gpu(
    gpu: &Gpu,
    [parameters, ema]: [&mut Tensor; 2],
    direction: &Tensor,
    rates: Rates,
    clip: &Clipped,
    matrices: &Matrices,
) -> Result<()> {
    let (storage, device) = (gpu.storage(direction.dtype()), direction.device());
    let scalars = bytes(&ptx::descent(rates), device);
    for group in &matrices.groups {
        let call = gpu.plan(ptx::config(ptx::Descend, storage, &group.matrices))?;
        let updated = [&mut *parameters, &mut *ema].map(Arg::Update).into_iter();
        let read = [
            Arg::Read(direction),
            group.starts(),
            Arg::Read(&scalars),
            clip.operand(),
        ];
        gpu.call(&call, updated.chain(read))?;
    }
    Ok(())
}

fn inside(check: &Check, matrices: &[Matrix], len: usize) -> Result<()> {
    let ascending = matrices
        .windows(2)
        .all(|pair| pair[0].range().end <= pair[1].start);
    let inside = matrices.iter().all(|matrix| matrix.range().end <= len);
    check.require(ascending && inside, || {
        "the matrices must be ascending and inside the arenas".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::random::{self, Draw};
    use crate::{DType, Device};

    fn normal(shape: &[usize]) -> Tensor {
        let mut x = Tensor::uninit(shape, DType::F64, Device::Cpu);
        random::fill_normal(&mut x, &Draw::named(0, "x", 0), 1.0).expect("a shape");
        x
    }

    /// Singular values of a tall and a wide matrix lie where the polynomial leaves them: x·xᵀ is near the unit matrix.
    #[test]
    fn directions_are_orthogonal() -> Result<()> {
        for shape in [[3, 8, 24], [2, 24, 8]] {
            let side = shape[1].min(shape[2]);
            let y = orthogonalize(&normal(&shape), &unit(side, DType::F64, Device::Cpu))?;
            let wide = shape[1] <= shape[2];
            let gram = matmul::forward(&y, &y, Transpose { a: !wide, b: wide })?;
            for (i, value) in gram.to_f64_vec()?.into_iter().enumerate() {
                let unit = if (i / side) % side == i % side {
                    1.0
                } else {
                    0.0
                };
                assert!((value - unit).abs() < 0.6, "{shape:?}: {value} for {unit}");
            }
        }
        Ok(())
    }

    /// Orthogonalisation keeps singular vectors: a matrix that is orthogonal up to its length comes out a multiple of
    /// itself.
    #[test]
    fn singular_vectors_stay() -> Result<()> {
        let (sin, cos) = 0.3f64.sin_cos();
        let x = Tensor::from_f64(&[cos, -sin, sin, cos], [1, 2, 2], DType::F64, Device::Cpu);
        let unit = unit(2, DType::F64, Device::Cpu);
        let y = orthogonalize(&affine::forward(&x, 17.0, 0.0)?, &unit)?.to_f64_vec()?;
        let ratio = y[0] / cos;
        assert!((0.6..1.3).contains(&ratio), "{ratio}");
        for (y, x) in y.iter().zip([cos, -sin, sin, cos]) {
            assert!((y - ratio * x).abs() < 1e-12);
        }
        Ok(())
    }

    #[test]
    fn a_step_goes_against_the_direction_and_leaves_the_rest() -> Result<()> {
        let matrix = Matrix {
            start: 2,
            rows: 4,
            columns: 8,
        };
        let len = 40;
        let start = normal(&[len]);
        let mut gradient = start.detach_copy()?;
        let mut m = Tensor::zeros([len], DType::F64, Device::Cpu);
        let matrices = Matrices::new(&[matrix], DType::F64, Device::Cpu);
        let scale = GradientScale::Of(0.5);
        direct(&mut gradient, &mut m, 0.95, scale, &matrices)?;
        let mut parameters = Tensor::full([len], 1.0, DType::F64, Device::Cpu);
        let mut ema = parameters.detach_copy()?;
        let rates = Rates {
            learning_rate: 0.1,
            weight_decay: 0.5,
            ema_decay: 0.75,
        };
        descend(
            &mut parameters,
            &gradient,
            &mut ema,
            rates,
            scale,
            &matrices,
        )?;
        let values = |x: &Tensor| x.to_f64_vec();
        let (before, g, m, p, e) = (
            values(&start)?,
            values(&gradient)?,
            values(&m)?,
            values(&parameters)?,
            values(&ema)?,
        );
        for i in 0..len {
            if matrix.range().contains(&i) {
                assert!((m[i] - 0.05 * 0.5 * before[i]).abs() < 1e-15);
                assert!((p[i] - (0.95 - 0.1 * g[i])).abs() < 1e-15);
                assert!((e[i] - (0.75 + 0.25 * p[i])).abs() < 1e-15);
            } else {
                assert_eq!([g[i], m[i], p[i], e[i]], [before[i], 0.0, 1.0, 1.0]);
            }
        }
        // Every element moves by about what AdamW moves it: a fifth of the rate, in the root mean square.
        let size = matrix.range().map(|i| g[i] * g[i]).sum::<f64>() / matrix.range().len() as f64;
        assert!((0.14..0.26).contains(&size.sqrt()), "{}", size.sqrt());
        Ok(())
    }

    #[test]
    fn a_matrix_outside_is_refused() {
        let mut x = normal(&[8]);
        let mut m = normal(&[8]);
        let outside = Matrix {
            start: 4,
            rows: 2,
            columns: 3,
        };
        let outside = Matrices::new(&[outside], DType::F64, Device::Cpu);
        let refused = direct(&mut x, &mut m, 0.9, GradientScale::Of(1.0), &outside);
        let refused = refused.map_err(|e| e.to_string());
        assert!(refused.is_err_and(|e| e.contains("inside the arenas")));
    }
}
