//! The variational bound of a diffusion step whose variance is learned.

pub use kernels::ops::variational_bound::Coefficients;

use kernels::ops::variational_bound::{self, Operands};

use crate::check::dispatch_float;
use crate::{Accum, Check, Result, Tensor};

/// What the bound is computed from.
#[derive(Clone, Debug)]
pub struct Bound {
    /// v [n, ..]: the variance's place between its limits, −1 low, 1 high.
    pub variance: Tensor,
    /// The predicted noise [n, ..], a constant here.
    pub eps: Tensor,
    /// The picture [n, ..] in [−1, 1].
    pub x0: Tensor,
    /// The noised picture [n, ..].
    pub xt: Tensor,
    /// One for each sample.
    pub coefficients: Vec<Coefficients>,
    /// [n].
    pub weight: Option<Tensor>,
}

impl Bound {
    /// The mean over samples of weight · mean over the sample of the bound, in bits.
    ///
    /// # Errors
    /// If shapes or dtypes differ, or there is no element to take a mean of.
    pub fn forward(&self) -> Result<Tensor> {
        let x = self.checked(None)?;
        let dtype = x.variance.dtype();
        let mut loss = Tensor::uninit([], dtype, x.variance.device());
        dispatch_float!(dtype, T => {
            loss.as_mut_slice::<T>()?[0] = variational_bound::forward(&x.operands()?)
        });
        Ok(loss)
    }

    /// `dvariance (+)= scale · ∂ bound / ∂ variance`.
    pub fn backward(&self, dvariance: &mut Tensor, accum: Accum, scale: f64) -> Result<()> {
        let x = self.checked(Some(dvariance))?;
        dispatch_float!(x.variance.dtype(), T => {
            let dvariance = dvariance.as_mut_slice::<T>()?;
            variational_bound::backward(dvariance, accum, scale, &x.operands()?)
        });
        Ok(())
    }

    /// The same with contiguous tensors.
    fn checked(&self, dvariance: Option<&Tensor>) -> Result<Bound> {
        let operands = [
            ("variance", &self.variance),
            ("eps", &self.eps),
            ("x0", &self.x0),
            ("xt", &self.xt),
        ];
        let check = Check::new("variational_bound", &operands)
            .optional("weight", self.weight.as_ref())
            .optional("dvariance", dvariance);
        check.same_float()?;
        if let Some(gpu) = check.gpu() {
            return Err(gpu.missing("the op"));
        }
        let dims = self.variance.dims();
        check.require(!dims.is_empty() && !self.variance.is_empty(), || {
            "the mean needs at least one sample and one element".into()
        })?;
        for (name, tensor) in operands
            .into_iter()
            .chain(dvariance.map(|d| ("dvariance", d)))
        {
            check.shape(name, tensor, dims)?;
        }
        if let Some(weight) = &self.weight {
            check.shape("weight", weight, &dims[..1])?;
        }
        check.require(self.coefficients.len() == dims[0], || {
            let count = self.coefficients.len();
            format!("{count} coefficients for {} samples", dims[0])
        })?;
        Ok(Bound {
            variance: self.variance.contiguous()?,
            eps: self.eps.contiguous()?,
            x0: self.x0.contiguous()?,
            xt: self.xt.contiguous()?,
            coefficients: self.coefficients.clone(),
            weight: self.weight.as_ref().map(Tensor::contiguous).transpose()?,
        })
    }

    fn operands<T: kernels::Float>(&self) -> Result<Operands<'_, T>> {
        Ok(Operands {
            variance: self.variance.as_slice()?,
            eps: self.eps.as_slice()?,
            x0: self.x0.as_slice()?,
            xt: self.xt.as_slice()?,
            coefficients: &self.coefficients,
            weight: self.weight.as_ref().map(Tensor::as_slice).transpose()?,
        })
    }
}
