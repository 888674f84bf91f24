//! Any component of a model directory, run on given inputs: its outputs, activations and gradients, under the names and
//! in the layouts that diffusers and transformers have for them.
//!
//! Pictures are [n, h, w, c] inside and [n, c, h, w] in the files, here as everywhere.

use std::borrow::Cow;
use std::collections::BTreeMap;

use autograd::ops::mse;
use autograd::{DType, Device, FileLayout, ParamGrads, Params, StepState, Tape, Tensor, Var};
use half::{bf16, f16};
use models::clip::{CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection};
use models::prior::{PriorInputs, PriorTransformer};
use models::text_proj::UnCLIPTextProjModel;
use models::unet::{UNet2DConditionInputs, UNet2DConditionModel, UNet2DModel};
use models::{Folder, Loaded, Model, weights};
use safetensors::{Dtype, SafeTensors, View};

use crate::{Error, Result};

/// What to run, and what to keep of it.
pub struct Request {
    /// Keep the activations whose module path this accepts.
    pub activations: Option<glob::Pattern>,
    /// Keep the gradients of the parameters whose name this accepts.
    pub gradients: Option<glob::Pattern>,
    pub dtype: DType,
    pub device: Device,
}

/// Named tensors in the files' layouts, in the order in which they were made.
pub type Named = Vec<(String, Tensor)>;

/// Inputs by the names of the arguments of the class's `forward`.
pub struct Inputs {
    tensors: BTreeMap<String, Tensor>,
    /// What floating-point inputs are converted to.
    dtype: DType,
    /// Names that the component asked for.
    asked: std::cell::RefCell<Vec<&'static str>>,
}

impl Inputs {
    /// Reads a safetensors file.
    pub fn parse(bytes: &[u8], dtype: DType) -> Result<Inputs> {
        let bad = |e: safetensors::SafeTensorError| {
            Error::usage(format!("the inputs are no safetensors file: {e}"))
        };
        let file = SafeTensors::deserialize(bytes).map_err(bad)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            tensors.insert(name.clone(), from_view(&name, &view)?);
        }
        Ok(Inputs {
            tensors,
            dtype,
            asked: Default::default(),
        })
    }

    /// The input `name` as it is in the file.
    fn raw(&self, name: &'static str) -> Option<&Tensor> {
        self.asked.borrow_mut().push(name);
        self.tensors.get(name)
    }

    fn optional(&self, t: &Tape, name: &'static str) -> Result<Option<Var>> {
        let Some(tensor) = self.raw(name) else {
            return Ok(None);
        };
        if !tensor.dtype().is_float() {
            return Err(Error::usage(format!(
                "{name} must hold floating-point numbers, it holds {}",
                tensor.dtype()
            )));
        }
        Ok(Some(t.constant(inward(&tensor.cast(self.dtype)?)?)))
    }

    fn float(&self, t: &Tape, name: &'static str) -> Result<Var> {
        self.optional(t, name)?.ok_or_else(|| missing(name))
    }

    /// One number for each sample; a single one stands for all.
    fn timestep(&self, t: &Tape, samples: usize) -> Result<Var> {
        let steps = self.raw("timestep").ok_or_else(|| missing("timestep"))?;
        let mut values = steps.to_f64_vec()?;
        if values.len() == 1 {
            values = vec![values[0]; samples];
        }
        Ok(t.constant(Tensor::from_f64(
            &values,
            [values.len()],
            self.dtype,
            Device::Cpu,
        )))
    }

    fn ids(&self, name: &'static str) -> Result<Tensor> {
        let ids = self.raw(name).ok_or_else(|| missing(name))?;
        let integer = !ids.dtype().is_float() && ids.dtype() != DType::Bool;
        if !integer {
            return Err(Error::usage(format!(
                "{name} must hold integers, it holds {}",
                ids.dtype()
            )));
        }
        let values: Vec<i32> = ids.to_f64_vec()?.iter().map(|&v| v as i32).collect();
        Ok(Tensor::from_slice(&values, ids.shape(), Device::Cpu))
    }

    /// True (or not zero) where there is something to attend to.
    fn mask(&self, name: &'static str) -> Result<Option<Tensor>> {
        let Some(mask) = self.raw(name) else {
            return Ok(None);
        };
        let kept: Vec<bool> = mask.to_f64_vec()?.iter().map(|&v| v != 0.0).collect();
        Ok(Some(Tensor::from_bools(&kept, mask.shape(), Device::Cpu)))
    }

    /// An error for the inputs that nothing asked for.
    fn check_all_used(&self) -> Result<()> {
        let asked = self.asked.borrow();
        let unused = self
            .tensors
            .keys()
            .find(|name| !asked.contains(&name.as_str()));
        match unused {
            None => Ok(()),
            Some(name) => Err(Error::usage(format!(
                "this component has no input {name}; it takes {}",
                asked.join(", ")
            ))),
        }
    }
}

