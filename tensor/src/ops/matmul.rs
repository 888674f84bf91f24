//! Matrix products: batched with transposed operands, and the linear layer with its gradients.

use kernels::ops::geometry::Call;
pub use kernels::ops::matmul::Activation;
use kernels::ops::matmul::ptx::{self, parts::Merge};
use kernels::ops::matmul::{self as kernel, Matmul};

use super::reduce::sum_to;
use crate::check::dispatch_float;
use crate::gpu::{Arg, Gpu};
use crate::{Accum, Check, DType, Result, Shape, Tensor};

/// Which operands of a product are stored with their last two dimensions exchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Transpose {
    pub a: bool,
    pub b: bool,
}

/// op(a)·op(b), where op exchanges the last two dimensions as `transpose` says.
///
/// # Shapes
/// op(a) [..batch, m, k], op(b) [..batch, k, n] → [..batch, m, n]. Either operand may lack the batch and is then shared.
///
/// # Errors
/// If the operands have other than these shapes, or differ in dtype.
pub fn forward(a: &Tensor, b: &Tensor, transpose: Transpose) -> Result<Tensor> {
    let check = Check::new("matmul", &[("a", a), ("b", b)]);
    let dtype = check.same_float()?;
    let sizes = Sizes::new(&check, a, b, transpose)?;
    let batch = &a.dims()[..a.rank() - 2];
    let batch = if batch.is_empty() {
        &b.dims()[..b.rank() - 2]
    } else {
        batch
    };
    let mut c = Tensor::uninit(
        Shape::from(batch).appended(&[sizes.m, sizes.n]),
        dtype,
        a.device(),
    );
    product(&mut c, Accum::Replace, a, b, transpose)?;
    Ok(c)
}

/// c (+)= op(a)·op(b); where c lacks the operands' batch, the sum of the products over it.
///
/// # Shapes
/// As for [`forward`]; c [..batch, m, n] or [m, n].
///
/// # Errors
/// If the operands have other than these shapes, or differ in dtype.
pub fn product(
    c: &mut Tensor,
    accum: Accum,
    a: &Tensor,
    b: &Tensor,
    transpose: Transpose,
) -> Result<()> {
    let check = Check::new("matmul", &[("c", c), ("a", a), ("b", b)]);
    let dtype = check.same_float()?;
    let Sizes { batch, m, n, k } = Sizes::new(&check, a, b, transpose)?;
    let sums_batch = c.rank() == 2 && (a.rank() > 2 || b.rank() > 2);
    let columns = &c.dims()[c.rank().saturating_sub(2)..];
    let batch_fits = sums_batch || c.len() == batch * m * n;
    check.require(columns == [m, n] && batch_fits, || {
        format!("the product is {batch} times [{m}, {n}], which c does not hold")
    })?;
    let stride = |x: &Tensor, elements| if x.rank() > 2 { elements } else { 0 };
    let d = Matmul {
        batch,
        m,
        n,
        k,
        transpose_a: transpose.a,
        transpose_b: transpose.b,
        a_stride: stride(a, m * k),
        b_stride: stride(b, k * n),
        activation: Activation::None,
    };
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    // The batch may be the outer part of the dimension that is summed over.
    let joined = transpose.a && !transpose.b && d.a_stride > 0 && d.b_stride > 0 || batch == 0;
    if let Some(gpu) = check.gpu() {
        let bare = Epilogue::default();
        if !sums_batch {
            return multiply(&gpu, &d, c, accum, &a, &b, bare);
        }
        if joined {
            let d = Matmul {
                batch: 1,
                k: batch * k,
                ..d
            };
            return multiply(&gpu, &d, c, accum, &a, &b, bare);
        }
        let matrix = |x: &Tensor, i: usize| match x.rank() {
            2 => Ok(x.clone()),
            _ => x.reshape([batch, x.len() / batch])?.narrow(0, i, 1),
        };
        for i in 0..batch {
            let accum = if i == 0 { accum } else { Accum::Add };
            let d = Matmul { batch: 1, ..d };
            multiply(
                &gpu,
                &d,
                c,
                accum,
                &matrix(&a, i)?,
                &matrix(&b, i)?,
                Epilogue::default(),
            )?;
        }
        return Ok(());
    }
    dispatch_float!(dtype, T => {
        let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
        let c = c.as_mut_slice::<T>()?;
        let run = |d: &Matmul, c: &mut [T], accum, a: &[T], b: &[T]| {
            kernel::forward(d, c, accum, None, a, b, None, None);
        };
        if !sums_batch {
            run(&d, c, accum, a, b);
        } else if joined {
            run(&Matmul { batch: 1, k: batch * k, ..d }, c, accum, a, b);
        } else {
            for i in 0..batch {
                let accum = if i == 0 { accum } else { Accum::Add };
                run(&Matmul { batch: 1, ..d }, c, accum, &a[i * d.a_stride..], &b[i * d.b_stride..]);
            }
        }
    });
    Ok(())
}

