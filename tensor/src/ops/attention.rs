//! Scaled dot-product attention with causal and key masks and added context keys.

use kernels::ops::attention::ptx::{self, backward::Accums};
use kernels::ops::attention::{self as kernel, Gradients};

use crate::check::{dispatch_float, slices_mut};
use crate::gpu::{Arg, Gpu, statistics};
use crate::{Accum, Check, DType, Result, Tensor};

/// The options of an attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    /// Whether query i sees only the own keys 0..=i (and the whole context).
    pub causal: bool,
    /// What scores are multiplied with before the softmax, as a rule 1/√head_dim.
    pub scale: f64,
}

/// The operands of an attention.
///
/// # Shapes
/// q [n, queries, heads·head_dim], k and v [n, keys, heads·head_dim], the context's keys and values
/// [n, context, heads·head_dim], mask bool [n, context + keys], true where a key may be attended.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    pub q: &'a Tensor,
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    /// Keys and values that come before the own ones.
    pub context: Option<(&'a Tensor, &'a Tensor)>,
    pub mask: Option<&'a Tensor>,
}

/// What [`forward`] computes.
pub struct Output {
    /// Like q.
    pub out: Tensor,
    /// Log of each query's sum of exponentials [n, heads, queries], +∞ for a query that sees no key.
    pub lse: Tensor,
}

/// out = softmax(scale·q·[context_k; k]ᵀ)·[context_v; v], per image and head; zeros for a query that sees no key.
///
/// # Errors
/// If the operands have other than the shapes of [`Operands`], or dtypes differ.
pub fn forward(operands: Operands, options: Attention) -> Result<Output> {
    let (d, dtype, gpu) = descriptor(operands, options)?;
    let operands = Contiguous::new(operands)?;
    let mut out = Tensor::uninit(operands.q.shape(), dtype, operands.q.device());
    let shape = [d.n, d.heads, d.queries];
    let mut lse = Tensor::uninit(shape, statistics(dtype), operands.q.device());
    if let Some(gpu) = gpu {
        let plan = gpu.plan(ptx::config(&d, gpu.storage(dtype), gpu.arch))?;
        let Contiguous {
            q,
            k,
            v,
            context,
            mask,
        } = &operands;
        let written = [Arg::Write(&mut out), Arg::Write(&mut lse)].into_iter();
        let (context_k, context_v) = context.as_ref().map(|(k, v)| (k, v)).unzip();
        let optional = [context_k, context_v, mask.as_ref()].map(Arg::optional);
        let operands = written.chain([q, k, v].map(Arg::Read)).chain(optional);
        let numbers = ptx::sizes(&d).map(Arg::U32);
        let scale = [Arg::F32(d.scale as f32)];
        gpu.launch(&plan, operands.chain(numbers).chain(scale))?;
        return Ok(Output { out, lse });
    }
    dispatch_float!(dtype, T => kernel::forward::<T>(
        &d,
        out.as_mut_slice()?,
        lse.as_mut_slice()?,
        operands.q.as_slice()?,
        operands.k.as_slice()?,
        operands.v.as_slice()?,
        operands.context()?,
        operands.mask()?,
    ));
    Ok(Output { out, lse })
}

/// Gradients of q, k, v and the context's keys and values, in this order; one that is `None` is not computed.
pub fn backward(
    gradients: &mut [Option<(Tensor, Accum)>; 5],
    dout: &Tensor,
    output: &Output,
    operands: Operands,
    options: Attention,
) -> Result<()> {
    let (d, dtype, gpu) = descriptor(operands, options)?;
    Check::new("attention", &[("dout", dout), ("q", operands.q)]).shape(
        "dout",
        dout,
        operands.q.dims(),
    )?;
    let operands = Contiguous::new(operands)?;
    let dout = dout.contiguous()?;
    if let Some(gpu) = gpu {
        return backward_on_gpu(&gpu, &d, gradients, &dout, output, &operands);
    }
    dispatch_float!(dtype, T => {
        let [dq, dk, dv, dcontext_k, dcontext_v] = slices_mut::<T, 5>(gradients)?;
        kernel::backward::<T>(
            &d,
            Gradients { dq, dk, dv, dcontext_k, dcontext_v },
            dout.as_slice()?,
            output.out.as_slice()?,
            output.lse.as_slice()?,
            operands.q.as_slice()?,
            operands.k.as_slice()?,
            operands.v.as_slice()?,
            operands.context()?,
            operands.mask()?,
        )
    });
    Ok(())
}

