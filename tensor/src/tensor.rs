//! The tensor: a strided view of shared storage.

use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};
use kernels::{Buffer, ptx};

use crate::gpu::{ALIGNMENT, Arg};
use crate::storage::Storage;
use crate::{Accum, Check, DType, Device, Element, Error, Operand, Result, Shape};

/// A view of shared storage, immutable unless it is the storage's only owner.
///
/// Cloning shares the storage. Ops take views with any strides where they say so; most ask for [`Tensor::contiguous`].
#[derive(Clone)]
pub struct Tensor {
    pub(crate) storage: Arc<Storage>,
    pub(crate) shape: Shape,
    pub(crate) strides: Shape,
    /// Elements from the start of the storage to the first element of the view.
    pub(crate) offset: usize,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
}

impl Tensor {
    /// Undefined contents; the caller writes every element.
    ///
    /// Where a GPU has no memory left, the tensor says so to the first op that uses it.
    pub fn uninit(shape: impl Into<Shape>, dtype: DType, device: Device) -> Tensor {
        let shape = shape.into();
        let storage = Storage::uninit(shape.elements() * dtype.size(), device);
        Tensor::of(storage, shape, dtype, device)
    }

    fn of(storage: Storage, shape: Shape, dtype: DType, device: Device) -> Tensor {
        Tensor {
            storage: Arc::new(storage),
            shape,
            strides: shape.strides(),
            offset: 0,
            dtype,
            device,
        }
    }

    pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: Device) -> Tensor {
        let shape = shape.into();
        // All-zero bytes are zero in every dtype.
        let storage = Storage::filled(shape.elements() * dtype.size(), &[0], device);
        Tensor::of(storage, shape, dtype, device)
    }

    /// The same shape, dtype and device over a single element of storage with undefined contents.
    ///
    /// Stands for a tensor where only its form is needed, so that a backward pass need not keep the tensor alive.
    pub fn outline(&self) -> Tensor {
        let strides = Shape::new(&[0; crate::MAX_RANK][..self.rank()]);
        Tensor {
            strides,
            shape: self.shape,
            ..Tensor::uninit([1], self.dtype, self.device)
        }
    }

    /// Every element `value`, converted to `dtype`.
    pub fn full(shape: impl Into<Shape>, value: f64, dtype: DType, device: Device) -> Tensor {
        let shape = shape.into();
        let one = Tensor::from_f64(&[value], [], dtype, Device::Cpu);
        let element = one.bytes().unwrap_or_default();
        let storage = Storage::filled(shape.elements() * dtype.size(), element, device);
        Tensor::of(storage, shape, dtype, device)
    }

    /// # Panics
    /// If `data` does not hold exactly the shape's elements.
    pub fn from_slice<T: Element>(data: &[T], shape: impl Into<Shape>, device: Device) -> Tensor {
        let shape = shape.into();
        assert_eq!(
            data.len(),
            shape.elements(),
            "data does not fill a tensor of shape {shape}"
        );
        Tensor::from_bytes(bytemuck::cast_slice(data), shape, T::DTYPE, device)
    }

    /// The elements as they lie in memory.
    pub(crate) fn from_bytes(data: &[u8], shape: Shape, dtype: DType, device: Device) -> Tensor {
        let storage = Storage::upload(data, device, !dtype.is_float());
        Tensor::of(storage, shape, dtype, device)
    }

    /// Converts from f64 to `dtype`; integers truncate, `Bool` is `value != 0`.
    ///
    /// # Panics
    /// If `data` does not hold exactly the shape's elements.
    pub fn from_f64(data: &[f64], shape: impl Into<Shape>, dtype: DType, device: Device) -> Tensor {
        let shape = shape.into();
        let convert = |dtype| match dtype {
            DType::F32 => Tensor::from_slice(
                &data.iter().map(|&x| x as f32).collect::<Vec<_>>(),
                shape,
                device,
            ),
            DType::F64 => Tensor::from_slice(data, shape, device),
            DType::BF16 => Tensor::from_slice(
                &data.iter().map(|&x| bf16::from_f64(x)).collect::<Vec<_>>(),
                shape,
                device,
            ),
            DType::F16 => Tensor::from_slice(
                &data.iter().map(|&x| f16::from_f64(x)).collect::<Vec<_>>(),
                shape,
                device,
            ),
            DType::I32 => Tensor::from_slice(
                &data.iter().map(|&x| x as i32).collect::<Vec<_>>(),
                shape,
                device,
            ),
            DType::I64 => Tensor::from_slice(
                &data.iter().map(|&x| x as i64).collect::<Vec<_>>(),
                shape,
                device,
            ),
            DType::U8 => Tensor::from_slice(
                &data.iter().map(|&x| x as u8).collect::<Vec<_>>(),
                shape,
                device,
            ),
            DType::Bool => {
                let mut t = Tensor::from_slice(
                    &data.iter().map(|&x| (x != 0.0) as u8).collect::<Vec<_>>(),
                    shape,
                    device,
                );
                t.dtype = DType::Bool;
                t
            }
        };
        convert(dtype)
    }

    /// A `Bool` tensor.
    pub fn from_bools(data: &[bool], shape: impl Into<Shape>, device: Device) -> Tensor {
        let bytes: Vec<u8> = data.iter().map(|&b| b as u8).collect();
        let mut tensor = Tensor::from_slice(&bytes, shape, device);
        tensor.dtype = DType::Bool;
        tensor
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.elements()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn device(&self) -> Device {
        self.device
    }

    /// Elements between neighbours along each dimension.
    pub fn strides(&self) -> Shape {
        self.strides
    }

    pub fn is_contiguous(&self) -> bool {
        // Strides of extents below two never matter.
        let expected = self.shape.strides();
        self.is_empty()
            || (0..self.rank()).all(|i| self.shape[i] == 1 || self.strides[i] == expected[i])
    }

    /// Whether kernels can write it as it is: it is contiguous, shares its storage with no other tensor, and on a GPU begins
    /// where they can.
    pub fn is_writable(&mut self) -> bool {
        let alignment = match self.device.arch() {
            None => 1,
            Some(_) => ALIGNMENT,
        };
        let aligned = (self.offset * self.dtype.size()).is_multiple_of(alignment);
        self.is_contiguous() && (aligned || self.is_empty()) && self.is_unique()
    }

    /// Whether no other tensor shares the storage.
    fn is_unique(&mut self) -> bool {
        Arc::get_mut(&mut self.storage).is_some()
    }

    /// The host's memory under the tensor, if no other tensor shares it.
    fn storage_mut<T: Element>(&mut self) -> Option<&mut [T]> {
        let storage = Arc::get_mut(&mut self.storage)?;
        storage.host_mut().ok().map(Buffer::as_mut_slice)
    }

    fn holds<T: Element>(&self) -> bool {
        T::DTYPE == self.dtype || (T::DTYPE == DType::U8 && self.dtype == DType::Bool)
    }

    /// The elements in row-major order, without a copy.
    ///
    /// # Errors
    /// If the tensor is not contiguous, holds another type, or does not live in the host's memory.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        let check = Check::new("as_slice", &[("x", self)]);
        check.require(self.device == Device::Cpu, || {
            format!(
                "lives on {}, so it must be copied to the host first",
                self.device
            )
        })?;
        check.require(self.holds::<T>(), || {
            format!("cannot be read as {}", T::DTYPE)
        })?;
        check.require(self.is_contiguous(), || {
            format!("not contiguous (strides {})", self.strides)
        })?;
        let storage = self.storage.host().map_err(|why| check.error(why))?;
        Ok(&storage.as_slice()[self.offset..self.offset + self.len()])
    }

    /// The elements in row-major order, for writing.
    ///
    /// # Errors
    /// If the tensor is not contiguous, holds another type, shares its storage, or does not live in the host's memory.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        let (start, len) = (self.offset, self.len());
        let reason = if self.device != Device::Cpu {
            "does not live in the host's memory"
        } else if !self.holds::<T>() {
            "cannot be written as another dtype"
        } else if !self.is_contiguous() {
            "not contiguous"
        } else if !self.is_unique() {
            "shares its storage, so it cannot be written"
        } else {
            ""
        };
        let operand = Operand::new("x", self);
        match self.storage_mut() {
            Some(memory) if reason.is_empty() => Ok(&mut memory[start..start + len]),
            _ => Err(Error::new("as_mut_slice", reason, vec![operand])),
        }
    }

    /// The elements in row-major order, whatever the strides.
    ///
    /// # Errors
    /// If the tensor holds another type; and as [`Tensor::to_host`].
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        Ok(self.to_host()?.as_slice()?.to_vec())
    }

    /// The elements as f64, from any dtype, in row-major order.
    ///
    /// # Errors
    /// As [`Tensor::to_host`].
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        fn widened<T: Element>(x: &Tensor, widen: impl Fn(T) -> f64) -> Result<Vec<f64>> {
            Ok(x.as_slice::<T>()?.iter().map(|&v| widen(v)).collect())
        }
        let x = self.to_host()?;
        match x.dtype {
            DType::F32 => widened::<f32>(&x, f64::from),
            DType::F64 => Ok(x.as_slice::<f64>()?.to_vec()),
            DType::BF16 => widened::<bf16>(&x, bf16::to_f64),
            DType::F16 => widened::<f16>(&x, f16::to_f64),
            DType::I32 => widened::<i32>(&x, f64::from),
            DType::I64 => widened::<i64>(&x, |v| v as f64),
            DType::U8 | DType::Bool => widened::<u8>(&x, f64::from),
        }
    }

    /// The value of a one-element tensor.
    ///
    /// # Errors
    /// If there is not exactly one element.
    pub fn item(&self) -> Result<f64> {
        Check::new("item", &[("x", self)])
            .require(self.len() == 1, || "must hold one element".into())?;
        Ok(self.to_f64_vec()?[0])
    }

    /// Converts the elements to another dtype, rounding to nearest.
    ///
    /// # Errors
    /// If the device has no kernel for it: GPUs convert between f32 and bf16.
    pub fn cast(&self, dtype: DType) -> Result<Tensor> {
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        let check = Check::new("cast", &[("x", self)]);
        let Some(gpu) = check.gpu() else {
            return Ok(Tensor::from_f64(
                &self.to_f64_vec()?,
                self.shape,
                dtype,
                self.device,
            ));
        };
        let (Some(from), Some(to)) = (ptx::Storage::of(self.dtype), ptx::Storage::of(dtype)) else {
            return Err(gpu.missing(&format!("a conversion to {dtype}")));
        };
        let mut out = Tensor::uninit(self.shape, dtype, self.device);
        // A sum over no dimension: every element by itself.
        let whole = [self.len()];
        let passes = kernels::ops::reduce::ptx::config(from, to, Accum::Replace, &whole, &[false]);
        for pass in gpu.plan(passes)? {
            let operands = [Arg::Write(&mut out), Arg::Read(self), Arg::F32(1.0)];
            gpu.call(&pass.call, operands)?;
        }
        Ok(out)
    }

    /// The same elements under another shape: a view where the tensor is contiguous, else a copy.
    ///
    /// # Errors
    /// If the shapes hold different numbers of elements.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        Check::new("reshape", &[("x", self)]).require(shape.elements() == self.len(), || {
            format!("{} elements do not make {shape}", self.len())
        })?;
        let mut view = self.contiguous()?;
        view.shape = shape;
        view.strides = shape.strides();
        Ok(view)
    }

    /// Reorders the dimensions: dimension `i` of the view is dimension `order[i]` of the tensor. A view.
    ///
    /// # Errors
    /// If `order` is not a permutation of the dimensions.
    pub fn permute(&self, order: &[usize]) -> Result<Tensor> {
        let mut seen = [false; crate::MAX_RANK];
        let valid = order.len() == self.rank()
            && order
                .iter()
                .all(|&d| d < self.rank() && !std::mem::replace(&mut seen[d], true));
        Check::new("permute", &[("x", self)]).require(valid, || {
            format!(
                "{order:?} is not a permutation of {} dimensions",
                self.rank()
            )
        })?;
        let mut view = self.clone();
        for (i, &d) in order.iter().enumerate() {
            view.shape.dims_mut()[i] = self.shape[d];
            view.strides.dims_mut()[i] = self.strides[d];
        }
        Ok(view)
    }

    /// Elements `start..start + len` along `dim`. A view.
    ///
    /// # Errors
    /// If the range leaves the dimension.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Tensor> {
        let inside =
            dim < self.rank() && start <= self.shape[dim] && len <= self.shape[dim] - start;
        Check::new("narrow", &[("x", self)]).require(inside, || {
            format!(
                "{start}..{} leaves dimension {dim}",
                start.saturating_add(len)
            )
        })?;
        let mut view = self.clone();
        view.shape.dims_mut()[dim] = len;
        view.offset += start * self.strides[dim];
        Ok(view)
    }

    /// Repeats dimensions of extent 1 (and leading ones that are missing) without copying. A view.
    ///
    /// # Errors
    /// If the shape does not broadcast to `shape`.
    pub fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        Check::new("broadcast_to", &[("x", self)])
            .require(Shape::broadcast(&self.shape, &shape) == Some(shape), || {
                format!("does not broadcast to {shape}")
            })?;
        let mut view = self.clone();
        view.shape = shape;
        view.strides = shape;
        let missing = shape.len() - self.rank();
        for i in 0..shape.len() {
            let repeats = i < missing || self.shape[i - missing] == 1;
            view.strides.dims_mut()[i] = if repeats {
                0
            } else {
                self.strides[i - missing]
            };
        }
        Ok(view)
    }

    /// Turns the only owner of a flat arena into the view of one of its parts, which can then be written.
    ///
    /// # Errors
    /// If the part leaves the arena, or the arena is not flat and contiguous.
    pub fn into_part(mut self, offset: usize, shape: Shape) -> Result<Tensor> {
        let inside =
            self.rank() == 1 && self.is_contiguous() && offset + shape.elements() <= self.len();
        Check::new("into_part", &[("arena", &self)])
            .require(inside, || format!("{shape} at {offset} is not inside"))?;
        self.offset += offset;
        self.shape = shape;
        self.strides = shape.strides();
        Ok(self)
    }

    /// Undoes [`Tensor::into_part`]: the whole storage as a flat tensor of `len` elements.
    ///
    /// # Errors
    /// If the storage holds fewer than `len` elements.
    pub fn into_whole(mut self, len: usize) -> Result<Tensor> {
        let held = self.storage.len_bytes() / self.dtype.size();
        Check::new("into_whole", &[("part", &self)])
            .require(len <= held, || format!("storage holds {held} elements"))?;
        self.offset = 0;
        self.shape = Shape::new(&[len]);
        self.strides = self.shape.strides();
        Ok(self)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {} {})", self.shape, self.dtype, self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counting(shape: &[usize]) -> Tensor {
        let data: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|i| i as f32)
            .collect();
        Tensor::from_slice(&data, Shape::new(shape), Device::Cpu)
    }

    proptest! {
        #[test]
        fn permuted_views_read_the_elements_they_should(dims in prop::collection::vec(1usize..5, 1..5), seed in 0usize..1000) {
            let x = counting(&dims);
            let mut order: Vec<usize> = (0..dims.len()).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, (seed * 7 + i * 13) % (i + 1));
            }
            let y = x.permute(&order).unwrap();
            let values = y.to_vec::<f32>().unwrap();
            for (flat, &value) in values.iter().enumerate() {
                let (mut rest, mut source) = (flat, 0);
                for i in (0..order.len()).rev() {
                    source += (rest % y.dims()[i]) * x.strides()[order[i]];
                    rest /= y.dims()[i];
                }
                prop_assert_eq!(value, source as f32);
            }
        }

        #[test]
        fn narrow_then_reshape_copies_what_it_must(rows in 1usize..6, columns in 2usize..6, start in 0usize..2) {
            let x = counting(&[rows, columns]);
            let y = x.narrow(1, start, columns - start).unwrap().reshape([rows * (columns - start)]).unwrap();
            let want: Vec<f32> = (0..rows * columns).filter(|i| i % columns >= start).map(|i| i as f32).collect();
            prop_assert_eq!(y.to_vec::<f32>().unwrap(), want);
        }
    }

    #[test]
    fn shared_storage_is_not_writable() {
        let mut x = counting(&[4]);
        assert!(x.as_mut_slice::<f32>().is_ok());
        let y = x.clone();
        assert!(
            x.as_mut_slice::<f32>()
                .unwrap_err()
                .to_string()
                .contains("shares its storage")
        );
        drop(y);
        assert!(x.as_mut_slice::<f32>().is_ok());
    }

    #[test]
    fn parts_of_an_arena_round_trip() {
        let mut part = counting(&[10]).into_part(4, Shape::new(&[2, 2])).unwrap();
        part.as_mut_slice::<f32>().unwrap().fill(-1.0);
        let whole = part.into_whole(10).unwrap();
        assert_eq!(
            whole.to_vec::<f32>().unwrap(),
            [0.0, 1.0, 2.0, 3.0, -1.0, -1.0, -1.0, -1.0, 8.0, 9.0]
        );
    }
}