/// The sizes of a product, all operands' shapes agreeing.
struct Sizes {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
}

impl Sizes {
    fn new(check: &Check, a: &Tensor, b: &Tensor, transpose: Transpose) -> Result<Sizes> {
        check.require(a.rank() >= 2 && b.rank() >= 2, || {
            "operands must have at least 2 dimensions".into()
        })?;
        let (a_batch, a_last) = a.dims().split_at(a.rank() - 2);
        let (b_batch, b_last) = b.dims().split_at(b.rank() - 2);
        check.require(
            a_batch.is_empty() || b_batch.is_empty() || a_batch == b_batch,
            || format!("batches {a_batch:?} and {b_batch:?} differ"),
        )?;
        let exchange = |d: &[usize], exchanged| {
            if exchanged {
                (d[1], d[0])
            } else {
                (d[0], d[1])
            }
        };
        let (m, k) = exchange(a_last, transpose.a);
        let (b_k, n) = exchange(b_last, transpose.b);
        check.require(k == b_k, || {
            format!("a has {k} columns, b has {b_k} rows ({transpose:?})")
        })?;
        let batch = if a_batch.is_empty() { b_batch } else { a_batch };
        Ok(Sizes {
            batch: batch.iter().product(),
            m,
            n,
            k,
        })
    }
}

/// What [`linear`] computes.
pub struct Linear {
    /// [.., out].
    pub y: Tensor,
    /// x·Wᵀ + b, for the activation's gradient, where it was asked for.
    pub pre: Option<Tensor>,
}

/// act(x·Wᵀ + b) + residual.
///
/// # Shapes
/// x [.., in], weight [out, in], bias [out], residual [.., out] → [.., out].
///
/// # Errors
/// If the operands have other than these shapes, or differ in dtype.
pub fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    residual: Option<&Tensor>,
    keep_pre: bool,
) -> Result<Linear> {
    let check = Check::new("linear", &[("x", x), ("weight", weight)])
        .optional("bias", bias)
        .optional("residual", residual);
    let dtype = check.same_float()?;
    check.rank("weight", weight, 2)?;
    let (out, columns) = (weight.dims()[0], weight.dims()[1]);
    check.require(x.rank() > 0 && x.shape().last_dim() == columns, || {
        format!(
            "weight expects {columns} input features, x has {}",
            x.shape().last_dim()
        )
    })?;
    let mut shape = x.shape();
    shape.dims_mut()[x.rank() - 1] = out;
    if let Some(bias) = bias {
        check.shape("bias", bias, &[out])?;
    }
    if let Some(residual) = residual {
        check.shape("residual", residual, &shape)?;
    }
    let d = Matmul {
        activation,
        ..rows_times(shape.elements() / out.max(1), columns, out, false, true)
    };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let (bias, residual) = (
        bias.map(Tensor::contiguous).transpose()?,
        residual.map(Tensor::contiguous).transpose()?,
    );
    let mut y = Tensor::uninit(shape, dtype, x.device());
    let mut pre = keep_pre.then(|| Tensor::uninit(shape, dtype, x.device()));
    if let Some(gpu) = check.gpu() {
        let epilogue = Epilogue {
            pre: pre.as_mut(),
            bias: bias.as_ref(),
            residual: residual.as_ref(),
        };
        multiply(&gpu, &d, &mut y, Accum::Replace, &x, &weight, epilogue)?;
        return Ok(Linear { y, pre });
    }
    dispatch_float!(dtype, T => kernel::forward::<T>(
        &d,
        y.as_mut_slice()?,
        Accum::Replace,
        pre.as_mut().map(Tensor::as_mut_slice).transpose()?,
        x.as_slice()?,
        weight.as_slice()?,
        bias.as_ref().map(Tensor::as_slice).transpose()?,
        residual.as_ref().map(Tensor::as_slice).transpose()?,
    ));
    Ok(Linear { y, pre })
}

/// dx (+)= dz·W, dz being the gradient of x·Wᵀ + b.
///
/// # Shapes
/// dx [.., in], dz [.., out], weight [out, in].
pub fn linear_backward_input(
    dx: &mut Tensor,
    accum: Accum,
    dz: &Tensor,
    weight: &Tensor,
) -> Result<()> {
    let check = Check::new("linear", &[("dx", dx), ("dz", dz), ("weight", weight)]);
    let dtype = check.same_float()?;
    check.rank("weight", weight, 2)?;
    let (out, columns) = (weight.dims()[0], weight.dims()[1]);
    let rows = dz.len() / out.max(1);
    check.require(
        dz.shape().last_dim() == out && dx.len() == rows * columns,
        || "the gradients do not belong to this weight".into(),
    )?;
    let d = rows_times(rows, out, columns, false, false);
    let (dz, weight) = (dz.contiguous()?, weight.contiguous()?);
    if let Some(gpu) = check.gpu() {
        return multiply(&gpu, &d, dx, accum, &dz, &weight, Epilogue::default());
    }
    dispatch_float!(dtype, T => kernel::forward::<T>(
        &d, dx.as_mut_slice()?, accum, None, dz.as_slice()?, weight.as_slice()?, None, None,
    ));
    Ok(())
}

