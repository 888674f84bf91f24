"""Runs our benches and PyTorch's in turns, several passes, and writes one folder under benches/runs/.

    UNCLIP_PEER_PYTHON=path/to/python python benches/peers/compare.py [--passes 3] [--threads 2] [--device cuda:0]

Python's standard library only; PyTorch is needed by the interpreter that UNCLIP_PEER_PYTHON names, and where that is unset
only our side is run. The folder holds raw.jsonl (every measurement of every pass), summary.md (the table with ratios) and
setup.txt (machine, versions, commit).
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def output(*command):
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def processor():
    try:
        for line in open("/proc/cpuinfo"):
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def run_ours(bench, selections, options, raw):
    """One pass of our side, a call for each selection; appends to `raw`."""
    environment = dict(
        os.environ, UNCLIP_BENCH=str(raw), RAYON_NUM_THREADS=str(options.threads), UNCLIP_DEVICE=options.device,
        UNCLIP_DTYPE=options.dtype,
    )
    for selection in selections:
        command = ["cargo", "bench", "--bench", bench, "--", *selection]
        subprocess.run(command, cwd=ROOT, check=True, env=environment, stdout=sys.stderr)


def run_peer(python, bench, filters, options, raw):
    command = [python, str(HERE / f"torch_{bench}.py"), "--threads", str(options.threads), "--device", options.device]
    if bench == "ops":
        command += ["--dtype", options.dtype]
    command += filters
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    with open(raw, "a") as file:
        file.write(lines)


def numbered(raw, index, seen):
    """Adds the pass number to the lines that a pass appended."""
    lines = raw.read_text().splitlines()
    fresh = [dict(json.loads(line), **{"pass": index}) for line in lines[seen:]]
    raw.write_text("\n".join(lines[:seen] + [json.dumps(row) for row in fresh]) + "\n")
    return len(lines)


def table(rows):
    sides = {}
    for row in rows:
        sides.setdefault(row["name"], {}).setdefault(row["side"], []).append(row)
    # The fastest of the runs: other work on the machine slows a measurement of the peak, nothing speeds it.
    peaks = {key: max((row[key] for row in rows if key in row), default=None) for key in ("peak_flops", "peak_bytes")}
    lines = []
    if peaks["peak_flops"]:
        text = f"Measured peak of the machine, best of the runs: {peaks['peak_flops'] / 1e9:.0f} GFLOP/s f32"
        if peaks["peak_bytes"]:
            text += f", copy {peaks['peak_bytes'] / 1e9:.1f} GB/s"
        lines.append(text + ".\n")
    lines += [
        "| case | ours µs, median of passes (range) | best | GFLOP/s | % of peak | PyTorch µs, median (range) | best | ours × PyTorch, median | best |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]

    def times(runs):
        medians = [run["median_us"] for run in runs]
        spread = f"{statistics.median(medians):.0f} ({min(medians):.0f}-{max(medians):.0f})"
        return statistics.median(medians), spread, min(run["best_us"] for run in runs)

    for name, found in sides.items():
        if "unclip" not in found:
            continue
        ours, spread, best = times(found["unclip"])
        first = found["unclip"][0]
        flops = first.get("flops", 0.0)
        limit = 0.0
        if peaks["peak_flops"]:
            limit = flops / peaks["peak_flops"]
        if peaks["peak_bytes"]:
            limit = max(limit, first["bytes"] / peaks["peak_bytes"])
        cells = [name, spread, f"{best:.0f}", f"{flops / ours / 1e3:.1f}", f"{100e6 * limit / ours:.0f}" if limit else ""]
        if "pytorch" in found:
            peer, peer_spread, peer_best = times(found["pytorch"])
            cells += [peer_spread, f"{peer_best:.0f}", f"{peer / ours:.2f}", f"{peer_best / best:.2f}"]
        else:
            cells += ["", "", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU such as cuda:0")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--folder", type=pathlib.Path, help="where results go, in files that begin with bench and dtype")
    parser.add_argument("--bench", default="ops", choices=["ops", "step"])
    parser.add_argument("--filter", action="append", help="names to run; without it, those that both sides have")
    options = parser.parse_args()

    python = os.environ.get("UNCLIP_PEER_PYTHON")
    script = f"torch_{options.bench}.py"
    filters = options.filter or []
    # A filter is a regular expression to our side, which names are not.
    selections = [[text] for text in filters] or [[]]
    if not filters and python:
        names = output(python, str(HERE / script), "--list").splitlines()
        selections = [["--exact", name] for name in names]

    commit = output("git", "rev-parse", "--short", "HEAD")
    changed = "-changed" if output("git", "status", "--porcelain") else ""
    date = datetime.date.today().isoformat()
    device = re.sub(r"[^A-Za-z0-9]+", "-", options.device).strip("-")
    folder = options.folder or ROOT / "benches" / "runs" / f"{date}-{device}-{commit}{changed}"
    folder.mkdir(parents=True, exist_ok=True)
    begin = f"{options.bench}-{options.dtype}-" if options.folder else ""
    raw = folder / f"{begin}raw.jsonl"
    raw.touch()

    subprocess.run(["cargo", "bench", "--no-run", "--bench", options.bench], cwd=ROOT, check=True)
    seen = len(raw.read_text().splitlines())
    for index in range(options.passes):
        run_ours(options.bench, selections, options, raw)
        if python:
            run_peer(python, options.bench, filters, options, raw)
        seen = numbered(raw, index, seen)

    rows = [json.loads(line) for line in raw.read_text().splitlines()]
    torch = next((row["torch"] for row in rows if "torch" in row), "not run")
    (folder / f"{begin}setup.txt").write_text(
        f"commit {commit}{changed}\ndate {date}\ncpu {processor()}, {os.cpu_count()} cores, {options.threads} threads used\n"
        f"system {platform.platform()}\n{output('rustc', '--version')}\npytorch {torch}\n"
        f"passes {options.passes}, both sides in turns\nload average at the end {os.getloadavg()}\n"
    )
    place = f"{processor()}, {options.threads} threads" if options.device == "cpu" else options.device
    summary = f"# {date}, {place}, {options.dtype}\n\n{table(rows)}"
    (folder / f"{begin}summary.md").write_text(summary)
    print(summary)


if __name__ == "__main__":
    main()
