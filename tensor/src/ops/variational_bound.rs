//! The variational bound of a diffusion step whose variance is learned.

pub use kernels::ops::variational_bound::Coefficients;

use kernels::ops::variational_bound::{self, Operands, ptx};

use crate::check::dispatch_float;
use crate::gpu::{Arg, statistics};
use crate::ops::reduce::total;
use crate::{Accum, Check, DType, Result, Tensor};

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
        let mut loss = Tensor::uninit([], statistics(dtype), x.variance.device());
        if let Some(gpu) = x.check().gpu() {
            let call = ptx::Forward::config(gpu.storage(dtype), x.samples());
            let (call, partials) = gpu.plan(call)?;
            let mut partial = Tensor::uninit([partials], DType::F32, x.variance.device());
            let coefficients = x.coefficients_on_device();
            let operands = [Arg::Write(&mut partial)].into_iter();
            gpu.call(&call, operands.chain(x.arguments(&coefficients)))?;
            total(&gpu, &mut loss, &partial, 1.0 / x.variance.len() as f64)?;
            return Ok(loss);
        }
        dispatch_float!(dtype, T => {
            loss.as_mut_slice::<T>()?[0] = variational_bound::forward(&x.operands()?)
        });
        Ok(loss)
    }

    /// `dvariance (+)= dy · ∂ bound / ∂ variance` for a scalar dy.
    pub fn backward(&self, dvariance: &mut Tensor, accum: Accum, dy: &Tensor) -> Result<()> {
        let x = self.checked(Some(dvariance))?;
        let dtype = x.variance.dtype();
        let check = x.check().optional("dy", Some(dy));
        check.same_device()?;
        check.dtype("dy", dy, statistics(dtype))?;
        check.shape("dy", dy, &[])?;
        if let Some(gpu) = check.gpu() {
            let call = ptx::Backward::config(gpu.storage(dtype), accum, x.samples());
            let coefficients = x.coefficients_on_device();
            let operands = [Arg::destination(dvariance, accum), Arg::Read(dy)];
            let operands = operands.into_iter().chain(x.arguments(&coefficients));
            return gpu.call(&gpu.plan(call)?, operands);
        }
        let scale = dy.item()?;
        dispatch_float!(dtype, T => {
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

    fn check(&self) -> Check<'_> {
        Check::new(
            "variational_bound",
            &[("variance", &self.variance), ("eps", &self.eps)],
        )
    }

    /// How many samples there are, and of how many elements.
    fn samples(&self) -> [usize; 2] {
        let n = self.coefficients.len();
        [n, self.variance.len() / n.max(1)]
    }

    /// The coefficients where kernels read them.
    fn coefficients_on_device(&self) -> Tensor {
        let values: &[f64] = bytemuck::cast_slice(&self.coefficients);
        Tensor::from_slice(values, [values.len()], self.variance.device())
    }

    /// What every kernel reads, in order.
    fn arguments<'a>(&'a self, coefficients: &'a Tensor) -> impl Iterator<Item = Arg<'a>> {
        let pictures = [&self.variance, &self.eps, &self.x0, &self.xt];
        let read = pictures.into_iter().chain([coefficients]).map(Arg::Read);
        read.chain([Arg::optional(self.weight.as_ref())])
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
