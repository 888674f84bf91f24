//! Tensors from memory to memory: between the host and devices, and into parts of others.

use std::sync::Arc;

use kernels::ops::copy::ptx::Copy;

use crate::gpu::Arg;
use crate::graph;
use crate::storage::Storage;
use crate::{Check, DType, Device, Error, Operand, Result, Shape, Tensor};

impl Tensor {
    /// The same elements on another device, in row-major order; itself where it already is there.
    ///
    /// # Errors
    /// If a GPU that it comes from failed at something before.
    pub fn to_device(&self, device: Device) -> Result<Tensor> {
        if device == self.device {
            return Ok(self.clone());
        }
        let host = self.to_host()?;
        match device {
            Device::Cpu => Ok(host),
            _ => Ok(Tensor::from_bytes(
                host.bytes()?,
                host.shape,
                host.dtype,
                device,
            )),
        }
    }

    /// The elements in the host's memory, in row-major order.
    ///
    /// # Errors
    /// If a GPU that it comes from failed at something before, or a step is being recorded, which has no results yet.
    pub fn to_host(&self) -> Result<Tensor> {
        let x = match self.device {
            Device::Cpu => self.clone(),
            // It has the host's memory.
            Device::Sim { .. } => {
                // Integers are what was uploaded, as a rule: the host knows them.
                if self.dtype.is_float() || self.dtype == DType::U8 {
                    graph::refuse_while_recording().map_err(|why| self.unreadable(why))?;
                }
                Tensor {
                    device: Device::Cpu,
                    ..self.clone()
                }
            }
            Device::Cuda(_) => {
                let size = self.dtype.size();
                let read = self
                    .storage
                    .download(self.offset * size, self.reach() * size);
                Tensor {
                    storage: Arc::new(Storage::Host(read.map_err(|why| self.unreadable(why))?)),
                    device: Device::Cpu,
                    offset: 0,
                    ..self.clone()
                }
            }
        };
        match x.is_contiguous() {
            true => Ok(x),
            false => x.gathered(),
        }
    }

    /// Elements of memory from the first of the view to the last.
    fn reach(&self) -> usize {
        let steps = self.shape.iter().zip(self.strides.iter());
        match self.is_empty() {
            true => 0,
            false => 1 + steps.map(|(n, stride)| (n - 1) * stride).sum::<usize>(),
        }
    }

    fn unreadable(&self, why: impl Into<String>) -> Error {
        Check::new("to_host", &[("x", self)]).error(why)
    }

