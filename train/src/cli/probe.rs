//! `unclip probe`: one component on given inputs.

use std::path::PathBuf;

use models::Folder;
use tensor::DType;

use super::device::Choice;
use crate::probe::{Inputs, Request, list, probe, serialize};
use crate::{Error, Result, files};

/// Run one component of a model directory on given tensors, and save what comes out.
///
/// Inputs are named as the arguments of the class's forward in diffusers or transformers, in their layouts and dtypes:
/// sample, timestep, encoder_hidden_states, class_labels, attention_mask, input_ids, pixel_values, hidden_states,
/// proj_embedding, image_embeddings, prompt_embeds, text_encoder_hidden_states. Outputs are named as its output's fields.
/// An input named target adds a loss, its mean squared difference from the first output.
#[derive(clap::Args)]
pub struct Probe {
    /// A directory with components.
    dir: PathBuf,
    /// The component's folder, such as decoder, prior or clip.
    component: String,
    /// The inputs, a safetensors file.
    #[arg(long)]
    inputs: PathBuf,
    /// Where to save outputs, activations and gradients, as a safetensors file.
    #[arg(long, required_unless_present = "list")]
    save: Option<PathBuf>,
    /// Also the activations whose module path matches, such as 'down_blocks.*.resnets.0'.
    #[arg(long, value_name = "GLOB")]
    activations: Option<glob::Pattern>,
    /// Also the gradients of the loss in the parameters whose name matches, such as '*.weight'.
    #[arg(long, value_name = "GLOB")]
    gradients: Option<glob::Pattern>,
    /// Print what outputs and activations there are, with their shapes, and save nothing.
    #[arg(long)]
    list: bool,
    /// What to compute in.
    #[arg(long, value_enum, default_value_t)]
    dtype: Precision,
}

#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum Precision {
    #[default]
    F32,
    F64,
}

impl Probe {
    pub fn run(self, device: Choice) -> Result<()> {
        let (dtype, device) = match self.dtype {
            Precision::F32 => (DType::F32, device.device()?),
            Precision::F64 => (
                DType::F64,
                device.without_gpu("GPUs do not compute in f64")?,
            ),
        };
        let bytes = std::fs::read(&self.inputs).map_err(Error::io("read", &self.inputs))?;
        let inputs = Inputs::parse(&bytes, dtype)?;
        let component = Folder::from(&self.dir.join(&self.component));
        let request = Request {
            activations: self.activations,
            gradients: self.gradients,
            dtype,
            device,
        };
        if self.list {
            for line in list(&component, &inputs, &request)? {
                println!("{line}");
            }
            return Ok(());
        }
        let named = probe(&component, &inputs, &request)?;
        for (name, x) in &named {
            match x.len() {
                1 => println!("{name} = {}", x.item()?),
                _ => println!("{name} {}", x.shape()),
            }
        }
        if let Some(path) = &self.save {
            files::replace(path, &serialize(&named)?)?;
            println!("written to {}", path.display());
        }
        Ok(())
    }
}
