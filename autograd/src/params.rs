//! Parameters: declared in order with everything that training and files need to know, stored in one flat arena.

use std::collections::HashMap;
use std::sync::Arc;

use tensor::{Accum, DType, Device, Error, Result, Shape, Tensor};

use crate::{Draw, Grads};

/// Offsets of parameters in an arena are multiples of this many elements: a cache line of f32.
const ALIGNMENT: usize = 16;

/// A parameter's index in its [`ParamLayout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) u32);

impl ParamId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    Constant(f64),
    Normal {
        std: f64,
    },
    /// Uniform in ±`bound`. PyTorch's default for linear and convolution layers is a bound of 1/√fan_in.
    Uniform {
        bound: f64,
    },
}

pub use tensor::ops::optimizer::Decay;

/// How the parameter is laid out in a file, if not as in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileLayout {
    Same,
    /// A convolution's weight: [out, kh, kw, in] in memory, PyTorch's [out, in, kh, kw] in files.
    Oihw,
}

/// Everything about a parameter but its value.
#[derive(Clone, Debug)]
pub struct ParamInfo {
    /// The name in files: PyTorch's state-dict key.
    pub name: String,
    /// The shape in memory.
    pub shape: Shape,
    pub init: Init,
    pub decay: Decay,
    pub file_layout: FileLayout,
    /// Elements from the start of the arena.
    pub offset: usize,
}

impl ParamInfo {
    /// The shape that PyTorch knows it by.
    pub fn file_shape(&self) -> Shape {
        match self.file_layout {
            FileLayout::Same => self.shape,
            FileLayout::Oihw => {
                Shape::new(&[self.shape[0], self.shape[3], self.shape[1], self.shape[2]])
            }
        }
    }

    /// The value that it starts with, shaped as in memory: a function of the seed and its name alone.
    pub fn initial(&self, seed: u64, dtype: DType, device: Device) -> Result<Tensor> {
        let mut value = Tensor::zeros(self.shape, dtype, device);
        self.initialise(&mut value, seed)?;
        Ok(value)
    }

    /// Writes it over zeros.
    fn initialise(&self, value: &mut Tensor, seed: u64) -> Result<()> {
        let draw = Draw::named(seed, &self.name, 0);
        match self.init {
            Init::Zeros => Ok(()),
            Init::Ones => tensor::ops::fill::fill(value, 1.0),
            Init::Constant(constant) => tensor::ops::fill::fill(value, constant),
            Init::Normal { std } => tensor::ops::random::fill_normal(value, &draw, std),
            Init::Uniform { bound } => {
                tensor::ops::random::fill_uniform(value, &draw, -bound, bound)
            }
        }
    }
}

/// The parameters of a model in declaration order, and their places in the arena.
#[derive(Debug, Default)]
pub struct ParamLayout {
    infos: Vec<ParamInfo>,
    by_name: HashMap<String, ParamId>,
    arena_len: usize,
}

impl ParamLayout {
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (ParamId, &ParamInfo)> {
        self.infos
            .iter()
            .enumerate()
            .map(|(i, info)| (ParamId(i as u32), info))
    }

    pub fn len(&self) -> usize {
        self.infos.len()
    }

    pub fn is_empty(&self) -> bool {
        self.infos.is_empty()
    }

    pub fn info(&self, id: ParamId) -> &ParamInfo {
        &self.infos[id.index()]
    }

    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied()
    }

    /// Elements of the arena, padding between parameters included.
    pub fn arena_len(&self) -> usize {
        self.arena_len
    }

    /// Elements of all parameters.
    pub fn parameters(&self) -> usize {
        self.infos.iter().map(|info| info.shape.elements()).sum()
    }
}

/// Declares parameters. Modules take one while they are built and keep the ids.
///
/// The builder carries the path of the module being declared: `builder.at("down_blocks").at(0)`, as PyTorch names nest.
#[derive(Debug)]
pub struct ParamsBuilder<'a> {
    layout: &'a mut ParamLayout,
    prefix: String,
}

