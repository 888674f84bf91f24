"""The other side of `tests/exchange.rs`: diffusers opens what it is given, or makes a pipeline to be opened.

    python -m tools.golden.exchange make DIR                                   # a pipeline with weights of the formula
    python -m tools.golden.exchange render DIR request.json noise.safetensors out.safetensors
"""

import json
import pathlib
import sys
import tempfile

import torch
from diffusers import UnCLIPPipeline
from safetensors.torch import load_file, save_file

from . import pipeline, tokenizer
from .versions import VERSIONS


def make(target):
    with tempfile.TemporaryDirectory() as temporary:
        words = tokenizer.write(pathlib.Path(temporary), tokenizer.trained_merges())
    words.model_max_length = pipeline.CONTEXT
    pipeline.build(pipeline.entry(words.get_vocab()), words, torch.float32).save_pretrained(target, safe_serialization=True)


def render(source, request, noise, out):
    wanted, drawn = json.loads(pathlib.Path(request).read_text()), load_file(noise)
    pipe = UnCLIPPipeline.from_pretrained(source, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if wanted["exact_tables"]:
        pipeline.exact_tables(pipe)

    def given(stage, occurrence, shape):
        x = drawn[f"{stage}.{occurrence}"]
        assert tuple(x.shape) == tuple(shape), (stage, x.shape, shape)
        return x

    made = pipeline.trace(pipe, wanted["prompts"], wanted["steps"], wanted["scales"], given)
    save_file(made, out)
    print(" ".join(f"{name} {version}" for name, version in VERSIONS.items()))


torch.set_num_threads(1)
{"make": make, "render": render}[sys.argv[1]](*sys.argv[2:])
