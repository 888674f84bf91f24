//! Weight files: safetensors under other libraries' names and in their shapes, and the directories that hold them.
//!
//! A component is `<dir>/config.json` beside one weight file, as diffusers and transformers save it. Convolution
//! weights are [out, kh, kw, in] in memory and [out, in, kh, kw] in files; [`load`] and [`save`] are the one place
//! where that changes.

pub(crate) mod file;
mod write;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use autograd::{DType, Device, ParamLayout, Params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

pub use self::write::{Precision, save, save_initial, save_params};

use self::file::{Found, Source, WeightFile, pickle};
use crate::diffusion::{AnalyticVariance, SchedulerConfig};
use crate::folder::Folder;
use crate::model::{Class, Library, Loaded, Model, declare};
use crate::{Error, Result};

/// The release of diffusers whose directories are written.
pub const DIFFUSERS_VERSION: &str = "0.33.1";
const TRANSFORMERS_VERSION: &str = "4.51.3";
/// A component's configuration, and a scheduler's.
const CONFIG: &str = "config.json";
const SCHEDULER: &str = "scheduler_config.json";
/// A configuration longer than this is refused before it is parsed.
const LONGEST_JSON: u64 = 16 << 20;

impl Library {
    /// The name of the weight file in a component's directory.
    pub fn weights_file(self) -> &'static str {
        match self {
            Library::Diffusers => "diffusion_pytorch_model.safetensors",
            Library::Transformers => "model.safetensors",
        }
    }

    /// The pickle that older releases wrote instead.
    fn pickle_file(self) -> &'static str {
        match self {
            Library::Diffusers => "diffusion_pytorch_model.bin",
            Library::Transformers => "pytorch_model.bin",
        }
    }
}

/// Reads a component: its configuration decides what is built, and every weight must fit.
///
/// # Errors
/// Missing, unexpected and mis-shaped weights are all named in one error; pickles are refused with what converts them.
pub fn load<M: Model>(dir: impl Into<Folder>, dtype: DType, device: Device) -> Result<Loaded<M>> {
    fitting(&dir.into(), |model, found| {
        let params = found.into_params(dtype, device)?;
        Ok(Loaded { model, params })
    })
}

/// Refuses what [`load`] would refuse, without reading a weight, and says what the component's configuration is.
pub fn check<M: Model>(dir: &Folder) -> Result<M::Config> {
    fitting(dir, |model: M, _| Ok(model.config().clone()))
}

/// Finds the weights of a component, all of which fit.
fn fitting<M: Model, T>(dir: &Folder, then: impl FnOnce(M, Found) -> Result<T>) -> Result<T> {
    let (model, layout) = declare::<M>(&load_config::<M>(dir)?)?;
    let file = M::CLASS.library.weights_file();
    let old = M::CLASS.library.pickle_file();
    if !dir.has(file) && dir.has(old) {
        return Err(pickle(&dir.path(old)));
    }
    let file = WeightFile::of(dir, file)?;
    then(model, find(&file, M::CLASS.name, layout)?)
}

/// Finds the parameters of a layout under their own names.
fn find<'a>(
    file: &'a WeightFile,
    class: &'static str,
    layout: Arc<ParamLayout>,
) -> Result<Found<'a>> {
    let mut tensors = file.tensors()?;
    // A constant counter that older transformers saved beside the weights.
    tensors.ignore(|name| name.ends_with("embeddings.position_ids"));
    let found = tensors.find(layout, |info| Some(Source::whole(&info.name)));
    tensors.check(class)?;
    Ok(found)
}

/// Reads a component's configuration.
pub fn load_config<M: Model>(dir: &Folder) -> Result<M::Config> {
    let mut fields = load_object(dir, CONFIG)?;
    let path = dir.path(CONFIG);
    let class = named_class(&fields);
    if let Some(class) = class.filter(|class| class != M::CLASS.name) {
        return Err(Error::Json {
            path,
            reason: format!("it describes a {class}, a {} is needed", M::CLASS.name),
        });
    }
    if let Some(fields) = fields.as_object_mut() {
        fields.retain(|name, _| !name.starts_with('_') && !BOOKKEEPING.contains(&name.as_str()));
    }
    parse(fields, path)
}

