"""Time from SIGTERM to exit, verb by verb, at random moments of runs on a real model.

    python scripts/stop_times.py --model DIRECTORY --work DIRECTORY [--trials 5] [--verbs eval,distill]

Each trial is a process of its own. A line of JSON per trial: verb, seconds before the signal, seconds until the exit,
exit code, what the run was doing, and the load of the machine. Runs of one verb continue each other where it resumes.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = ("--data", "python_stdlib", "--sequence-length", "1024")
PREPARE = {
    "importance": ("importance", "MODEL", *DATA, "--samples", "4", "--batch-size", "1", "--no-layer-removal"),
    "prune": ("prune", "--shape", "ffn=2432", "repair=none"),
}
VERBS: dict[str, tuple[str, ...]] = {
    "importance": ("importance", "MODEL", *DATA, "--samples", "64", "--overwrite"),
    "importance, layer by layer": ("importance", "MODEL", *DATA, "--samples", "64", "--overwrite", "--layer-major"),
    "search": ("search", "--target", "70%", "--candidates", "4", "--retrain-tokens", "1M", "--overwrite"),
    "prune with repair": ("prune", "--shape", "ffn=2432", "--overwrite"),
    "prune alone": ("prune", "--shape", "ffn=2432", "repair=none", "--overwrite"),
    "correct": ("correct", "MODEL", *DATA, "--steps", "100", "--overwrite"),
    "distill": ("distill", "--steps", "100", "--overwrite"),
    "eval": ("eval", "--overwrite"),
    "eval, speed": ("eval", "--speed", "--overwrite"),
    "eval, cloze": ("eval", "--cloze", "--overwrite"),
}
MOST_SECONDS = 600  # for a run to end by itself, or after a signal


def minitron(words: tuple[str, ...], model: Path, runs: Path) -> list[str]:
    """Command line of one run."""
    named = [str(model) if word == "MODEL" else word for word in words]
    return [sys.executable, "-m", "minitron_cli", *named, "--runs-dir", str(runs), "--run", "one"]


def trial(verb: str, words: tuple[str, ...], model: Path, runs: Path, wait: float) -> dict[str, Any]:
    """Start a run, stop it after `wait` seconds, and measure how long it takes to end."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(minitron(words, model, runs), stdout=subprocess.DEVNULL, stderr=log)
        try:
            process.wait(wait)
            ended_alone = True
        except subprocess.TimeoutExpired:
            ended_alone = False
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(MOST_SECONDS)
        seconds = time.monotonic() - started
        log.seek(0)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    found = {"verb": verb, "after": round(wait, 1), "seconds": round(seconds, 2), "exit": code}
    doing = next((line for line in reversed(lines) if "stop" not in line), "")
    return found | {"ended_alone": ended_alone, "doing": doing[:60], "load": round(os.getloadavg()[0], 1)}


def trials(
    model: Path, work: Path, verbs: list[str], count: int, least: float, most: float
) -> Iterator[dict[str, Any]]:
    """All trials, after what the verbs need is made."""
    draw = random.Random(0)
    for words in PREPARE.values():
        subprocess.run(minitron(words, model, work), check=True, stdout=subprocess.DEVNULL)
    for verb in verbs:
        for _ in range(count):
            yield trial(verb, VERBS[verb], model, work, draw.uniform(least, most))


def main() -> None:
    """Parse the command line and print the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--verbs", nargs="*", choices=VERBS, default=list(VERBS))
    parser.add_argument("--least", type=float, default=2, help="seconds before the signal")
    parser.add_argument("--most", type=float, default=60, help="seconds before the signal")
    given = parser.parse_args()
    for found in trials(given.model, given.work, given.verbs, given.trials, given.least, given.most):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
