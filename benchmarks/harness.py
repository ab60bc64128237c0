"""Measure functions in alternation, in one process on one thread, and write the figures to results/."""

import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results"


def alternate(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every call after a warm-up call of each function. Every other round has the reverse order."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds):
        for name in list(functions)[:: 1 if i % 2 == 0 else -1]:
            started = time.process_time()
            functions[name]()
            seconds[name].append(time.process_time() - started)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, to: str) -> float:
    """Median over rounds of a function's time relative to another's. Both share a round, so slow moments cancel."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))


def anonymous_bytes() -> int:
    """Anonymous memory of this process: resident, and not backed by a file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not report anonymous memory: run the benchmark on Linux")


class Peak:
    """Anonymous memory in bytes during a block."""

    start: int
    highest: int

    @property
    def grown(self) -> int:
        """Bytes above those at the start."""
        return self.highest - self.start


@contextmanager
def peak_memory(every_s: float = 0.002) -> Iterator[Peak]:
    """Most anonymous memory while the block runs, sampled every `every_s` seconds."""
    peak, done = Peak(), threading.Event()
    peak.start = peak.highest = anonymous_bytes()

    def look() -> None:
        while not done.wait(every_s):
            peak.highest = max(peak.highest, anonymous_bytes())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def record(name: str, title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> None:
    """Write results/NAME.json and NAME.md, and print the table."""
    facts = {
        "command": " ".join(["python -m", _module(), *map(_elsewhere, sys.argv[1:])]),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"# {title}", "", " · ".join(f"{key} {value}" for key, value in facts.items()), ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]
    text = "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps({"facts": facts, "rows": list(rows)}, indent=2) + "\n")
    print(text)


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else sys.argv[0]


def _elsewhere(argument: str) -> str:
    """An argument as it would be given on another machine: a path in the home directory, or the name of a file."""
    path, home = Path(argument), Path.home()
    if not path.is_absolute():
        return argument
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else path.name


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
