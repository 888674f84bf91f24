//! Moving in the space of CLIP embeddings, and of noise: Ramesh et al., "Hierarchical text-conditional image generation with
//! CLIP latents" (2022), sections 3.2 and 3.3.

use tensor::{Check, Tensor};

use crate::{Error, Result};

/// Spherical interpolation, `part` of the way from `a` to `b` (Shoemake, "Animating rotation with quaternion curves", 1985,
/// section 3.3): directions turn at an even pace in the plane of both, lengths change in a straight line. Opposite directions
/// have no plane; there the way is straight.
///
/// # Shapes
/// a and b [n, ..], each row one vector → the same
pub fn slerp(a: &Tensor, b: &Tensor, part: f64) -> Result<Tensor> {
    Check::new("slerp", &[("a", a), ("b", b)]).shape("b", b, a.dims())?;
    by_rows(a, b, |x, y| {
        let (from, to) = (length(x), length(y));
        let angle = (dot(x, y) / (from * to)).clamp(-1.0, 1.0).acos();
        // Vectors in one line, or without length, span no plane.
        let turns = angle.sin() > 1e-9;
        let size = (1.0 - part) * from + part * to;
        let (near, far) = match turns {
            true => (
                size * ((1.0 - part) * angle).sin() / (angle.sin() * from),
                size * (part * angle).sin() / (angle.sin() * to),
            ),
            false => (1.0 - part, part),
        };
        x.iter_mut()
            .zip(y)
            .for_each(|(x, y)| *x = near * *x + far * y);
        Ok(())
    })
}

/// The direction from what one text says to what another says: z_d = (z_t − z_t0)/‖z_t − z_t0‖, of embeddings brought to
/// length 1.
///
/// # Shapes
/// both [n, d] → [n, d]
///
/// # Errors
/// If the two embeddings of a row are the same, so that there is no direction.
pub fn text_difference(target: &Tensor, source: &Tensor) -> Result<Tensor> {
    let check = Check::new("text difference", &[("target", target), ("source", source)]);
    check.shape("source", source, target.dims())?;
    by_rows(target, source, |to, from| {
        let (long, short) = (length(to), length(from));
        let difference = to
            .iter()
            .zip(from)
            .map(|(to, from)| to / long - from / short);
        let difference: Vec<f64> = difference.collect();
        let distance = length(&difference);
        if distance.is_nan() || distance < 1e-9 {
            return Err(Error::Request(
                "the two texts mean the same to this model: there is no direction from one to the other"
                    .into(),
            ));
        }
        to.iter_mut()
            .zip(difference)
            .for_each(|(to, x)| *to = x / distance);
        Ok(())
    })
}

/// An image embedding turned by `part` of the way to a [`text_difference`], its length kept: slerp(z_i, z_d, θ) of section
/// 3.3.
///
/// # Shapes
/// image and difference [n, d] → [n, d]
pub fn edited(image: &Tensor, difference: &Tensor, part: f64) -> Result<Tensor> {
    let check = Check::new("edit", &[("image", image), ("difference", difference)]);
    check.shape("difference", difference, image.dims())?;
    let as_long = by_rows(difference, image, |difference, image| {
        let scale = length(image) / length(difference);
        difference.iter_mut().for_each(|x| *x *= scale);
        Ok(())
    })?;
    slerp(image, &as_long, part)
}

/// `a` with each row changed by what `change` makes of it and of `b`'s.
fn by_rows(
    a: &Tensor,
    b: &Tensor,
    change: impl Fn(&mut [f64], &[f64]) -> Result<()>,
) -> Result<Tensor> {
    let rows = a.dims().first().copied().unwrap_or(1).max(1);
    let width = (a.len() / rows).max(1);
    let mut out = a.to_f64_vec()?;
    for (x, y) in out.chunks_mut(width).zip(b.to_f64_vec()?.chunks(width)) {
        change(x, y)?;
    }
    Ok(Tensor::from_f64(&out, a.shape(), a.dtype(), a.device()))
}

/// Of two directions, as CLIP compares; 0 where one is none.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let norms = length(a) * length(b);
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn length(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::{DType, Device};

    fn tensor(data: &[f64], shape: &[usize]) -> Tensor {
        Tensor::from_f64(data, shape, DType::F64, Device::Cpu)
    }

    fn near(x: &Tensor, want: &[f64]) {
        for (x, want) in x.to_f64_vec().unwrap().iter().zip(want) {
            assert!((x - want).abs() < 1e-12, "{x} {want}");
        }
    }

    #[test]
    fn slerp_turns_evenly_and_lengths_change_in_a_straight_line() {
        // A quarter turn from length 1 to length 3, and two rows that span no plane.
        let a = tensor(&[1.0, 0.0, 2.0, 0.0, 0.0, 0.0], &[3, 2]);
        let b = tensor(&[0.0, 3.0, 4.0, 0.0, 1.0, 1.0], &[3, 2]);
        near(&slerp(&a, &b, 0.0).unwrap(), &a.to_f64_vec().unwrap());
        near(&slerp(&a, &b, 1.0).unwrap(), &b.to_f64_vec().unwrap());
        let third = slerp(&a, &b, 1.0 / 3.0).unwrap();
        let (size, angle) = (5.0 / 3.0, std::f64::consts::FRAC_PI_6);
        let want = [
            size * angle.cos(),
            size * angle.sin(),
            8.0 / 3.0,
            0.0,
            1.0 / 3.0,
            1.0 / 3.0,
        ];
        near(&third, &want);
        let opposite = slerp(
            &tensor(&[1.0, 0.0], &[1, 2]),
            &tensor(&[-1.0, 0.0], &[1, 2]),
            0.25,
        );
        near(&opposite.unwrap(), &[0.5, 0.0]);
        assert!(slerp(&a, &tensor(&[1.0; 4], &[2, 2]), 0.5).is_err());
    }

    #[test]
    fn a_text_difference_is_a_direction_and_an_edit_keeps_the_length() {
        let target = tensor(&[0.0, 5.0], &[1, 2]);
        let source = tensor(&[2.0, 0.0], &[1, 2]);
        let direction = text_difference(&target, &source).unwrap();
        let half = std::f64::consts::FRAC_1_SQRT_2;
        near(&direction, &[-half, half]);
        let image = tensor(&[4.0, 4.0], &[1, 2]);
        near(&edited(&image, &direction, 0.0).unwrap(), &[4.0, 4.0]);
        let size = 32f64.sqrt();
        near(&edited(&image, &direction, 1.0).unwrap(), &[-4.0, 4.0]);
        near(&edited(&image, &direction, 0.5).unwrap(), &[0.0, size]);
        let nothing = text_difference(&target, &tensor(&[0.0, 0.1], &[1, 2]));
        assert!(nothing.unwrap_err().to_string().contains("mean the same"));
    }
}
