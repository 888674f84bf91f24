"""Image variation with every noise injected, from the picture's bytes on; and CLIP's image preprocessing by itself.

The networks are those of pipeline.py with an image encoder; the schedulers' tables are in float64. Pillow is asked to be
older than 13: from that release on, which direction it resizes first, and so where values are clipped in between, depends
on the sizes. Every CLIP was trained with the horizontal one first.
"""

import json

import numpy as np
import PIL
import torch
from diffusers import UnCLIPImageVariationPipeline
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from . import cases, doubles, formula, pipeline

STEPS = dict(decoder=4, super_res=3)
# Height and width: shrunk, enlarged, as they are, in one direction only, and to sizes that are no whole factors.
EXTENTS = [(40, 48), (20, 33), (32, 32), (64, 31), (31, 64), (32, 75), (100, 75), (7, 5), (224, 300)]
PROCESSORS = [
    dict(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    dict(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 30}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.5]),
    dict(size={"height": 36, "width": 33}, do_center_crop=False, do_normalize=False),
]


def picture(height, width):
    """Bytes by a formula, with edges that overshoot."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    smooth = (x * (3 + c) + y * 5 + x * y) % 256
    return np.where((x // 4 + y // 3) % 3 == 0, 255 * (c % 2), smooth).astype(np.uint8)


def processed(config, height, width):
    processor = CLIPImageProcessor(**config)
    return processor(Image.fromarray(picture(height, width)), return_tensors="pt").pixel_values


def preprocessing():
    assert int(PIL.__version__.split(".")[0]) < 13, "Pillow 13 resizes in another order"
    made = {}
    for i, config in enumerate(PROCESSORS):
        for height, width in EXTENTS:
            made[f"{i}.{height}.{width}"] = processed(config, height, width).contiguous()
    return dict(processors=PROCESSORS, extents=EXTENTS), made


def entry(vocabulary):
    made = pipeline.entry(vocabulary)
    made["components"]["image_encoder"] = cases.vision(image_size=32, patch_size=8, projection_dim=pipeline.WIDTH)
    return made | dict(steps=STEPS, extent=EXTENTS[0], processor=PROCESSORS[0])


def build(made, tokenizer, dtype):
    text_to_image = pipeline.exact_tables(pipeline.build(made, tokenizer, dtype))
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**made["components"]["image_encoder"]))
    formula.fill("pipeline.image_encoder", encoder.to(torch.float64)).to(dtype).eval()
    shared = ("decoder", "text_encoder", "tokenizer", "text_proj", "super_res_first", "super_res_last", "decoder_scheduler", "super_res_scheduler")
    pipe = UnCLIPImageVariationPipeline(
        **{name: getattr(text_to_image, name) for name in shared},
        feature_extractor=CLIPImageProcessor(**made["processor"]), image_encoder=encoder,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def trace(pipe, made, noise):
    small, large = pipe.decoder.config.sample_size, pipe.super_res_first.config.sample_size
    of = dict(decoder=(1, 3, small, small), super_res=(1, 3, large, large))
    steps = made["steps"]
    queue = [noise(stage, i, of[stage]) for stage in of for i in range(1, steps[stage])]
    found = {}

    def recorded(name, call, read):
        def wrapper(*args, **kwargs):
            out = call(*args, **kwargs)
            found[name] = read(out)
            return out

        return wrapper

    pipe.image_encoder.register_forward_hook(lambda module, args, out: found.update(image_embeds=out.image_embeds))
    pipe.decoder_scheduler.step = recorded("small", pipe.decoder_scheduler.step, lambda out: out.prev_sample.clamp(-1, 1))
    pipe.super_res_scheduler.step = recorded("image", pipe.super_res_scheduler.step, lambda out: out.prev_sample)
    scheduling = pipeline.scheduling_unclip
    stock = scheduling.randn_tensor
    scheduling.randn_tensor = lambda *a, **k: queue.pop(0)
    try:
        with torch.no_grad():
            pipe(
                Image.fromarray(picture(*made["extent"])), output_type="np", decoder_guidance_scale=made["scales"]["decoder"],
                **{f"{stage}_num_inference_steps": steps[stage] for stage in of},
                **{f"{stage}_latents": noise(stage, 0, of[stage]) for stage in of},
            )  # fmt: skip
    finally:
        scheduling.randn_tensor = stock
    assert not queue
    return {name: x.detach().contiguous() for name, x in found.items()}


def golden(tokenizer, vocabulary):
    made, tensors = entry(vocabulary), {}
    for name, dtype in [("f32", torch.float32), ("f64", torch.float64)]:
        noise = lambda stage, i, shape: formula.values(f"noise/{stage}/{i}", shape).to(dtype)
        pipe = build(json.loads(json.dumps(made)), tokenizer, dtype)
        if dtype is torch.float64:
            with doubles.sinusoids(), doubles.by_default():
                traced = trace(pipe, made, noise)
        else:
            traced = trace(pipe, made, noise)
        tensors |= {f"{name}.{key}": x for key, x in traced.items()}
    return made, tensors
