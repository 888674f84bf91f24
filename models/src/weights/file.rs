//! A safetensors file, mapped: what it holds under which name, and how parameters are cut out of it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use autograd::{DType, Device, FileLayout, ParamId, ParamInfo, ParamLayout, Params};
use half::{bf16, f16};
use kernels::map::map_file;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tensor::{Shape, Tensor};

use crate::folder::{Contents, Folder};
use crate::{Error, Result};

/// Where a parameter lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Source {
    pub name: String,
    pub part: Part,
    /// Whether the file has one more dimension, of extent 1: that of a convolution over single points.
    pub pointwise: bool,
}

impl Source {
    /// The whole tensor `name`.
    pub fn whole(name: impl Into<String>) -> Source {
        Source {
            name: name.into(),
            part: Part::Whole,
            pointwise: false,
        }
    }
}

/// What of a tensor is a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part {
    Whole,
    /// A matrix, its rows and columns exchanged.
    Transposed,
    /// The file's rows are dealt to `of` parameters in turn, `run` rows at a time; this is number `index` of them.
    Rows {
        index: usize,
        of: usize,
        run: usize,
    },
}

impl Source {
    /// The shape that the file must have for a parameter of this shape. Sizes are checked before: nothing overflows.
    fn shape(&self, parameter: &Shape) -> Vec<usize> {
        let mut shape = parameter.to_vec();
        match self.part {
            Part::Whole => {}
            Part::Transposed => shape.reverse(),
            Part::Rows { of, .. } => shape[0] *= of,
        }
        shape.extend(self.pointwise.then_some(1));
        shape
    }

    /// The parameter's bytes, row by row, of the file's.
    fn bytes<'a>(&self, view: &TensorView<'a>, parameter: &Shape) -> Cow<'a, [u8]> {
        let all = view.data();
        let Part::Rows { index, of, run } = self.part else {
            return Cow::Borrowed(all);
        };
        let row = all.len() / (parameter[0] * of).max(1);
        let turns = all.chunks((row * run * of).max(1));
        let mine = turns.flat_map(|turn| &turn[row * run * index..row * run * (index + 1)]);
        Cow::Owned(mine.copied().collect())
    }
}

/// A file of weights.
#[derive(Debug)]
pub(crate) struct WeightFile {
    path: PathBuf,
    bytes: Contents,
}

/// How a pickle and a zip archive of pickles begin: what `torch.save` writes.
const PICKLES: [&[u8]; 3] = [b"PK\x03\x04", b"\x80\x02", b"\x80\x04"];

impl WeightFile {
    /// # Errors
    /// If the file cannot be read, or is a pickle.
    pub fn open(path: PathBuf) -> Result<WeightFile> {
        let bytes = map_file(&path).map_err(Error::read(&path))?;
        WeightFile::new(path, Contents::Mapped(bytes))
    }

    /// The file `name` of a folder.
    ///
    /// # Errors
    /// As [`WeightFile::open`].
    pub fn of(dir: &Folder, name: &str) -> Result<WeightFile> {
        let path = dir.path(name);
        let bytes = dir.map(name).map_err(Error::read(&path))?;
        WeightFile::new(path, bytes)
    }

    fn new(path: PathBuf, bytes: Contents) -> Result<WeightFile> {
        // The length of a safetensors header can begin with the same bytes; what follows it cannot be mistaken.
        let has_header = bytes.get(8) == Some(&b'{');
        if !has_header && PICKLES.iter().any(|start| bytes.starts_with(start)) {
            return Err(pickle(&path));
        }
        Ok(WeightFile { path, bytes })
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// # Errors
    /// If it is not a well-formed safetensors file.
    pub fn tensors(&self) -> Result<Tensors<'_>> {
        let file = SafeTensors::deserialize(&self.bytes).map_err(|error| Error::Format {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        Ok(Tensors {
            path: &self.path,
            views: file.tensors().into_iter().collect(),
            used: BTreeSet::new(),
            differences: Vec::new(),
        })
    }
}

/// What refuses a pickle, with the line that converts it.
pub(crate) fn pickle(path: &Path) -> Error {
    let converted = path.with_extension("safetensors");
    Error::Format {
        path: path.to_owned(),
        reason: format!(
            "it is a pickle, which can run code when opened; convert it once with: python -c \"import torch, \
             safetensors.torch as s; d = torch.load('{}', map_location='cpu', weights_only=True); d = d.get('state_dict', d); \
             s.save_file({{k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}}, '{}')\"",
            path.display(),
            converted.display()
        ),
    }
}

/// The tensors of a file, while parameters are looked for in it.
pub(crate) struct Tensors<'a> {
    path: &'a Path,
    views: BTreeMap<String, TensorView<'a>>,
    used: BTreeSet<String>,
    differences: Vec<String>,
}

impl<'a> Tensors<'a> {
    pub fn has(&self, name: &str) -> bool {
        self.views.contains_key(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.views.keys().map(String::as_str)
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(self.views.get(name)?.shape())
    }

    /// Leaves out what is no weight.
    pub fn ignore(&mut self, is_no_weight: impl Fn(&str) -> bool) {
        self.views.retain(|name, _| !is_no_weight(name));
    }

    /// Tensors, their elements, and the dtypes that they have, each once.
    pub fn counted(&self) -> (usize, usize, Vec<String>) {
        let elements = |view: &TensorView| view.shape().iter().product::<usize>();
        let mut dtypes: Vec<Dtype> = self.views.values().map(TensorView::dtype).collect();
        dtypes.sort();
        dtypes.dedup();
        let dtypes = dtypes
            .iter()
            .map(|dtype| format!("{dtype:?}").to_lowercase());
        (
            self.views.len(),
            self.views.values().map(elements).sum(),
            dtypes.collect(),
        )
    }

    /// Shows every tensor's bytes, in the order of the names.
    pub fn each(&self, mut see: impl FnMut(&str, &[u8])) {
        self.views
            .iter()
            .for_each(|(name, view)| see(name, view.data()));
    }

    /// The numbers of a vector, if it is there.
    pub fn floats(&self, name: &str) -> Option<Vec<f64>> {
        let view = self.views.get(name)?;
        let &[len] = view.shape() else { return None };
        let numbers =
            is_float(view.dtype()).then(|| values(view.dtype(), view.data(), Shape::new(&[len])));
        numbers?.to_f64_vec().ok()
    }

    /// Looks for every parameter of a layout where `source` says, but for those that lie nowhere. What does not fit is
    /// told by [`Tensors::check`].
    pub fn find(
        &mut self,
        layout: Arc<ParamLayout>,
        source: impl Fn(&ParamInfo) -> Option<Source>,
    ) -> Found<'a> {
        let mut parts = Vec::with_capacity(layout.len());
        for (id, info) in layout.iter() {
            let Some(source) = source(info) else { continue };
            let shape = source.shape(&info.file_shape());
            let seen = !self.used.insert(source.name.clone());
            let difference = match self.views.get(&source.name) {
                None => Some(format!("{} {shape:?} is missing", source.name)),
                Some(view) if view.shape() != shape => Some(format!(
                    "{} is {:?}, it must be {shape:?}",
                    source.name,
                    view.shape()
                )),
                Some(view) if !is_float(view.dtype()) => Some(format!(
                    "{} holds {:?}, it must hold floating-point numbers",
                    source.name,
                    view.dtype()
                )),
                Some(view) => {
                    parts.push((id, source, view.clone()));
                    None
                }
            };
            // Parameters that share a tensor share its fault.
            self.differences.extend(difference.filter(|_| !seen));
        }
        Found { layout, parts }
    }