/// [`backward`] with contiguous operands.
fn backward_on_gpu(
    gpu: &Gpu,
    d: &kernel::Attention,
    gradients: &mut [Option<(Tensor, Accum)>; 5],
    dout: &Tensor,
    output: &Output,
    operands: &Contiguous,
) -> Result<()> {
    let accum = |i: usize| gradients[i].as_ref().map_or(Accum::Replace, |g| g.1);
    let accums = Accums {
        dq: accum(0),
        dk: accum(1),
        dv: accum(2),
        dcontext_k: accum(3),
        dcontext_v: accum(4),
    };
    let storage = gpu.storage(dout.dtype());
    let launches = gpu.plan(ptx::backward::config(d, storage, accums, gpu.arch))?;
    let mut delta = Tensor::uninit([launches.deltas], DType::F32, dout.device());
    let read = [dout, &output.out].map(Arg::Read);
    gpu.call(
        &launches.delta,
        [Arg::Write(&mut delta)].into_iter().chain(read),
    )?;

    let Contiguous {
        q,
        k,
        v,
        context,
        mask,
    } = operands;
    let passed = || {
        let read = [dout, &output.lse, &delta, q, k, v].map(Arg::Read);
        let (context_k, context_v) = context.as_ref().map(|(k, v)| (k, v)).unzip();
        let context = [context_k, context_v].map(Arg::optional);
        let last = [Arg::F32(d.scale as f32), Arg::optional(mask.as_ref())];
        read.into_iter().chain(context).chain(last)
    };
    fn destination(gradient: &mut Option<(Tensor, Accum)>) -> Arg<'_> {
        match gradient {
            Some((tensor, accum)) => Arg::destination(tensor, *accum),
            None => Arg::Absent,
        }
    }
    let [dq, of_keys @ ..] = gradients;
    if dq.is_some() {
        gpu.call(
            &launches.queries,
            [destination(dq)].into_iter().chain(passed()),
        )?;
    }
    if of_keys.iter().any(Option::is_some) {
        let written = of_keys.iter_mut().map(destination);
        gpu.call(&launches.keys, written.chain(passed()))?;
    }
    Ok(())
}

/// The attention map [n, heads, queries, context + keys], which [`forward`] never holds.
///
/// # Errors
/// As for [`forward`].
pub fn probabilities(operands: Operands, options: Attention) -> Result<Tensor> {
    let (d, dtype, gpu) = descriptor(operands, options)?;
    let shape = [d.n, d.heads, d.queries, d.context + d.keys];
    if let Some(gpu) = gpu {
        return map_on_gpu(&gpu, &d, operands, options);
    }
    let operands = Contiguous::new(operands)?;
    let mut map = Tensor::uninit(shape, dtype, operands.q.device());
    dispatch_float!(dtype, T => kernel::probabilities::<T>(
        &d,
        map.as_mut_slice()?,
        operands.q.as_slice()?,
        operands.k.as_slice()?,
        operands.context()?.map(|(k, _)| k),
        operands.mask()?,
    ));
    Ok(map)
}

