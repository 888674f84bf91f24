//! The U-Net itself: residual blocks on the way down, at the bottom and on the way up, where every block takes the
//! output of its counterpart on the way down beside its input.

use autograd::ops::{concat, nearest_up2, timestep_embedding};
use autograd::{ParamsBuilder, Result, Tape, Var};

use super::attention::{AttentionStyle, SpatialAttention};
use super::resnet::{Resample, ResnetBlock2D, ResnetStyle};
use super::{Conditioning, DownBlockKind, MidBlockKind, ResampleKind, UpBlockKind};
use crate::nn::{After, Conv2d, GroupNorm, TimestepEmbedding};

/// Everything a backbone is built from, checked and with one value a level.
pub(crate) struct Plan {
    pub inputs: usize,
    pub outputs: usize,
    pub conv_in_kernel: usize,
    pub conv_out_kernel: usize,
    pub levels: Vec<Level>,
    pub mid: Option<Mid>,
    pub resnet: ResnetStyle,
    pub downsample: ResampleKind,
    pub upsample: ResampleKind,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
}

impl Plan {
    /// The residual blocks of a level, which may not take the network's output scale.
    fn resnet_style(&self, takes_options: bool) -> ResnetStyle {
        ResnetStyle {
            output_scale: if takes_options {
                self.resnet.output_scale
            } else {
                1.0
            },
            ..self.resnet
        }
    }
}

/// One resolution, on the way down and on the way up.
pub(crate) struct Level {
    pub channels: usize,
    pub resnets: usize,
    /// Width of a head on the way down and at the bottom.
    pub head_dim: usize,
    /// Width of a head on the way up.
    pub up_head_dim: usize,
    /// Width of context tokens; used by blocks that attend to them.
    pub context: usize,
    pub down: DownBlockKind,
    pub up: UpBlockKind,
}

/// The bottom: a residual block, then as many pairs of (attention, residual block) as there are `attentions`.
pub(crate) struct Mid {
    pub kind: MidBlockKind,
    pub output_scale: f64,
    /// Whether pairs follow the first residual block, and whether they attend.
    pub pair: Option<Attends>,
    /// Groups of the normalisation before self-attention; `None` leaves it out.
    pub attention_groups: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attends {
    No,
    Yes,
}

/// The network between image and image; the models around it make the time embedding and the context.
#[derive(Debug)]
pub(crate) struct Backbone {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    time_channels: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl Backbone {
    pub fn new(p: &mut ParamsBuilder, plan: &Plan) -> Backbone {
        let first = plan.levels[0].channels;
        let last = plan.levels.len() - 1;
        let conv_in = Conv2d::new(p, "conv_in", [plan.inputs, first], plan.conv_in_kernel, 1);
        let time = plan.resnet.time_channels;
        let time_embedding = TimestepEmbedding::new(p, first, time, time);

        let mut inputs = first;
        let mut down_blocks = Vec::new();
        for (i, level) in plan.levels.iter().enumerate() {
            let p = &mut p.at(format!("down_blocks.{i}"));
            down_blocks.push(DownBlock::new(p, plan, level, inputs, i < last));
            inputs = level.channels;
        }
        let mid_block = plan
            .mid
            .as_ref()
            .map(|mid| MidBlock::new(&mut p.at("mid_block"), plan, mid));
        let mut up_blocks = Vec::new();
        for (i, level) in plan.levels.iter().rev().enumerate() {
            let below = inputs;
            let skip = plan.levels[last - (i + 1).min(last)].channels;
            let p = &mut p.at(format!("up_blocks.{i}"));
            up_blocks.push(UpBlock::new(p, plan, level, below, skip, i < last));
            inputs = level.channels;
        }
        let ResnetStyle { groups, eps, .. } = plan.resnet;
        Backbone {
            conv_in,
            time_embedding,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: GroupNorm::new(p, "conv_norm_out", first, groups, eps),
            conv_out: Conv2d::zeros(p, "conv_out", [first, plan.outputs], plan.conv_out_kernel),
            time_channels: first,
            flip_sin_to_cos: plan.flip_sin_to_cos,
            freq_shift: plan.freq_shift,
        }
    }

