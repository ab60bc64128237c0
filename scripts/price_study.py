"""Prices before the work against what then happened, verb by verb and model by model, as a Markdown table.

    python scripts/price_study.py --text FILE --work DIRECTORY [--models gemma-3-270m,qwen2.5-0.5b,DIRECTORY]

Every cell is priced by a dry run, which also fills the cache of probed speeds, and then run in a process of its own,
all on one thread. Its time is the CPU time of that process less that of a dry run, which imports the same libraries: on
one thread that is the time that it takes on a quiet machine, whatever else is running. Finished cells are kept in
DIRECTORY/cells.json, so that a killed study continues where it was.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minitron_cli import canonical_json, io, strict_json
from minitron_cli.figures import duration, memory_size
from scripts import real_models

LENGTH = 256
VERBS: dict[str, tuple[str, ...]] = {
    "importance": ("importance", "MODEL", "--samples", "16", "batch_size=8", "layer_removal=false"),
    "importance, layers removed": ("importance", "MODEL", "--samples", "2", "batch_size=2", "layer_removal=true"),
    "prune": ("prune", "--shape", "ffn=FFN", "repair=none"),
    "prune, repaired": ("prune", "--shape", "ffn=FFN", "repair=least_squares", "repair_samples=8"),
    "distill": ("distill", "--steps", "8", "batch_size=2", "micro_batch_size=1", "eval_blocks=4", "warmup_steps=0"),
    "eval": ("eval", "blocks=16"),
}
AGREEMENT = 1.5  # factor within which an estimate is to be


def main() -> None:
    """Run the cells that are not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", default="gemma-3-270m,qwen2.5-0.5b")
    parser.add_argument("--verbs", default=";".join(VERBS), help="Names of verbs, separated by semicolons.")
    given = parser.parse_args()
    for model in given.models.split(","):
        for verb in given.verbs.split(";"):
            measured(given.work, model, verb, given.text)
    print("\n".join(table(cells(given.work))))


def measured(work: Path, model: str, verb: str, text: Path) -> Mapping[str, Any]:
    """Figures of one cell: those that are kept, or new ones."""
    known, name = cells(work), f"{model}: {verb}"
    if name not in known:
        words = tuple(arguments(verb, located(model), text))
        runs = ("--runs-dir", str(work / "runs"), "--run", Path(model).name, "--json")
        dry = (*words, *runs, "--overwrite", "--dry-run")
        minitron(dry)  # fills the cache of probed speeds
        (priced, imports), (done, work_took) = minitron(dry), minitron((*words, *runs, "--overwrite"))
        known[name] = {
            "model": Path(model).name,
            "verb": verb,
            "price": priced["price"],
            "seconds": work_took.ru_utime + work_took.ru_stime - imports.ru_utime - imports.ru_stime,
            "wall_seconds": done["run"]["seconds"],
            "peak_bytes": work_took.ru_maxrss * 1024,
        }
        io.replace(kept(work), canonical_json.pretty(known))
        print(json.dumps(known[name] | {"price": priced["price"]["seconds"]}), file=sys.stderr, flush=True)
    return known[name]


def located(model: str) -> Path:
    """Directory of a model, or of a real model by its name."""
    return Path(model) if Path(model).is_dir() else real_models.real_model(model)


def arguments(verb: str, model: Path, text: Path) -> Iterator[str]:
    """Command line of a verb; three quarters of the neurons are kept."""
    ffn = strict_json.load(model / "config.json")["intermediate_size"] * 3 // 4 // 32 * 32
    for word in VERBS[verb]:
        yield str(model) if word == "MODEL" else word.replace("FFN", str(ffn))
    if verb != "prune":
        yield from ("--data", str(text), "--sequence-length", str(LENGTH))


def minitron(words: Sequence[str]) -> tuple[Any, resource.struct_rusage]:
    """What a command prints as JSON, and what its process took."""
    command = [sys.executable, "-m", "minitron_cli", *words, "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"minitron {' '.join(words)} ended with exit code {process.returncode}")
    return json.loads(printed), usage


def kept(work: Path) -> Path:
    """File of the finished cells."""
    io.make_dirs(work)
    return work / "cells.json"


def cells(work: Path) -> dict[str, Any]:
    """Finished cells by name."""
    return strict_json.load(kept(work)) if kept(work).is_file() else {}


def table(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Markdown table of estimates and measurements."""
    columns = ["model", "verb", "FLOPs", "time, estimate", "time, measured", "ratio"]
    columns += ["memory, estimate", "memory, measured"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for cell in found.values():
        price, seconds = cell["price"], cell["seconds"]
        expected = price["seconds"]
        ratio = expected / seconds if expected else None
        is_off = ratio is not None and not 1 / AGREEMENT <= ratio <= AGREEMENT
        yield (
            f"| {cell['model']} | {cell['verb']} | {price['flops']:.3g} "
            f"| {duration(expected) if expected else 'seconds'} | {duration(seconds)} "
            f"| {f'{ratio:.2f}' if ratio else ''}{' (off)' if is_off else ''} "
            f"| {memory_size(price['memory_bytes'])} | {memory_size(cell['peak_bytes'])} |"
        )


if __name__ == "__main__":
    main()
