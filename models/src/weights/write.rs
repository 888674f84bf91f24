//! Weight files as they are written: one tensor at a time, so that no second copy of a model is ever in memory.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use autograd::{DType, Device, FileLayout, ParamId, ParamInfo, ParamLayout, Params};
use half::{bf16, f16};
use kernels::buffer::trim_pool;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use tensor::Tensor;

use super::{atomically, save_config};
use crate::model::{Model, declare};
use crate::{Error, Result};

/// How parameters are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As they are in memory.
    Full,
    /// Rounded to bf16: half the size of f32.
    Bf16,
    /// Rounded to f16: half the size of f32, and what lies beyond 65,504 is lost.
    F16,
}

impl Precision {
    /// The dtype in the file of parameters that are `own` in memory.
    pub fn stored(self, own: DType) -> DType {
        match self {
            Precision::Full if own == DType::F64 => DType::F64,
            Precision::Full => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::F16 => DType::F16,
        }
    }
}

/// Writes a component that the class's own library opens as it is. Each file appears whole or not at all.
pub fn save<M: Model>(dir: &Path, model: &M, params: &Params, precision: Precision) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::write(dir))?;
    save_params(
        &dir.join(M::CLASS.library.weights_file()),
        params,
        precision,
    )?;
    save_config(dir, M::CLASS, model.config(), params.dtype(), precision)
}

/// Writes a new component: what [`Loaded::init`](crate::Loaded::init) with the same seed holds in f32, of which no more
/// than one parameter is ever in memory.
pub fn save_initial<M: Model>(
    dir: &Path,
    config: &M::Config,
    seed: u64,
    precision: Precision,
) -> Result<()> {
    let own = DType::F32;
    let (model, layout) = declare::<M>(config)?;
    fs::create_dir_all(dir).map_err(Error::write(dir))?;
    let file = dir.join(M::CLASS.library.weights_file());
    write_params(&file, &layout, precision.stored(own), |_, info| {
        // The one before had another size: what all of them leave unused adds up to gigabytes.
        trim_pool();
        Ok(info.initial(seed, own, Device::Cpu)?)
    })?;
    save_config(dir, M::CLASS, model.config(), own, precision)
}

/// Writes parameters under their names and in PyTorch's shapes.
pub fn save_params(path: &Path, params: &Params, precision: Precision) -> Result<()> {
    let dtype = precision.stored(params.dtype());
    write_params(path, params.layout(), dtype, |id, _| Ok(params.get(id)?))
}

/// Writes the parameters of a layout; `value` is asked for one after the other, shaped as in memory.
fn write_params(
    path: &Path,
    layout: &ParamLayout,
    dtype: DType,
    value: impl Fn(ParamId, &ParamInfo) -> Result<Tensor>,
) -> Result<()> {
    // By name, as the safetensors library orders tensors of one dtype.
    let mut order: Vec<_> = layout.iter().collect();
    order.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
    let mut end = 0;
    let entries = order.iter().map(|(_, info)| {
        let start = end;
        end += info.shape.elements() * dtype.size();
        let entry = TensorInfo {
            dtype: in_file(dtype),
            shape: info.file_shape().to_vec(),
            data_offsets: (start, end),
        };
        (info.name.clone(), entry)
    });
    let header = header(entries.collect(), path)?;
    atomically(path, |temporary| {
        let mut file = File::create(temporary).map_err(Error::write(path))?;
        let mut out = BufWriter::with_capacity(1 << 20, &mut file);
        out.write_all(&header).map_err(Error::write(path))?;
        for (id, info) in order {
            let value = stored(value(id, info)?, info, dtype)?;
            out.write_all(bytes(&value, dtype)?)
                .map_err(Error::write(path))?;
        }
        out.flush().map_err(Error::write(path))
    })
}

/// The beginning of a safetensors file: the length of its JSON, which fills whole words, and that.
fn header(entries: Vec<(String, TensorInfo)>, path: &Path) -> Result<Vec<u8>> {
    let unwritable = |reason: String| Error::Format {
        path: path.to_owned(),
        reason,
    };
    // transformers opens only files that say which framework wrote them.
    let framework = [("format".to_owned(), "pt".to_owned())].into();
    let metadata =
        Metadata::new(Some(framework), entries).map_err(|error| unwritable(error.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| unwritable(error.to_string()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes(), json.as_slice()].concat())
}

/// A parameter as it goes into a file: on the host, in row-major order of the file's shape.
fn stored(value: Tensor, info: &ParamInfo, dtype: DType) -> Result<Tensor> {
    let value = match info.file_layout {
        FileLayout::Same => value,
        FileLayout::Oihw => value.permute(&[0, 3, 1, 2])?,
    };
    Ok(value.to_host()?.cast(dtype)?.contiguous()?)
}

fn bytes(value: &Tensor, dtype: DType) -> tensor::Result<&[u8]> {
    Ok(match dtype {
        DType::F64 => bytemuck::cast_slice(value.as_slice::<f64>()?),
        DType::BF16 => bytemuck::cast_slice(value.as_slice::<bf16>()?),
        DType::F16 => bytemuck::cast_slice(value.as_slice::<f16>()?),
        _ => bytemuck::cast_slice(value.as_slice::<f32>()?),
    })
}

/// The name of a dtype that parameters are stored in.
fn in_file(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    }
}
