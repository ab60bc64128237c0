"""Compare pruning a checkpoint with copying the kept bytes, and with loading, slicing and saving in transformers.

    python -m benchmarks prune                    # all parts except 8b; writes 1.6 and 4.4 GB of random weights
    python -m benchmarks prune core --rounds 7    # some parts
    python -m benchmarks prune 8b --at DIRECTORY  # Llama-3.1-8B's shape to 4B's: 16 GB, and 9 GB for the child

Parts: core (ours, a copy of the kept bytes, a copy that also gathers columns, transformers), memory (of the core, for
two checkpoints), verb (steps of a whole `minitron prune`), 8b. Each run is a process; its seconds exclude imports. The
page cache is warm.
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import record
from benchmarks.layer_major import llama, write_random
from minitron_cli import io
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.cost.compute import model_size
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.model.shape import Shape
from minitron_cli.prune import stream
from minitron_cli.prune.config import PruneConfig, Ranking
from minitron_cli.prune.plan import PrunePlan, make_plan
from minitron_cli.results.importance import ImportanceResult
from minitron_cli.scores.scores import Scores
from minitron_cli.stages import prune

SMALL = {"layers": 15, "hidden": 2048, "ffn": 5632, "vocab": 32000, "heads": 32, "kv_heads": 4}
LARGE = {"layers": 11, "hidden": 4096, "ffn": 11008, "vocab": 32000, "heads": 32, "kv_heads": 8}
LLAMA_8B = {"layers": 32, "hidden": 4096, "ffn": 14336, "vocab": 128256, "heads": 32, "kv_heads": 8}
SHAPES = {
    "small": (SMALL, {"hidden": 1536, "ffn": 3840}),
    "large": (LARGE, {"hidden": 3072, "ffn": 7424}),
    "8b": (LLAMA_8B, {"hidden": 3072, "ffn": 9216}),
}
SHARD_BYTES = {"small": 4 * 10**8, "large": 5 * 10**9, "8b": 5 * 10**9}
COPY_BYTES = 1 << 20
SEQUENCE_LENGTH = 4096  # tokens per calibration block of the random scores
WIDTH = 2048  # 16-bit numbers per row of a copied block
ONE = "--one-way"  # first argument of a process that measures one run

Row = dict[str, Any]
"""Figures of one run, or one row of a table of results."""


# Measurements of one process


class SyncTimer(io.Disk):
    """Disk that adds up the seconds of syncing files."""

    def __init__(self) -> None:
        self.syncing = 0.0

    def fsync(self, fd: int) -> None:
        started = time.perf_counter()
        super().fsync(fd)
        self.syncing += time.perf_counter() - started


def random_scores(shape: Shape) -> Scores:
    """Scores of hidden channels, neurons and heads."""
    draw = torch.Generator().manual_seed(0)
    layers = shape.sizes["layer"]
    sizes = {"hidden": (shape.sizes["hidden"],), "ffn": (layers, shape.sizes["ffn"]), "head": (layers, 8)}
    return Scores({f"{axis}.batch=l2.sequence=mean": torch.rand(size, generator=draw) for axis, size in sizes.items()})


def plan_of(parent: SourceModel, name: str) -> PrunePlan:
    """Plan from a parent to the child of its row in SHAPES."""
    return make_plan(parent.shape, parent.shape.resize(**SHAPES[name][1]), random_scores(parent.shape), Ranking())


def ours(name: str, parent: SourceModel, out: Path) -> Row:
    """Prune by streaming."""
    plan = plan_of(parent, name)
    io.disk = watch = SyncTimer()
    with clocked() as row:
        stream.write_child(parent.checkpoint, plan, out)
    return row | {"seconds": row["seconds"] - watch.syncing, "fsync": watch.syncing}


def copy(name: str, parent: SourceModel, out: Path, workers: int = 1, gather: bool = False) -> Row:
    """Read every byte and write the kept share, block by block as `cp` does; `gather` also selects columns."""
    plan = plan_of(parent, name)
    kept = plan.child.parameters() / plan.parent.parameters()
    with clocked() as row:
        for file in sorted({info.file for info in parent.checkpoint.tensors.values()}):
            copy_share(file, out / file.name, kept, workers, gather)
    return row


def copy_in_threads(name: str, parent: SourceModel, out: Path) -> Row:
    """Copy the kept share with one worker per thread."""
    return copy(name, parent, out, torch.get_num_threads())


def gather_in_threads(name: str, parent: SourceModel, out: Path) -> Row:
    """Copy the kept share and select columns: the cost of pruning without any knowledge of tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # per worker
    return copy(name, parent, out, threads, gather=True)


