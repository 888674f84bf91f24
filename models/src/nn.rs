//! The layers that every model is made of, under PyTorch's parameter names and with its default initialisation.
//!
//! A layer is a handful of parameter ids and its own name, so it is `Copy`: blocks can be moved into a recompute
//! closure. `forward` names the layer on the tape, so that errors and taps show where they are.

use autograd::ops::conv2d::{self, Conv};
use autograd::ops::group_norm::{self, GroupNorm as GroupNormOp};
use autograd::ops::matmul::{self, Activation};
use autograd::ops::{binary, embedding, layer_norm};
use autograd::{Decay, Init, ParamId, ParamsBuilder, Result, Tape, Tensor, Var};

/// PyTorch's default for the weight and bias of linear and convolution layers: uniform in ±1/√fan_in.
fn fan_in_uniform(fan_in: usize) -> Init {
    Init::Uniform {
        bound: 1.0 / (fan_in as f64).sqrt(),
    }
}

/// A module whose pass includes what follows it, such as an activation: `fused` is what goes on, and a tap that asks for
/// the module gets what it makes `alone`, as in libraries where the two are separate.
fn fused_module(
    t: &Tape,
    name: &str,
    fused: impl FnOnce() -> Result<Var>,
    alone: impl FnOnce(&Tape) -> Result<Var>,
) -> Result<Var> {
    t.scope(name, || {
        if t.wants("") {
            t.tap("", &alone(&Tape::inference(None))?);
        }
        fused()
    })
}

/// y = x·Wᵀ + b, `weight` [out, in], `bias` [out].
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    name: &'static str,
    weight: ParamId,
    bias: Option<ParamId>,
}

impl Linear {
    /// PyTorch's default initialisation.
    pub fn new(p: &mut ParamsBuilder, name: &'static str, inputs: usize, outputs: usize) -> Linear {
        let init = fan_in_uniform(inputs);
        Linear::with(p, name, [inputs, outputs], init, Some(init))
    }

    /// Starts at zero: ADM's last layer of every residual branch, so that each block begins as the identity.
    pub fn zeros(p: &mut ParamsBuilder, name: &'static str, channels: [usize; 2]) -> Linear {
        Linear::with(p, name, channels, Init::Zeros, Some(Init::Zeros))
    }

    /// `weight` and `bias` initialised as given; no bias where `bias` is `None`.
    pub fn with(
        p: &mut ParamsBuilder,
        name: &'static str,
        [inputs, outputs]: [usize; 2],
        weight: Init,
        bias: Option<Init>,
    ) -> Linear {
        let p = &mut p.at(name);
        Linear {
            name,
            weight: p.declare("weight", [outputs, inputs], weight, Decay::Yes),
            bias: bias.map(|init| p.declare("bias", [outputs], init, Decay::No)),
        }
    }

    /// # Shapes
    /// [.., in] → [.., out]
    pub fn forward(&self, t: &Tape, x: &Var) -> Result<Var> {
        self.fused(t, x, Activation::None, None)
    }

    /// act(x·Wᵀ + b) + residual in one pass.
    ///
    /// # Shapes
    /// x [.., in], residual [.., out] → [.., out]
    pub fn fused(
        &self,
        t: &Tape,
        x: &Var,
        activation: Activation,
        residual: Option<&Var>,
    ) -> Result<Var> {
        let weight = t.param(self.weight)?;
        let bias = self.bias.map(|id| t.param(id)).transpose()?;
        let bias = bias.as_ref();
        fused_module(
            t,
            self.name,
            || matmul::linear(t, x, &weight, bias, activation, residual),
            |t| matmul::linear(t, x, &weight, bias, Activation::None, None),
        )
    }
}

/// A convolution with as much padding as keeps the extent at stride 1, or none.
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    name: &'static str,
    weight: ParamId,
    bias: Option<ParamId>,
    geometry: Conv,
}

