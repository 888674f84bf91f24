//! Karlo's checkpoints (Kakao Brain, 2022), in the names of guided-diffusion: blocks numbered through, and queries, keys
//! and values of every head side by side in one matrix.

use std::path::Path;

use autograd::{DType, Device, ParamInfo};

use super::{fused, renamed};
use crate::model::{Loaded, Model, declare};
use crate::prior::{PriorConfig, PriorTransformer, Whitening};
use crate::text_proj::{UnCLIPTextProjConfig, UnCLIPTextProjModel};
use crate::unet::{UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig, UNet2DModel};
use crate::weights::file::{Source, WeightFile};
use crate::{Error, Result};

/// The mean and deviation of image embeddings, from a file of two vectors, `mean` and `std`.
fn statistics(path: &Path) -> Result<Whitening> {
    let file = WeightFile::open(path.to_owned())?;
    let tensors = file.tensors()?;
    match (tensors.floats("mean"), tensors.floats("std")) {
        (Some(mean), Some(std)) if mean.len() == std.len() => Ok(Whitening { mean, std }),
        _ => Err(Error::Format {
            path: path.to_owned(),
            reason: "it must hold two vectors of one length, mean and std".into(),
        }),
    }
}

/// The prior, from its file and that of the embeddings' statistics: Karlo's own, `ViT-L-14_stats.th`, is a pickled pair,
/// here it is two vectors, `mean` and `std`.
///
/// # Errors
/// If the files do not fit the configuration: everything that does not, at once.
pub fn karlo_prior(
    weights: &Path,
    statistics: &Path,
    config: &PriorConfig,
    dtype: DType,
    device: Device,
) -> Result<Loaded<PriorTransformer>> {
    let whitening = self::statistics(statistics)?;
    let width = config.clip_embed_dim.unwrap_or(config.embedding_dim);
    if whitening.mean.len() != width {
        return Err(Error::Format {
            path: statistics.to_owned(),
            reason: format!(
                "it describes embeddings of {} numbers, the prior's have {width}",
                whitening.mean.len()
            ),
        });
    }
    let file = WeightFile::open(weights.to_owned())?;
    let mut tensors = file.tensors()?;
    let (model, layout) = declare::<PriorTransformer>(config)?;
    let found = tensors.find(layout, |info| {
        // These come from the other file.
        let statistics = ["clip_mean", "clip_std"].contains(&info.name.as_str());
        (!statistics).then(|| prior_source(info, config.attention_head_dim))
    });
    tensors.check(PriorTransformer::CLASS.name)?;
    let mut params = found.into_params(dtype, device)?;
    model.set_whitening(&mut params, &whitening)?;
    Ok(Loaded { model, params })
}

/// The decoder and the projection of its conditions, which share a file.
///
/// # Errors
/// As [`karlo_prior`].
pub fn karlo_decoder(
    weights: &Path,
    config: &UNet2DConditionConfig,
    text_proj: &UnCLIPTextProjConfig,
    dtype: DType,
    device: Device,
) -> Result<(Loaded<UNet2DConditionModel>, Loaded<UnCLIPTextProjModel>)> {
    let file = WeightFile::open(weights.to_owned())?;
    let mut tensors = file.tensors()?;
    let (decoder, layout) = declare::<UNet2DConditionModel>(config)?;
    let blocks = Blocks::of_decoder(config)?;
    let decoder_found = tensors.find(layout, |info| Some(blocks.source(info, "model.")));
    let (projection, layout) = declare::<UnCLIPTextProjModel>(text_proj)?;
    let projection_found = tensors.find(layout, |info| Some(text_proj_source(info)));
    tensors.check(UNet2DConditionModel::CLASS.name)?;
    let decoder = Loaded {
        model: decoder,
        params: decoder_found.into_params(dtype, device)?,
    };
    let projection = Loaded {
        model: projection,
        params: projection_found.into_params(dtype, device)?,
    };
    Ok((decoder, projection))
}

