"""What releases of diffusers call by different names."""

import importlib

import diffusers
import diffusers.pipelines as pipelines
import tokenizers
import torch
import transformers

try:
    from diffusers.pipelines.unclip.text_proj import UnCLIPTextProjModel
except ImportError:
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    # Releases after 0.33.1 keep unCLIP among the deprecated pipelines, where the name in model_index.json does not lead.
    pipelines.unclip = importlib.import_module("diffusers.pipelines.deprecated.unclip")

VERSIONS = {module.__name__: module.__version__ for module in (torch, diffusers, transformers, tokenizers)}

__all__ = ["UnCLIPTextProjModel", "VERSIONS"]