impl Conv2d {
    /// An odd kernel with "same" padding, and PyTorch's default initialisation.
    pub fn new(
        p: &mut ParamsBuilder,
        name: &'static str,
        [inputs, outputs]: [usize; 2],
        kernel: usize,
        stride: usize,
    ) -> Conv2d {
        let init = fan_in_uniform(inputs * kernel * kernel);
        Conv2d::with(p, name, [inputs, outputs], kernel, stride, init)
    }

    /// Starts at zero: ADM's last layer of every residual branch, so that each block begins as the identity.
    pub fn zeros(
        p: &mut ParamsBuilder,
        name: &'static str,
        channels: [usize; 2],
        kernel: usize,
    ) -> Conv2d {
        Conv2d::with(p, name, channels, kernel, 1, Init::Zeros)
    }

    fn with(
        p: &mut ParamsBuilder,
        name: &'static str,
        [inputs, outputs]: [usize; 2],
        kernel: usize,
        stride: usize,
        init: Init,
    ) -> Conv2d {
        let geometry = Conv {
            stride,
            padding: (kernel - 1) / 2,
        };
        let p = &mut p.at(name);
        let weight = p.declare_conv("weight", [outputs, kernel, kernel, inputs], init);
        let bias = p.declare("bias", [outputs], init, Decay::No);
        Conv2d {
            name,
            weight,
            bias: Some(bias),
            geometry,
        }
    }

    /// Cuts an image into patches: kernel = stride, no padding, no bias.
    pub fn patches(
        p: &mut ParamsBuilder,
        name: &'static str,
        [inputs, outputs]: [usize; 2],
        patch: usize,
        init: Init,
    ) -> Conv2d {
        let weight = p
            .at(name)
            .declare_conv("weight", [outputs, patch, patch, inputs], init);
        let geometry = Conv {
            stride: patch,
            padding: 0,
        };
        Conv2d {
            name,
            weight,
            bias: None,
            geometry,
        }
    }

    /// # Shapes
    /// [n, h, w, in] → [n, h', w', out]
    pub fn forward(&self, t: &Tape, x: &Var) -> Result<Var> {
        self.fused(t, x, None)
    }

    /// The convolution plus `residual` [n, h', w', out].
    pub fn fused(&self, t: &Tape, x: &Var, residual: Option<&Var>) -> Result<Var> {
        let weight = t.param(self.weight)?;
        let bias = self.bias.map(|id| t.param(id)).transpose()?;
        let bias = bias.as_ref();
        fused_module(
            t,
            self.name,
            || conv2d::conv2d(t, x, &weight, bias, residual, self.geometry),
            |t| conv2d::conv2d(t, x, &weight, bias, None, self.geometry),
        )
    }
}

/// What follows a group normalisation in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Nothing,
    Silu,
}

/// Normalises over pixels and the channels of a group (Wu and He, 2018).
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    name: &'static str,
    weight: ParamId,
    bias: ParamId,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub fn new(
        p: &mut ParamsBuilder,
        name: &'static str,
        channels: usize,
        groups: usize,
        eps: f64,
    ) -> GroupNorm {
        let p = &mut p.at(name);
        let weight = p.declare("weight", [channels], Init::Ones, Decay::No);
        let bias = p.declare("bias", [channels], Init::Zeros, Decay::No);
        GroupNorm {
            name,
            weight,
            bias,
            groups,
            eps,
        }
    }

    /// # Shapes
    /// [n, h, w, c] or [n, l, c] → the same
    pub fn forward(&self, t: &Tape, x: &Var, after: After) -> Result<Var> {
        self.modulated(t, x, None, after)
    }

    /// y = norm(x)·(1 + scale) + shift with `scale_shift` [n, 2c], scale first; then what comes `after`.
    pub fn modulated(
        &self,
        t: &Tape,
        x: &Var,
        scale_shift: Option<&Var>,
        after: After,
    ) -> Result<Var> {
        let weight = t.param(self.weight)?;
        let bias = t.param(self.bias)?;
        let op = |silu| GroupNormOp {
            groups: self.groups,
            eps: self.eps,
            silu,
        };
        fused_module(
            t,
            self.name,
            || {
                let silu = op(after == After::Silu);
                group_norm::group_norm(t, x, &weight, &bias, scale_shift, silu)
            },
            |t| group_norm::group_norm(t, x, &weight, &bias, None, op(false)),
        )
    }
}