    /// # Shapes
    /// timestep [n] → [n, 4·channels]
    pub fn embed_time(&self, t: &Tape, timestep: &Var) -> Result<Var> {
        let sinusoids = timestep_embedding::timestep_embedding(
            t,
            timestep,
            self.time_channels,
            self.flip_sin_to_cos,
            self.freq_shift,
        )?; // [n, channels]
        self.time_embedding.forward(t, &sinusoids) // [n, 4·channels]
    }

    /// # Shapes
    /// [n, h, w, in] → [n, h, w, out]; h and w divisible by 2^(levels − 1)
    pub fn forward(&self, t: &Tape, sample: &Var, conditioning: &Conditioning) -> Result<Var> {
        let check = tensor::Check::new("unet", &[("sample", sample.tensor())]);
        check.rank("sample", sample.tensor(), 4)?;
        let unit = 1 << (self.down_blocks.len() - 1);
        let fits = sample.dims()[1].is_multiple_of(unit) && sample.dims()[2].is_multiple_of(unit);
        check.require(fits, || {
            format!("height and width must be multiples of {unit}")
        })?;

        let mut x = self.conv_in.forward(t, sample)?; // [n, h, w, channels]
        let mut skips = vec![x.clone()];
        for (i, block) in self.down_blocks.iter().enumerate() {
            x = t.module(&format!("down_blocks.{i}"), || {
                block.forward(t, &x, &mut skips, conditioning)
            })?;
        }
        if let Some(block) = &self.mid_block {
            x = t.module("mid_block", || block.forward(t, &x, conditioning))?;
        }
        for (i, block) in self.up_blocks.iter().enumerate() {
            x = t.module(&format!("up_blocks.{i}"), || {
                block.forward(t, &x, &mut skips, conditioning)
            })?;
        }
        let x = self.conv_norm_out.forward(t, &x, After::Silu)?; // [n, h, w, channels]
        self.conv_out.forward(t, &x) // [n, h, w, out]
    }
}

/// A residual block, and attention after it at levels that attend.
#[derive(Debug)]
struct Layer {
    resnet: ResnetBlock2D,
    attention: Option<SpatialAttention>,
}

impl Layer {
    fn new(
        p: &mut ParamsBuilder,
        index: usize,
        channels: [usize; 2],
        style: ResnetStyle,
        attention: Option<&AttentionStyle>,
    ) -> Layer {
        Layer {
            resnet: ResnetBlock2D::new(
                &mut p.at(format!("resnets.{index}")),
                channels,
                Resample::Keep,
                style,
            ),
            attention: attention.map(|style| {
                SpatialAttention::new(&mut p.at(format!("attentions.{index}")), channels[1], style)
            }),
        }
    }

    /// # Shapes
    /// [n, h, w, in] → [n, h, w, out]
    fn forward(&self, t: &Tape, index: usize, x: &Var, conditioning: &Conditioning) -> Result<Var> {
        let x = t.module(&format!("resnets.{index}"), || {
            self.resnet.forward(t, x, conditioning)
        })?;
        attend(t, self.attention.as_ref(), index, x, conditioning)
    }
}

fn attend(
    t: &Tape,
    attention: Option<&SpatialAttention>,
    index: usize,
    x: Var,
    conditioning: &Conditioning,
) -> Result<Var> {
    match attention {
        Some(attention) => t.module(&format!("attentions.{index}"), || {
            attention.forward(t, &x, conditioning)
        }),
        None => Ok(x),
    }
}

/// How blocks of `level` attend, on the way down or up.
fn attention_style(
    plan: &Plan,
    level: &Level,
    head_dim: usize,
    kind: Attention,
) -> Option<AttentionStyle> {
    let ResnetStyle { groups, eps, .. } = plan.resnet;
    match kind {
        Attention::None => None,
        Attention::Own => Some(AttentionStyle {
            head_dim,
            norm: Some((groups, eps)),
            context: None,
            output_scale: 1.0,
        }),
        Attention::Context => Some(AttentionStyle {
            head_dim,
            // diffusers passes no ε to these blocks: its default applies whatever norm_eps says.
            norm: Some((groups, 1e-5)),
            context: Some(level.context),
            output_scale: 1.0,
        }),
    }
}

/// What the blocks of a level attend to.
#[derive(Clone, Copy)]
enum Attention {
    None,
    Own,
    Context,
}

/// How a level changes the resolution.
#[derive(Debug)]
enum Sampler {
    Resnet(Box<ResnetBlock2D>),
    Conv(Conv2d),
}

impl Sampler {
    fn down(
        p: &mut ParamsBuilder,
        channels: usize,
        kind: ResampleKind,
        style: ResnetStyle,
    ) -> Sampler {
        let p = &mut p.at("downsamplers.0");
        match kind {
            ResampleKind::Conv => Sampler::Conv(Conv2d::new(p, "conv", [channels; 2], 3, 2)),
            ResampleKind::Resnet => Sampler::Resnet(Box::new(ResnetBlock2D::new(
                p,
                [channels; 2],
                Resample::Down,
                style,
            ))),
        }
    }

