"""Generation by a parent and by two children of one size, one cut in width and one in depth, by the clock of
`minitron eval --speed`: in turns, medians of the rounds, memory of a process each.

    python -m benchmarks speed            # two or three minutes on one thread
    python -m benchmarks speed one        # one part

Parts: one (a batch of one), eight (of eight).
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.harness import record
from benchmarks.layer_major import llama
from minitron_cli.checkpoint import hf
from minitron_cli.evaluate import generation_speed
from minitron_cli.evaluate.config import Speed
from minitron_cli.inputs.source_model import open_source_model

VOCAB, HEADS, KV_HEADS = 8192, 10, 2
PARENT, WIDTH, DEPTH = "parent", "width", "depth"
# layers, hidden, ffn; heads stay, as in the published children
SIZES = {PARENT: (12, 640, 1728), WIDTH: (12, 480, 1136), DEPTH: (6, 640, 1728)}
PARTS = {
    "one": Speed(batch_size=1, prompt_tokens=256, new_tokens=32, rounds=7),
    "eight": Speed(batch_size=8, prompt_tokens=64, new_tokens=16, rounds=5),
}

RowReader = list[dict[str, Any]]


def write_model(path: Path, layers: int, hidden: int, ffn: int) -> None:
    config = hf.config_from_dict(llama(layers, hidden, ffn, VOCAB, HEADS, KV_HEADS) | {"head_dim": 64}, "the benchmark")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)


def measure(root: Path, config: Speed) -> RowReader:
    """A row for each model beside the parent, and one for the shallow child beside the narrow one."""
    models = {name: hf.load_model(root / name) for name in SIZES}
    rows = []
    for name, beside in ((WIDTH, PARENT), (DEPTH, PARENT), (DEPTH, WIDTH)):
        found = generation_speed.compare(models[name], models[beside], config)
        if not rows:
            rows.append(row(root / PARENT, PARENT, found.parent, config))
        rows.append(row(root / name, f"{name} beside {beside}", found.model, config) | times(found))
    return rows


def row(path: Path, what: str, rates: generation_speed.GenerationRates, config: Speed) -> dict[str, Any]:
    return {
        "model": what,
        "parameters": f"{open_source_model(path).shape.parameters():,}",
        "prefill tokens/s": rates.prefill_tokens_per_second,
        "decode tokens/s": rates.decode_tokens_per_second,
        "first token ms": 1000 * rates.time_to_first_token_seconds,
    }


def times(found: generation_speed.SpeedComparison) -> dict[str, str]:
    sides = {"prefill": (found.prefill_ratio, found.prefill_range), "decode": (found.decode_ratio, found.decode_range)}
    return {f"{phase} x": f"{middle:.2f} ({low:.2f} to {high:.2f})" for phase, (middle, (low, high)) in sides.items()}


def main(parts: list[str]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name, sizes in SIZES.items():
            write_model(root / name, *sizes)
        for part in parts or list(PARTS):
            print(f"{part} ...", file=sys.stderr, flush=True)
            _record(root, part)


def _record(root: Path, part: str) -> None:
    load, config = os.getloadavg()[0], PARTS[part]
    rows = measure(root, config)
    memory = {name: generation_speed.peak_memory(root / name, config, device="cpu", dtype="auto") for name in SIZES}
    for found in rows:
        peak = memory[found["model"].split()[0]]
        found["peak beyond libraries MiB"] = round((peak["peak_bytes"] - peak["libraries_bytes"]) / 2**20)
    notes = [
        f"Llamas of random fp32 weights, {HEADS} heads of 64 in {KV_HEADS} groups: "
        f"{'; '.join(f'{name} {shape(name)}' for name in SIZES)}. Batch {config.batch_size}, prompt "
        f"{config.prompt_tokens} tokens, {config.new_tokens} new ones. Medians of {config.rounds} rounds in turns, in "
        f"brackets the lowest and the highest round. Load of the {os.cpu_count()} cores: {load:.1f} before, "
        f"{os.getloadavg()[0]:.1f} after.",
    ]
    record(f"speed-{part}", f"Speed: a child cut in width and one cut in depth, batch {config.batch_size}", rows, notes)


def shape(name: str) -> str:
    layers, hidden, ffn = SIZES[name]
    return f"{layers} layers, hidden {hidden}, ffn {ffn}"
