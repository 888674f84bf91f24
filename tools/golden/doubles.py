"""diffusers in double precision throughout.

Three places compute in float32 whatever the model's dtype: the sinusoids of time steps, the tables of schedulers, and
DPM-Solver's update. Here they are rebuilt in float64; `schedulers.py` states how far stock diffusers is from that.
"""

import contextlib
import math

import diffusers.models.embeddings as embeddings
import torch


def timestep_embedding(timesteps, embedding_dim, flip_sin_to_cos=False, downscale_freq_shift=1, scale=1, max_period=10000):
    """The function of diffusers.models.embeddings, in float64."""
    half = embedding_dim // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift)
    angles = scale * timesteps[:, None].to(torch.float64) * torch.exp(exponent)[None, :]
    parts = [torch.sin(angles), torch.cos(angles)]
    return torch.cat(parts[::-1] if flip_sin_to_cos else parts, dim=-1)


@contextlib.contextmanager
def sinusoids():
    """Time steps enter networks in float64."""
    stock = embeddings.get_timestep_embedding
    embeddings.get_timestep_embedding = timestep_embedding
    try:
        yield
    finally:
        embeddings.get_timestep_embedding = stock


@contextlib.contextmanager
def by_default():
    """What transformers makes without naming a dtype, such as masks, is of float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def no_downcasts():
    """`.to(torch.float32)` leaves doubles as they are."""
    stock = torch.Tensor.to

    def to(self, *args, **kwargs):
        wanted = kwargs.get("dtype", args[0] if args else None)
        return self if wanted is torch.float32 and self.dtype is torch.float64 else stock(self, *args, **kwargs)

    torch.Tensor.to = to
    try:
        yield
    finally:
        torch.Tensor.to = stock


def cosine_betas(steps):
    """Nichol and Dhariwal (2021), equation 17."""

    def alpha_bar(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999) for i in range(steps)], dtype=torch.float64)


def tables(scheduler):
    """Gives a scheduler its tables in float64."""
    scheduler.betas = cosine_betas(scheduler.config.num_train_timesteps)
    scheduler.alphas = 1.0 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(scheduler, "lambda_t"):
        scheduler.alpha_t = torch.sqrt(scheduler.alphas_cumprod)
        scheduler.sigma_t = torch.sqrt(1 - scheduler.alphas_cumprod)
        scheduler.lambda_t = torch.log(scheduler.alpha_t) - torch.log(scheduler.sigma_t)
    return scheduler