    fn up(
        p: &mut ParamsBuilder,
        channels: usize,
        kind: ResampleKind,
        style: ResnetStyle,
    ) -> Sampler {
        let p = &mut p.at("upsamplers.0");
        match kind {
            ResampleKind::Conv => Sampler::Conv(Conv2d::new(p, "conv", [channels; 2], 3, 1)),
            ResampleKind::Resnet => Sampler::Resnet(Box::new(ResnetBlock2D::new(
                p,
                [channels; 2],
                Resample::Up,
                style,
            ))),
        }
    }
}

/// One level on the way down.
#[derive(Debug)]
struct DownBlock {
    layers: Vec<Layer>,
    downsampler: Option<Sampler>,
}

impl DownBlock {
    fn new(
        p: &mut ParamsBuilder,
        plan: &Plan,
        level: &Level,
        inputs: usize,
        halve: bool,
    ) -> DownBlock {
        let (attention, sampler) = match level.down {
            DownBlockKind::DownBlock2D => (Attention::None, ResampleKind::Conv),
            DownBlockKind::AttnDownBlock2D => (Attention::Own, plan.downsample),
            DownBlockKind::ResnetDownsampleBlock2D => (Attention::None, ResampleKind::Resnet),
            DownBlockKind::SimpleCrossAttnDownBlock2D => (Attention::Context, ResampleKind::Resnet),
        };
        let resnet = plan.resnet_style(level.down.takes_resnet_options());
        let style = attention_style(plan, level, level.head_dim, attention);
        let layers = (0..level.resnets)
            .map(|j| {
                let inputs = if j == 0 { inputs } else { level.channels };
                Layer::new(p, j, [inputs, level.channels], resnet, style.as_ref())
            })
            .collect();
        let downsampler = halve.then(|| Sampler::down(p, level.channels, sampler, resnet));
        DownBlock {
            layers,
            downsampler,
        }
    }

    /// # Shapes
    /// [n, h, w, in] → [n, h/2, w/2, out], or [n, h, w, out] at the last level; every intermediate output joins `skips`
    fn forward(
        &self,
        t: &Tape,
        x: &Var,
        skips: &mut Vec<Var>,
        conditioning: &Conditioning,
    ) -> Result<Var> {
        let mut x = x.clone();
        for (j, layer) in self.layers.iter().enumerate() {
            x = layer.forward(t, j, &x, conditioning)?; // [n, h, w, out]
            skips.push(x.clone());
        }
        if let Some(sampler) = &self.downsampler {
            x = t.module("downsamplers.0", || match sampler {
                Sampler::Resnet(block) => block.forward(t, &x, conditioning),
                Sampler::Conv(conv) => conv.forward(t, &x),
            })?; // [n, h/2, w/2, out]
            skips.push(x.clone());
        }
        Ok(x)
    }
}

/// The lowest resolution.
#[derive(Debug)]
struct MidBlock {
    first: ResnetBlock2D,
    pair: Option<(Option<SpatialAttention>, ResnetBlock2D)>,
}

impl MidBlock {
    fn new(p: &mut ParamsBuilder, plan: &Plan, mid: &Mid) -> MidBlock {
        let level = &plan.levels[plan.levels.len() - 1];
        let channels = [level.channels; 2];
        let style = ResnetStyle {
            output_scale: mid.output_scale,
            ..plan.resnet
        };
        let resnet = |p: &mut ParamsBuilder, index: usize| {
            ResnetBlock2D::new(
                &mut p.at(format!("resnets.{index}")),
                channels,
                Resample::Keep,
                style,
            )
        };
        let first = resnet(p, 0);
        let pair = mid.pair.map(|attends| {
            let attention = (attends == Attends::Yes).then(|| {
                let style = match mid.kind {
                    MidBlockKind::UNetMidBlock2D => AttentionStyle {
                        head_dim: level.head_dim,
                        norm: mid.attention_groups.map(|groups| (groups, plan.resnet.eps)),
                        context: None,
                        output_scale: mid.output_scale,
                    },
                    MidBlockKind::UNetMidBlock2DSimpleCrossAttn => AttentionStyle {
                        head_dim: level.head_dim,
                        norm: Some((plan.resnet.groups, 1e-5)),
                        context: Some(level.context),
                        output_scale: 1.0,
                    },
                };
                SpatialAttention::new(&mut p.at("attentions.0"), level.channels, &style)
            });
            (attention, resnet(p, 1))
        });
        MidBlock { first, pair }
    }

