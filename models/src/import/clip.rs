//! CLIP as OpenAI and OpenCLIP name it: queries, keys and values in one matrix, projections applied from the right.

use std::path::Path;

use autograd::{DType, Device, ParamInfo};
use serde_json::Value;

use super::{fused, renamed};
use crate::clip::{
    CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, HiddenActivation, INITIAL_LOGIT_BIAS,
};
use crate::folder::Folder;
use crate::model::{Loaded, Model, declare};
use crate::weights::file::{Part, Source, Tensors, WeightFile};
use crate::weights::load_object;
use crate::{Error, Result};

/// Numbers that OpenAI's files hold beside the weights.
const NO_WEIGHTS: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];
/// The width of a head where nothing says otherwise.
const HEAD: usize = 64;

/// Reads a safetensors file. Widths and depths come from the weights themselves; what they do not tell comes from
/// `config`, an `open_clip_config.json`, or is as in OpenAI's own models: heads of 64, QuickGELU, and the text's state at
/// its largest token id.
///
/// # Errors
/// If the file is no CLIP's, or the configuration asks for a network that this program does not have.
pub fn clip(
    weights: &Path,
    config: Option<&Path>,
    dtype: DType,
    device: Device,
) -> Result<Loaded<CLIPModel>> {
    let file = WeightFile::open(weights.to_owned())?;
    let mut tensors = file.tensors()?;
    tensors.ignore(|name| NO_WEIGHTS.contains(&name));
    // The text tower is a module of its own in later models.
    let text_prefix = match tensors.has("text.token_embedding.weight") {
        true => "text.",
        false => "",
    };
    let stated = config.map(Stated::read).transpose()?;
    let config = configuration(&tensors, text_prefix, stated.unwrap_or_default(), weights)?;
    let (model, layout) = declare::<CLIPModel>(&config)?;
    let found = tensors.find(layout, |info| Some(source(info, text_prefix)));
    tensors.check(CLIPModel::CLASS.name)?;
    let params = found.into_params(dtype, device)?;
    Ok(Loaded { model, params })
}

/// Where a parameter of ours lies among theirs.
fn source(info: &ParamInfo, text_prefix: &str) -> Source {
    const OUTER: [(&str, &str); 10] = [
        ("text_model.embeddings.token_embedding", "token_embedding"),
        (
            "text_model.embeddings.position_embedding.weight",
            "positional_embedding",
        ),
        ("text_model.encoder.layers", "transformer.resblocks"),
        ("text_model.final_layer_norm", "ln_final"),
        ("vision_model.embeddings.class_embedding", "class_embedding"),
        ("vision_model.embeddings.patch_embedding", "conv1"),
        (
            "vision_model.embeddings.position_embedding.weight",
            "positional_embedding",
        ),
        // "layrnorm" is how the files spell it.
        ("vision_model.pre_layrnorm", "ln_pre"),
        ("vision_model.encoder.layers", "transformer.resblocks"),
        ("vision_model.post_layernorm", "ln_post"),
    ];
    const INNER: [(&str, &str); 5] = [
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ];
    let transposed = |name: String| Source {
        part: Part::Transposed,
        ..Source::whole(name)
    };
    let name = info.name.as_str();
    match name {
        "logit_scale" | "logit_bias" => return Source::whole(name),
        "text_projection.weight" => return transposed(format!("{text_prefix}text_projection")),
        "visual_projection.weight" => return transposed("visual.proj".into()),
        _ => {}
    }
    let tower = match name.starts_with("text_model.") {
        true => text_prefix,
        false => "visual.",
    };
    let theirs = format!("{tower}{}", renamed(name, &OUTER));
    // A layer's number ends where its own names begin.
    let Some((layers, rest)) = theirs.split_once("resblocks.") else {
        return Source::whole(theirs);
    };
    let Some((number, rest)) = rest.split_once('.') else {
        return Source::whole(theirs);
    };
    let block = format!("{layers}resblocks.{number}");
    let projections = ["q", "k", "v"];
    let projection = projections.iter().position(|which| {
        let rest = rest.strip_prefix("self_attn.");
        rest.is_some_and(|rest| rest.starts_with(&format!("{which}_proj.")))
    });
    match (projection, rest.rsplit_once('.')) {
        (Some(index), Some((_, kind))) => {
            let name = format!("{block}.attn.in_proj_{kind}");
            fused(name, index, projections.len(), info.shape[0])
        }
        _ => Source::whole(format!("{block}.{}", renamed(rest, &INNER))),
    }
}