impl<'a> ParamsBuilder<'a> {
    pub fn new(layout: &'a mut ParamLayout) -> ParamsBuilder<'a> {
        ParamsBuilder {
            layout,
            prefix: String::new(),
        }
    }

    /// The builder of a child module.
    pub fn at(&mut self, name: impl std::fmt::Display) -> ParamsBuilder<'_> {
        let prefix = self.path(&name.to_string());
        ParamsBuilder {
            layout: self.layout,
            prefix,
        }
    }

    /// The path of the module being declared, such as `down_blocks.0.resnets.1`.
    pub fn module(&self) -> &str {
        &self.prefix
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    /// Declares a parameter laid out in files as in memory.
    pub fn declare(
        &mut self,
        name: &str,
        shape: impl Into<Shape>,
        init: Init,
        decay: Decay,
    ) -> ParamId {
        self.declare_in(name, shape.into(), init, decay, FileLayout::Same)
    }

    /// Declares a convolution's weight, [out, kh, kw, in] in memory.
    pub fn declare_conv(&mut self, name: &str, shape: [usize; 4], init: Init) -> ParamId {
        self.declare_in(name, Shape::from(shape), init, Decay::Yes, FileLayout::Oihw)
    }

    /// # Panics
    /// If the name was declared before: a mistake in the model's code.
    fn declare_in(
        &mut self,
        name: &str,
        shape: Shape,
        init: Init,
        decay: Decay,
        file_layout: FileLayout,
    ) -> ParamId {
        let name = self.path(name);
        let id = ParamId(self.layout.infos.len() as u32);
        assert!(
            self.layout.by_name.insert(name.clone(), id).is_none(),
            "parameter {name} is declared twice"
        );
        let offset = self.layout.arena_len;
        self.layout.arena_len = (offset + shape.elements()).next_multiple_of(ALIGNMENT);
        self.layout.infos.push(ParamInfo {
            name,
            shape,
            init,
            decay,
            file_layout,
            offset,
        });
        id
    }
}

/// The values of a model's parameters.
#[derive(Clone, Debug)]
pub struct Params {
    layout: Arc<ParamLayout>,
    /// All parameters, flat; padding is zero.
    arena: Tensor,
}

impl Params {
    /// Initial values, each a function of the seed and the parameter's name alone.
    pub fn init(
        layout: Arc<ParamLayout>,
        seed: u64,
        dtype: DType,
        device: Device,
    ) -> Result<Params> {
        let mut arena = Tensor::zeros([layout.arena_len()], dtype, device);
        for (_, info) in layout.iter() {
            let mut part = arena.into_part(info.offset, info.shape)?;
            info.initialise(&mut part, seed)?;
            arena = part.into_whole(layout.arena_len())?;
        }
        Ok(Params { layout, arena })
    }

    /// All zeros, to be filled from a file.
    pub fn zeros(layout: Arc<ParamLayout>, dtype: DType, device: Device) -> Params {
        let arena = Tensor::zeros([layout.arena_len()], dtype, device);
        Params { layout, arena }
    }

    /// The values in `arena`, laid out as `layout` says.
    ///
    /// # Errors
    /// If the arena's length is not the layout's.
    pub fn from_arena(layout: Arc<ParamLayout>, arena: Tensor) -> Result<Params> {
        if *arena.shape() != [layout.arena_len()] {
            return Err(Error::new(
                "params",
                format!(
                    "the layout needs an arena of {} elements",
                    layout.arena_len()
                ),
                vec![tensor::Operand::new("arena", &arena)],
            ));
        }
        Ok(Params { layout, arena })
    }

    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    pub fn dtype(&self) -> DType {
        self.arena.dtype()
    }

    pub fn device(&self) -> Device {
        self.arena.device()
    }

    /// The flat arena. Clones of it must be dropped before the next [`Params::set`] or update.
    pub fn arena(&self) -> &Tensor {
        &self.arena
    }

    /// The flat arena, for the optimiser.
    pub fn arena_mut(&mut self) -> &mut Tensor {
        &mut self.arena
    }

    /// A parameter's value, shaped as in memory: a view.
    pub fn get(&self, id: ParamId) -> Result<Tensor> {
        let info = self.layout.info(id);
        self.arena.clone().into_part(info.offset, info.shape)
    }