/// The upsampler's two networks, which share a file: that of all steps but the last, and that of the last.
///
/// # Errors
/// As [`karlo_prior`].
pub fn karlo_upsampler(
    weights: &Path,
    config: &UNet2DConfig,
    dtype: DType,
    device: Device,
) -> Result<[Loaded<UNet2DModel>; 2]> {
    let file = WeightFile::open(weights.to_owned())?;
    let mut tensors = file.tensors()?;
    let blocks = Blocks::of_upsampler(config);
    let (first, layout) = declare::<UNet2DModel>(config)?;
    let first_found = tensors.find(layout.clone(), |info| {
        Some(blocks.source(info, "model_first_steps."))
    });
    let (last, _) = declare::<UNet2DModel>(config)?;
    let last_found = tensors.find(layout, |info| Some(blocks.source(info, "model_last_step.")));
    tensors.check(UNet2DModel::CLASS.name)?;
    Ok([
        Loaded {
            model: first,
            params: first_found.into_params(dtype, device)?,
        },
        Loaded {
            model: last,
            params: last_found.into_params(dtype, device)?,
        },
    ])
}

/// Which of queries, keys and values (or keys and values) a parameter projects to, and what follows in its name.
fn projection<'a>(name: &'a str, parts: &[&str]) -> Option<(usize, &'a str)> {
    let matching = parts.iter().enumerate();
    let mut matching = matching.filter_map(|(i, part)| Some((i, name.strip_prefix(part)?)));
    matching.next()
}

