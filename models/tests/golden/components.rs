//! Outputs, losses, all gradients, and ten steps of AdamW.

use std::collections::BTreeMap;

use autograd::ops::{binary, concat, mse, permute};
use autograd::{
    DType, Decay, Device, FileLayout, Mode, ParamGrads, ParamInfo, Params, Result, StepState, Tape,
    Tensor, Var,
};
use models::clip::{CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection};
use models::nn::repeat;
use models::prior::{PriorInputs, PriorTransformer};
use models::text_proj::UnCLIPTextProjModel;
use models::unet::{UNet2DConditionInputs, UNet2DConditionModel, UNet2DModel};
use models::{Loaded, Model};
use serde::Deserialize;
use tensor::ops::optimizer::{self, AdamW, Arenas, Run};

use crate::files::{Report, json, largest, tensors};
use crate::formula;

const GRADIENT_BLOCK: usize = 16;
const WEIGHT_BLOCK: usize = 64;

#[derive(Deserialize)]
struct Golden {
    adamw: Settings,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Settings {
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    model: String,
    config: serde_json::Value,
    inputs: BTreeMap<String, Vec<usize>>,
    timestep: Option<Vec<f64>>,
    input_ids: Option<Vec<Vec<i64>>>,
    attention_mask: Option<Vec<Vec<u8>>>,
    guidance: Option<bool>,
    largest_gradient: f64,
}

impl Case {
    fn optional(&self, t: &Tape, name: &str) -> Result<Option<Var>> {
        let Some(shape) = self.inputs.get(name) else {
            return Ok(None);
        };
        let x = formula::values(&format!("{}/{name}", self.name), shape);
        Ok(Some(t.constant(formula::inward(&x).cast(t.dtype()?)?)))
    }

    fn input(&self, t: &Tape, name: &str) -> Result<Var> {
        Ok(self.optional(t, name)?.unwrap())
    }

    fn timestep(&self, t: &Tape) -> Result<Var> {
        let steps = self.timestep.as_ref().unwrap();
        let shape = [steps.len()];
        Ok(t.constant(Tensor::from_f64(steps, shape, t.dtype()?, Device::Cpu)))
    }

    fn ids(&self) -> Tensor {
        let rows = self.input_ids.as_ref().unwrap();
        Tensor::from_slice(&rows.concat(), [rows.len(), rows[0].len()], Device::Cpu)
    }

