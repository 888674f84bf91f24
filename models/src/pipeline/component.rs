//! A network of the pipeline: in memory, or in its folder until its stage begins.

use std::ops::Deref;

use autograd::{DType, Device};
use kernels::buffer::trim_pool;

use crate::folder::Folder;
use crate::model::{Loaded, Model};
use crate::{Result, weights};

/// A network, and where its weights are.
pub enum Component<M: Model> {
    /// In memory, for as long as the pipeline is.
    Kept(Loaded<M>),
    /// In its folder, from which each stage that needs it reads it: the pipeline then never holds more than one network.
    Stored(Stored<M>),
}

/// A network whose weights fit, but were not read.
pub struct Stored<M: Model> {
    config: M::Config,
    dir: Folder,
    dtype: DType,
    device: Device,
}

impl<M: Model> From<Loaded<M>> for Component<M> {
    fn from(loaded: Loaded<M>) -> Component<M> {
        Component::Kept(loaded)
    }
}

impl<M: Model> Component<M> {
    /// The network of a folder, which is not read yet.
    ///
    /// # Errors
    /// Those of [`weights::load`]: what does not fit is known before anything is computed.
    pub fn stored(dir: Folder, dtype: DType, device: Device) -> Result<Component<M>> {
        Ok(Component::Stored(Stored {
            config: weights::check::<M>(&dir)?,
            dir,
            dtype,
            device,
        }))
    }

    pub fn config(&self) -> &M::Config {
        match self {
            Component::Kept(loaded) => loaded.model.config(),
            Component::Stored(stored) => &stored.config,
        }
    }

    /// The network with its weights.
    ///
    /// # Errors
    /// If its folder cannot be read any more.
    pub fn open(&self) -> Result<Opened<'_, M>> {
        Ok(match self {
            Component::Kept(loaded) => Opened::Kept(loaded),
            Component::Stored(Stored {
                dir, dtype, device, ..
            }) => Opened::Read(Box::new(Read {
                loaded: weights::load(dir.clone(), *dtype, *device)?,
                _memory: GivenBack,
            })),
        })
    }
}

/// A network at work.
#[derive(Debug)]
pub enum Opened<'a, M> {
    Kept(&'a Loaded<M>),
    Read(Box<Read<M>>),
}

/// A network that was read for one stage.
#[derive(Debug)]
pub struct Read<M> {
    loaded: Loaded<M>,
    /// Dropped after it.
    _memory: GivenBack,
}

/// When it is dropped, unused memory goes back to the system: the next network's buffers have other sizes.
#[derive(Debug)]
struct GivenBack;

impl Drop for GivenBack {
    fn drop(&mut self) {
        trim_pool();
    }
}

impl<M> Deref for Opened<'_, M> {
    type Target = Loaded<M>;

    fn deref(&self) -> &Loaded<M> {
        match self {
            Opened::Kept(loaded) => loaded,
            Opened::Read(read) => &read.loaded,
        }
    }
}
