//! Sharpness-aware minimisation (Foret et al., "Sharpness-aware minimization for efficiently improving generalization",
//! 2021): a step descends along the gradient of the worst weights nearby, those at w + ρ·g/‖g‖ (equation 2).

use autograd::Params;
use tensor::ops::binary::{self, Binary};
use tensor::ops::{affine, l2_normalize, optimizer, reduce};
use tensor::{Device, Result, Tensor};

/// The weights w + ρ·g/‖g‖, over all parameters at once. Where the gradient is zero they are w; where it is not finite,
/// neither are they.
///
/// # Shapes
/// gradient: the arena's
pub fn ascended(params: &Params, gradient: &Tensor, rho: f64) -> Result<Params> {
    let step = match params.device() {
        Device::Cpu => {
            let norm = optimizer::gradient_norm(gradient)?;
            let scale = if norm == 0.0 { 0.0 } else { rho / norm };
            affine::forward(gradient, scale, 0.0)?
        }
        _ => affine::forward(&direction(gradient)?, rho, 0.0)?,
    };
    let arena = binary::forward(Binary::Add, params.arena(), &step)?;
    Params::from_arena(params.layout().clone(), arena)
}

/// g/‖g‖ without reading the norm, which a GPU has not computed yet: rows are normalised alone, then weighed by their
/// share, the normalised vector of the rows' norms.
fn direction(gradient: &Tensor) -> Result<Tensor> {
    /// Elements of a row at most.
    const ROW: usize = 4096;
    /// Shorter rows count as zero.
    const EPS: f64 = 1e-18;
    let len = gradient.len();
    // The largest power of two that divides the length; arenas are padded to some.
    let width = ROW.min(1 << len.trailing_zeros());
    let rows = gradient.reshape([len / width, width])?;
    let units = l2_normalize::forward(&rows, EPS)?; // [rows, width]
    let norms = binary::forward(Binary::Mul, &rows, &units)?;
    let norms = reduce::sum_dims(&norms, &[1], 1.0)?; // [rows]
    let shares = l2_normalize::forward(&norms, EPS)?.reshape([len / width, 1])?;
    binary::forward(Binary::Mul, &units, &shares)?.reshape([len])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use autograd::{Decay, Init, ParamLayout, ParamsBuilder};
    use tensor::DType;

    use super::*;

    fn params(shapes: &[usize], device: Device) -> Params {
        let mut layout = ParamLayout::default();
        let mut p = ParamsBuilder::new(&mut layout);
        for (i, &n) in shapes.iter().enumerate() {
            let init = Init::Normal { std: 1.0 };
            p.declare(&format!("p{i}"), [n], init, Decay::Yes);
        }
        Params::init(Arc::new(layout), 1, DType::F32, device).unwrap()
    }

    /// The simulated GPU, which never sees the norm, against the CPU; rows of zeros, and a gradient that is all zero.
    #[test]
    fn weights_ascend_by_rho_along_the_gradient_on_every_device() {
        let shapes = [5000, 3, 16, 70];
        let cpu = params(&shapes, Device::Cpu);
        let len = cpu.arena().len();
        let gradient = |scale: f64| {
            let value = |i: usize| match i {
                100..200 => 0.0,
                _ => scale * ((i * 2_654_435_761 % 1009) as f64 / 1009.0 - 0.4),
            };
            let values: Vec<f64> = (0..len).map(value).collect();
            Tensor::from_f64(&values, [len], DType::F32, Device::Cpu)
        };
        for scale in [1.0, 1e-6, 0.0] {
            let g = gradient(scale);
            let w = cpu.arena().to_f64_vec().unwrap();
            let values = g.to_f64_vec().unwrap();
            let norm = values.iter().map(|g| g * g).sum::<f64>().sqrt();
            let direction = |i: usize| if norm == 0.0 { 0.0 } else { values[i] / norm };
            for device in [Device::Cpu, autograd::harness::device::gpu()] {
                let (params, g) = (cpu.to_device(device).unwrap(), g.to_device(device).unwrap());
                let moved = ascended(&params, &g, 0.25).unwrap();
                for (i, got) in moved.arena().to_f64_vec().unwrap().into_iter().enumerate() {
                    let want = w[i] + 0.25 * direction(i);
                    // Half an ulp of w, which reaches 4, and a few of the step.
                    assert!((got - want).abs() < 3e-7, "{device} {i}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_visible() {
        let params = params(&[20], Device::Cpu);
        let g = Tensor::full([params.arena().len()], f64::NAN, DType::F32, Device::Cpu);
        let moved = ascended(&params, &g, 0.1).unwrap();
        let values = moved.arena().to_f64_vec().unwrap();
        assert!(values.iter().all(|w| w.is_nan()));
    }
}