/// The class that a component's `config.json` names.
///
/// # Errors
/// If there is no such file, or it names none.
pub fn class_of(dir: &Folder) -> Result<String> {
    named_class(&load_object(dir, CONFIG)?).ok_or_else(|| Error::Json {
        path: dir.path(CONFIG),
        reason: "it names no class, neither as _class_name nor under architectures".into(),
    })
}

fn named_class(fields: &Value) -> Option<String> {
    let class = match fields.get("_class_name") {
        Some(name) => Some(name),
        None => fields["architectures"].get(0),
    };
    class.and_then(Value::as_str).map(str::to_owned)
}

/// What a component's files hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    pub class: String,
    pub tensors: usize,
    /// Elements of all tensors.
    pub parameters: usize,
    /// The dtypes that there are, such as `bf16`.
    pub dtypes: Vec<String>,
    /// Of the weight file.
    pub bytes: u64,
}

/// What a component's files hold, by their beginnings; nothing if the folder holds no network's.
///
/// # Errors
/// If there are a configuration and weights, and one of them cannot be read.
pub fn describe(dir: &Folder) -> Result<Option<Description>> {
    let files = [Library::Diffusers, Library::Transformers].map(Library::weights_file);
    let Some(file) = files.into_iter().find(|file| dir.has(file)) else {
        return Ok(None);
    };
    if !dir.has(CONFIG) {
        return Ok(None);
    }
    let file = WeightFile::of(dir, file)?;
    let (tensors, parameters, dtypes) = file.tensors()?.counted();
    Ok(Some(Description {
        class: class_of(dir)?,
        tensors,
        parameters,
        dtypes,
        bytes: file.len() as u64,
    }))
}

/// Shows `see` every tensor of a component's weight file as it is stored, in the order of their names.
///
/// # Errors
/// If there is no such file, or it is not well-formed.
pub fn each_tensor(dir: &Folder, library: Library, see: impl FnMut(&str, &[u8])) -> Result<()> {
    WeightFile::of(dir, library.weights_file())?
        .tensors()?
        .each(see);
    Ok(())
}

/// Fields that say who wrote a file, not what is in it: they are written anew.
const BOOKKEEPING: [&str; 5] = [
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
];

/// Reads a JSON file that holds one object.
pub(crate) fn load_object(dir: &Folder, name: &str) -> Result<Value> {
    let path = dir.path(name);
    let bytes = dir.read(name, LONGEST_JSON).map_err(Error::read(&path))?;
    let reason = match serde_json::from_slice::<Value>(&bytes) {
        Ok(value) if value.is_object() => return Ok(value),
        Ok(_) => "it must hold a JSON object".into(),
        Err(error) => format!("it is not valid JSON: {error}"),
    };
    Err(Error::Json { path, reason })
}

pub(crate) fn parse<T: DeserializeOwned>(value: Value, path: PathBuf) -> Result<T> {
    serde_json::from_value(value).map_err(|error| Error::Json {
        path,
        reason: error.to_string(),
    })
}

/// Reads the parameters of a layout from a safetensors file.
///
/// # Errors
/// As [`load`].
pub fn load_params(
    dir: &Folder,
    file: &str,
    class: &'static str,
    layout: Arc<ParamLayout>,
    dtype: DType,
    device: Device,
) -> Result<Params> {
    let file = WeightFile::of(dir, file)?;
    find(&file, class, layout)?.into_params(dtype, device)
}

