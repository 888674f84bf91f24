"""Outputs, loss, all gradients and ten AdamW steps of every case of `cases.py`, in float64."""

import inspect

import torch
import transformers
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel

from . import doubles, formula
from .cases import CASES
from .versions import UnCLIPTextProjModel

STEPS = 10
ADAMW = dict(lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05)
GRADIENT_BLOCK, WEIGHT_BLOCK = 16, 64

DIFFUSERS = [PriorTransformer, UNet2DConditionModel, UNet2DModel, UnCLIPTextProjModel]
OUTPUTS = {
    "CLIPModel": ["logits_per_image", "text_embeds", "image_embeds"],
    "CLIPTextModelWithProjection": ["text_embeds", "last_hidden_state"],
    "CLIPVisionModelWithProjection": ["image_embeds", "last_hidden_state"],
    "PriorTransformer": ["predicted_image_embedding"],
    "UnCLIPTextProjModel": ["text_encoder_hidden_states", "additive_clip_time_embeddings"],
    "UNet2DConditionModel": ["sample"],
    "UNet2DModel": ["sample"],
}


def build(case, dtype=torch.float64):
    """The network of a case, its weights from the formula."""
    name, config = case["model"], case["config"]
    for cls in DIFFUSERS:
        if cls.__name__ == name:
            module = cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in config.items()})
            break
    else:
        cls = getattr(transformers, name)
        module = cls(cls.config_class(**config))
    return formula.fill(case["name"], module.to(torch.float64)).to(dtype).eval()


def arguments(case, module):
    """What the case's forward is called with."""
    given = {name: formula.values(f"{case['name']}/{name}", shape) for name, shape in case["inputs"].items()}
    if "timestep" in case:
        given["timestep"] = torch.tensor(case["timestep"])
    if "input_ids" in case:
        given["input_ids"] = torch.tensor(case["input_ids"])
    if "attention_mask" in case:
        mask = torch.tensor(case["attention_mask"])
        given["attention_mask"] = mask if "input_ids" in case else mask.bool()
    if case["model"] == "UNet2DConditionModel":
        given.setdefault("class_labels", None)
    if case["model"] == "CLIPModel":
        given["return_loss"] = True
    if "guidance" in case:
        given["do_classifier_free_guidance"] = case["guidance"]
    known = inspect.signature(module.forward).parameters
    assert all(name in known for name in given), (case["name"], given.keys())
    return given


def run(case, module):
    """The outputs by name, and the loss: CLIP's own, or the mean squared distance of every output to its target."""
    made = module(**arguments(case, module))
    names = OUTPUTS[case["model"]]
    outputs = dict(zip(names, made)) if isinstance(made, tuple) else {name: made[name] for name in names}
    if case["model"] == "CLIPModel":
        return outputs, made["loss"]
    target = lambda name, x: formula.values(f"{case['name']}/target.{name}", tuple(x.shape)).to(x.dtype)
    return outputs, sum(torch.nn.functional.mse_loss(x, target(name, x)) for name, x in outputs.items())


def zero_gradients(gradients):
    """The parameters whose gradient is zero but for rounding: biases that shift all scores of a query alike."""
    largest = max(g.abs().max() for g in gradients.values())
    small = [name for name, g in gradients.items() if 0 < g.abs().max() < 1e-12 * largest]
    assert all(name.endswith(("to_k.bias", "k_proj.bias")) for name in small), small
    return small


def stored(case):
    """The tensors of a case's file, and what its entry in components.json adds: `stock_difference` is how far the outputs of
    diffusers as it is, with sinusoids in float32, are from these, of the largest value."""
    with doubles.sinusoids(), doubles.by_default():
        module = build(case)
        outputs, loss = run(case, module)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        tensors = {f"output.{name}": x.detach().contiguous() for name, x in outputs.items()} | {"loss": loss.detach()}
        tensors |= {f"gradient.{n}": formula.digest(n, g, GRADIENT_BLOCK) for n, g in gradients.items()}
        excluded = zero_gradients(gradients)

        optimizer = torch.optim.AdamW([p for n, p in module.named_parameters() if n in gradients and n not in excluded], **ADAMW)
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            _, loss = run(case, module)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    with doubles.by_default(), torch.no_grad():
        stock, _ = run(case, build(case))
    far = max(((x - stock[name]).abs().max() / x.abs().max()).item() for name, x in outputs.items())
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    trained = {n: p for n, p in module.named_parameters() if n in gradients and n not in excluded}
    tensors |= {f"trained.{n}": formula.digest(n, p, WEIGHT_BLOCK) for n, p in trained.items()}
    largest = max(g.abs().max().item() for g in gradients.values())
    return tensors, dict(largest_gradient=largest, zero_gradients=excluded, stock_difference=far)


def all_cases():
    for case in CASES:
        tensors, more = stored(case)
        yield case | more, tensors
