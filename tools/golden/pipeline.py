"""Text to image with every noise injected, in float32 and in float64; the schedulers' tables in float64 both times.

diffusers' own tables are in float32, where 1 - beta of the first steps is lost: samples move by 1e-4, and where the decoder
predicts noise the clean sample at t = 999 is its error times 2e4, clipped, so that some pixels change their sign. How far
stock diffusers is from the same run is measured and stated in pipeline.json; it says more of the tables than of anyone's
networks.
"""

import json

import torch
from diffusers import PriorTransformer, UnCLIPPipeline, UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.schedulers import scheduling_unclip
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from . import cases, doubles, formula
from .versions import UnCLIPTextProjModel

PROMPTS = ["a red horse, naïve", "two BIRDS — 🦆"]
WIDTH, CONTEXT = 24, 16
STEPS = dict(prior=4, decoder=4, super_res=3)
SCALES = dict(prior=4.0, decoder=8.0)


def entry(vocabulary):
    """What the pipeline is built from, as it stands in pipeline.json."""
    end = vocabulary["<|endoftext|>"]
    text = cases.text(
        vocab_size=len(vocabulary), hidden_size=WIDTH, projection_dim=WIDTH, max_position_embeddings=CONTEXT,
        bos_token_id=vocabulary["<|startoftext|>"], eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    decoder = cases.decoder([12, 18, 24], sample_size=16, norm_num_groups=6, attention_head_dim=6, cross_attention_dim=20)
    return dict(
        prompts=PROMPTS, steps=STEPS, scales=SCALES,
        components=dict(
            text_encoder=text,
            prior=dict(num_attention_heads=3, attention_head_dim=10, num_layers=2, embedding_dim=WIDTH, num_embeddings=CONTEXT),
            text_proj=dict(clip_extra_context_tokens=4, clip_embeddings_dim=WIDTH, time_embed_dim=48, cross_attention_dim=20),
            decoder=decoder,
            super_res_first=cases.upsampler([8, 12], sample_size=32),
            super_res_last=cases.upsampler([8, 12], sample_size=32),
        ),
        schedulers=dict(
            prior=dict(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0),
            decoder=dict(variance_type="learned_range", prediction_type="epsilon"),
            super_res=dict(variance_type="fixed_small_log", prediction_type="epsilon"),
        ),
    )  # fmt: skip


def build(entry, tokenizer, dtype):
    made = {name: config for name, config in entry["components"].items()}
    classes = dict(
        prior=PriorTransformer, text_proj=UnCLIPTextProjModel, decoder=UNet2DConditionModel,
        super_res_first=UNet2DModel, super_res_last=UNet2DModel,
    )  # fmt: skip
    built = {name: cls(**json.loads(json.dumps(made[name]))) for name, cls in classes.items()}
    built["text_encoder"] = CLIPTextModelWithProjection(CLIPTextConfig(**made["text_encoder"]))
    for name, module in built.items():
        formula.fill(f"pipeline.{name}", module.to(torch.float64)).to(dtype).eval()
    schedulers = {f"{name}_scheduler": UnCLIPScheduler(**config) for name, config in entry["schedulers"].items()}
    pipe = UnCLIPPipeline(tokenizer=tokenizer, **built, **schedulers)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shapes(pipe, n):
    small, large = pipe.decoder.config.sample_size, pipe.super_res_first.config.sample_size
    return dict(prior=(n, pipe.prior.config.embedding_dim), decoder=(n, 3, small, small), super_res=(n, 3, large, large))


def trace(pipe, prompts, steps, scales, noise):
    """What the pipeline makes, with `noise(stage, occurrence, shape)` in place of everything that it draws."""
    of = shapes(pipe, len(prompts))
    # A stage draws after each of its steps but the last.
    queue = [noise(stage, i, of[stage]) for stage in of for i in range(1, steps[stage])]
    found = {}

    def recorded(name, call, read):
        def wrapper(*args, **kwargs):
            made = call(*args, **kwargs)
            found[name] = read(made, kwargs)
            return made

        return wrapper

    stock = scheduling_unclip.randn_tensor
    scheduling_unclip.randn_tensor = lambda *a, **k: queue.pop(0)
    text_embeds = []
    pipe.text_encoder.register_forward_hook(lambda module, args, made: text_embeds.append(made.text_embeds))
    pipe.prior.post_process_latents = recorded("image_embeddings", pipe.prior.post_process_latents, lambda made, _: made)
    pipe.decoder_scheduler.step = recorded("small", pipe.decoder_scheduler.step, lambda made, _: made.prev_sample.clamp(-1, 1))
    pipe.super_res_scheduler.step = recorded("image", pipe.super_res_scheduler.step, lambda made, _: made.prev_sample)
    try:
        with torch.no_grad():
            pipe(
                prompts, output_type="np",
                **{f"{stage}_num_inference_steps": steps[stage] for stage in of},
                **{f"{stage}_guidance_scale": scales[stage] for stage in ("prior", "decoder")},
                **{f"{stage}_latents": noise(stage, 0, of[stage]) for stage in of},
            )  # fmt: skip
    finally:
        scheduling_unclip.randn_tensor = stock
    assert not queue
    found["text_embeds"] = text_embeds[0]  # the unconditional texts follow
    return {name: x.detach().contiguous() for name, x in found.items()}


def exact_tables(pipe):
    for name in ("prior", "decoder", "super_res"):
        doubles.tables(getattr(pipe, f"{name}_scheduler"))
    return pipe


def golden(tokenizer, vocabulary):
    made = entry(vocabulary)
    tensors = {}
    for name, dtype in [("f32", torch.float32), ("f64", torch.float64)]:
        noise = lambda stage, i, shape: formula.values(f"noise/{stage}/{i}", shape).to(dtype)
        pipe = exact_tables(build(made, tokenizer, dtype))
        if dtype is torch.float64:
            with doubles.sinusoids(), doubles.by_default():
                traced = trace(pipe, PROMPTS, STEPS, SCALES, noise)
        else:
            traced = trace(pipe, PROMPTS, STEPS, SCALES, noise)
        tensors |= {f"{name}.{key}": x for key, x in traced.items()}
    noise = lambda stage, i, shape: formula.values(f"noise/{stage}/{i}", shape).to(torch.float32)
    stock = trace(build(made, tokenizer, torch.float32), PROMPTS, STEPS, SCALES, noise)
    far = {key: (x - tensors[f"f32.{key}"]).abs().max().item() for key, x in stock.items()}
    return made | dict(stock_difference=far), tensors