/// What weights do not tell of a network.
#[derive(Clone, Debug)]
struct Stated {
    activation: HiddenActivation,
    text_heads: Option<usize>,
    vision_head: usize,
    /// The token whose state stands for a text; 2 for the largest.
    end: u32,
    image_size: Option<usize>,
}

impl Default for Stated {
    fn default() -> Stated {
        Stated {
            activation: HiddenActivation::QuickGelu,
            text_heads: None,
            vision_head: HEAD,
            end: 2,
            image_size: None,
        }
    }
}

/// Fields of `open_clip_config.json` that weights tell too, or that change nothing here.
const VISION_KNOWN: [&str; 8] = [
    "image_size",
    "layers",
    "width",
    "head_width",
    "patch_size",
    "mlp_ratio",
    "patch_dropout",
    "output_tokens",
];
const TEXT_KNOWN: [&str; 14] = [
    "context_length",
    "vocab_size",
    "width",
    "heads",
    "layers",
    "mlp_ratio",
    "pool_type",
    "eos_id",
    "bos_id",
    "pad_id",
    "hf_tokenizer_name",
    "tokenizer_kwargs",
    "tokenizer_mode",
    "output_tokens",
];
/// The value in which any other field changes nothing.
fn is_neutral(field: &str, value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => {
            matches!(
                (field, text.as_str()),
                ("pool_type", "tok")
                    | ("pos_embed_type", "learnable")
                    | ("proj_type", "linear")
                    | ("text_arch", "clip")
                    | ("block_type", "default")
            )
        }
        _ => false,
    }
}

impl Stated {
    fn read(path: &Path) -> Result<Stated> {
        let dir = Folder::from(path.parent().unwrap_or(Path::new("")));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let whole = load_object(&dir, &name)?;
        let model = whole.get("model_cfg").unwrap_or(&whole);
        let refuse = |reason: String| Error::Json {
            path: path.to_owned(),
            reason,
        };
        for (part, known) in [("vision_cfg", &VISION_KNOWN[..]), ("text_cfg", &TEXT_KNOWN)] {
            let fields = model[part].as_object();
            let fields = fields.ok_or_else(|| refuse(format!("it has no {part}")))?;
            for (field, value) in fields {
                if !known.contains(&field.as_str()) && !is_neutral(field, value) {
                    let reason = format!("{part}.{field} = {value} is not supported");
                    return Err(refuse(reason));
                }
            }
        }
        let number = |part: &str, field: &str| -> Result<Option<usize>> {
            match &model[part][field] {
                Value::Null => Ok(None),
                value => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                    Some(n) => Ok(Some(n)),
                    None => Err(refuse(format!(
                        "{part}.{field} = {value} is no whole number"
                    ))),
                },
            }
        };
        let end = match model["text_cfg"]["pool_type"].as_str() {
            None | Some("argmax") => 2,
            Some("eos") => match number("text_cfg", "eos_id")? {
                // 2 means the largest id in transformers' files: a text cannot end with that token there.
                Some(id) if id != 2 && id <= u32::MAX as usize => id as u32,
                id => return Err(refuse(format!("text_cfg.eos_id = {id:?} is not supported"))),
            },
            Some(other) => {
                return Err(refuse(format!(
                    "text_cfg.pool_type = {other} is not supported (argmax and eos are)"
                )));
            }
        };
        Ok(Stated {
            activation: match model["quick_gelu"].as_bool() {
                Some(true) => HiddenActivation::QuickGelu,
                _ => HiddenActivation::Gelu,
            },
            text_heads: number("text_cfg", "heads")?,
            vision_head: number("vision_cfg", "head_width")?.unwrap_or(HEAD),
            end,
            image_size: number("vision_cfg", "image_size")?,
        })
    }
}

