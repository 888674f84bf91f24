"""Walks of diffusers' schedulers from noise to a clean sample, every step stored; tables in float64.

A network's output is a function of the step alone, so that a difference does not hide in a network's answer to it. The
last field of each entry says how far stock diffusers, with its tables in float32, is from the same walk.
"""

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UnCLIPScheduler
from diffusers.schedulers import scheduling_unclip

from . import doubles, formula

SHAPE = [2, 3, 4, 5]  # [n, c, h, w]


def walk(name, sampler, prediction_type, steps, **more):
    return dict(name=name, sampler=sampler, prediction_type=prediction_type, steps=steps, clip_sample_range=1.0) | more


WALKS = [
    walk("unclip-prior", "ancestral", "sample", 25, variance_type="fixed_small_log", clip_sample_range=5.0),
    walk("unclip-decoder", "ancestral", "epsilon", 50, variance_type="learned_range"),
    walk("unclip-decoder-every-step", "ancestral", "epsilon", 20, variance_type="learned_range", num_train_timesteps=20),
    walk("unclip-upsampler", "ancestral", "epsilon", 7, variance_type="fixed_small_log"),
    walk("unclip-unclipped", "ancestral", "sample", 2, variance_type="fixed_small_log", clip_sample=False),
    walk("ddim", "ddim", "epsilon", 27, eta=0.0),
    walk("ddim-half", "ddim", "v_prediction", 10, eta=0.5, clip_sample_range=2.0),
    walk("ddim-ancestral", "ddim", "sample", 4, eta=1.0),
    walk("dpm", "dpm", "epsilon", 10, variance_type="learned_range"),
    walk("dpm-long", "dpm", "v_prediction", 25),
    walk("dpm-short", "dpm", "sample", 3),
]


def scheduler(walk):
    """Stock diffusers, set to do what the walk says."""
    total = walk.get("num_train_timesteps", 1000)
    limit, clip = walk["clip_sample_range"], walk.get("clip_sample", True)
    shared = dict(num_train_timesteps=total, prediction_type=walk["prediction_type"])
    if walk["sampler"] == "ancestral":
        made = UnCLIPScheduler(clip_sample=clip, clip_sample_range=limit, variance_type=walk["variance_type"], **shared)
    elif walk["sampler"] == "ddim":
        made = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2", clip_sample=clip, clip_sample_range=limit, timestep_spacing="linspace", **shared
        )
    else:
        # Thresholding at a quantile of at most 1 is clipping to -1 to 1.
        made = DPMSolverMultistepScheduler(
            beta_schedule="squaredcos_cap_v2", solver_order=2, solver_type="midpoint", final_sigmas_type="zero",
            timestep_spacing="linspace", lambda_min_clipped=-5.1, thresholding=True, sample_max_value=1.0,
            lower_order_final=True, variance_type=walk.get("variance_type"), **shared,
        )  # fmt: skip
    return made


def run(walk, exact):
    """Time steps, samples after every step, and the clean samples seen (DPM-Solver tells none)."""
    name, made = walk["name"], scheduler(walk)
    dtype = torch.float64
    if exact:
        doubles.tables(made)
    made.set_timesteps(walk["steps"])
    if exact and walk["sampler"] == "dpm":
        alpha_bar = made.alphas_cumprod[made.timesteps]
        made.sigmas = torch.cat([((1 - alpha_bar) / alpha_bar) ** 0.5, torch.zeros(1, dtype=dtype)])
    timesteps = made.timesteps.tolist()
    channels = SHAPE[1] * (2 if walk.get("variance_type") == "learned_range" else 1)
    x = formula.values(f"{name}/start", SHAPE)
    samples, clean = [], []
    for i, t in enumerate(timesteps):
        output = formula.values(f"{name}/output.{i}", [SHAPE[0], channels, *SHAPE[2:]])
        noise = formula.values(f"{name}/noise.{i}", SHAPE)
        last = i + 1 == len(timesteps)
        if walk["sampler"] == "ancestral":
            scheduling_unclip.randn_tensor = lambda *a, **k: noise
            made_step = made.step(output, t, x, prev_timestep=None if last else timesteps[i + 1])
        elif walk["sampler"] == "ddim":
            # It takes the next time step to lie T / steps below, wherever the list of time steps has it.
            made.register_to_config(num_train_timesteps=t + 1 if last else t - timesteps[i + 1])
            made.num_inference_steps = 1
            eta = walk["eta"]
            made_step = made.step(output, t, x, eta=eta, use_clipped_model_output=True, variance_noise=noise if eta > 0 else None)
        else:
            made_step = made.step(output, t, x)
        x = made_step.prev_sample
        samples.append(x)
        clean.append(getattr(made_step, "pred_original_sample", x))
    return timesteps, torch.stack(samples), torch.stack(clean)


def all_walks():
    for walk in WALKS:
        with doubles.no_downcasts():
            timesteps, samples, clean = run(walk, exact=True)
        _, stock, _ = run(walk, exact=False)
        scale = samples.abs().amax()
        difference = ((samples - stock).abs().amax() / scale).item()
        tensors = {"samples": samples}
        if walk["sampler"] != "dpm":
            tensors["clean"] = clean
        yield walk | dict(shape=SHAPE, timesteps=timesteps, stock_difference=difference), tensors
