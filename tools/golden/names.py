"""Names and shapes of every parameter of the architectures, as diffusers and transformers have them: no weight is allocated."""

import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from . import cases
from .versions import UnCLIPTextProjModel


def unets(channels, context, decoder=64, super_res=256, layers=3, super_res_layers=3, head=64):
    common = dict(norm_num_groups=32)
    yield "decoder", UNet2DConditionModel, cases.decoder(
        channels, sample_size=decoder, cross_attention_dim=context, attention_head_dim=head, layers_per_block=layers, **common
    )
    if channels[0] == 512:  # the paper's upsamplers are narrower than its decoder
        yield "super_res", UNet2DModel, cases.upsampler([320, 640, 960, 1280], sample_size=256, layers_per_block=3, **common)
        wide = [192, 192, 384, 384, 768, 768]
        yield "super_res_1024", UNet2DModel, cases.upsampler(wide, sample_size=1024, layers_per_block=2, **common)
    else:
        yield "super_res", UNet2DModel, cases.upsampler(channels, sample_size=super_res, layers_per_block=super_res_layers, **common)


def text(width, heads, layers, projection, **more):
    return CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, projection_dim=projection, num_attention_heads=heads, num_hidden_layers=layers, **more
    )


def vision(width, heads, layers, projection, image, patch):
    return CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, projection_dim=projection, num_attention_heads=heads,
        num_hidden_layers=layers, image_size=image, patch_size=patch,
    )


def networks():
    """Karlo's lists have no prefix."""
    yield "prior", PriorTransformer, {}
    yield "text_proj", UnCLIPTextProjModel, dict(time_embed_dim=1280, cross_attention_dim=1536)
    yield from unets([320, 640, 960, 1280], 1536)
    yield "text_encoder", CLIPTextModelWithProjection, text(768, 12, 12, 768)
    yield "image_encoder", CLIPVisionModelWithProjection, vision(1024, 16, 24, 768, 224, 14)

    yield "tiny-prior", PriorTransformer, dict(
        num_attention_heads=4, attention_head_dim=16, num_layers=2, embedding_dim=64, num_embeddings=32
    )
    yield "tiny-text_proj", UnCLIPTextProjModel, dict(clip_embeddings_dim=64, time_embed_dim=128, cross_attention_dim=64)
    for name, *network in unets([32, 64], 64, decoder=16, super_res=64, layers=1, super_res_layers=1, head=16):
        yield f"tiny-{name}", *network
    yield "tiny-text_encoder", CLIPTextModelWithProjection, text(64, 4, 2, 64, vocab_size=1024, max_position_embeddings=32)
    yield "tiny-image_encoder", CLIPVisionModelWithProjection, vision(64, 4, 2, 64, 64, 8)

    yield "small-prior", PriorTransformer, dict(num_attention_heads=12, num_layers=12)
    yield "small-text_proj", UnCLIPTextProjModel, dict(time_embed_dim=768, cross_attention_dim=768)
    for name, *network in unets([192, 384, 576, 768], 768, super_res_layers=2):
        yield f"small-{name}", *network

    yield "paper-prior", PriorTransformer, dict(num_layers=24, embedding_dim=1024, num_embeddings=256)
    yield "paper-text_proj", UnCLIPTextProjModel, dict(clip_embeddings_dim=1024, time_embed_dim=2048, cross_attention_dim=2048)
    for name, *network in unets([512, 1024, 1536, 2048], 2048):
        yield f"paper-{name}", *network
    yield "paper-text_encoder", CLIPTextModelWithProjection, text(1024, 16, 24, 1024, max_position_embeddings=256)
    yield "paper-image_encoder", CLIPVisionModelWithProjection, vision(1280, 16, 32, 1024, 256, 16)


def lists():
    for name, cls, config in networks():
        with torch.device("meta"):
            module = cls(**config) if isinstance(config, dict) else cls(config)
        parameters = [f"{key} {list(p.shape)}" for key, p in module.named_parameters()]
        yield name, sorted(parameters)
