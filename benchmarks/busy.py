"""Compare how long threads wait for each other: a training step on an idle machine, and beside other processes.

    python -m benchmarks busy    # about three minutes on two cores

Each run is a process of its own, since OpenMP reads its settings once; the settings take turns. Beside the steps run
as many processes that do nothing but compute as there are cores; `busy 0 12` chooses other numbers, and beside twelve
a step of the default takes half a minute.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.harness import record
from minitron_cli.cli.openmp import POLICY, SPINS, VARIABLE

SETTINGS = {"GNU's default": None, "minitron's": SPINS}
ROUNDS, STEPS = 3, 3
STEP = f"""
import json, time, torch
from minitron_cli.checkpoint import hf, model_names
model = hf.load_model(model_names.demo_teacher(), dtype="float32").train()
ids = torch.arange(2048).view(8, 256)
def step():
    model(input_ids=ids, labels=ids).loss.backward()
step()
wall, cpu = time.perf_counter(), time.process_time()
for _ in range({STEPS}):
    step()
print(json.dumps([(time.perf_counter() - wall) / {STEPS}, (time.process_time() - cpu) / {STEPS}]))
"""


@contextmanager
def beside(processes: int) -> Iterator[None]:
    """Other processes compute while the block runs."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def seconds(spins: str | None) -> tuple[float, float]:
    """Wall and CPU seconds of a step with all cores."""
    environment = {name: value for name, value in os.environ.items() if name not in (VARIABLE, POLICY)}
    environment |= {"OMP_NUM_THREADS": str(os.cpu_count())} | ({VARIABLE: spins} if spins else {})
    done = subprocess.run([sys.executable, "-c", STEP], env=environment, check=True, capture_output=True, text=True)
    wall, cpu = json.loads(done.stdout)
    return wall, cpu


def measure(processes: int) -> Iterator[dict[str, Any]]:
    """A row for each setting, beside this many other processes."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SETTINGS}
    with beside(processes):
        for i in range(ROUNDS):
            for name in list(SETTINGS)[:: 1 if i % 2 == 0 else -1]:
                found[name].append(seconds(SETTINGS[name]))
    first = next(iter(SETTINGS))
    for name, times in found.items():
        wall, cpu = (statistics.median(of) for of in zip(*times, strict=True))
        pairs = [zip(*both, strict=True) for both in zip(times, found[first], strict=True)]
        walls, cpus = zip(*([a / b for a, b in pair] for pair in pairs), strict=True)
        yield {
            "other processes": processes,
            "waits": name,
            "seconds a step": wall,
            "CPU seconds a step": cpu,
            "x seconds": statistics.median(walls),
            "x CPU": statistics.median(cpus),
        }


def main(parts: list[str]) -> None:
    """Run the parts, given as numbers of other processes, or all."""
    rows = []
    for processes in [int(part) for part in parts] or (0, os.cpu_count() or 1):
        print(f"{processes} other processes ...", file=sys.stderr, flush=True)
        rows += measure(processes)
    notes = [
        f"The teacher of the demo, 8 x 256 tokens, {os.cpu_count()} threads: medians of {ROUNDS} processes of {STEPS} "
        "steps each; settings take turns, and ratios are medians over turns.",
    ]
    record("busy", "Threads that wait for each other, beside other processes", rows, notes)
