//! Elementwise functions of one operand.

pub use kernels::ops::unary::Unary;

use crate::check::dispatch_float;
use crate::{Accum, Check, Result, Tensor};

/// `f(x)`, any shape.
pub fn forward(f: Unary, x: &Tensor) -> Result<Tensor> {
    let dtype = Check::new(f.name(), &[("x", x)]).same_float()?;
    let x = x.contiguous();
    let mut y = Tensor::uninit(x.shape(), dtype, x.device());
    dispatch_float!(dtype, T => kernels::ops::unary::forward(f, y.as_mut_slice::<T>()?, x.as_slice()?));
    Ok(y)
}

/// `dx (+)= dy · f′(x)`.
pub fn backward(f: Unary, dx: &mut Tensor, accum: Accum, dy: &Tensor, x: &Tensor) -> Result<()> {
    let check = Check::new(f.name(), &[("dx", dx), ("dy", dy), ("x", x)]);
    let dtype = check.same_float()?;
    check.shape("dy", dy, x.dims())?;
    check.shape("dx", dx, x.dims())?;
    let (dy, x) = (dy.contiguous(), x.contiguous());
    dispatch_float!(dtype, T => {
        kernels::ops::unary::backward(f, dx.as_mut_slice::<T>()?, accum, dy.as_slice()?, x.as_slice()?)
    });
    Ok(())
}