    /// # Shapes
    /// [n, h, w, c] → [n, h, w, c]
    fn forward(&self, t: &Tape, x: &Var, conditioning: &Conditioning) -> Result<Var> {
        let x = t.module("resnets.0", || self.first.forward(t, x, conditioning))?;
        let Some((attention, resnet)) = &self.pair else {
            return Ok(x);
        };
        let x = attend(t, attention.as_ref(), 0, x, conditioning)?;
        t.module("resnets.1", || resnet.forward(t, &x, conditioning))
    }
}

/// One level on the way up: one residual block more than on the way down, for the skip that the level above left.
#[derive(Debug)]
struct UpBlock {
    layers: Vec<Layer>,
    upsampler: Option<Sampler>,
}

impl UpBlock {
    /// `below` is the width that comes from the level below, `skip` that of the last skip, from the level above.
    fn new(
        p: &mut ParamsBuilder,
        plan: &Plan,
        level: &Level,
        below: usize,
        skip: usize,
        double: bool,
    ) -> UpBlock {
        let (attention, sampler) = match level.up {
            UpBlockKind::UpBlock2D => (Attention::None, ResampleKind::Conv),
            UpBlockKind::AttnUpBlock2D => (Attention::Own, plan.upsample),
            UpBlockKind::ResnetUpsampleBlock2D => (Attention::None, ResampleKind::Resnet),
            UpBlockKind::SimpleCrossAttnUpBlock2D => (Attention::Context, ResampleKind::Resnet),
        };
        let resnet = plan.resnet_style(level.up.takes_resnet_options());
        let style = attention_style(plan, level, level.up_head_dim, attention);
        let layers = (0..=level.resnets)
            .map(|j| {
                let inputs = if j == 0 { below } else { level.channels };
                let skip = if j == level.resnets {
                    skip
                } else {
                    level.channels
                };
                Layer::new(
                    p,
                    j,
                    [inputs + skip, level.channels],
                    resnet,
                    style.as_ref(),
                )
            })
            .collect();
        let upsampler = double.then(|| Sampler::up(p, level.channels, sampler, resnet));
        UpBlock { layers, upsampler }
    }

    /// # Shapes
    /// [n, h, w, below] → [n, 2h, 2w, out], or [n, h, w, out] at the last level
    fn forward(
        &self,
        t: &Tape,
        x: &Var,
        skips: &mut Vec<Var>,
        conditioning: &Conditioning,
    ) -> Result<Var> {
        let mut x = x.clone();
        for (j, layer) in self.layers.iter().enumerate() {
            if let Some(skip) = skips.pop() {
                x = concat::concat(t, &[&x, &skip], 3)?; // [n, h, w, in + skip]
            }
            x = layer.forward(t, j, &x, conditioning)?; // [n, h, w, out]
        }
        match &self.upsampler {
            None => Ok(x),
            Some(sampler) => t.module("upsamplers.0", || match sampler {
                Sampler::Resnet(block) => block.forward(t, &x, conditioning),
                Sampler::Conv(conv) => conv.forward(t, &nearest_up2::nearest_up2(t, &x)?),
            }), // [n, 2h, 2w, out]
        }
    }
}