/// dW (+)= dzᵀ·x.
///
/// # Shapes
/// dw [out, in], dz [.., out], x [.., in].
pub fn linear_backward_weight(
    dw: &mut Tensor,
    accum: Accum,
    dz: &Tensor,
    x: &Tensor,
) -> Result<()> {
    let check = Check::new("linear", &[("dw", dw), ("dz", dz), ("x", x)]);
    let dtype = check.same_float()?;
    let (out, columns) = (dz.shape().last_dim(), x.shape().last_dim());
    check.shape("dw", dw, &[out, columns])?;
    let rows = dz.len() / out.max(1);
    check.require(x.len() == rows * columns, || {
        "x and dz differ in their rows".into()
    })?;
    let d = rows_times(out, rows, columns, true, false);
    let (dz, x) = (dz.contiguous()?, x.contiguous()?);
    if let Some(gpu) = check.gpu() {
        return multiply(&gpu, &d, dw, accum, &dz, &x, Epilogue::default());
    }
    dispatch_float!(dtype, T => kernel::forward::<T>(
        &d, dw.as_mut_slice()?, accum, None, dz.as_slice()?, x.as_slice()?, None, None,
    ));
    Ok(())
}

/// sums (+)= the sum of x over all dimensions but the last: the gradient of a bias.
///
/// # Shapes
/// sums [c], x [.., c].
pub fn column_sums(sums: &mut Tensor, accum: Accum, x: &Tensor) -> Result<()> {
    let check = Check::new("column_sums", &[("sums", sums), ("x", x)]);
    let dtype = check.same_float()?;
    let columns = x.shape().last_dim();
    check.shape("sums", sums, &[columns])?;
    if check.gpu().is_some() {
        return sum_to(sums, accum, x, 1.0);
    }
    let x = x.contiguous()?;
    dispatch_float!(dtype, T => {
        kernel::column_sums::<T>(sums.as_mut_slice()?, accum, x.as_slice()?, columns)
    });
    Ok(())
}

/// What a product's kernel does beside the product.
#[derive(Default)]
pub(crate) struct Epilogue<'a> {
    /// Receives the product plus the bias.
    pre: Option<&'a mut Tensor>,
    bias: Option<&'a Tensor>,
    residual: Option<&'a Tensor>,
}

/// One product on a GPU, a and b contiguous.
fn multiply(
    gpu: &Gpu,
    d: &Matmul,
    c: &mut Tensor,
    accum: Accum,
    a: &Tensor,
    b: &Tensor,
    epilogue: Epilogue,
) -> Result<()> {
    let launches = gpu.plan(ptx::plan(d, gpu.storage(a.dtype()), accum, gpu.arch))?;
    let Some(merge) = &launches.merge else {
        let Epilogue {
            pre,
            bias,
            residual,
        } = epilogue;
        let written = [
            Arg::destination(c, accum),
            pre.map_or(Arg::Absent, Arg::Write),
        ];
        let read = [Arg::Read(a), Arg::Read(b)];
        let added = [bias, residual].map(Arg::optional);
        let operands = written.into_iter().chain(read).chain(added);
        return gpu.call(&launches.product, operands);
    };
    let mut partials = Tensor::uninit([launches.partials], DType::F32, c.device());
    let written = [Arg::Write(&mut partials), Arg::Absent];
    let read = [Arg::Read(a), Arg::Read(b), Arg::Absent, Arg::Absent];
    gpu.call(&launches.product, written.into_iter().chain(read))?;
    merge_parts(gpu, merge, c, accum, &partials, epilogue)
}

/// c (+)= the sums of a product's parts, with the product's epilogue.
pub(crate) fn merge_parts(
    gpu: &Gpu,
    merge: &Call<Merge>,
    c: &mut Tensor,
    accum: Accum,
    partials: &Tensor,
    epilogue: Epilogue,
) -> Result<()> {
    let Epilogue {
        pre,
        bias,
        residual,
    } = epilogue;
    let written = [
        Arg::destination(c, accum),
        pre.map_or(Arg::Absent, Arg::Write),
    ];
    let read = [
        Arg::Read(partials),
        Arg::optional(bias),
        Arg::optional(residual),
    ];
    gpu.call(merge, written.into_iter().chain(read))
}

/// One product [m, k]·[k, n] without an epilogue.
fn rows_times(m: usize, k: usize, n: usize, transpose_a: bool, transpose_b: bool) -> Matmul {
    Matmul {
        batch: 1,
        m,
        n,
        k,
        transpose_a,
        transpose_b,
        a_stride: 0,
        b_stride: 0,
        activation: Activation::None,
    }
}