fn prior_source(info: &ParamInfo, head: usize) -> Source {
    const OUTER: [(&str, &str); 9] = [
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("proj_in", "clip_img_proj"),
        ("embedding_proj", "text_emb_proj"),
        ("encoder_hidden_states_proj", "text_enc_proj"),
        ("prd_embedding", "prd_emb"),
        ("transformer_blocks", "transformer.resblocks"),
        ("norm_out", "final_ln"),
        ("proj_to_clip_embeddings", "out_proj"),
    ];
    const INNER: [(&str, &str); 5] = [
        ("norm1", "ln_1"),
        ("norm3", "ln_2"),
        ("attn1.to_out.0", "attn.c_proj"),
        ("ff.net.0.proj", "mlp.c_fc"),
        ("ff.net.2", "mlp.c_proj"),
    ];
    let Some(rest) = info.name.strip_prefix("transformer_blocks.") else {
        return Source::whole(format!("model.{}", renamed(&info.name, &OUTER)));
    };
    let (number, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let block = format!("model.transformer.resblocks.{number}");
    match projection(rest, &["attn1.to_q.", "attn1.to_k.", "attn1.to_v."]) {
        Some((index, kind)) => fused(format!("{block}.attn.c_qkv.{kind}"), index, 3, head),
        None => Source::whole(format!("{block}.{}", renamed(rest, &INNER))),
    }
}

fn text_proj_source(info: &ParamInfo) -> Source {
    const NAMES: [(&str, &str); 6] = [
        ("learned_classifier_free_guidance_embeddings", "cf_param"),
        ("embedding_proj", "text_feat_proj"),
        (
            "clip_image_embeddings_project_to_time_embeddings",
            "clip_emb",
        ),
        ("clip_extra_context_tokens_proj", "clip_tok_proj"),
        ("encoder_hidden_states_proj", "text_seq_proj.0"),
        ("text_encoder_hidden_states_norm", "text_seq_proj.1"),
    ];
    Source::whole(format!("model.{}", renamed(&info.name, &NAMES)))
}

/// How a U-Net's blocks, ours by level, are numbered through in guided-diffusion.
struct Blocks {
    levels: Vec<BlockLevel>,
    /// Whether attention lies between the residual blocks at the bottom.
    mid_attends: bool,
}

#[derive(Clone, Copy)]
struct BlockLevel {
    resnets: usize,
    /// The width of a head, at levels that attend.
    down_head: usize,
    up_head: usize,
    up_attends: bool,
}

impl Blocks {
    fn of_decoder(config: &UNet2DConditionConfig) -> Result<Blocks> {
        let class = UNet2DConditionModel::CLASS.name;
        let count = config.block_out_channels.len();
        let resnets = config
            .layers_per_block
            .expand(class, "layers_per_block", count)?;
        let heads = config
            .attention_head_dim
            .expand(class, "attention_head_dim", count)?;
        let level = |i: usize| BlockLevel {
            resnets: resnets[i],
            down_head: heads[i],
            up_head: heads[count - 1 - i],
            up_attends: config.up_block_types[count - 1 - i].attends(),
        };
        Ok(Blocks {
            levels: (0..count).map(level).collect(),
            mid_attends: true,
        })
    }

    fn of_upsampler(config: &UNet2DConfig) -> Blocks {
        let level = BlockLevel {
            resnets: config.layers_per_block,
            down_head: 1,
            up_head: 1,
            up_attends: false,
        };
        Blocks {
            levels: vec![level; config.block_out_channels.len()],
            mid_attends: config.add_attention,
        }
    }

    fn source(&self, info: &ParamInfo, prefix: &str) -> Source {
        const OUTER: [(&str, &str); 5] = [
            ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("conv_in", "input_blocks.0.0"),
            ("conv_norm_out", "out.0"),
            ("conv_out", "out.2"),
        ];
        const RESNET: [(&str, &str); 6] = [
            ("norm1", "in_layers.0"),
            ("conv1", "in_layers.2"),
            ("time_emb_proj", "emb_layers.1"),
            ("norm2", "out_layers.0"),
            ("conv2", "out_layers.3"),
            ("conv_shortcut", "skip_connection"),
        ];
        let Some((block, head, rest)) = self.block(&info.name) else {
            return Source::whole(format!("{prefix}{}", renamed(&info.name, &OUTER)));
        };
        let block = format!("{prefix}{block}");
        let pointwise = |source: Source, kind: &str| Source {
            pointwise: kind == "weight",
            ..source
        };
        if let Some((index, kind)) = projection(rest, &["to_q.", "to_k.", "to_v."]) {
            return pointwise(fused(format!("{block}.qkv.{kind}"), index, 3, head), kind);
        }
        if let Some((index, kind)) = projection(rest, &["add_k_proj.", "add_v_proj."]) {
            let name = format!("{block}.encoder_kv.{kind}");
            return pointwise(fused(name, index, 2, head), kind);
        }
        if let Some(kind) = rest.strip_prefix("to_out.0.") {
            return pointwise(Source::whole(format!("{block}.proj_out.{kind}")), kind);
        }
        match rest.strip_prefix("group_norm.") {
            Some(kind) => Source::whole(format!("{block}.norm.{kind}")),
            None => Source::whole(format!("{block}.{}", renamed(rest, &RESNET))),
        }
    }

    /// A parameter's block among theirs, the width of its heads if it attends, and its name inside; `None` for
    /// parameters outside all blocks.
    fn block<'a>(&self, name: &'a str) -> Option<(String, usize, &'a str)> {
        let mut parts = name.splitn(5, '.');
        let place = parts.next()?;
        if place == "mid_block" {
            let (kind, number, rest) = (parts.next()?, parts.next()?, name);
            let rest = rest.splitn(4, '.').nth(3)?;
            let index = match (kind, number) {
                ("attentions", _) => 1,
                (_, "0") => 0,
                _ => 1 + usize::from(self.mid_attends),
            };
            let head = self.levels.last()?.down_head;
            return Some((format!("middle_block.{index}"), head, rest));
        }
        let (level, kind): (usize, &str) = (parts.next()?.parse().ok()?, parts.next()?);
        let (number, rest): (usize, &str) = (parts.next()?.parse().ok()?, parts.next()?);
        match place {
            "down_blocks" => {
                let of = self.levels.get(level)?;
                // The first convolution is block 0; a level above ends with one that halves.
                let before = self.levels[..level].iter().map(|l| l.resnets + 1);
                let first = 1 + before.sum::<usize>();
                let (block, inside) = match kind {
                    "resnets" => (first + number, 0),
                    "attentions" => (first + number, 1),
                    _ => (first + of.resnets, 0),
                };
                let block = format!("input_blocks.{block}.{inside}");
                Some((block, of.down_head, rest))
            }
            "up_blocks" => {
                let mut levels = self.levels.iter().rev();
                let before = levels.clone().take(level).map(|l| l.resnets + 1);
                let first = before.sum::<usize>();
                let of = levels.nth(level)?;
                // Doubling is the last part of the level's last block.
                let (block, inside) = match kind {
                    "resnets" => (first + number, 0),
                    "attentions" => (first + number, 1),
                    _ => (first + of.resnets, 1 + usize::from(of.up_attends)),
                };
                let block = format!("output_blocks.{block}.{inside}");
                Some((block, of.up_head, rest))
            }
            _ => None,
        }
    }
}
