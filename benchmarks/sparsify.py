"""Compare sparsifying a checkpoint with copying it, and a pass over text with a forward pass of the same layers.

    python -m benchmarks sparsify                  # both parts; writes 1.6 GB of random weights
    python -m benchmarks sparsify magnitude        # 2:4 by magnitude beside copying and syncing the file
    python -m benchmarks sparsify passes           # wanda, sparsegpt and least squares beside the layers alone

`to_flops` is the time of sparsegpt relative to two forward passes and its other FLOPs at the rate of a large product.
Seconds are of this process, without imports. The page cache is warm. A checkpoint may be given: --model DIRECTORY.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import record
from benchmarks.layer_major import batches
from benchmarks.prune import written
from minitron_cli import io
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint import hf
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.layerwise.activation_store import ActivationStore
from minitron_cli.layerwise.runner import LayerwiseRunner, StoredWeights
from minitron_cli.model.linear_layers import input_groups
from minitron_cli.sparse.layer_pass import Method, SparsifyPass, mask_specs
from minitron_cli.sparse.metrics import Magnitude, SparseGPT, Wanda
from minitron_cli.sparse.pattern import Pattern
from minitron_cli.sparse.store import LayerStore
from minitron_cli.sparse.write import SparseCheckpoint, by_magnitude, write_sparse

PATTERN = Pattern.parse("2:4")
SAMPLES, LENGTH, BATCH = 8, 512, 4
LAYERS = 2  # of the passes: every layer costs the same
BUDGET = 1 << 30


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a call."""
    wall, cpu = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - wall, time.process_time() - cpu


def copied(parent: SourceModel, directory: Path) -> None:
    """Copy the weights and sync them."""
    for path in sorted(parent.path.glob("*.safetensors")):
        shutil.copyfile(path, directory / path.name)
        with open(directory / path.name, "rb+") as file:
            os.fsync(file.fileno())


def sparsified(parent: SourceModel, directory: Path) -> None:
    """Write the weights with zeros, and the masks."""
    checkpoint, layers = parent.checkpoint, parent.shape.sizes["layer"]
    specs = mask_specs(parent.shape, Magnitude(), [PATTERN] * layers)
    made = by_magnitude(checkpoint, specs)
    view = SparseCheckpoint(checkpoint.path, checkpoint.config, checkpoint.tensors, made=made, sparse=frozenset(specs))
    write_sparse(view, specs, list(parent.shape.tensors()), directory)


def magnitude(parent: SourceModel, at: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of every round: copying and sparsifying alternate."""
    for number in range(rounds):
        found = {}
        for name, work in {"copy": copied, "sparsify": sparsified}.items():
            directory = at / name
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            found[name] = timed(partial(work, parent, directory))
        (copy_s, copy_cpu_s), (wall_s, cpu_s) = found["copy"], found["sparsify"]
        seconds = {"copy_s": copy_s, "copy_cpu_s": copy_cpu_s, "sparsify_s": wall_s, "cpu_s": cpu_s}
        yield {"round": number, **seconds, "ratio": wall_s / copy_s}


def passes(parent: SourceModel, at: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of every method: seconds of a few layers, relative to these layers' forward pass from disk."""
    samples = batches(SAMPLES, LENGTH, parent.shape.sizes["vocab"], BATCH)
    model = hf.empty_model(parent.path, dtype=parent.dtype_in(Context(Workspace(at))))
    for number in range(rounds):
        with torch.inference_mode():
            states = ActivationStore(_new(at / "states"), BUDGET)
            weights = StoredWeights(model, parent.family, parent.checkpoint.read, "cpu")
            runner = LayerwiseRunner(model, parent.family, samples, weights, states, lambda *_, **__: None)
            runner.embed()
            _, forward_s = timed(partial(_each_layer, partial(runner.through, observers=[])))
            least_s = 2 * forward_s + LAYERS * sparsegpt_flops(parent) / products_per_s()
            for metric, fits in ((Wanda(), False), (Wanda(), True), (SparseGPT(), False)):
                states = ActivationStore(_new(at / "states"), BUDGET)
                method = Method(metric, [PATTERN] * parent.shape.sizes["layer"], fits)
                store = LayerStore(at / "layers", parent.checkpoint)
                task = SparsifyPass(model, parent.shape, samples, method, store, states, "cpu", lambda *_, **__: None)
                task.begin()
                _, cpu_s = timed(partial(_each_layer, task.advance))
                name = f"{metric.kind}{', least squares' * fits}"
                yield {
                    "round": number,
                    "method": name,
                    "forward_s": forward_s,
                    "cpu_s": cpu_s,
                    "ratio": cpu_s / forward_s,
                    "to_flops": cpu_s / least_s if metric.kind == "sparsegpt" else None,
                }


def sparsegpt_flops(parent: SourceModel) -> int:
    """FLOPs of a layer by SparseGPT beside its two forward passes: sums, factor of each input, updates."""
    shapes, flops = parent.shape.tensors(), 0
    for group in input_groups(parent.shape):
        sizes = [shapes[template.format(layer=0, expert=0)] for template in group.templates]
        inputs = sizes[0][1]
        flops += SAMPLES * LENGTH * inputs**2 + 2 * inputs**3 // 3  # symmetric; factored and inverted
        flops += sum(outputs for outputs, _ in sizes) * inputs**2
    return flops


def products_per_s() -> float:
    """FLOPs of a large fp32 product in a CPU second."""
    size = 2048
    left = torch.ones(size, size)
    left @ left
    _, seconds = timed(lambda: left @ left)
    return 2 * size**3 / seconds


def _each_layer(work: Callable[[int], object]) -> None:
    for layer in range(LAYERS):
        work(layer)


def _new(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    io.make_dirs(directory)
    return directory


PARTS: dict[str, Callable[[SourceModel, Path, int], Iterator[dict[str, Any]]]] = {
    "magnitude": magnitude,
    "passes": passes,
}
TITLES = {
    "magnitude": "2:4 by magnitude, beside copying and syncing the same bytes",
    "passes": f"{LAYERS} layers on {SAMPLES} samples of {LENGTH} tokens, in CPU seconds",
}


def main(arguments: list[str]) -> None:
    """Run the parts and record the results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks sparsify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, [*PARTS]], default=[*PARTS])
    parser.add_argument("--model", type=Path, help="checkpoint (default: one of 1.6 GB with random weights)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        at = Path(temporary)
        parent = open_source_model(options.model or written("small", at))
        for part in options.parts:
            load = os.getloadavg()[0]
            rows = list(PARTS[part](parent, at, options.rounds))
            note = f"Load of the {os.cpu_count()} cores: {load:.1f} before, {os.getloadavg()[0]:.1f} after."
            record(f"sparsify-{part}", TITLES[part], rows, [note])


if __name__ == "__main__":
    main(sys.argv[1:])
