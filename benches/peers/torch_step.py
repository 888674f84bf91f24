"""PyTorch's side of the step benches: the U-Net and the CLIP model of benches/step.rs from the same configurations.

    python torch_step.py [--threads N] [--device cuda:0] [FILTER ...]     # one line of JSON a case on standard output

Needs diffusers and transformers. Images are channels_last; a step is zero_grad, forward, loss, backward, AdamW, and the
loss read back. f32 without TF32.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F

WARM_UP, MEASURE_S, LEAST = 2, 15.0, 9


def unet(device):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=64, norm_num_groups=32,
    ).train().to(device, memory_format=torch.channels_last)
    images = lambda: torch.randn(16, 3, 32, 32).to(device, memory_format=torch.channels_last)
    x, noise, times = images(), images(), (torch.arange(16) * 62).to(device)
    return model, 0.01, lambda: F.mse_loss(model(x, times, return_dict=False)[0], noise)


def clip(device):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = dict(hidden_size=256, intermediate_size=1024, num_attention_heads=4)
    model = CLIPModel(CLIPConfig(
        projection_dim=256,
        vision_config=dict(tower, num_hidden_layers=6, image_size=64, patch_size=8),
        text_config=dict(
            tower, num_hidden_layers=4, max_position_embeddings=32, vocab_size=49408,
            bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
        ),
    )).train().to(device)
    pixels = torch.randn(64, 3, 64, 64).to(device)
    ids = (torch.arange(64 * 32) * 7919 % 49000).view(64, 32)
    ids[:, 0], ids[:, 24:] = 49406, 49407
    ids = ids.to(device)
    return model, 0.1, lambda: model(input_ids=ids, pixel_values=pixels, return_loss=True).loss


CASES = {
    "step/unet2d 6.8M, batch 16, 32x32": (unet, 16),
    "step/clip 20.8M, batch 64, 64x64, 32 tokens": (clip, 64),
}


def measure(name, build, batch, device):
    model, weight_decay, loss_of = build(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=weight_decay)
    samples, losses, begun = [], [], None
    while True:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        optimizer.step()
        # On a GPU this waits for the step.
        losses.append(loss.item())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if len(losses) <= WARM_UP:
            continue
        begun = begun or start
        samples.append(now - start)
        if now - begun > MEASURE_S and len(samples) >= LEAST:
            break
    samples.sort()
    at = lambda q: samples[int((len(samples) - 1) * q)] * 1e6
    print(json.dumps({
        "side": "pytorch", "name": name, "dtype": "f32", "median_us": at(0.5), "p20_us": at(0.2), "p80_us": at(0.8),
        "best_us": at(0.0), "samples": len(samples), "batch": batch, "torch": torch.__version__,
        "threads": torch.get_num_threads(), "parameters": sum(p.numel() for p in model.parameters()),
        "first_loss": losses[0], "last_loss": losses[-1],
    }), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--list", action="store_true", help="print the cases' names and stop")
    parser.add_argument("filters", nargs="*", help="parts of names; any selects")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    for name, (build, batch) in CASES.items():
        if options.filters and not any(f in name for f in options.filters):
            continue
        if options.list:
            print(name)
            continue
        measure(name, build, batch, options.device)


if __name__ == "__main__":
    main()
