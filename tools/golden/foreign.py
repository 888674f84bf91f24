"""Networks of OpenCLIP and of Karlo's own code, under their own names: what importers are held to.

Each is made only where its code is: `pip install --no-deps open_clip_torch==3.3.0` (with torchvision, timm, ftfy and regex
beside it), and a checkout of kakaobrain/karlo at 3c68a50 named by `--karlo`.
"""

import contextlib
import sys

import torch

from . import doubles, formula

IDS = [[38, 3, 4, 39, 0, 0], [38, 7, 1, 2, 39, 0], [38, 9, 11, 5, 30, 39]]
MASK = [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]


@contextlib.contextmanager
def in_doubles(*modules):
    """Karlo's normalisations go through `.float()`, its sinusoids through float32."""
    stock, sinusoids = torch.Tensor.float, [module.timestep_embedding for module in modules]
    torch.Tensor.float = lambda self: self if self.dtype is torch.float64 else stock(self)
    for module in modules:
        module.timestep_embedding = lambda steps, width: doubles.timestep_embedding(steps, width, True, 0)
    try:
        yield
    finally:
        torch.Tensor.float = stock
        for module, old in zip(modules, sinusoids):
            module.timestep_embedding = old


def entry(name, module, more):
    parameters = [[key, list(p.shape)] for key, p in module.named_parameters()]
    return dict(name=name, parameters=parameters) | more


def open_clip_cases():
    import open_clip.model as open_clip

    vision = dict(layers=2, width=16, head_width=8, mlp_ratio=2.0, patch_size=5, image_size=12)
    text = dict(context_length=6, vocab_size=40, width=24, heads=4, layers=2, mlp_ratio=2.0)
    cases = [
        ("open-clip", open_clip.CLIP, dict(embed_dim=18, vision_cfg=vision, text_cfg=text)),
        (
            "open-clip-text-tower",
            open_clip.CustomTextCLIP,
            dict(embed_dim=11, quick_gelu=True, vision_cfg=vision | dict(layers=3), text_cfg=text | dict(pool_type="eos", eos_id=39)),
        ),
    ]
    for name, cls, config in cases:
        module = formula.fill(name, cls(**config).double()).eval()
        for buffer in module.buffers():
            assert not buffer.is_floating_point() or buffer.dtype is torch.float64
        with torch.no_grad():
            outputs = dict(
                text_embeds=module.encode_text(torch.tensor(IDS)),
                image_embeds=module.encode_image(formula.values(f"{name}/pixel_values", [2, 3, 12, 12])),
            )
        yield entry(name, module, dict(config=config, input_ids=IDS, pixel_values=[2, 3, 12, 12])), outputs


def karlo_cases():
    import karlo.modules.unet as unet
    import karlo.modules.xf as xf

    mask, text = torch.tensor(MASK).bool(), [2, 6, 14]
    with in_doubles(unet, xf), torch.no_grad():
        holder = torch.nn.Module()
        holder.model = xf.PriorTransformer(text_ctx=6, xf_width=24, xf_layers=2, xf_heads=3, xf_final_ln=True, clip_dim=14)
        name = "karlo-prior"
        formula.fill(name, holder.double()).eval()
        given = lambda what, shape: formula.values(f"{name}/{what}", shape)
        causal = torch.full([1, 10, 10], float("-inf"), dtype=torch.float64).triu(1)
        output = holder.model(
            given("hidden_states", [2, 14]), torch.tensor([3, 700]), text_emb=given("proj_embedding", [2, 14]),
            text_enc=given("encoder_hidden_states", text), mask=mask, causal_mask=causal,
        )  # fmt: skip
        yield entry(name, holder, {}), dict(predicted_image_embedding=output)

        name = "karlo-decoder"
        shape = dict(model_channels=32, num_res_blocks=2, channel_mult=(1, 2, 2), resblock_updown=True, num_head_channels=16)
        holder = torch.nn.Module()
        holder.model = unet.PLMImUNet(
            text_ctx=6, xf_width=24, in_channels=3, out_channels=6, attention_resolutions=(2, 4), use_scale_shift_norm=True,
            clip_dim=14, clip_emb_mult=3, clip_emb_drop=0.1, num_heads=-1, **shape,
        )  # fmt: skip
        formula.fill(name, holder.double()).eval()
        output = holder.model(
            given("sample", [2, 3, 12, 8]), torch.tensor([3, 700]), txt_feat=given("prompt_embeds", [2, 14]),
            txt_feat_seq=given("text_encoder_hidden_states", text), mask=mask, y=given("image_embeddings", [2, 14]),
        )  # fmt: skip
        yield entry(name, holder, {}), dict(sample=output)

        name = "karlo-upsampler"
        holder = torch.nn.Module()
        shape = dict(model_channels=32, num_res_blocks=1, channel_mult=(1, 2), resblock_updown=True, use_middle_attention=False)
        for which in ("model_first_steps", "model_last_step"):
            setattr(holder, which, unet.SuperResUNetModel(in_channels=3, out_channels=3, attention_resolutions=(), **shape))
        formula.fill(name, holder.double()).eval()
        x, low = given("sample", [2, 3, 6, 8]), given("low_res", [2, 3, 6, 8])
        outputs = {which: getattr(holder, which)(x, torch.tensor([3, 700]), low_res=low) for which in ("model_first_steps", "model_last_step")}
        yield entry(name, holder, {}), outputs


def all_cases(karlo):
    try:
        yield from open_clip_cases()
    except ImportError as error:
        print(f"OpenCLIP's files stay as they are: {error}")
    if karlo is None:
        print("Karlo's files stay as they are: no --karlo")
        return
    sys.path.insert(0, str(karlo))
    yield from karlo_cases()