/// Normalises over the last dimension (Ba, Kiros and Hinton, 2016).
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    name: &'static str,
    weight: ParamId,
    bias: ParamId,
    eps: f64,
}

impl LayerNorm {
    pub fn new(p: &mut ParamsBuilder, name: &'static str, channels: usize, eps: f64) -> LayerNorm {
        let p = &mut p.at(name);
        let weight = p.declare("weight", [channels], Init::Ones, Decay::No);
        let bias = p.declare("bias", [channels], Init::Zeros, Decay::No);
        LayerNorm {
            name,
            weight,
            bias,
            eps,
        }
    }

    /// # Shapes
    /// [.., c] → [.., c]
    pub fn forward(&self, t: &Tape, x: &Var) -> Result<Var> {
        t.module(self.name, || {
            layer_norm::layer_norm(t, x, &t.param(self.weight)?, &t.param(self.bias)?, self.eps)
        })
    }
}

/// A table of vectors, `weight` [entries, c].
#[derive(Clone, Copy, Debug)]
pub struct Embedding {
    name: &'static str,
    weight: ParamId,
}

impl Embedding {
    /// PyTorch's default is a standard normal (`std` = 1); CLIP starts smaller.
    pub fn new(
        p: &mut ParamsBuilder,
        name: &'static str,
        [entries, channels]: [usize; 2],
        std: f64,
    ) -> Embedding {
        let init = Init::Normal { std };
        let weight = p
            .at(name)
            .declare("weight", [entries, channels], init, Decay::No);
        Embedding { name, weight }
    }

    /// The rows that `ids` (i32, any shape) name.
    ///
    /// # Shapes
    /// [..] → [.., c]
    pub fn forward(&self, t: &Tape, ids: &Var) -> Result<Var> {
        t.module(self.name, || {
            embedding::embedding(t, &t.param(self.weight)?, ids)
        })
    }

    /// The whole table, [entries, c].
    pub fn table(&self, t: &Tape) -> Result<Var> {
        t.module(self.name, || t.param(self.weight))
    }
}

/// The two-layer perceptron that sinusoids of the time step go through: `linear_1`, SiLU, `linear_2`.
#[derive(Clone, Copy, Debug)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    pub fn new(
        p: &mut ParamsBuilder,
        inputs: usize,
        hidden: usize,
        outputs: usize,
    ) -> TimestepEmbedding {
        let p = &mut p.at("time_embedding");
        TimestepEmbedding {
            linear_1: Linear::new(p, "linear_1", inputs, hidden),
            linear_2: Linear::new(p, "linear_2", hidden, outputs),
        }
    }

    /// Takes the sinusoids of steps, which 16 bits do not count, in any dtype.
    ///
    /// # Shapes
    /// [n, in] → [n, out]
    pub fn forward(&self, t: &Tape, sinusoids: &Var) -> Result<Var> {
        t.module("time_embedding", || {
            let sinusoids = t.constant(sinusoids.tensor().cast(t.dtype()?)?); // [n, in]
            let hidden = self.linear_1.fused(t, &sinusoids, Activation::Silu, None)?; // [n, hidden]
            self.linear_2.forward(t, &hidden) // [n, out]
        })
    }
}

/// One sample `n` times.
///
/// # Shapes
/// [1, ..] → [n, ..]
pub fn repeat(t: &Tape, x: &Var, n: usize) -> Result<Var> {
    let mut shape = x.tensor().shape();
    shape.dims_mut()[0] = n;
    let zeros = t.constant(Tensor::zeros(shape, x.dtype(), x.device()));
    binary::add(t, x, &zeros)
}
