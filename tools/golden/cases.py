"""Tiny instances of every class: what is built, and what it is given.

`config` is what stands in a component's config.json. Three and four levels, one to three residual blocks, pictures that
are not square and are odd at the bottom, head widths that are no powers of two, every optional part on and off.

diffusers' attention to context pads its mask only where the context is not as long as the picture has pixels: contexts
here are 5 to 7 tokens long, and no level has as many pixels.
"""

SIMPLE_DOWN, SIMPLE_UP = "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"
RESNET_DOWN, RESNET_UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
MASK = [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
END = 39


def text(**fields):
    return dict(
        vocab_size=40, hidden_size=24, intermediate_size=37, projection_dim=18, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=9, hidden_act="quick_gelu", layer_norm_eps=1e-5, bos_token_id=38, eos_token_id=END, pad_token_id=END,
    ) | fields  # fmt: skip


def vision(**fields):
    return dict(
        hidden_size=20, intermediate_size=31, projection_dim=18, num_hidden_layers=2, num_attention_heads=4, num_channels=3,
        image_size=14, patch_size=5, hidden_act="quick_gelu", layer_norm_eps=1e-5,
    ) | fields  # fmt: skip


def decoder(channels, **fields):
    lower = len(channels) - 1
    return dict(
        sample_size=8, in_channels=3, out_channels=6, block_out_channels=channels, layers_per_block=1,
        down_block_types=[RESNET_DOWN] + [SIMPLE_DOWN] * lower, mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=[SIMPLE_UP] * lower + [RESNET_UP], norm_num_groups=4, cross_attention_dim=10, attention_head_dim=4,
        class_embed_type="identity", resnet_time_scale_shift="scale_shift",
    ) | fields  # fmt: skip


def upsampler(channels, **fields):
    return dict(
        sample_size=16, in_channels=6, out_channels=3, block_out_channels=channels, layers_per_block=1, norm_num_groups=4,
        down_block_types=[RESNET_DOWN] * len(channels), up_block_types=[RESNET_UP] * len(channels), add_attention=False,
    ) | fields  # fmt: skip


# The text ends at its first 39; it is filled with 39, with another id, and not at all.
IDS = [[38, 3, 4, 39, 39, 39], [38, 7, 1, 2, 39, 0], [38, 9, 11, 5, 30, 39]]

CASES = [
    dict(
        name="clip", model="CLIPModel",
        config=dict(text_config=text(), vision_config=vision(), projection_dim=18, logit_scale_init_value=2.6592),
        inputs=dict(pixel_values=[3, 3, 14, 14]), input_ids=IDS, attention_mask=MASK,
    ),
    dict(
        name="clip-gelu-largest-id", model="CLIPModel",
        config=dict(
            text_config=text(hidden_size=21, num_attention_heads=3, num_hidden_layers=3, hidden_act="gelu", eos_token_id=2, layer_norm_eps=1e-6),
            vision_config=vision(hidden_size=22, num_attention_heads=2, num_hidden_layers=1, hidden_act="gelu", image_size=12, patch_size=4),
            projection_dim=13, logit_scale_init_value=2.6592,
        ),
        inputs=dict(pixel_values=[3, 3, 12, 12]), input_ids=IDS,
    ),
    dict(
        name="text", model="CLIPTextModelWithProjection", config=text(projection_dim=11, num_hidden_layers=3),
        inputs={}, input_ids=IDS, attention_mask=MASK,
    ),
    dict(
        name="text-gelu-largest-id", model="CLIPTextModelWithProjection",
        config=text(hidden_size=28, num_attention_heads=4, num_hidden_layers=1, projection_dim=28, hidden_act="gelu", eos_token_id=2),
        inputs={}, input_ids=IDS,
    ),
    dict(
        name="vision", model="CLIPVisionModelWithProjection", config=vision(num_hidden_layers=3),
        inputs=dict(pixel_values=[2, 3, 14, 14]),
    ),
    dict(
        name="vision-gelu-gray", model="CLIPVisionModelWithProjection",
        config=vision(num_channels=1, image_size=15, patch_size=3, hidden_act="gelu", num_attention_heads=2, projection_dim=9),
        inputs=dict(pixel_values=[2, 1, 15, 15]),
    ),
    dict(
        name="prior", model="PriorTransformer",
        config=dict(num_attention_heads=3, attention_head_dim=10, num_layers=2, embedding_dim=14, num_embeddings=6, additional_embeddings=4, dropout=0.1),
        inputs=dict(hidden_states=[3, 14], proj_embedding=[3, 14], encoder_hidden_states=[3, 6, 14]),
        timestep=[0, 517, 999], attention_mask=MASK,
    ),
    dict(
        name="prior-other-parts", model="PriorTransformer",
        config=dict(
            num_attention_heads=2, attention_head_dim=7, num_layers=3, embedding_dim=14, num_embeddings=6, additional_embeddings=3,
            norm_in_type="layer", embedding_proj_norm_type="layer", encoder_hid_proj_type=None, added_emb_type=None,
            time_embed_dim=20, embedding_proj_dim=9, clip_embed_dim=11,
        ),
        inputs=dict(hidden_states=[3, 14], proj_embedding=[3, 9], encoder_hidden_states=[3, 6, 14]),
        timestep=[3, 250, 998],
    ),
    dict(
        name="prior-one-layer", model="PriorTransformer",
        config=dict(num_attention_heads=1, attention_head_dim=22, num_layers=1, embedding_dim=9, num_embeddings=6, norm_in_type="layer"),
        inputs=dict(hidden_states=[2, 9], proj_embedding=[2, 9], encoder_hidden_states=[2, 6, 9]),
        timestep=[1, 500], attention_mask=MASK[:2],
    ),
    dict(
        name="text-proj", model="UnCLIPTextProjModel",
        config=dict(clip_extra_context_tokens=3, clip_embeddings_dim=14, time_embed_dim=22, cross_attention_dim=10),
        inputs=dict(image_embeddings=[2, 14], prompt_embeds=[4, 14], text_encoder_hidden_states=[4, 6, 14]), guidance=True,
    ),
    dict(
        name="text-proj-unguided", model="UnCLIPTextProjModel",
        config=dict(clip_extra_context_tokens=1, clip_embeddings_dim=9, time_embed_dim=12, cross_attention_dim=15),
        inputs=dict(image_embeddings=[2, 9], prompt_embeds=[2, 9], text_encoder_hidden_states=[2, 5, 9]), guidance=False,
    ),
    dict(
        name="decoder-3-levels", model="UNet2DConditionModel",
        config=decoder([12, 18, 24], layers_per_block=2, norm_num_groups=6, attention_head_dim=6, dropout=0.1),
        inputs=dict(sample=[3, 3, 20, 12], encoder_hidden_states=[3, 6, 10], class_labels=[3, 48]),
        timestep=[0, 400, 999], attention_mask=MASK,
    ),
    dict(
        name="decoder-4-levels", model="UNet2DConditionModel",
        config=decoder(
            [8, 16, 16, 8], layers_per_block=[1, 2, 1, 3], attention_head_dim=[4, 2, 4, 8], class_embed_type=None,
            resnet_time_scale_shift="default", resnet_out_scale_factor=1.5, mid_block_scale_factor=1.25, center_input_sample=True,
            flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-4, conv_in_kernel=5, out_channels=3,
        ),
        inputs=dict(sample=[2, 3, 24, 8], encoder_hidden_states=[2, 7, 10]), timestep=[12, 803],
    ),
    dict(
        name="decoder-3-resnets", model="UNet2DConditionModel",
        config=decoder(
            [8, 12, 12], layers_per_block=3, attention_head_dim=3, resnet_skip_time_act=True, time_embedding_dim=26,
            conv_out_kernel=1, in_channels=5, cross_attention_dim=7,
        ),
        inputs=dict(sample=[2, 5, 12, 8], encoder_hidden_states=[2, 5, 7], class_labels=[2, 26]), timestep=[77, 640],
    ),
    dict(
        name="decoder-plain-bottom", model="UNet2DConditionModel",
        config=decoder([8, 12], mid_block_type=None, layers_per_block=1),
        inputs=dict(sample=[2, 3, 6, 10], encoder_hidden_states=[2, 6, 10], class_labels=[2, 32]),
        timestep=[77, 640], attention_mask=MASK[:2],
    ),
    dict(
        name="upsampler-3-levels", model="UNet2DModel", config=upsampler([8, 12, 16]),
        inputs=dict(sample=[2, 6, 12, 20]), timestep=[999, 166],
    ),
    dict(
        name="upsampler-4-levels", model="UNet2DModel",
        config=upsampler([8, 8, 12, 16], layers_per_block=2, resnet_time_scale_shift="scale_shift", flip_sin_to_cos=False, freq_shift=1),
        inputs=dict(sample=[2, 6, 24, 8]), timestep=[832, 0],
    ),
    dict(
        name="unet-attention", model="UNet2DModel",
        config=upsampler(
            [8, 12, 12], layers_per_block=3, attention_head_dim=3, add_attention=True, in_channels=4, center_input_sample=True,
            down_block_types=["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"], mid_block_scale_factor=1.5, norm_eps=1e-6,
        ),
        inputs=dict(sample=[2, 4, 12, 4]), timestep=[40, 720],
    ),
    dict(
        name="unet-attention-resnet-sampling", model="UNet2DModel",
        config=upsampler(
            [8, 16, 16], attention_head_dim=None, add_attention=True, resnet_time_scale_shift="scale_shift",
            attn_norm_num_groups=8, downsample_type="resnet", upsample_type="resnet", class_embed_type="identity",
            down_block_types=["AttnDownBlock2D", RESNET_DOWN, "AttnDownBlock2D"], up_block_types=["AttnUpBlock2D", RESNET_UP, "AttnUpBlock2D"],
        ),
        inputs=dict(sample=[2, 6, 8, 12], class_labels=[2, 32]), timestep=[40, 720],
    ),
    dict(
        name="unet-attention-scale-shift", model="UNet2DModel",
        config=upsampler([8, 12], attention_head_dim=6, add_attention=True, resnet_time_scale_shift="scale_shift"),
        inputs=dict(sample=[2, 6, 10, 6]), timestep=[5, 900],
    ),
]  # fmt: skip
