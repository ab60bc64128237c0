"""Compare generation by a parent and two children of equal size, one pruned in width and one in depth.

Measured as in `minitron eval --speed`: models take turns, figures are medians of the rounds, and the memory of each
model is measured in a process of its own.

    python -m benchmarks speed            # two or three minutes on one thread
    python -m benchmarks speed one        # one part

Parts: one (batch size 1), eight (batch size 8).
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
# layers, hidden, ffn; heads are not pruned, as in the published children
SIZES = {PARENT: (12, 640, 1728), WIDTH: (12, 480, 1136), DEPTH: (6, 640, 1728)}
PARTS = {
    "one": Speed(batch_size=1, prompt_tokens=256, new_tokens=32, rounds=7),
    "eight": Speed(batch_size=8, prompt_tokens=64, new_tokens=16, rounds=5),
}

Rows = list[dict[str, Any]]


def write_model(path: Path, layers: int, hidden: int, ffn: int) -> None:
    """Write a Llama of random weights."""
    config = hf.config_from_dict(llama(layers, hidden, ffn, VOCAB, HEADS, KV_HEADS) | {"head_dim": 64}, "the benchmark")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)


def measure(root: Path, config: Speed) -> Rows:
    """Rows of each child against the parent, and of the shallow child against the narrow one."""
    models = {name: hf.load_model(root / name) for name in SIZES}
    rows = []
    for name, other in ((WIDTH, PARENT), (DEPTH, PARENT), (DEPTH, WIDTH)):
        found = generation_speed.compare(models[name], models[other], config)
        if not rows:
            rows.append(row(root / PARENT, PARENT, found.parent, config))
        rows.append(row(root / name, f"{name} against {other}", found.model, config) | times(found))
    return rows


def row(path: Path, label: str, rates: generation_speed.GenerationRates, config: Speed) -> dict[str, Any]:
    """Speed of one model."""
    return {
        "model": label,
        "parameters": f"{open_source_model(path).shape.parameters():,}",
        "prefill tokens/s": rates.prefill_tokens_per_second,
        "decode tokens/s": rates.decode_tokens_per_second,
        "first token ms": 1000 * rates.time_to_first_token_seconds,
    }


def times(found: generation_speed.SpeedComparison) -> dict[str, str]:
    """Speed relative to the other model, with its range over rounds."""
    sides = {"prefill": (found.prefill_ratio, found.prefill_range), "decode": (found.decode_ratio, found.decode_range)}
    return {f"{phase} x": f"{middle:.2f} ({low:.2f} to {high:.2f})" for phase, (middle, (low, high)) in sides.items()}


def main(parts: list[str]) -> None:
    """Run the parts, or all, and record the results."""
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
        found["peak above libraries MiB"] = round((peak["peak_bytes"] - peak["libraries_bytes"]) / 2**20)
    notes = [
        f"Llamas of random fp32 weights, {HEADS} heads of 64 in {KV_HEADS} groups: "
        f"{'; '.join(f'{name} {shape(name)}' for name in SIZES)}. Batch {config.batch_size}, prompt "
        f"{config.prompt_tokens} tokens, {config.new_tokens} new tokens. Medians of {config.rounds} rounds in which "
        f"models take turns; in brackets the lowest and the highest round. Load of the {os.cpu_count()} "
        f"cores: {load:.1f} before, {os.getloadavg()[0]:.1f} after.",
    ]
    record(f"speed-{part}", f"Speed: children pruned in width and in depth, batch {config.batch_size}", rows, notes)


def shape(name: str) -> str:
    """Sizes of a model in one line."""
    layers, hidden, ffn = SIZES[name]
    return f"{layers} layers, hidden {hidden}, ffn {ffn}"
