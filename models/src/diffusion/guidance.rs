//! Classifier-free guidance (Ho and Salimans, 2021).

use tensor::{Check, Result, Tensor};

/// unconditional + scale·(conditional − unconditional).
///
/// Of outputs that hold a learned variance after their `channels`, the variance is the conditional one.
///
/// # Shapes
/// both [.., channels] or [.., 2·channels] → the same
pub fn guide(
    unconditional: &Tensor,
    conditional: &Tensor,
    scale: f64,
    channels: usize,
) -> Result<Tensor> {
    let check = Check::new(
        "guide",
        &[
            ("unconditional", unconditional),
            ("conditional", conditional),
        ],
    );
    check.shape("unconditional", unconditional, conditional.dims())?;
    let width = conditional.shape().last_dim();
    check.require(width == channels || width == 2 * channels, || {
        format!("the last dimension must be {channels} or twice that")
    })?;
    let mut guided = conditional.to_f64_vec()?;
    let unconditional = unconditional.to_f64_vec()?;
    for (guided, unconditional) in guided.chunks_mut(width).zip(unconditional.chunks(width)) {
        for (g, u) in guided.iter_mut().zip(unconditional).take(channels) {
            *g = u + scale * (*g - u);
        }
    }
    Ok(Tensor::from_f64(
        &guided,
        conditional.shape(),
        conditional.dtype(),
        conditional.device(),
    ))
}

#[cfg(test)]
mod tests {
    use tensor::{DType, Device};

    use super::*;

    #[test]
    fn the_variance_is_the_conditional_one() {
        let make = |data: &[f64]| Tensor::from_f64(data, [1, 4], DType::F64, Device::Cpu);
        let guided = guide(
            &make(&[1.0, 2.0, 3.0, 4.0]),
            &make(&[2.0, 0.0, 7.0, 8.0]),
            3.0,
            2,
        )
        .unwrap();
        assert_eq!(guided.to_f64_vec().unwrap(), [4.0, -4.0, 7.0, 8.0]);
    }
}
