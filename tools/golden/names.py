"""Names and shapes of every parameter of Karlo, as diffusers has them: no weight is allocated."""

import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from . import cases
from .versions import UnCLIPTextProjModel

CHANNELS = [320, 640, 960, 1280]


def networks():
    large = dict(layers_per_block=3, norm_num_groups=32)
    yield "prior", PriorTransformer, {}
    yield "text_proj", UnCLIPTextProjModel, dict(time_embed_dim=1280, cross_attention_dim=1536)
    yield "decoder", UNet2DConditionModel, cases.decoder(
        CHANNELS, sample_size=64, cross_attention_dim=1536, attention_head_dim=64, **large
    )
    yield "super_res", UNet2DModel, cases.upsampler(CHANNELS, sample_size=256, **large)
    yield "text_encoder", CLIPTextModelWithProjection, CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, projection_dim=768, num_attention_heads=12
    )
    yield "image_encoder", CLIPVisionModelWithProjection, CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, projection_dim=768, num_attention_heads=16, num_hidden_layers=24, patch_size=14
    )


def lists():
    for name, cls, config in networks():
        with torch.device("meta"):
            module = cls(**config) if isinstance(config, dict) else cls(config)
        parameters = [f"{key} {list(p.shape)}" for key, p in module.named_parameters()]
        yield name, sorted(parameters)
