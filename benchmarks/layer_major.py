"""Measure peak memory and time of scoring a checkpoint of random weights one layer at a time.

python -m benchmarks.layer_major --layers 32 --samples 4 --length 128 DIRECTORY
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.harness import peak_memory, record
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.writer import MAX_SHARD_BYTES, TensorSpec, write_checkpoint
from minitron_cli.data.batches import Batch
from minitron_cli.importance.layer_major import collect_by_layer
from minitron_cli.layerwise.calibration import Calibration
from minitron_cli.layerwise.config import ObserverOptions
from minitron_cli.layerwise.runner import StoredWeights
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape


def llama(layers: int, hidden: int, ffn: int, vocab: int, heads: int, kv_heads: int) -> dict[str, object]:
    """Config of a Llama."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }


def write_random(directory: Path, config: dict[str, object], max_shard_bytes: int = MAX_SHARD_BYTES) -> int:
    """Write a checkpoint of random bf16 weights, a block of rows at a time, and return its size in bytes."""
    typed = hf.config_from_dict(config, "the benchmark")
    generator = torch.Generator().manual_seed(0)
    specs = {name: TensorSpec(s, torch.bfloat16) for name, s in Shape.of(family_of(typed), typed).tensors().items()}

    def content(name: str):
        rows, *columns = specs[name].shape
        for start in range(0, rows, 4096):
            size = (min(4096, rows - start), *columns)
            scale = 1 / columns[0] ** 0.5 if columns else 0.1
            yield (torch.randn(size, generator=generator) * scale + (0 if columns else 1)).bfloat16()

    write_checkpoint(directory, specs, content, max_shard_bytes)
    (directory / "config.json").write_text(json.dumps(config))
    return sum(spec.size_bytes for spec in specs.values())


def batches(count: int, length: int, vocab: int, batch_size: int) -> list[Batch]:
    """Batches of random tokens, `count` sequences of `length` tokens in all."""
    ids = torch.randint(0, vocab, (count, length), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(length).repeat(count, 1)
    return [
        Batch(ids[i : i + batch_size], positions[i : i + batch_size], tuple(range(i, min(i + batch_size, count))))
        for i in range(0, count, batch_size)
    ]


def measure(path: Path, samples: list[Batch], budget: int, *, layer_removal: bool) -> dict[str, float]:
    """Seconds of the scoring, and anonymous memory at its peak and before it."""
    checkpoint, model = Checkpoint.open(path), hf.empty_model(path)
    family, options = family_of(model.config), ObserverOptions(removal_lengths=(1,) if layer_removal else ())
    weights = StoredWeights(model, family, checkpoint.read, "cpu")
    with tempfile.TemporaryDirectory(dir=path) as scratch, peak_memory() as peak:
        started = time.monotonic()
        calibration = Calibration(samples, scratch=Path(scratch), activation_budget=budget)
        collect_by_layer(model, family, weights, calibration, options)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak RssAnon GB": round(peak.highest / 1e9, 3),
        "before GB": round(peak.start / 1e9, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "directory", type=Path, help="directory of the checkpoint, which is written if it does not exist"
    )
    for name, default in {"layers": 11, "hidden": 4096, "ffn": 11008, "vocab": 32000, "heads": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--budget", type=int, default=64_000_000, help="bytes of hidden states that are held in memory")
    parser.add_argument("--no-layer-removal", action="store_true")
    parser.add_argument("--name", default="layer-major", help="name of the result files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = llama(options.layers, options.hidden, options.ffn, options.vocab, options.heads, options.kv_heads)
    if not (options.directory / "config.json").exists():
        options.directory.mkdir(parents=True, exist_ok=True)
        write_random(options.directory, config)
    samples = batches(options.samples, options.length, options.vocab, options.batch_size)
    removal = not options.no_layer_removal
    row = {
        "checkpoint GB": round(Checkpoint.open(options.directory).size_bytes / 1e9, 2),
        "samples": f"{options.samples} x {options.length}",
        "layer removal": removal,
        "activation budget GB": options.budget / 1e9,
        **measure(options.directory, samples, options.budget, layer_removal=removal),
    }
    record(options.name, "A Llama of random bf16 weights, scored one layer at a time", [row])


if __name__ == "__main__":
    main()