    /// Overwrites a parameter.
    ///
    /// # Errors
    /// If the shape differs, or a view of the arena is still alive.
    pub fn set(&mut self, id: ParamId, value: &Tensor) -> Result<()> {
        let info = self.layout.info(id);
        let value = value.cast(self.arena.dtype())?;
        tensor::Check::new("params.set", &[("value", &value)]).shape(
            &info.name,
            &value,
            &info.shape,
        )?;
        self.arena.overwrite(info.offset, &value)
    }

    /// The same values in another dtype.
    ///
    /// # Errors
    /// If the device cannot convert them.
    pub fn cast(&self, dtype: DType) -> Result<Params> {
        Ok(Params {
            layout: self.layout.clone(),
            arena: self.arena.cast(dtype)?,
        })
    }

    /// The same values on another device.
    ///
    /// # Errors
    /// If the device that they come from failed at something before.
    pub fn to_device(&self, device: Device) -> Result<Params> {
        Ok(Params {
            layout: self.layout.clone(),
            arena: self.arena.to_device(device)?,
        })
    }
}

/// The gradients of a model's parameters, in an arena laid out like the parameters'.
#[derive(Debug)]
pub struct ParamGrads {
    layout: Arc<ParamLayout>,
    /// `None` only while a kernel writes to a part of it.
    arena: Option<Tensor>,
    touched: Vec<bool>,
}

impl ParamGrads {
    pub fn new(params: &Params) -> ParamGrads {
        let layout = params.layout().clone();
        let arena = Tensor::zeros([layout.arena_len()], params.dtype(), params.device());
        ParamGrads {
            touched: vec![false; layout.len()],
            layout,
            arena: Some(arena),
        }
    }

    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    /// Forgets all gradients: the next write to each parameter replaces.
    pub fn clear(&mut self) {
        self.touched.fill(false);
    }

    /// Whether a step wrote this parameter's gradient since the last [`ParamGrads::clear`].
    pub fn touched(&self, id: ParamId) -> bool {
        self.touched[id.index()]
    }

    /// A parameter's gradient, shaped as the parameter: a view. Zero where no step wrote it.
    pub fn get(&self, id: ParamId) -> Result<Tensor> {
        let info = self.layout.info(id);
        if !self.touched[id.index()] {
            let arena = self.whole()?;
            return Ok(Tensor::zeros(info.shape, arena.dtype(), arena.device()));
        }
        self.whole()?.clone().into_part(info.offset, info.shape)
    }

    /// The flat arena, with zeros for every parameter that no step touched; for the gradient norm and the optimiser.
    pub fn finish(&mut self) -> Result<&mut Tensor> {
        for i in 0..self.layout.len() {
            if !self.touched[i] {
                self.sink(ParamId(i as u32), |dst, _| {
                    tensor::ops::fill::fill(dst, 0.0)
                })?;
            }
        }
        self.arena.as_mut().ok_or_else(lost)
    }

    fn whole(&self) -> Result<&Tensor> {
        self.arena.as_ref().ok_or_else(lost)
    }

    pub(crate) fn sink(
        &mut self,
        id: ParamId,
        kernel: impl FnOnce(&mut Tensor, Accum) -> Result<()>,
    ) -> Result<()> {
        let accum = if self.touched[id.index()] {
            Accum::Add
        } else {
            Accum::Replace
        };
        let info = self.layout.info(id);
        // The arena's only owner turns into a writable view of one part, and back.
        let mut part = self
            .arena
            .take()
            .ok_or_else(lost)?
            .into_part(info.offset, info.shape)?;
        let outcome = kernel(&mut part, accum);
        self.arena = Some(part.into_whole(self.layout.arena_len())?);
        self.touched[id.index()] = true;
        outcome
    }
}

/// The arena is gone only after a kernel's error unwound through [`ParamGrads::sink`].
fn lost() -> Error {
    Error::new(
        "gradients",
        "the gradient arena was lost in an earlier error",
        vec![],
    )
}

impl Grads {
    /// The gradients of the parameters, when the backward pass is over.
    pub fn into_params(self) -> ParamGrads {
        self.params
    }
}