    /// # Errors
    /// One that names everything missing, mis-shaped and left over.
    pub fn check(self, class: &'static str) -> Result<()> {
        let left = self
            .views
            .iter()
            .filter(|(name, _)| !self.used.contains(*name));
        let left = left.map(|(name, view)| format!("{name} {:?} is unexpected", view.shape()));
        let differences: Vec<String> = self.differences.into_iter().chain(left).collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::Mismatch {
            path: self.path.to_owned(),
            class,
            differences,
        })
    }
}

/// Parameters that were found, before anything of their size is allocated.
pub(crate) struct Found<'a> {
    layout: Arc<ParamLayout>,
    parts: Vec<(ParamId, Source, TensorView<'a>)>,
}

impl Found<'_> {
    /// Converts one parameter after the other.
    pub fn into_params(self, dtype: DType, device: Device) -> Result<Params> {
        let mut params = Params::zeros(self.layout.clone(), dtype, device);
        for (id, source, view) in &self.parts {
            params.set(*id, &read(source, view, self.layout.info(*id))?)?;
        }
        Ok(params)
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Floating-point numbers as they lie in a file.
fn values(dtype: Dtype, bytes: &[u8], shape: Shape) -> Tensor {
    fn of<T: tensor::Element>(bytes: &[u8], shape: Shape) -> Tensor {
        // Files do not align tensors: the bytes are copied into place.
        let mut values = vec![T::zeroed(); shape.elements()];
        bytemuck::cast_slice_mut(&mut values).copy_from_slice(bytes);
        Tensor::from_slice(&values, shape, Device::Cpu)
    }
    match dtype {
        Dtype::F64 => of::<f64>(bytes, shape),
        Dtype::F16 => of::<f16>(bytes, shape),
        Dtype::BF16 => of::<bf16>(bytes, shape),
        _ => of::<f32>(bytes, shape),
    }
}

/// A parameter in the host's memory, in memory's layout; its dtype is the file's.
fn read(source: &Source, view: &TensorView, info: &ParamInfo) -> Result<Tensor> {
    let parameter = info.file_shape();
    let bytes = source.bytes(view, &parameter);
    let shape = match source.part {
        Part::Transposed => Shape::new(&[parameter[1], parameter[0]]),
        Part::Whole | Part::Rows { .. } => parameter,
    };
    let tensor = values(view.dtype(), &bytes, shape);
    let tensor = match source.part {
        Part::Transposed => tensor.permute(&[1, 0])?,
        Part::Whole | Part::Rows { .. } => tensor,
    };
    Ok(match info.file_layout {
        FileLayout::Same => tensor,
        FileLayout::Oihw => tensor.permute(&[0, 2, 3, 1])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_dealt_in_runs() {
        let rows: Vec<u8> = (0..12).collect();
        let view = TensorView::new(Dtype::U8, vec![12, 1], &rows).unwrap();
        let part = |index, of, run| {
            let source = Source {
                part: Part::Rows { index, of, run },
                ..Source::whole("x")
            };
            source.bytes(&view, &Shape::new(&[12 / of, 1])).into_owned()
        };
        assert_eq!(part(1, 3, 4), [4, 5, 6, 7]);
        assert_eq!(part(1, 3, 2), [2, 3, 8, 9]);
        assert_eq!(part(1, 2, 3), [3, 4, 5, 9, 10, 11]);
    }
}
