"""Measure peak memory and time of repairing a child one layer at a time, for a checkpoint of random weights.

python -m benchmarks.repair DIRECTORY
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import peak_memory, record
from benchmarks.layer_major import batches, llama, write_random
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import Batch
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.prune.child_builder import ChildBuilder
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import write_child
from minitron_cli.repair.closed_form import ClosedFormRepair
from minitron_cli.scores.scores import Scores
from minitron_cli.search import space

REPAIRS = frozenset({"rotate", "least_squares"})


@dataclass(frozen=True)
class Samples:
    """Random tokens in place of text."""

    count: int
    length: int
    vocab: int

    def batches(self, size: int) -> list[Batch]:
        """The tokens in batches of at most `size` sequences."""
        return batches(self.count, self.length, self.vocab, size)


def first_channels(parent: SourceModel, sizes: dict[str, int]) -> PrunePlan:
    """Plan that keeps the first channels of each axis, because the choice affects neither time nor memory."""
    child = space.named(parent.shape, sizes, ())
    layers = parent.shape.sizes["layer"]
    kept = {axis: torch.arange(size) for axis, size in child.sizes.items() if size < parent.shape.sizes[axis]}
    return PrunePlan(parent.shape, {a: k if a == "hidden" else k.expand(layers, -1) for a, k in kept.items()})


def measure(path: Path, samples: Samples, batch_size: int, budget: int, sizes: dict[str, int]) -> dict[str, float]:
    """Seconds of each step, and anonymous memory at its peak and before the steps."""
    parent, seconds = open_source_model(path), {}
    plan = first_channels(parent, sizes)

    def timed(name: str, started: float) -> None:
        seconds[f"{name} s"] = round(time.monotonic() - started, 1)

    with tempfile.TemporaryDirectory(dir=path) as place, peak_memory() as peak:
        scratch = Path(place)
        context = Context(Workspace(scratch / "runs"))
        model = hf.empty_model(path, dtype=parent.dtype_in(context))
        builder = ChildBuilder(context, parent, Scores({}), Ranking())
        fit = ClosedFormRepair(builder, samples, scratch / "repair", model, batch_size, budget)
        started = time.monotonic()
        fit.moments()
        timed("second moments", started)
        started = time.monotonic()
        repaired = fit.repaired(plan, REPAIRS)
        timed("fit", started)
        started = time.monotonic()
        (scratch / "child").mkdir()
        write_child(parent.checkpoint, repaired, scratch / "child")
        timed("write", started)
    return seconds | {"peak RssAnon GB": round(peak.highest / 1e9, 3), "before GB": round(peak.start / 1e9, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "directory", type=Path, help="directory of the checkpoint, which is written if it does not exist"
    )
    parent = {"layers": 11, "hidden": 4096, "ffn": 11008, "vocab": 32000, "heads": 32, "kv_heads": 8}
    child = {"hidden": 1024, "ffn": 2816, "head": 16}
    for name, default in parent.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    for name, default in child.items():
        parser.add_argument(f"--child-{name}", type=int, default=default)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--budget", type=int, default=64_000_000, help="bytes of hidden states that are held in memory")
    options = vars(parser.parse_args())
    torch.set_num_threads(1)
    path = options["directory"]
    if not (path / "config.json").exists():
        path.mkdir(parents=True, exist_ok=True)
        write_random(path, llama(**{name: options[name] for name in parent}))
    sizes = {axis: options[f"child_{axis}"] for axis in child}
    samples = Samples(options["samples"], options["length"], options["vocab"])
    row = {
        "checkpoint GB": round(open_source_model(path).checkpoint.size_bytes / 1e9, 2),
        "child": ", ".join(f"{axis} {size}" for axis, size in sizes.items()),
        "samples": f"{samples.count} x {samples.length}",
        "activation budget GB": options["budget"] / 1e9,
        **measure(path, samples, options["batch_size"], options["budget"], sizes),
    }
    record("repair", "A Llama of random bf16 weights, rotated and fitted one layer at a time", [row])


if __name__ == "__main__":
    main()
