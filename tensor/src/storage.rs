//! The memory behind tensors, on whichever device.

use kernels::Buffer;
use kernels::cuda::{Context, Memory, View};

use crate::Device;
use crate::graph;

/// Memory that tensors share.
#[derive(Debug)]
pub(crate) enum Storage {
    /// The host's, and so the simulated GPU's.
    Host(Buffer),
    Cuda(OnGpu),
    /// Memory that a GPU did not give, of so many bytes. Whoever uses it first gets the reason: so every op's output can be
    /// made without asking, and an op on it fails as any other launch does.
    Missing(usize, String),
}

/// A GPU's memory, and what the host still knows of it.
#[derive(Debug)]
pub(crate) struct OnGpu {
    memory: Memory,
    /// What was uploaded, where it is made of integers and nothing has been written since: indices are checked, and masks
    /// extended, without asking the GPU.
    mirror: Option<Box<[u8]>>,
}

impl Storage {
    /// Memory with undefined contents.
    pub fn uninit(bytes: usize, device: Device) -> Storage {
        match device {
            Device::Cpu => Storage::Host(Buffer::uninit(bytes)),
            Device::Sim { .. } => {
                graph::note_allocation(bytes);
                Storage::Host(Buffer::uninit(bytes))
            }
            Device::Cuda(gpu) => match Context::open(gpu).and_then(|c| c.allocate(bytes)) {
                Ok(memory) => Storage::Cuda(OnGpu {
                    memory,
                    mirror: None,
                }),
                Err(why) => Storage::Missing(bytes, why.to_string()),
            },
        }
    }

    /// A copy of the host's `data`; `mirrored` keeps it at hand.
    pub fn upload(data: &[u8], device: Device, mirrored: bool) -> Storage {
        let mut storage = Storage::uninit(data.len(), device);
        match &mut storage {
            Storage::Host(buffer) => {
                if let Device::Sim { .. } = device {
                    graph::note_upload(data.len());
                }
                buffer.as_bytes_mut().copy_from_slice(data);
            }
            Storage::Cuda(OnGpu { memory, mirror }) => {
                match memory.context().upload(memory.whole(), data) {
                    Ok(()) => *mirror = mirrored.then(|| data.into()),
                    Err(why) => storage = Storage::Missing(data.len(), why.to_string()),
                }
            }
            Storage::Missing(..) => {}
        }
        storage
    }

    /// Memory full of one element's bytes.
    pub fn filled(bytes: usize, element: &[u8], device: Device) -> Storage {
        let mut storage = Storage::uninit(bytes, device);
        match storage.fill(0, bytes, element, device) {
            Ok(()) => storage,
            Err(why) => Storage::Missing(bytes, why),
        }
    }

    /// Overwrites `bytes` from `start` on with the bytes of one element, again and again.
    ///
    /// # Errors
    /// If the GPU did not do it, or has no elements of that size.
    pub fn fill(
        &mut self,
        start: usize,
        bytes: usize,
        element: &[u8],
        device: Device,
    ) -> Result<(), String> {
        // One byte everywhere is quicker, for both.
        let element = match element {
            [first, rest @ ..] if rest.iter().all(|byte| byte == first) => &element[..1],
            several => several,
        };
        if let Storage::Host(buffer) = self {
            if let Device::Sim { .. } = device {
                graph::note_fill(bytes);
            }
            let to = &mut buffer.as_bytes_mut()[start..start + bytes];
            match element {
                [byte] => to.fill(*byte),
                several => to
                    .chunks_exact_mut(several.len())
                    .for_each(|chunk| chunk.copy_from_slice(several)),
            }
            return Ok(());
        }
        let to = self.view_mut(start, bytes)?;
        let mut word = [0; 4];
        let Some(low) = word.get_mut(..element.len()) else {
            let size = element.len();
            return Err(format!("{device} fills no elements of {size} bytes"));
        };
        low.copy_from_slice(element);
        let (context, word) = (to.memory().context(), u32::from_le_bytes(word));
        let filled = context.fill(to, element.len(), word);
        filled.map_err(|e| e.to_string())
    }

    pub fn len_bytes(&self) -> usize {
        match self {
            Storage::Host(buffer) => buffer.len_bytes(),
            Storage::Cuda(OnGpu { memory, .. }) => memory.len_bytes(),
            Storage::Missing(bytes, _) => *bytes,
        }
    }

    /// The host's memory.
    ///
    /// # Errors
    /// If it is a GPU's.
    pub fn host(&self) -> Result<&Buffer, String> {
        match self {
            Storage::Host(buffer) => Ok(buffer),
            Storage::Cuda(_) => Err("does not live in the host's memory".to_owned()),
            Storage::Missing(_, why) => Err(why.clone()),
        }
    }

    pub fn host_mut(&mut self) -> Result<&mut Buffer, String> {
        match self {
            Storage::Host(buffer) => Ok(buffer),
            Storage::Cuda(_) => Err("does not live in the host's memory".to_owned()),
            Storage::Missing(_, why) => Err(why.clone()),
        }
    }

    /// A part of a GPU's memory.
    ///
    /// # Errors
    /// If it is none's.
    pub fn view(&self, start: usize, bytes: usize) -> Result<View<'_>, String> {
        match self {
            Storage::Cuda(OnGpu { memory, .. }) => Ok(memory.view(start, bytes)),
            Storage::Host(_) => Err("does not live in a GPU's memory".to_owned()),
            Storage::Missing(_, why) => Err(why.clone()),
        }
    }

    /// [`Storage::view`], to be written: what the host knew of it is true no longer.
    pub fn view_mut(&mut self, start: usize, bytes: usize) -> Result<View<'_>, String> {
        if let Storage::Cuda(OnGpu { mirror, .. }) = self {
            *mirror = None;
        }
        self.view(start, bytes)
    }

    /// A part of a GPU's memory, where the host can read it.
    ///
    /// # Errors
    /// If it is none's, the GPU failed at something before, or a step is being recorded.
    pub fn download(&self, start: usize, bytes: usize) -> Result<Buffer, String> {
        let view = self.view(start, bytes)?;
        let mut copy = Buffer::uninit(bytes);
        match self {
            Storage::Cuda(OnGpu {
                mirror: Some(mirror),
                ..
            }) => copy
                .as_bytes_mut()
                .copy_from_slice(&mirror[start..start + bytes]),
            _ => {
                let context = view.memory().context();
                let read = context.download(view, copy.as_bytes_mut());
                read.map_err(|e| e.to_string())?;
            }
        }
        Ok(copy)
    }
}
