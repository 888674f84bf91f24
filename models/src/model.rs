//! What every model is: a configuration, parameters declared in order, and a name that other libraries know.

use std::sync::Arc;

use autograd::{DType, Device, ParamLayout, Params, ParamsBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;

/// The library whose class a model takes its configuration and names from; it decides file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    Diffusers,
    Transformers,
}

/// The class that another library knows a model by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    pub name: &'static str,
    pub library: Library,
}

/// A network without its parameters' values: those are [`Params`], which a [`autograd::Tape`] holds.
pub trait Model: Sized {
    type Config: Clone + Serialize + DeserializeOwned;
    const CLASS: Class;

    /// Declares the parameters.
    ///
    /// # Errors
    /// If no network can be built from the configuration, or it asks for what this program does not have.
    fn new(config: &Self::Config, p: &mut ParamsBuilder) -> Result<Self>;

    fn config(&self) -> &Self::Config;
}

/// A model and where its parameters lie. Allocates nothing of their size.
pub fn declare<M: Model>(config: &M::Config) -> Result<(M, Arc<ParamLayout>)> {
    let mut layout = ParamLayout::default();
    let model = M::new(config, &mut ParamsBuilder::new(&mut layout))?;
    Ok((model, Arc::new(layout)))
}

/// A model with its parameters.
#[derive(Debug)]
pub struct Loaded<M> {
    pub model: M,
    pub params: Params,
}

impl<M: Model> Loaded<M> {
    /// A new model; each parameter is a function of the seed and its name alone.
    pub fn init(config: &M::Config, seed: u64, dtype: DType, device: Device) -> Result<Loaded<M>> {
        let (model, layout) = declare::<M>(config)?;
        let params = Params::init(layout, seed, dtype, device)?;
        Ok(Loaded { model, params })
    }
}