fn missing(name: &str) -> Error {
    Error::usage(format!("the input {name} is missing"))
}

/// A component that can be probed: how its inputs and outputs are called.
trait Probe: Model {
    /// The outputs by name, the first of which a target is compared with.
    fn run(&self, t: &Tape, inputs: &Inputs) -> Result<Vec<(&'static str, Var)>>;
}

impl Probe for UNet2DConditionModel {
    fn run(&self, t: &Tape, inputs: &Inputs) -> Result<Vec<(&'static str, Var)>> {
        let sample = inputs.float(t, "sample")?; // [n, h, w, in]
        let timestep = inputs.timestep(t, sample.dims()[0])?;
        let context = inputs.optional(t, "encoder_hidden_states")?;
        let labels = inputs.optional(t, "class_labels")?;
        let mask = inputs.mask("attention_mask")?;
        let output = self.forward(
            t,
            UNet2DConditionInputs {
                sample: &sample,
                timestep: &timestep,
                encoder_hidden_states: context.as_ref(),
                class_labels: labels.as_ref(),
                attention_mask: mask.as_ref(),
            },
        )?;
        Ok(vec![("sample", output)])
    }
}

impl Probe for UNet2DModel {
    fn run(&self, t: &Tape, inputs: &Inputs) -> Result<Vec<(&'static str, Var)>> {
        let sample = inputs.float(t, "sample")?; // [n, h, w, in]
        let timestep = inputs.timestep(t, sample.dims()[0])?;
        let labels = inputs.optional(t, "class_labels")?;
        let output = self.forward(t, &sample, &timestep, labels.as_ref())?;
        Ok(vec![("sample", output)])
    }
}

impl Probe for PriorTransformer {
    fn run(&self, t: &Tape, inputs: &Inputs) -> Result<Vec<(&'static str, Var)>> {
        let hidden_states = inputs.float(t, "hidden_states")?; // [n, d]
        let timestep = inputs.timestep(t, hidden_states.dims()[0])?;
        let proj_embedding = inputs.float(t, "proj_embedding")?;
        let encoder_hidden_states = inputs.float(t, "encoder_hidden_states")?;
        let mask = inputs.mask("attention_mask")?;
        let output = self.forward(
            t,
            PriorInputs {
                hidden_states: &hidden_states,
                timestep: &timestep,
                proj_embedding: &proj_embedding,
                encoder_hidden_states: &encoder_hidden_states,
                attention_mask: mask.as_ref(),
            },
        )?;
        Ok(vec![("predicted_image_embedding", output)])
    }
}

impl Probe for UnCLIPTextProjModel {
    fn run(&self, t: &Tape, inputs: &Inputs) -> Result<Vec<(&'static str, Var)>> {
        let made = self.forward(
            t,
            &inputs.float(t, "image_embeddings")?,
            &inputs.float(t, "prompt_embeds")?,
            &inputs.float(t, "text_encoder_hidden_states")?,
        )?;
        Ok(vec![
            ("text_encoder_hidden_states", made.context),
            ("additive_clip_time_embeddings", made.time),
        ])
    }
}

impl Probe for CLIPModel {
    fn run(&self, t: &Tape, inputs: &Inputs) -> Result<Vec<(&'static str, Var)>> {
        let ids = inputs.ids("input_ids")?;
        let mask = inputs.mask("attention_mask")?;
        let pixels = inputs.float(t, "pixel_values")?;
        let made = self.forward(t, &ids, mask.as_ref(), &pixels)?;
        let per_image = autograd::ops::permute::permute(t, &made.logits_per_text, &[1, 0])?;
        Ok(vec![
            ("logits_per_image", per_image),
            ("logits_per_text", made.logits_per_text),
            ("text_embeds", made.text_embeds),
            ("image_embeds", made.image_embeds),
            ("loss", made.loss),
        ])
    }
}

impl Probe for CLIPTextModelWithProjection {
    fn run(&self, t: &Tape, inputs: &Inputs) -> Result<Vec<(&'static str, Var)>> {
        let ids = inputs.ids("input_ids")?;
        let made = self.forward(t, &ids, inputs.mask("attention_mask")?.as_ref())?;
        Ok(vec![
            ("text_embeds", made.text_embeds),
            ("last_hidden_state", made.last_hidden_state),
        ])
    }
}

impl Probe for CLIPVisionModelWithProjection {
    fn run(&self, t: &Tape, inputs: &Inputs) -> Result<Vec<(&'static str, Var)>> {
        let made = self.forward(t, &inputs.float(t, "pixel_values")?)?;
        Ok(vec![
            ("image_embeds", made.image_embeds),
            ("last_hidden_state", made.last_hidden_state),
        ])
    }
}

/// Runs the component of `dir`, whose `config.json` says what it is.
pub fn probe(dir: &Folder, inputs: &Inputs, request: &Request) -> Result<Named> {
    match &*weights::class_of(dir)? {
        "UNet2DConditionModel" => of_class::<UNet2DConditionModel>(dir, inputs, request),
        "UNet2DModel" => of_class::<UNet2DModel>(dir, inputs, request),
        "PriorTransformer" => of_class::<PriorTransformer>(dir, inputs, request),
        "UnCLIPTextProjModel" => of_class::<UnCLIPTextProjModel>(dir, inputs, request),
        "CLIPModel" => of_class::<CLIPModel>(dir, inputs, request),
        "CLIPTextModelWithProjection" => {
            of_class::<CLIPTextModelWithProjection>(dir, inputs, request)
        }
        "CLIPVisionModelWithProjection" => {
            of_class::<CLIPVisionModelWithProjection>(dir, inputs, request)
        }
        other => Err(Error::usage(format!(
            "{} describes a {other}, which cannot be probed",
            dir.path("config.json").display()
        ))),
    }
}

fn of_class<M: Probe>(dir: &Folder, inputs: &Inputs, request: &Request) -> Result<Named> {
    let Loaded { model, params } = weights::load::<M>(dir.clone(), request.dtype, request.device)?;
    let mut t = match &request.gradients {
        // Dropout stays off: what is probed is the function.
        Some(_) => {
            Tape::training(&params, StepState::default()).with_mode(autograd::Mode::Evaluate)
        }
        None => Tape::inference(Some(&params)),
    };
    if let Some(wanted) = request.activations.clone() {
        t = t.with_taps(move |path| wanted.matches(path));
    }
    let mut outputs = model.run(&t, inputs)?;
    if let Some(target) = inputs.optional(&t, "target")? {
        let loss = mse::mse(&t, &outputs[0].1, &target, None)?;
        outputs.retain(|(name, _)| *name != "loss");
        outputs.push(("loss", loss));
    }
    inputs.check_all_used()?;
    let mut named: Named = Vec::new();
    for (name, value) in &outputs {
        named.push(((*name).to_owned(), outward(value.tensor())?));
    }
    for (name, value) in t.taken() {
        // An attention map, [n, heads, queries, keys], is the only activation of rank 4 that is no picture.
        let value = match name.ends_with("probs") {
            true => value.contiguous()?,
            false => outward(&value)?,
        };
        named.push((name, value));
    }
    if let Some(wanted) = &request.gradients {
        let loss = outputs.iter().find(|(name, _)| *name == "loss");
        let (_, loss) = loss.ok_or_else(|| {
            Error::usage("gradients are those of a loss: give an input named target, which the first output is compared with")
        })?;
        let grads = t.backward(loss, ParamGrads::new(&params))?.into_params();
        named.extend(gradients(&params, &grads, wanted)?);
    }
    Ok(named)
}

fn gradients(params: &Params, grads: &ParamGrads, wanted: &glob::Pattern) -> Result<Named> {
    let mut named = Named::new();
    for (id, info) in params.layout().iter() {
        if wanted.matches(&info.name) {
            let gradient = grads.get(id)?;
            let gradient = match info.file_layout {
                FileLayout::Same => gradient,
                FileLayout::Oihw => gradient.permute(&[0, 3, 1, 2])?,
            };
            named.push((info.name.clone(), gradient.contiguous()?));
        }
    }
    Ok(named)
}

/// What the activations and gradients of a component can be asked for by, with their shapes in files.
///
/// # Errors
/// As [`probe`].
pub fn list(dir: &Folder, inputs: &Inputs, request: &Request) -> Result<Vec<String>> {
    let everything = glob::Pattern::new("*").map_err(|e| Error::failure(e.to_string()))?;
    let all = Request {
        activations: Some(everything),
        gradients: None,
        ..*request
    };
    let named = probe(dir, inputs, &all)?;
    Ok(named
        .iter()
        .map(|(name, x)| format!("{name} {}", x.shape()))
        .collect())
}

/// [n, c, h, w] → [n, h, w, c]; other ranks as they are.
pub(crate) fn inward(x: &Tensor) -> Result<Tensor> {
    match x.rank() {
        4 => Ok(x.permute(&[0, 2, 3, 1])?.contiguous()?),
        _ => Ok(x.clone()),
    }
}

/// [n, h, w, c] → [n, c, h, w]; other ranks as they are.
pub(crate) fn outward(x: &Tensor) -> Result<Tensor> {
    match x.rank() {
        4 => Ok(x.permute(&[0, 3, 1, 2])?.contiguous()?),
        _ => Ok(x.contiguous()?),
    }
}

pub(crate) fn from_view(name: &str, view: &safetensors::tensor::TensorView) -> Result<Tensor> {
    fn read<T: tensor::Element>(bytes: &[u8], shape: &[usize]) -> Tensor {
        let mut values = vec![T::zeroed(); bytes.len() / size_of::<T>()];
        bytemuck::cast_slice_mut(&mut values).copy_from_slice(bytes);
        Tensor::from_slice(&values, tensor::Shape::new(shape), Device::Cpu)
    }
    let (bytes, shape) = (view.data(), view.shape());
    if shape.len() > tensor::MAX_RANK {
        return Err(Error::usage(format!(
            "{name} has {} dimensions, {} is the most",
            shape.len(),
            tensor::MAX_RANK
        )));
    }
    Ok(match view.dtype() {
        Dtype::F64 => read::<f64>(bytes, shape),
        Dtype::F32 => read::<f32>(bytes, shape),
        Dtype::F16 => read::<f16>(bytes, shape),
        Dtype::BF16 => read::<bf16>(bytes, shape),
        Dtype::I64 => read::<i64>(bytes, shape),
        Dtype::I32 => read::<i32>(bytes, shape),
        Dtype::U8 => read::<u8>(bytes, shape),
        Dtype::BOOL => {
            let values: Vec<bool> = bytes.iter().map(|&b| b != 0).collect();
            Tensor::from_bools(&values, tensor::Shape::new(shape), Device::Cpu)
        }
        other => {
            return Err(Error::usage(format!(
                "{name} holds {other:?}, which is not read here"
            )));
        }
    })
}

/// A float tensor as it goes into a file.
struct Stored(Tensor);

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        match self.0.dtype() {
            DType::F64 => Dtype::F64,
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        self.0.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.0.dtype() {
            DType::F64 => self.0.as_slice::<f64>().map(bytemuck::cast_slice),
            _ => self.0.as_slice::<f32>().map(bytemuck::cast_slice),
        }
        .map_or(Cow::Owned(Vec::new()), Cow::Borrowed)
    }

    fn data_len(&self) -> usize {
        self.0.len() * self.0.dtype().size()
    }
}

/// Named float tensors as the bytes of a safetensors file.
pub fn serialize(named: &Named) -> Result<Vec<u8>> {
    let stored: Vec<(String, Stored)> = named
        .iter()
        .map(|(name, x)| Ok((name.clone(), Stored(x.to_host()?))))
        .collect::<Result<_>>()?;
    let views = stored.iter().map(|(name, x)| (name.as_str(), x));
    safetensors::serialize(views, None)
        .map_err(|e| Error::failure(format!("cannot write the outputs: {e}")))
}
