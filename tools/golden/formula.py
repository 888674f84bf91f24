"""Numbers that both languages make alike: `models/tests/golden/formula.rs` is the other half.

Weights, inputs and noise are functions of a name and an index, so that only what networks make of them is stored.
Every operation is one that IEEE 754 rounds exactly: both sides hold the same bits.
"""

import math

import numpy as np
import torch

MASK = (1 << 64) - 1
# The deviation of a uniform number in -1 to 1 is one over this.
SPREAD = 1.7320508075688772
# Tensors of at most this many values are stored whole.
WHOLE = 64


def hash_of(name):
    """FNV-1a of the name's bytes."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


def words(name, count):
    """SplitMix64 from the name's hash: `count` 64-bit words."""
    with np.errstate(over="ignore"):
        z = np.uint64(hash_of(name)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(name, count):
    """Numbers in -1 to 1."""
    return (words(name, count) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def values(name, shape):
    """An input or a noise: mean 0, deviation 1."""
    return torch.from_numpy(uniform(name, math.prod(shape)) * SPREAD).reshape(shape)


def weight(case, name, shape):
    """A parameter: none is zero or one throughout, and signals neither grow nor fade on their way."""
    u = uniform(f"{case}/{name}", math.prod(shape))
    if name == "logit_scale":
        u = np.full_like(u, 2.0)
    elif name == "clip_std" or (len(shape) == 1 and name.endswith("weight")):
        u = 1.0 + 0.25 * u
    elif len(shape) > 1:
        u = u * math.sqrt(3.0 / math.prod(shape[1:]))
    else:
        u = 0.1 * u
    return torch.from_numpy(u).reshape(shape)


def fill(case, module):
    """Gives every parameter of a module its value."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(weight(case, name, tuple(parameter.shape)))
    return module


def digest(name, tensor, block):
    """What is stored of a large tensor: of every `block` values one sum with random weights, so that each value counts.

    A quarter of the weights' range keeps a sum as large as a value.
    """
    flat = tensor.detach().to(torch.float64).reshape(-1).numpy()
    if flat.size <= WHOLE:
        return torch.from_numpy(flat.copy())
    padded = np.zeros(-(-flat.size // block) * block)
    padded[: flat.size] = flat * uniform(f"digest/{name}", flat.size) * 0.25
    return torch.from_numpy(padded.reshape(-1, block).sum(axis=1))
