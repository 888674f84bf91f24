"""PyTorch's side of the op benches: the same cases under the same names as `cargo bench --bench ops` prints.

    python torch_ops.py [--threads N] [--device cuda:0] [--dtype bf16] [FILTER ...]     # one line of JSON a case

Images are channels_last, which is PyTorch's NHWC. Operands take turns over more than the cache, and every call is timed
alone, as on our side: on a GPU until it has done it. f32 is f32: without TF32.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F

ROTATED = 96 << 20
WARM_UP_S, MEASURE_S, LEAST = 0.5, 2.0, 10


# Where tensors are made, and in what.
PLACE = {}


def normal(*shape):
    return torch.randn(*shape, **PLACE)


def image(n, h, w, c):
    return torch.randn(n, c, h, w, **PLACE).to(memory_format=torch.channels_last)


def gemm(m):
    return (lambda: (normal(m, m), normal(m, m))), torch.matmul


def conv(x, out, kernel):
    n, h, w, c = x
    make = lambda: (image(n, h, w, c), image(out, kernel, kernel, c), normal(out))
    return make, lambda x, w, b: F.conv2d(x, w, b, padding=kernel // 2)


def norm(x, groups):
    make = lambda: (image(*x), normal(x[3]), normal(x[3]))
    return make, lambda x, gamma, beta: F.silu(F.group_norm(x, groups, gamma, beta))


def attention(n, tokens, heads, dim):
    make = lambda: tuple(normal(n, tokens, heads * dim) for _ in range(3))

    def run(q, k, v):
        q, k, v = (t.view(n, tokens, heads, dim).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return make, run


# Names are those of our cases. The first five are what the project promises to print.
CASES = {
    "matmul/matmul,a=[],b=[],m=1024,n=1024,k=1024": gemm(1024),
    "matmul/matmul,a=[],b=[],m=2048,n=2048,k=2048": gemm(2048),
    "conv2d/x=[8, 32, 32, 128],out=128,kernel=3x3,stride=1,padding=1,bias": conv((8, 32, 32, 128), 128, 3),
    "group_norm/x=[8, 32, 32, 128],groups=32,silu": norm((8, 32, 32, 128), 32),
    "attention/n=8,queries=256,keys=256,context=0,heads=4,head_dim=64": attention(8, 256, 4, 64),
}


def quantile(ordered, q):
    return ordered[int((len(ordered) - 1) * q)]


def wait():
    if PLACE["device"].type == "cuda":
        torch.cuda.synchronize(PLACE["device"])


def measure(name, make, run, backward):
    first = make()
    size = sum(t.numel() * t.element_size() for t in first)
    sets = [make() for _ in range(max(1, min(64, ROTATED // size)))]
    with torch.no_grad():
        flow = torch.randn_like(run(*first))
    if backward:
        for operands in sets:
            for t in operands:
                t.requires_grad_(True)

    def call(operands):
        if not backward:
            with torch.no_grad():
                return run(*operands)
        for t in operands:
            t.grad = None
        run(*operands).backward(flow)

    samples, begun, turn = [], time.perf_counter(), 0
    while True:
        turn = (turn + 1) % len(sets)
        start = time.perf_counter()
        call(sets[turn])
        wait()
        now = time.perf_counter()
        if now - begun > WARM_UP_S:
            samples.append(now - start)
        if now - begun > WARM_UP_S + MEASURE_S and len(samples) >= LEAST:
            break
    samples.sort()
    us = lambda seconds: seconds * 1e6
    print(json.dumps({
        "side": "pytorch", "name": name, "dtype": "bf16" if PLACE["dtype"] == torch.bfloat16 else "f32",
        "median_us": us(quantile(samples, 0.5)), "p20_us": us(quantile(samples, 0.2)),
        "p80_us": us(quantile(samples, 0.8)), "best_us": us(samples[0]), "samples": len(samples),
        "torch": torch.__version__, "threads": torch.get_num_threads(),
    }), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--list", action="store_true", help="print the cases' names and stop")
    parser.add_argument("filters", nargs="*", help="parts of names; any selects")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    PLACE.update(device=options.device, dtype=torch.bfloat16 if options.dtype == "bf16" else torch.float32)
    torch.manual_seed(0)
    for name, (make, run) in CASES.items():
        for passes in ("forward", "forward+backward"):
            full = f"{name} {passes}"
            if options.filters and not any(f in full for f in options.filters):
                continue
            if options.list:
                print(full)
            else:
                measure(full, make, run, backward=passes != "forward")


if __name__ == "__main__":
    main()
