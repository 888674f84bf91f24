//! Softmax over the last dimension.

use kernels::ops::softmax;

use crate::check::dispatch_float;
use crate::{Accum, Check, Result, Tensor};

/// `exp(x) / Σ exp(x)` over the last dimension.
///
/// # Shapes
/// x [.., c] → [.., c]
pub fn forward(x: &Tensor) -> Result<Tensor> {
    let dtype = Check::new("softmax", &[("x", x)]).same_float()?;
    let x = x.contiguous();
    let mut y = Tensor::uninit(x.shape(), dtype, x.device());
    dispatch_float!(dtype, T => {
        softmax::forward(y.as_mut_slice::<T>()?, x.as_slice()?, x.shape().last_dim())
    });
    Ok(y)
}

/// `dx (+)= y·(dy − Σ y·dy)`, given the forward pass's result y.
pub fn backward(dx: &mut Tensor, accum: Accum, dy: &Tensor, y: &Tensor) -> Result<()> {
    let check = Check::new("softmax", &[("dx", dx), ("dy", dy), ("y", y)]);
    let dtype = check.same_float()?;
    check.shape("dy", dy, y.dims())?;
    check.shape("dx", dx, y.dims())?;
    let (dy, y) = (dy.contiguous(), y.contiguous());
    let c = y.shape().last_dim();
    dispatch_float!(dtype, T => {
        softmax::backward(dx.as_mut_slice::<T>()?, accum, dy.as_slice()?, y.as_slice()?, c)
    });
    Ok(())
}