    fn mask(&self) -> Option<Tensor> {
        let rows = self.attention_mask.as_ref()?;
        let kept: Vec<bool> = rows.concat().iter().map(|&b| b != 0).collect();
        let shape = [rows.len(), rows[0].len()];
        Some(Tensor::from_bools(&kept, shape, Device::Cpu))
    }
}

type Outputs = Vec<(&'static str, Var)>;

/// A class that golden files exist of.
trait Subject: Model {
    /// The outputs under the other library's names, and the loss where the class has its own.
    fn run(&self, t: &Tape, case: &Case) -> Result<(Outputs, Option<Var>)>;
}

impl Subject for CLIPModel {
    fn run(&self, t: &Tape, case: &Case) -> Result<(Outputs, Option<Var>)> {
        let pixels = case.input(t, "pixel_values")?;
        let made = self.forward(t, &case.ids(), case.mask().as_ref(), &pixels)?;
        let per_image = permute::permute(t, &made.logits_per_text, &[1, 0])?;
        let outputs = vec![
            ("logits_per_image", per_image),
            ("text_embeds", made.text_embeds),
            ("image_embeds", made.image_embeds),
        ];
        Ok((outputs, Some(made.loss)))
    }
}

impl Subject for CLIPTextModelWithProjection {
    fn run(&self, t: &Tape, case: &Case) -> Result<(Outputs, Option<Var>)> {
        let made = self.forward(t, &case.ids(), case.mask().as_ref())?;
        let outputs = vec![
            ("text_embeds", made.text_embeds),
            ("last_hidden_state", made.last_hidden_state),
        ];
        Ok((outputs, None))
    }
}

impl Subject for CLIPVisionModelWithProjection {
    fn run(&self, t: &Tape, case: &Case) -> Result<(Outputs, Option<Var>)> {
        let made = self.forward(t, &case.input(t, "pixel_values")?)?;
        let outputs = vec![
            ("image_embeds", made.image_embeds),
            ("last_hidden_state", made.last_hidden_state),
        ];
        Ok((outputs, None))
    }
}

impl Subject for PriorTransformer {
    fn run(&self, t: &Tape, case: &Case) -> Result<(Outputs, Option<Var>)> {
        let mask = case.mask();
        let inputs = PriorInputs {
            hidden_states: &case.input(t, "hidden_states")?,
            timestep: &case.timestep(t)?,
            proj_embedding: &case.input(t, "proj_embedding")?,
            encoder_hidden_states: &case.input(t, "encoder_hidden_states")?,
            attention_mask: mask.as_ref(),
        };
        let output = self.forward(t, inputs)?;
        Ok((vec![("predicted_image_embedding", output)], None))
    }
}

impl Subject for UnCLIPTextProjModel {
    fn run(&self, t: &Tape, case: &Case) -> Result<(Outputs, Option<Var>)> {
        let mut images = case.input(t, "image_embeddings")?;
        if case.guidance == Some(true) {
            let nothing = repeat(t, &self.unconditional(t)?, images.dims()[0])?;
            images = concat::concat(t, &[&nothing, &images], 0)?;
        }
        let states = case.input(t, "text_encoder_hidden_states")?;
        let made = self.forward(t, &images, &case.input(t, "prompt_embeds")?, &states)?;
        let outputs = vec![
            ("text_encoder_hidden_states", made.context),
            ("additive_clip_time_embeddings", made.time),
        ];
        Ok((outputs, None))
    }
}

impl Subject for UNet2DConditionModel {
    fn run(&self, t: &Tape, case: &Case) -> Result<(Outputs, Option<Var>)> {
        let context = case.optional(t, "encoder_hidden_states")?;
        let (labels, mask) = (case.optional(t, "class_labels")?, case.mask());
        let inputs = UNet2DConditionInputs {
            sample: &case.input(t, "sample")?,
            timestep: &case.timestep(t)?,
            encoder_hidden_states: context.as_ref(),
            class_labels: labels.as_ref(),
            attention_mask: mask.as_ref(),
        };
        Ok((vec![("sample", self.forward(t, inputs)?)], None))
    }
}

impl Subject for UNet2DModel {
    fn run(&self, t: &Tape, case: &Case) -> Result<(Outputs, Option<Var>)> {
        let labels = case.optional(t, "class_labels")?;
        let sample = case.input(t, "sample")?;
        let output = self.forward(t, &sample, &case.timestep(t)?, labels.as_ref())?;
        Ok((vec![("sample", output)], None))
    }
}

/// Outputs in PyTorch's layout, and the loss: CLIP's own, or the mean squared distance of every output to its target.
fn forward<M: Subject>(model: &M, t: &Tape, case: &Case) -> (Vec<(&'static str, Vec<f64>)>, Var) {
    let (outputs, own) = model.run(t, case).unwrap();
    let mut loss = own;
    let mut values = Vec::new();
    for (name, output) in &outputs {
        let seen = formula::outward(output.tensor());
        if case.model != "CLIPModel" {
            let target = formula::values(&format!("{}/target.{name}", case.name), seen.dims());
            let target = formula::inward(&target).cast(output.dtype()).unwrap();
            let error = mse::mse(t, output, &t.constant(target), None).unwrap();
            loss = Some(match loss {
                None => error,
                Some(others) => binary::add(t, &others, &error).unwrap(),
            });
        }
        values.push((*name, seen.to_f64_vec().unwrap()));
    }
    (values, loss.unwrap())
}

/// Dropout is off: what is compared is the function.
fn tape(params: &Params) -> Tape {
    Tape::training(params, StepState::default()).with_mode(Mode::Evaluate)
}

fn in_file_layout(x: &Tensor, layout: FileLayout) -> Vec<f64> {
    match layout {
        FileLayout::Same => x.to_f64_vec().unwrap(),
        FileLayout::Oihw => formula::outward(x).to_f64_vec().unwrap(),
    }
}

/// Outputs, loss and gradients in `dtype`.
fn gradients_agree<M: Subject>(case: &Case, dtype: DType, tolerance: f64) {
    let config = serde_json::from_value(case.config.clone()).unwrap();
    let Loaded { model, params } = formula::filled::<M>(&case.name, &config, dtype);
    let mut want = tensors(&format!("components/{}.safetensors", case.name));
    let t = tape(&params);
    let (outputs, loss) = forward(&model, &t, case);
    let mut report = Report::default();
    for (name, got) in outputs {
        let want = want.remove(&format!("output.{name}")).unwrap();
        report.compare("outputs", name, (&got, &want), largest(&want), tolerance);
    }
    let value = loss.tensor().to_f64_vec().unwrap();
    let wanted = want.remove("loss").unwrap();
    report.compare(
        "loss",
        "loss",
        (&value, &wanted),
        wanted[0].abs(),
        tolerance,
    );
    let grads = t.backward(&loss, ParamGrads::new(&params)).unwrap();
    let grads = grads.into_params();
    for (id, info) in params.layout().iter() {
        let name = &info.name;
        let Some(want) = want.remove(&format!("gradient.{name}")) else {
            assert!(!grads.touched(id), "{name} has no gradient there");
            continue;
        };
        let got = in_file_layout(&grads.get(id).unwrap(), info.file_layout);
        let got = formula::digest(name, &got, GRADIENT_BLOCK);
        let scale = case.largest_gradient;
        report.compare("gradients", name, (&got, &want), scale, tolerance);
    }
    let left = want.keys().find(|key| key.starts_with("gradient."));
    assert!(left.is_none(), "there is no parameter for {left:?}");
    report.finish(&format!("{} in {dtype}", case.name));
}

/// Ten losses and the weights after ten steps, in f64. Parameters whose gradient is zero but for rounding, such as key
/// biases, stay out of it: `zero_gradients` of a case names them.
fn training_agrees<M: Subject>(case: &Case, settings: &Settings) {
    const TOLERANCE: f64 = 1e-7;
    let config = serde_json::from_value(case.config.clone()).unwrap();
    let loaded = formula::filled::<M>(&case.name, &config, DType::F64);
    let Loaded { model, mut params } = loaded;
    let layout = params.layout().clone();
    let mut want = tensors(&format!("components/{}.safetensors", case.name));
    let is_trained = |info: &ParamInfo| want.contains_key(&format!("trained.{}", info.name));
    let trained: Vec<_> = layout.iter().filter(|(_, info)| is_trained(info)).collect();
    let runs: Vec<Run> = trained
        .iter()
        .map(|(_, info)| Run {
            start: info.offset,
            end: info.offset + info.shape.elements(),
            decay: Decay::Yes,
        })
        .collect();
    let adamw = AdamW {
        beta1: settings.betas[0],
        beta2: settings.betas[1],
        eps: settings.eps,
        weight_decay: settings.weight_decay,
    };
    let moments = || Tensor::zeros([layout.arena_len()], DType::F64, Device::Cpu);
    let (mut m, mut v) = (moments(), moments());
    let mut losses = Vec::new();
    for step in 1..=10 {
        let t = tape(&params);
        let (_, loss) = forward(&model, &t, case);
        losses.push(loss.tensor().item().unwrap());
        let grads = t.backward(&loss, ParamGrads::new(&params)).unwrap();
        let mut grads = grads.into_params();
        drop(loss);
        let arenas = Arenas {
            parameters: params.arena_mut(),
            gradient: grads.finish().unwrap(),
            m: &mut m,
            v: &mut v,
            ema: None,
        };
        optimizer::update(arenas, &adamw.at(step, settings.lr, 1.0, 0.0), &runs).unwrap();
    }
    let mut report = Report::default();
    let wanted = want.remove("losses").unwrap();
    report.compare(
        "losses",
        "losses",
        (&losses, &wanted),
        largest(&wanted),
        TOLERANCE,
    );
    for (id, info) in trained {
        let name = &info.name;
        let got = in_file_layout(&params.get(id).unwrap(), info.file_layout);
        let got = formula::digest(name, &got, WEIGHT_BLOCK);
        let want = want.remove(&format!("trained.{name}")).unwrap();
        report.compare("weights", name, (&got, &want), 1.0, TOLERANCE);
    }
    let left = want.keys().find(|key| key.starts_with("trained."));
    assert!(left.is_none(), "there is no parameter for {left:?}");
    report.finish(&format!("{} after ten steps", case.name));
}

/// Calls a generic function with a case's class.
macro_rules! of_class {
    ($case:expr, $function:ident($($argument:expr),*)) => {
        match $case.model.as_str() {
            "CLIPModel" => $function::<CLIPModel>($($argument),*),
            "CLIPTextModelWithProjection" => $function::<CLIPTextModelWithProjection>($($argument),*),
            "CLIPVisionModelWithProjection" => $function::<CLIPVisionModelWithProjection>($($argument),*),
            "PriorTransformer" => $function::<PriorTransformer>($($argument),*),
            "UnCLIPTextProjModel" => $function::<UnCLIPTextProjModel>($($argument),*),
            "UNet2DConditionModel" => $function::<UNet2DConditionModel>($($argument),*),
            "UNet2DModel" => $function::<UNet2DModel>($($argument),*),
            other => panic!("{other} is no class of ours"),
        }
    };
}

#[test]
fn outputs_losses_and_all_gradients_in_f64() {
    for case in json::<Golden>("components.json").cases {
        of_class!(case, gradients_agree(&case, DType::F64, 1e-9));
    }
}

#[test]
fn outputs_losses_and_all_gradients_in_f32() {
    for case in json::<Golden>("components.json").cases {
        of_class!(case, gradients_agree(&case, DType::F32, 1e-5));
    }
}

#[test]
fn ten_steps_of_adamw_in_f64() {
    let Golden { adamw, cases } = json("components.json");
    for case in cases {
        of_class!(case, training_agrees(&case, &adamw));
    }
}