/// [`probabilities`] from the log-sum-exps that a forward pass leaves.
fn map_on_gpu(
    gpu: &Gpu,
    d: &kernel::Attention,
    operands: Operands,
    options: Attention,
) -> Result<Tensor> {
    let (dtype, device) = (operands.q.dtype(), operands.q.device());
    let call = gpu.plan(ptx::map::config(d, gpu.storage(dtype), gpu.arch))?;
    let Output { lse, .. } = forward(operands, options)?;
    let Contiguous {
        q,
        k,
        context,
        mask,
        ..
    } = Contiguous::new(operands)?;
    let shape = [d.n, d.heads, d.queries, d.context + d.keys];
    let mut map = Tensor::uninit(shape, dtype, device);
    let context_k = context.as_ref().map(|(k, _)| k);
    let written = [Arg::Write(&mut map)].into_iter();
    let read = [&lse, &q, &k].map(Arg::Read);
    let optional = [context_k, mask.as_ref()].map(Arg::optional);
    let [context_k, mask] = optional;
    let last = [context_k, Arg::F32(d.scale as f32), mask];
    gpu.call(&call, written.chain(read).chain(last))?;
    Ok(map)
}

fn descriptor(
    operands: Operands,
    options: Attention,
) -> Result<(kernel::Attention, DType, Option<Gpu>)> {
    let Operands {
        q,
        k,
        v,
        context,
        mask,
    } = operands;
    let check = Check::new("attention", &[("q", q), ("k", k), ("v", v)])
        .optional("context_k", context.map(|(k, _)| k))
        .optional("context_v", context.map(|(_, v)| v));
    let dtype = check.same_float()?;
    let check = check.optional("mask", mask);
    check.same_device()?;
    check.rank("q", q, 3)?;
    check.rank("k", k, 3)?;
    let (n, queries, width) = (q.dims()[0], q.dims()[1], q.dims()[2]);
    let keys = k.dims()[1];
    let Attention {
        heads,
        causal,
        scale,
    } = options;
    check.require(heads > 0 && width.is_multiple_of(heads), || {
        format!("{width} features do not divide into {heads} heads")
    })?;
    check.shape("k", k, &[n, keys, width])?;
    check.shape("v", v, &[n, keys, width])?;
    check.require(!causal || queries == keys, || {
        format!("causal attention needs as many keys as queries, not {keys} for {queries}")
    })?;
    let mut added = 0;
    if let Some((context_k, context_v)) = context {
        check.rank("context_k", context_k, 3)?;
        added = context_k.dims()[1];
        check.shape("context_k", context_k, &[n, added, width])?;
        check.shape("context_v", context_v, &[n, added, width])?;
    }
    if let Some(mask) = mask {
        check.require(mask.dtype() == DType::Bool, || {
            format!("mask must be bool, it is {}", mask.dtype())
        })?;
        check.shape("mask", mask, &[n, added + keys])?;
    }
    let d = kernel::Attention {
        n,
        heads,
        head_dim: width / heads,
        queries,
        keys,
        context: added,
        causal,
        scale,
    };
    Ok((d, dtype, check.gpu()))
}

/// The operands in row-major order.
struct Contiguous {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: Option<(Tensor, Tensor)>,
    mask: Option<Tensor>,
}

impl Contiguous {
    fn new(operands: Operands) -> Result<Contiguous> {
        Ok(Contiguous {
            q: operands.q.contiguous()?,
            k: operands.k.contiguous()?,
            v: operands.v.contiguous()?,
            context: operands
                .context
                .map(|(k, v)| Ok((k.contiguous()?, v.contiguous()?)))
                .transpose()?,
            mask: operands.mask.map(Tensor::contiguous).transpose()?,
        })
    }

    fn context<T: crate::Float>(&self) -> Result<Option<(&[T], &[T])>> {
        self.context
            .as_ref()
            .map(|(k, v)| Ok((k.as_slice()?, v.as_slice()?)))
            .transpose()
    }

    fn mask(&self) -> Result<Option<&[u8]>> {
        self.mask.as_ref().map(Tensor::as_slice).transpose()
    }
}