    /// The same elements in row-major order: itself where it already is, else a copy.
    ///
    /// # Errors
    /// If a GPU has no kernel for the copy: the view has more elements, or reaches further, than kernels count.
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_contiguous() {
            return Ok(self.clone());
        }
        self.packed_copy()
    }

    /// [`Tensor::contiguous`] that begins at a multiple of `alignment` bytes.
    pub(crate) fn packed(&self, alignment: usize) -> Result<Tensor> {
        let aligned = (self.offset * self.dtype.size()).is_multiple_of(alignment);
        if self.is_contiguous() && (aligned || self.is_empty()) {
            return Ok(self.clone());
        }
        self.packed_copy()
    }

    /// The elements in row-major order in storage of their own.
    fn packed_copy(&self) -> Result<Tensor> {
        let check = Check::new("contiguous", &[("x", self)]);
        let Some(gpu) = check.gpu() else {
            return self.gathered();
        };
        let mut out = Tensor::uninit(self.shape, self.dtype, self.device);
        let (dims, strides) = (self.shape.dims(), self.strides.dims());
        let call = Copy::config(self.dtype.size(), dims, strides, self.offset);
        let whole = Tensor {
            offset: 0,
            shape: Shape::new(&[self.storage.len_bytes() / self.dtype.size()]),
            strides: Shape::new(&[1]),
            ..self.clone()
        };
        gpu.call(&gpu.plan(call)?, [Arg::Write(&mut out), Arg::Read(&whole)])?;
        Ok(out)
    }

    /// [`Tensor::packed_copy`] by the CPU.
    fn gathered(&self) -> Result<Tensor> {
        let src = self.storage.host().map_err(|why| self.unreadable(why))?;
        let mut out = Tensor::uninit(self.shape, self.dtype, self.device);
        let size = self.dtype.size();
        kernels::ops::copy::gather_strided(
            out.bytes_mut(1)?,
            src.as_bytes(),
            size,
            self.shape.dims(),
            self.strides.dims(),
            self.offset,
        );
        Ok(out)
    }

    /// The elements in row-major order in storage of their own, shared with nobody and with no room to spare.
    pub fn detach_copy(&self) -> Result<Tensor> {
        if !self.is_contiguous() {
            return self.packed_copy();
        }
        let mut out = Tensor::uninit(self.shape, self.dtype, self.device);
        out.overwrite(0, self)?;
        Ok(out)
    }

    /// Overwrites the elements from `start` on, in row-major order, with those of `src`, which may live on another device.
    ///
    /// # Errors
    /// If dtypes differ, `src` does not fit, or the tensor is not contiguous or shares its storage.
    pub fn overwrite(&mut self, start: usize, src: &Tensor) -> Result<()> {
        let check = Check::new("overwrite", &[("dst", self), ("src", src)]);
        check.dtype("src", src, self.dtype)?;
        let fits = start <= self.shape.elements() && src.len() <= self.len() - start;
        check.require(fits, || format!("src does not fit from element {start} on"))?;
        let src = match src.device == self.device {
            true => src.contiguous()?,
            false => src.to_host()?,
        };
        let (offset, size) = (start * self.dtype.size(), src.len() * src.dtype.size());
        if let Device::Cuda(_) = self.device {
            let blame = Check::new("overwrite", &[("dst", self), ("src", &src)]).error("");
            let to = self.writable(1, offset, size)?;
            let context = to.memory().context();
            let done = match src.device {
                Device::Cpu => context.upload(to, src.bytes()?),
                _ => context.copy(to, src.view()?),
            };
            return done.map_err(|why| blame.because(why.to_string()));
        }
        if let Device::Sim { .. } = self.device {
            graph::note_copy(size);
        }
        let bytes = src.bytes()?;
        self.bytes_mut(1)?[offset..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Sets every element to the one of `value`, which lives on the host.
    ///
    /// # Errors
    /// If `value` is not one element of the same dtype, or the tensor is not contiguous or shares its storage.
    pub(crate) fn set_all(&mut self, value: &Tensor) -> Result<()> {
        let check = Check::new("fill", &[("out", self), ("value", value)]);
        check.dtype("value", value, self.dtype)?;
        check.shape("value", value, &[])?;
        let (blame, value) = (check.error(""), value.bytes()?);
        let (start, len, device) = (self.start(1)?, self.len() * value.len(), self.device);
        let filled = self.exclusive()?.fill(start, len, value, device);
        filled.map_err(|why| blame.because(why))
    }

    /// Whether the two hold the same bits (and shape and dtype); not where one cannot be read.
    pub fn bit_equal(&self, other: &Tensor) -> bool {
        if self.shape != other.shape || self.dtype != other.dtype {
            return false;
        }
        let (Ok(a), Ok(b)) = (self.to_host(), other.to_host()) else {
            return false;
        };
        matches!((a.bytes(), b.bytes()), (Ok(a), Ok(b)) if a == b)
    }

    /// The bytes of a contiguous tensor, in the host's memory.
    pub(crate) fn bytes(&self) -> Result<&[u8]> {
        debug_assert!(self.is_contiguous());
        let size = self.dtype.size();
        let storage = self.storage.host().map_err(|why| self.unreadable(why))?;
        Ok(&storage.as_bytes()[self.offset * size..][..self.len() * size])
    }

    /// The bytes of a tensor that is contiguous, shared with nobody, and begins at a multiple of `alignment` bytes, in the
    /// host's memory.
    ///
    /// # Errors
    /// If it is something else.
    pub(crate) fn bytes_mut(&mut self, alignment: usize) -> Result<&mut [u8]> {
        let len = self.len() * self.dtype.size();
        let (start, operand) = (self.start(alignment)?, Operand::new("x", self));
        let memory = self.exclusive()?.host_mut();
        let memory = memory.map_err(|why| Error::new("launch", why, vec![operand]))?;
        Ok(&mut memory.as_bytes_mut()[start..start + len])
    }

    /// The memory of a contiguous tensor, on a GPU.
    pub(crate) fn view(&self) -> Result<kernels::cuda::View<'_>> {
        debug_assert!(self.is_contiguous());
        let size = self.dtype.size();
        let view = self.storage.view(self.offset * size, self.len() * size);
        view.map_err(|why| Error::new("launch", why, vec![Operand::new("x", self)]))
    }

    /// [`Tensor::bytes_mut`] on a GPU: `len` bytes from `offset` on.
    pub(crate) fn writable(
        &mut self,
        alignment: usize,
        offset: usize,
        len: usize,
    ) -> Result<kernels::cuda::View<'_>> {
        let (start, operand) = (self.start(alignment)?, Operand::new("x", self));
        let view = self.exclusive()?.view_mut(start + offset, len);
        view.map_err(|why| Error::new("launch", why, vec![operand]))
    }

    /// Where a tensor that kernels write begins, in bytes.
    fn start(&self, alignment: usize) -> Result<usize> {
        let start = self.offset * self.dtype.size();
        let reason = if !self.is_contiguous() {
            "not contiguous, so kernels cannot write it"
        } else if !self.is_empty() && !start.is_multiple_of(alignment) {
            "begins where kernels cannot write"
        } else {
            return Ok(start);
        };
        Err(Error::new("launch", reason, vec![Operand::new("x", self)]))
    }

    fn exclusive(&mut self) -> Result<&mut Storage> {
        let operand = Operand::new("x", self);
        Arc::get_mut(&mut self.storage).ok_or_else(|| {
            let reason = "shares its storage, so it cannot be written";
            Error::new("launch", reason, vec![operand])
        })
    }
}
