"""Makes what `models/tests/golden` compares this program with, from diffusers and transformers.

    pip install -r tools/golden/requirements.txt
    python -m tools.golden                  # writes models/tests/golden/data; about a minute
    python -m tools.golden --check          # makes all of it again and says how far it is from what is there
    python -m tools.golden --bpe bpe_simple_vocab_16e6.txt.gz --vocabulary DIR     # CLIP's own vocabulary, into DIR
"""

import argparse
import gzip
import json
import pathlib
import tempfile

import torch
from safetensors.torch import load_file, save_file

from . import components, foreign, names, pipeline, schedulers, tokenizer, variation
from .versions import VERSIONS

DATA = pathlib.Path(__file__).parents[2] / "models/tests/golden/data"


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def make(folder, karlo):
    for part in ("components", "schedulers", "names", "foreign"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    entries = []
    for entry, tensors in components.all_cases():
        save_file(tensors, folder / "components" / f"{entry['name']}.safetensors")
        entries.append(entry)
        print(entry["name"], f"loss {tensors['loss'].item():.6f}, {len(tensors)} tensors")
    write_json(folder / "components.json", dict(versions=VERSIONS, adamw=components.ADAMW, cases=entries))
    entries = []
    for entry, tensors in schedulers.all_walks():
        save_file(tensors, folder / "schedulers" / f"{entry['name']}.safetensors")
        entries.append(entry)
        print(entry["name"], f"stock diffusers is {entry['stock_difference']:.1e} away")
    write_json(folder / "schedulers.json", dict(versions=VERSIONS, walks=entries))
    for entry, tensors in foreign.all_cases(karlo):
        save_file(tensors, folder / "foreign" / f"{entry['name']}.safetensors")
        (folder / "foreign" / f"{entry['name']}.json").write_text(json.dumps(entry) + "\n")
        print(entry["name"])
    for name, lines in names.lists():
        (folder / "names" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    made = tokenizer.write(folder / "tokenizer", tokenizer.trained_merges())
    save_file(tokenizer.golden(made), folder / "lines.safetensors")
    write_json(folder / "fragments.json", [[text, text.upper()] for text in tokenizer.FRAGMENTS])
    made.model_max_length = pipeline.CONTEXT
    entry, tensors = pipeline.golden(made, made.get_vocab())
    save_file(tensors, folder / "pipeline.safetensors")
    write_json(folder / "pipeline.json", dict(versions=VERSIONS) | entry)
    entry, tensors = variation.golden(made, made.get_vocab())
    save_file(tensors, folder / "variation.safetensors")
    write_json(folder / "variation.json", dict(versions=VERSIONS) | entry)
    entry, tensors = variation.preprocessing()
    save_file(tensors, folder / "preprocessing.safetensors")
    write_json(folder / "preprocessing.json", dict(versions=VERSIONS) | entry)


def check(karlo):
    """The largest difference of every file, relative to the largest value of each of its tensors."""
    with tempfile.TemporaryDirectory() as temporary:
        again = pathlib.Path(temporary)
        make(again, karlo)
        for path in sorted(again.rglob("*")):
            there = DATA / path.relative_to(again)
            if path.suffix == ".safetensors":
                old, new = load_file(there), load_file(path)
                assert old.keys() == new.keys(), path.name
                worst = 0.0
                for key, value in new.items():
                    scale = max(old[key].double().abs().max().item(), 1e-300)
                    worst = max(worst, (old[key].double() - value.double()).abs().max().item() / scale)
                print(f"{path.relative_to(again)}: {worst:.1e}")
            elif path.is_file() and path.read_bytes() != there.read_bytes():
                print(f"{path.relative_to(again)} differs")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--bpe", help="OpenAI's list of merges, gzipped")
    parser.add_argument("--vocabulary", type=pathlib.Path, help="where the files of that vocabulary go")
    parser.add_argument("--karlo", type=pathlib.Path, help="a checkout of kakaobrain/karlo")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if arguments.bpe:
        lines = gzip.open(arguments.bpe, "rt", encoding="utf-8").read().split("\n")
        merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
        made = tokenizer.write(arguments.vocabulary, merges)
        save_file(tokenizer.golden(made), arguments.vocabulary / "lines.safetensors")
    elif arguments.check:
        check(arguments.karlo)
    else:
        make(DATA, arguments.karlo)


main()