fn save_config(
    dir: &Path,
    class: Class,
    config: &impl Serialize,
    dtype: DType,
    precision: Precision,
) -> Result<()> {
    let path = dir.join(CONFIG);
    let mut fields = to_object(config, &path)?;
    match class.library {
        Library::Diffusers => {
            fields.insert("_class_name".into(), json!(class.name));
            fields.insert("_diffusers_version".into(), json!(DIFFUSERS_VERSION));
        }
        Library::Transformers => {
            let dtype = match precision.stored(dtype) {
                DType::F64 => "float64",
                DType::BF16 => "bfloat16",
                DType::F16 => "float16",
                _ => "float32",
            };
            fields.insert("architectures".into(), json!([class.name]));
            fields.insert("model_type".into(), json!(model_type(class.name)));
            fields.insert("torch_dtype".into(), json!(dtype));
            fields.insert("transformers_version".into(), json!(TRANSFORMERS_VERSION));
        }
    }
    save_json(&path, &Value::Object(fields))
}

/// transformers' name for the kind of configuration.
fn model_type(class: &str) -> &'static str {
    match class {
        "CLIPTextModelWithProjection" => "clip_text_model",
        "CLIPVisionModelWithProjection" => "clip_vision_model",
        _ => "clip",
    }
}

pub(crate) fn to_object(value: &impl Serialize, path: &Path) -> Result<Map<String, Value>> {
    let unwritable = |reason: String| Error::Json {
        path: path.to_owned(),
        reason,
    };
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(unwritable("a configuration must be a JSON object".into())),
        Err(error) => Err(unwritable(error.to_string())),
    }
}

pub(crate) fn save_json(path: &Path, value: &Value) -> Result<()> {
    atomically(path, |temporary| {
        fs::write(temporary, format!("{value:#}\n")).map_err(Error::write(path))
    })
}

/// Writes a file beside `path`, flushes it to the disk, and only then gives it its name.
pub(crate) fn atomically(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let name_it = || {
        File::options().write(true).open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all() // the name is on the disk only when its directory is
    };
    let outcome = write(&temporary).and_then(|()| name_it().map_err(Error::write(path)));
    if outcome.is_err() {
        let _ = fs::remove_file(&temporary); // what matters is the error that is being returned
    }
    outcome
}

/// Reads `scheduler_config.json` of a directory, and the analytic variance beside it, if there is one.
pub fn load_scheduler(dir: &Folder) -> Result<SchedulerConfig> {
    let mut fields = load_object(dir, SCHEDULER)?;
    let path = dir.path(SCHEDULER);
    let class = &fields["_class_name"];
    if class != SchedulerConfig::CLASS {
        let reason = format!("it describes {class}, {} is needed", SchedulerConfig::CLASS);
        return Err(Error::Json { path, reason });
    }
    if let Some(fields) = fields.as_object_mut() {
        fields.retain(|name, _| !name.starts_with('_'));
    }
    let mut config: SchedulerConfig = parse(fields, path)?;
    config.analytic_variance = AnalyticVariance::load(dir)?.map(Arc::new);
    config.check()?;
    Ok(config)
}

/// Writes what [`load_scheduler`] reads.
pub fn save_scheduler(dir: &Path, config: &SchedulerConfig) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::write(dir))?;
    let path = dir.join(SCHEDULER);
    let mut fields = to_object(config, &path)?;
    fields.insert("_class_name".into(), json!(SchedulerConfig::CLASS));
    fields.insert("_diffusers_version".into(), json!(DIFFUSERS_VERSION));
    if let Some(variance) = &config.analytic_variance {
        variance.save(dir)?;
    }
    save_json(&path, &Value::Object(fields))
}

/// Cuts a model out of a larger one that has all its parameters under the same names, such as an encoder out of CLIP.
///
/// # Errors
/// If a parameter is missing or has another shape.
pub fn cut<M: Model>(whole: &Params, config: &M::Config) -> Result<Loaded<M>> {
    let (model, layout) = declare::<M>(config)?;
    let mut params = Params::zeros(layout.clone(), whole.dtype(), whole.device());
    for (id, info) in layout.iter() {
        let Some(source) = whole.layout().find(&info.name) else {
            return Err(Error::config(
                M::CLASS.name,
                format!("there is no {} to cut out", info.name),
            ));
        };
        params.set(id, &whole.get(source)?)?;
    }
    Ok(Loaded { model, params })
}