def copy_share(source: Path, target: Path, kept: float, workers: int, gather: bool) -> None:
    """Copy a share of each block of a file."""
    reader, writer = os.open(source, os.O_RDONLY), os.open(target, os.O_WRONLY | os.O_CREAT)
    blocks = -(-source.stat().st_size // COPY_BYTES)
    columns = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))[: int(WIDTH * kept)].sort().values

    def work(first: int) -> None:
        block = torch.empty(COPY_BYTES // 2, dtype=torch.int16).view(-1, WIDTH)
        buffer = result = block.view(-1).view(torch.uint8).numpy().data
        if gather:
            index, picked = columns.expand(len(block), -1), torch.empty(len(block), len(columns), dtype=torch.int16)
            result = picked.view(-1).view(torch.uint8).numpy().data
        for i in range(first, blocks, workers):
            count = os.preadv(reader, [buffer], i * COPY_BYTES)
            if gather:
                torch.gather(block, 1, index, out=picked)
            os.pwrite(writer, result[: int(count * kept)], i * int(COPY_BYTES * kept))

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    os.close(reader)
    os.close(writer)


def transformers(name: str, parent: SourceModel, out: Path) -> Row:
    """Load the whole model with transformers, index its matrices, and save it."""
    from transformers import AutoModelForCausalLM

    plan = plan_of(parent, name)
    with clocked() as row, torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(parent.path, dtype=torch.bfloat16)
        for tensor_name, parameter in model.named_parameters():
            kept = parameter.data
            for dim, index in enumerate(plan.indices(tensor_name)):
                if index is not None:
                    kept = kept[index] if dim == 0 else kept[:, index]
            parameter.data = kept
        model.config.hidden_size, model.config.intermediate_size = (plan.child.sizes[a] for a in ("hidden", "ffn"))
        model.save_pretrained(out)
    return row


def verb(name: str, parent: SourceModel, out: Path) -> Row:
    """Run the prune stage as the command line does, and time its steps."""
    import_module("transformers.models.llama.modeling_llama")  # the export check would import it within the time

    workspace = Workspace(out / "run")
    scores = importance(workspace, parent)
    config = PruneConfig(shape=SHAPES[name][1])
    spent: dict[str, float] = {}
    io.disk = watch = SyncTimer()
    stream.write_child = timed(stream.write_child, "write", spent)
    StageBuild.hashing = contextmanager(timed_around(StageBuild.hashing, "hash and check", spent))
    with clocked() as row:
        again = open_source_model(parent.path)
        spent["open"] = time.perf_counter() - row["started"]
        prune.run(Context(workspace), again, config, scores=scores)
    core = spent["write"] - watch.syncing
    rest = row["seconds"] - sum(spent.values())
    parts = {part: spent[part] for part in ("hash and check", "open")}
    return row | {"core": core, "fsync": watch.syncing, **parts, "rest": rest}


def importance(workspace: Workspace, parent: SourceModel) -> Artifact:
    """Artifact with random scores of a parent."""
    config = ImportanceConfig()

    def build(work: StageBuild) -> ImportanceResult:
        random_scores(parent.shape).save(work.path)
        size = model_size(parent.shape, SEQUENCE_LENGTH)
        return ImportanceResult(model=size, samples=config.samples, sequence_length=SEQUENCE_LENGTH)

    return produce(
        Context(workspace),
        stage="importance",
        version=1,
        config=config,
        inputs={"model": parent.fingerprint},
        build=build,
    )


def timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """Function that adds its seconds to `spent[name]`."""

    def run(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **options)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

    return run


def timed_around(manager: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Iterator[None]]:
    """Generator function of a context manager that stores the seconds of its block in `spent[name]`."""

    def run(*args: Any) -> Iterator[None]:
        started = time.perf_counter()
        with manager(*args):
            yield
        spent[name] = time.perf_counter() - started

    return run


@contextmanager
def clocked() -> Iterator[Row]:
    """Figures of the block: seconds, CPU seconds, and peak resident memory (VmHWM) in all and above the start."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, row, cpu = status_mib("VmRSS"), {"started": time.perf_counter()}, time.process_time()
    yield row
    row["seconds"] = time.perf_counter() - row["started"]
    row["cpu"] = time.process_time() - cpu
    row["peak MiB"] = status_mib("VmHWM")
    row["over start MiB"] = row["peak MiB"] - before


def status_mib(field: str) -> float:
    """Memory of this process in MiB."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


WAYS: dict[str, Callable[[str, SourceModel, Path], Row]] = {
    "ours": ours,
    "copy": copy,
    "copy-in-threads": copy_in_threads,
    "gather-in-threads": gather_in_threads,
    "transformers": transformers,
    "verb": verb,
}


def measure_here(way: str, name: str, parent: Path, out: Path) -> None:
    """Print the figures of one run as JSON."""
    print(json.dumps(WAYS[way](name, open_source_model(parent), out)))


# Measurements in processes of their own


def measured(way: str, name: str, parent: Path) -> Row:
    """Figures of one run in a new process, whose files are then removed."""
    with tempfile.TemporaryDirectory(dir=parent.parent) as out:
        command = [sys.executable, "-m", "benchmarks.prune", ONE, way, name, str(parent), out]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def written(name: str, at: Path) -> Path:
    """Checkpoint of random weights, written if it does not exist. Files below 1 GiB are read into the page cache."""
    parent = at / name
    if not (parent / "config.json").exists():
        shutil.rmtree(parent, ignore_errors=True)
        parent.mkdir(parents=True)
        write_random(parent, llama(**SHAPES[name][0]), SHARD_BYTES[name])
    for path in parent.iterdir():
        path.read_bytes() if path.stat().st_size < 1 << 30 else None
    return parent


def alternately(ways: list[str], name: str, parent: Path, rounds: int) -> dict[str, list[Row]]:
    """Figures of every run. Every other round has the reverse order."""
    rows: dict[str, list[Row]] = {way: [] for way in ways}
    for i in range(rounds):
        for way in ways[:: 1 if i % 2 == 0 else -1]:
            rows[way].append(measured(way, name, parent))
            print(name, way, {k: round(v, 3) for k, v in rows[way][-1].items()}, file=sys.stderr, flush=True)
    return rows


def summary(label: str, rows: list[Row], **more: Any) -> Row:
    """Row of a table from the figures of all runs."""
    seconds = [row["seconds"] for row in rows]
    fields = {"run": label, "min s": min(seconds), "median s": statistics.median(seconds)}
    fields["min cpu s"] = min(row["cpu"] for row in rows)
    return fields | {"over start MiB": max(row["over start MiB"] for row in rows), **more}


def core(at: Path, rounds: int) -> list[Row]:
    """Part `core`."""
    ways = ["ours", "copy", "copy-in-threads", "gather-in-threads", "transformers"]
    found = alternately(ways, "small", written("small", at), rounds)
    best = {way: min(row["seconds"] for row in rows) for way, rows in found.items()}
    middle = {way: statistics.median(row["seconds"] for row in rows) for way, rows in found.items()}
    return [
        summary(way, rows, **{"min x copy": best[way] / best["copy"], "median x copy": middle[way] / middle["copy"]})
        for way, rows in found.items()
    ]


def memory(at: Path, rounds: int) -> list[Row]:
    """Part `memory`."""
    rows = []
    for name in ("small", "large"):
        parent = written(name, at)
        gigabytes = Checkpoint.open(parent).size_bytes / 1e9
        rows.append(summary(f"ours, {gigabytes:.2f} GB", [measured("ours", name, parent) for _ in range(3)]))
    return rows


def whole_verb(at: Path, rounds: int) -> list[Row]:
    """Part `verb`."""
    found = alternately(["verb"], "small", written("small", at), rounds)["verb"]
    parts = ("seconds", "core", "fsync", "hash and check", "open", "rest")
    middle = {part: statistics.median(row[part] for row in found) for part in parts}
    return [{"step": part, "median s": middle[part], "x core": middle[part] / middle["core"]} for part in parts]


def eight_billion(at: Path, rounds: int) -> list[Row]:
    """Part `8b`."""
    parent = written("8b", at)
    found = [measured("ours", "8b", parent) for _ in range(rounds)]
    return [
        {"run": "Llama-3.1-8B's shape to 4B's", "parent GB": Checkpoint.open(parent).size_bytes / 1e9} | row
        for row in ({k: v for k, v in one.items() if k != "started"} for one in found)
    ]


PARTS = {"core": core, "memory": memory, "verb": whole_verb, "8b": eight_billion}
TITLES = {
    "core": "Pruning: 1.58 GB of bf16 to 0.96 GB, without hashing and fsync",
    "memory": "Pruning: memory",
    "verb": "Pruning: steps of a whole `minitron prune` of 1.58 GB",
    "8b": "Pruning: an 8B-shaped checkpoint",
}


def main(arguments: list[str]) -> None:
    """Run the parts, or all except 8b, and record the results."""
    if arguments[:1] == [ONE]:
        return measure_here(*arguments[1:3], *map(Path, arguments[3:]))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks prune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=["core", "memory", "verb"])
    parser.add_argument("--at", type=Path, help="directory to keep the checkpoints in (default: a temporary one)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        for part in options.parts:
            load = os.getloadavg()[0]
            rows = PARTS[part](options.at or Path(temporary), options.rounds)
            note = f"Load of the {os.cpu_count()} cores: {load:.1f} before, {os.getloadavg()[0]:.1f} after."
            record(f"prune-{part}", TITLES[part], rows, [note])


if __name__ == "__main__":
    main(sys.argv[1:])
