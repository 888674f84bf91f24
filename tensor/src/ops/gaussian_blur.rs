//! Gaussian blur.

use kernels::ops::gaussian_blur::taps;

use super::resize::apply;
use crate::{Accum, Check, Result, Tensor};

/// torchvision's `gaussian_blur(x, [size, size], [sigma, sigma])`: the border is mirrored without repeating the edge.
///
/// # Shapes
/// x [n, h, w, c] → [n, h, w, c]
///
/// # Errors
/// If size is even, or reaches beyond the mirrored picture, or sigma is not positive.
pub fn forward(x: &Tensor, size: usize, sigma: f64) -> Result<Tensor> {
    let check = Check::new("gaussian_blur", &[("x", x)]);
    checked(&check, x, size, sigma)?;
    let (rows, columns) = (
        taps(x.dims()[1], size, sigma),
        taps(x.dims()[2], size, sigma),
    );
    let mut y = Tensor::uninit(x.shape(), x.dtype(), x.device());
    apply(&check, &mut y, Accum::Replace, x, &rows, &columns)?;
    Ok(y)
}

/// `dx (+)=` the gradient from dy.
pub fn backward(dx: &mut Tensor, accum: Accum, dy: &Tensor, size: usize, sigma: f64) -> Result<()> {
    let operands = [("dx", &dx.outline()), ("dy", dy)];
    let check = Check::new("gaussian_blur", &operands);
    checked(&check, dy, size, sigma)?;
    check.shape("dx", dx, dy.dims())?;
    let rows = taps(dy.dims()[1], size, sigma).transposed();
    let columns = taps(dy.dims()[2], size, sigma).transposed();
    apply(&check, dx, accum, dy, &rows, &columns)
}

fn checked(check: &Check, x: &Tensor, size: usize, sigma: f64) -> Result<()> {
    check.rank("the picture", x, 4)?;
    check.require(size % 2 == 1 && sigma > 0.0, || {
        format!("the size must be odd and sigma positive, they are {size} and {sigma}")
    })?;
    check.require(size / 2 < x.dims()[1].min(x.dims()[2]), || {
        format!("a blur of size {size} reaches beyond the mirrored picture")
    })
}