/// The configuration of a network with these weights.
fn configuration(
    tensors: &Tensors,
    text_prefix: &str,
    stated: Stated,
    path: &Path,
) -> Result<CLIPConfig> {
    let shape = |name: &str| {
        tensors.shape(name).ok_or_else(|| Error::Mismatch {
            path: path.to_owned(),
            class: CLIPModel::CLASS.name,
            differences: vec![format!("{name} is missing")],
        })
    };
    let extent = |name: &str, dimension: usize| -> Result<usize> {
        let shape = shape(name)?;
        shape
            .get(dimension)
            .copied()
            .ok_or_else(|| Error::Mismatch {
                path: path.to_owned(),
                class: CLIPModel::CLASS.name,
                differences: vec![format!("{name} is {shape:?}, it must have more dimensions")],
            })
    };
    // As many as there are, whichever they are: gaps are named later, with everything else that does not fit.
    let layers = |prefix: &str| {
        let numbers = tensors.names().filter_map(|name| {
            let rest = name.strip_prefix(prefix)?;
            rest.split('.').next()?.parse::<usize>().ok()
        });
        numbers.max().map_or(1, |last| last.saturating_add(1))
    };
    let heads = |width: usize, of: usize| (width / of.max(1)).max(1);
    let text_name = |name: &str| format!("{text_prefix}{name}");
    let token_embedding = text_name("token_embedding.weight");
    let text_width = extent(&token_embedding, 1)?;
    let text_layers = text_name("transformer.resblocks.");
    let text = CLIPTextConfig {
        vocab_size: extent(&token_embedding, 0)?,
        hidden_size: text_width,
        intermediate_size: extent(&format!("{text_layers}0.mlp.c_fc.weight"), 0)?,
        num_hidden_layers: layers(&text_layers),
        num_attention_heads: stated.text_heads.unwrap_or(heads(text_width, HEAD)),
        max_position_embeddings: extent(&text_name("positional_embedding"), 0)?,
        hidden_act: stated.activation,
        eos_token_id: stated.end,
        pad_token_id: None,
        bos_token_id: None,
        ..CLIPTextConfig::default()
    };
    let vision_width = extent("visual.conv1.weight", 0)?;
    let patch = extent("visual.conv1.weight", 3)?;
    let positions = extent("visual.positional_embedding", 0)?;
    let grid = positions.saturating_sub(1).isqrt();
    let vision = CLIPVisionConfig {
        hidden_size: vision_width,
        intermediate_size: extent("visual.transformer.resblocks.0.mlp.c_fc.weight", 0)?,
        num_hidden_layers: layers("visual.transformer.resblocks."),
        num_attention_heads: heads(vision_width, stated.vision_head),
        num_channels: extent("visual.conv1.weight", 1)?,
        // What of a picture does not fill a patch is not seen: its size is then only in the configuration.
        image_size: stated.image_size.unwrap_or(grid.saturating_mul(patch)),
        patch_size: patch,
        hidden_act: stated.activation,
        ..CLIPVisionConfig::default()
    };
    Ok(CLIPConfig {
        projection_dim: extent("visual.proj", 1)?,
        text_config: text,
        vision_config: vision,
        // A model that was trained by SigLIP's loss; the file says where it got to.
        logit_bias_init_value: tensors.has("logit_bias").then_some(INITIAL_LOGIT_BIAS),
        ..CLIPConfig::default()
    })
}
